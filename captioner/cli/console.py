"""What commands say on standard error, and their reports as JSON."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import orjson

from captioner.core.humanize import printable_json, printable_lines, wrapped


def say(text: str) -> None:
    """Print to standard error, also if nothing reads it; on a terminal between words."""
    text = printable_lines(text)
    with contextlib.suppress(OSError, ValueError):  # standard error is no terminal
        text = wrapped(text, os.get_terminal_size(sys.stderr.fileno()).columns or 80)
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def json_of(report: Any) -> str:
    """Return a report as indented JSON without control characters."""
    return printable_json(orjson.dumps(report.as_dict(), option=orjson.OPT_INDENT_2).decode())
