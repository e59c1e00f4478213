"""What the campaign counted, for the table that `scripts/chaos` prints."""

from __future__ import annotations

import json
import os
from pathlib import Path

LONG = os.environ.get("CHAOS") == "long"
"""The nightly size."""


told: list[str] = []
"""What the test run says at its end, seeds among it."""


def tally(case: str, **counts: int) -> None:
    """Note counts for the end of the test run, and for a report if somebody asked for one."""
    told.append(f"{case}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}")
    if report := os.environ.get("CHAOS_REPORT"):
        with Path(report).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"case": case, **counts}) + "\n")
