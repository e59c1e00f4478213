"""The command line of benchmarks/compare.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMPARE = Path(__file__).parents[2] / "benchmarks" / "compare.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(COMPARE), *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_the_tables(flag):
    shown = run(flag)
    assert shown.returncode == 0
    for table in ("cost", "latency", "draw", "processes"):
        assert f"\n  {table} " in shown.stdout


def test_an_unknown_table_is_an_error():
    refused = run("costs")
    assert refused.returncode == 2
    assert "there is no table costs; there are cost, latency" in refused.stderr
