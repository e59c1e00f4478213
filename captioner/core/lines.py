"""Splitting blocks of bytes into lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.core.errors import OutputDamagedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 1 << 22

LONGEST = 1 << 29
"""Bytes of a line. One with more, as in a file with a large hole, would fill the memory."""


def iter_lines(
    read: Callable[[int, int], bytes],
    start: int = 0,
    *,
    unfinished: bool = False,
    name: str = "a file of the output",
) -> Iterator[list[bytes]]:
    """Yield lines without their ends, one list for each block that is read.

    Holds one block and one line in memory at a time.

    Args:
        read: Called with a size and an offset; returns at most that many bytes, none at the end.
        start: Offset of the first line.
        unfinished: Yield a last line that has no end, too, in a separate list.
        name: What is read, for messages.

    Raises:
        OutputDamagedError: A line has more than `LONGEST` bytes.
    """
    offset = start
    pieces: list[bytes] = []  # of a line that continues in the next block
    size = 0  # of these
    while block := read(BLOCK, offset):
        offset += len(block)
        lines, newline, rest = block.rpartition(b"\n")
        if newline:
            yield b"".join((*pieces, lines)).split(b"\n")
            pieces, size = [], 0
        pieces.append(rest)
        size += len(rest)
        if size > LONGEST:
            raise OutputDamagedError(
                f"{name} has a line of more than {LONGEST >> 20} MB, which no run has written. "
                "Remove it or choose another output with -o."
            )
    if unfinished and (line := b"".join(pieces)):
        yield [line]
