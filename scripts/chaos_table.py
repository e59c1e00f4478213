"""Print what the fault campaign counted as a Markdown table.

usage: python scripts/chaos_table.py REPORT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLUMNS = ("seed", "runs", "records", "kills", "faults", "lost", "doubled", "repaid")


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text("utf-8").splitlines()]
    rows.sort(key=lambda row: row["case"])  # the tests ran side by side, in any order
    print("| case |", " | ".join(COLUMNS), "|")
    print("| --- |", " | ".join("---:" for _ in COLUMNS), "|")
    for row in rows:
        cells = (f"{row[name]:,}" if name in row else "" for name in COLUMNS)
        print(f"| {row['case']} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
