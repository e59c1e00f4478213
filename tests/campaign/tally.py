"""What the campaign counted, for the table that `scripts/chaos` prints."""

from __future__ import annotations

import json
import os
from pathlib import Path

LONG = os.environ.get("CHAOS") == "long"
"""The nightly size."""


def tally(case: str, **counts: int) -> None:
    """Add counts to the campaign's report, if somebody asked for one."""
    if report := os.environ.get("CHAOS_REPORT"):
        with Path(report).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"case": case, **counts}) + "\n")
