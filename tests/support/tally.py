"""What the campaign counted, for the table that `scripts/chaos` prints."""

from __future__ import annotations

import json
import os
from pathlib import Path

LONG = os.environ.get("CHAOS") == "long"
"""The nightly size."""


told: list[str] = []
"""Lines for the end of the test run. With pytest-xdist each worker sends its own to the controller
(see `conftest.py`)."""


def tally(case: str, **counts: int) -> None:
    """Note counts for the end of the test run, and append them to the file CHAOS_REPORT names."""
    told.append(f"{case}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}")
    if report := os.environ.get("CHAOS_REPORT"):
        line = json.dumps({"case": case, **counts}) + "\n"
        with Path(report).open("ab", buffering=0) as file:  # one write, so workers do not mix lines
            file.write(line.encode())
