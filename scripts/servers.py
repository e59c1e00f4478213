"""Install real servers, run the tests on them, and print a table. See scripts/servers."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

from real_servers import RECIPES, NotInstalledError, install, version  # noqa: E402


def main() -> None:
    names = sys.argv[1:]
    only_install = names[:1] == ["install"]
    lines = [
        "| server | version | passed | skipped | failed |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    failed = False
    for name in names[only_install:] or RECIPES:
        try:
            install(name, partial(print, flush=True))
        except NotInstalledError as error:
            print(f"{name} is not installed: {error}")
            lines.append(f"| {name} | not installed: {error} | | | |")
            continue
        if not only_install:
            counts = tested(name)
            failed = failed or counts["failed"] > 0
            cells = " | ".join(str(counts[what]) for what in ("passed", "skipped", "failed"))
            lines.append(f"| {name} | {version(name)} | {cells} |")
    if not only_install:
        print("\n".join(lines))
    sys.exit(failed)


def tested(name: str) -> Counter[str]:
    """Run the tests on a server; count those that passed, failed or had nothing to test."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        pytest = (sys.executable, "-m", "pytest", "-n", "0", "tests/servers", "-rs")
        subprocess.run([*pytest, "--servers", name, f"--junitxml={report}"], check=False, cwd=ROOT)
        counts: Counter[str] = Counter()
        for case in ET.parse(report).iter("testcase"):
            outcome = next((child.tag for child in case), "passed")
            why = next((child.get("message", "") for child in case), "")
            if "was not asked for" not in why:  # a test of another server
                counts["failed" if outcome in ("failure", "error") else outcome] += 1
    return counts


if __name__ == "__main__":
    main()
