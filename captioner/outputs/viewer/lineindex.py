"""Random access to the lines of a file that may be growing; eight bytes of memory per line."""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_left, bisect_right
from functools import partial
from typing import TYPE_CHECKING

from captioner.core.errors import OutputDamagedError
from captioner.core.lines import iter_lines
from captioner.core.regular import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WINDOW = 1 << 20
_MOST_LINES = 4_096


class LineIndex:
    """The offsets of a file's whole lines. Thread-safe.

    Args:
        path: The file; it may not exist yet.

    Attributes:
        path: The file.
        generation: Changes when another file replaces this one: line numbers are invalid then.
    """

    def __init__(self, path: Path) -> None:
        self.generation = 0
        self.path = path
        self._fd = -1
        self._starts = array("Q", [0])
        self._lock = threading.RLock()
        self._stopped = False

    def __len__(self) -> int:
        """Return the number of whole lines at the last refresh."""
        return len(self._starts) - 1

    @property
    def identity(self) -> bytes:
        """Device and inode of the file; empty if it does not exist."""
        with self._lock:
            found = os.fstat(self._fd) if self._fd >= 0 else None
            return b"%d %d" % (found.st_dev, found.st_ino) if found else b""

    def refresh(self) -> None:
        """Index appended lines; start again if another file replaced this one."""
        with self._lock:
            if self._was_replaced():
                self._reopen()
            if self._fd < 0:
                return
            for lines in iter_lines(partial(os.pread, self._fd), self._starts[-1]):
                if self._stopped:
                    return
                for line in lines:
                    self._starts.append(self._starts[-1] + len(line) + 1)

    def _was_replaced(self) -> bool:
        try:
            found = self.path.lstat()
        except OSError:
            return self._fd >= 0
        if self._fd < 0:
            return True
        truncated = found.st_size < self._starts[-1]
        return truncated or not os.path.samestat(found, os.fstat(self._fd))

    def _reopen(self) -> None:
        self.close()
        self._starts = array("Q", [0])
        self.generation += 1
        try:
            self._fd = open_regular(self.path)
        except (OSError, OutputDamagedError):
            self._fd = -1

    def read(self, first: int, count: int) -> list[bytes]:
        """Return lines by number, without their ends; fewer at the end of the file."""
        with self._lock:
            last = min(first + count, len(self))
            if self._fd < 0 or not 0 <= first < last:
                return []
            begin, end = self._starts[first], self._starts[last]
            data = os.pread(self._fd, end - begin, begin)
        return data.split(b"\n")[:-1]

    def blocks(self, first: int, step: int) -> Iterator[tuple[int, list[bytes]]]:
        """Yield blocks of lines, each with the number of its first line.

        The blocks end early if another file replaces this one, and after `stop`.

        Args:
            first: The line to start from.
            step: 1 goes forward, -1 backward. Lines within a block are always in file order.
        """
        at, generation = first, self.generation
        while 0 <= at < len(self) and generation == self.generation and not self._stopped:
            begin, count = self._window(at, step)
            lines = self.read(begin, count)
            if len(lines) < count:
                return
            yield begin, lines
            at += step * count

    def _window(self, at: int, step: int) -> tuple[int, int]:
        """Return first line and count of about a megabyte of lines that begin or end at a line."""
        with self._lock:
            starts = self._starts
            if step > 0:
                most = min(at + _MOST_LINES, len(starts) - 1)
                end = bisect_right(starts, starts[at] + _WINDOW, at + 1, most + 1) - 1
                return at, max(1, end - at)
            least = max(0, at + 1 - _MOST_LINES)
            begin = bisect_left(starts, starts[at + 1] - _WINDOW, least, at)
            return begin, at + 1 - begin

    def stop(self) -> None:
        """End what is indexed or read in blocks soon."""
        self._stopped = True

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
