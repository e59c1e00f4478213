"""Install real servers, run the tests on them, and print a table. See scripts/servers."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

from real_servers import install  # noqa: E402


def main() -> None:
    what, *names = sys.argv[1:]
    if what == "install":
        for name in names:
            if not install(name):
                print(f"{name} is not installed, and its tests are skipped")


if __name__ == "__main__":
    main()
