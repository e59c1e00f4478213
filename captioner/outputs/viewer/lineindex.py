"""The lines of a file that may be growing, by number: eight bytes of memory for each."""

from __future__ import annotations

import os
import threading
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BLOCK = 1 << 22
_WINDOW = 1 << 20


class Lines:
    """Where the whole lines of a file begin. May be used from several threads.

    Args:
        path: The file; it need not exist yet.

    Attributes:
        generation: Changes when the file has become another one: numbers mean other lines then.
    """

    def __init__(self, path: Path) -> None:
        self.generation = 0
        self._path = path
        self._fd = -1
        self._starts = array("Q", [0])
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many whole lines were there at the last look."""
        return len(self._starts) - 1

    def refresh(self) -> None:
        """Look at what was appended; begin anew where the file has become another one."""
        with self._lock:
            if self._is_another_one():
                self._begin_anew()
            if self._fd < 0:
                return
            at = self._starts[-1]
            while block := os.pread(self._fd, _BLOCK, at):
                end = 0
                while (found := block.find(b"\n", end)) >= 0:
                    end = found + 1
                    self._starts.append(at + end)
                if not end and len(block) < _BLOCK:
                    return  # a line that is being written
                at += end or len(block)

    def _is_another_one(self) -> bool:
        try:
            there = self._path.stat()
        except OSError:
            return self._fd >= 0
        if self._fd < 0:
            return True
        known = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) != (known.st_dev, known.st_ino) or (
            there.st_size < self._starts[-1]
        )

    def _begin_anew(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._starts = array("Q", [0])
        self.generation += 1
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def read(self, first: int, count: int) -> list[bytes]:
        """Return lines by number, without their ends; fewer where there are no more."""
        with self._lock:
            last = min(first + count, len(self))
            if self._fd < 0 or not 0 <= first < last:
                return []
            begin, end = self._starts[first], self._starts[last]
            data = os.pread(self._fd, end - begin, begin)
        return data.split(b"\n")[:-1]

    def blocks(self, first: int, step: int) -> Iterator[tuple[int, list[bytes]]]:
        """Yield lines with the number of the first of them, many at a time, on from one of them.

        They end early where the file has become another one meanwhile.

        Args:
            first: Where to begin.
            step: 1 for those after it, -1 for those before, whose blocks are in order, too.
        """
        at, generation = first, self.generation
        while (count := self._in_a_window(at, step, generation)) > 0:
            begin = at if step > 0 else at - count + 1
            lines = self.read(begin, count)
            if len(lines) < count:
                return
            yield begin, lines
            at += step * count

    def _in_a_window(self, at: int, step: int, generation: int) -> int:
        """Return how many lines from there on are about a window's bytes; 0 where none is left."""
        with self._lock:
            there = len(self._starts) - 1
            if generation != self.generation or not 0 <= at < there:
                return 0
            most = min(4_096, there - at if step > 0 else at + 1)
            count = 1
            while count < most:
                begin = at if step > 0 else at - count
                if self._starts[begin + count + (step > 0)] - self._starts[begin] > _WINDOW:
                    break
                count += 1
            return count

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
