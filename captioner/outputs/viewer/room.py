"""The room of one response for rows, whatever they hold."""

from __future__ import annotations

from typing import Any

from captioner.readers.rows import dumped

MOST_READ_BYTES = 64 << 20
MOST_BYTES = 16 << 20
"""Bytes of lines that one response is made from, and bytes of a response."""

MOST_ROW_BYTES = 1 << 20
LEAST_BYTES = 1 << 16
"""Bytes of a row in a response, and those for which there is room in every response."""


class Room:
    """What is left of a response."""

    def __init__(self) -> None:
        self._to_read, self._left = MOST_READ_BYTES, MOST_BYTES

    def read(self, line: bytes) -> None:
        """Take the room for reading a line; ValueError if there is none."""
        if len(line) > max(self._to_read, LEAST_BYTES):
            raise _too_large()
        self._to_read -= len(line)

    def show(self, row: dict[str, Any]) -> None:
        """Take the room for showing a row; ValueError if there is none."""
        size = len(dumped(row))
        if size > min(MOST_ROW_BYTES, max(self._left, LEAST_BYTES)):
            raise _too_large()
        self._left -= size


def _too_large() -> ValueError:
    return ValueError("it is too large for the page")
