"""Splitting blocks of bytes into lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 1 << 22


def iter_lines(
    read: Callable[[int, int], bytes], start: int = 0, *, unfinished: bool = False
) -> Iterator[list[bytes]]:
    """Yield lines without their ends, one list for each block that is read.

    Holds one block and one line in memory at a time.

    Args:
        read: Called with a size and an offset; returns at most that many bytes, none at the end.
        start: Offset of the first line.
        unfinished: Yield a last line that has no end, too, in a list of its own.
    """
    offset = start
    pieces: list[bytes] = []  # of a line that continues in the next block
    while block := read(BLOCK, offset):
        offset += len(block)
        lines, newline, rest = block.rpartition(b"\n")
        if newline:
            yield b"".join((*pieces, lines)).split(b"\n")
            pieces = []
        pieces.append(rest)
    if unfinished and (line := b"".join(pieces)):
        yield [line]
