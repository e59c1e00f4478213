"""Warnings of the library: they are logged under the name ``captioner``."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOGGER = logging.getLogger("captioner")


def warn_once(text: str, seen: set[str]) -> None:
    """Log a warning of a worker unless it is in the set; add it."""
    if text not in seen:
        seen.add(text)
        LOGGER.warning("%s", text)


@contextmanager
def forward_warnings(warn: Callable[[str], None] | None) -> Iterator[None]:
    """Call a function with the text of each warning that is logged inside the block.

    Args:
        warn: The function; None forwards nothing. It may be called from any thread.
    """
    if warn is None:
        yield
        return
    handler = _Forward(warn)
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)


class _Forward(logging.Handler):
    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn = warn

    def emit(self, record: logging.LogRecord) -> None:
        self._warn(record.getMessage())
