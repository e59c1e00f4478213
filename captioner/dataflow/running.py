"""Runs the engine for scripts, with its warnings and errors in DataFlow-MM's terms."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from captioner.core.errors import CaptionerError
from captioner.core.humanize import printable_lines
from captioner.core.log import forward_warnings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_T = TypeVar("_T")


def run_coroutine(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine, and print its warnings unless the script configured logging."""
    with forward_warnings(None if logging.root.handlers else print_line):
        return run_blocking(lambda: asyncio.run(work))


def print_line(text: str) -> None:
    """Print a line where scripts without logging show it."""
    print(printable_lines(text), file=sys.stderr)  # noqa: T201 - see above


def run_blocking(call: Callable[[], _T]) -> _T:
    """Call a function that runs an event loop, in a thread if a loop is running (notebooks)."""
    try:
        if not _is_in_loop():  # not in an except clause: Ctrl-C would show its error as well
            return call()
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(call).result()
    except CaptionerError as error:  # Python prints the message and no traceback
        raise SystemExit(_in_script_words(str(error))) from None


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_SCRIPT_WORDS = (
    (r"no endpoint\.[\s\S]*", "api_url: must not be empty"),
    (r"If [^.]*--accept-changes=edits\. If not, restore", "Restore"),
    (
        r", choose another output with -o(?:, [^,.;]*--redo)?, or [^,.;]*--[a-z][^,.;]*",
        ", or choose another cache_path",
    ),
    (r"hoose another( output| place)? with -o", "hoose another cache_path"),
    ("un the same command again", "un the script again"),
    (r"(--|\b)base-url\b", "api_url"),
    (r"(--|\b)api-key-env\b", "key_name_of_api_key"),
    (r"--model\b|\bmodel(?=:| was )", "model_name"),
    (r"--concurrency\b|\bconcurrency(?=:)", "max_workers"),
    (r"\b(image|prompt|conversation)-field\b", r"input_\1_key"),
    (r"\boutput-field\b", "output_answer_key"),
    (r"[,.;] [^,.;]*--[a-z][^,.;]*", ""),  # advice to use a flag that scripts do not have
)


def _in_script_words(message: str) -> str:
    """Return an error message with the script's arguments in place of the command's flags."""
    for pattern, words in _SCRIPT_WORDS:
        message = re.sub(pattern, words, message)
    return message
