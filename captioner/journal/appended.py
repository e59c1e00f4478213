"""A file of lines beside an output that several pages may append to."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from captioner.core.regular import open_regular, reading

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LONGEST = 64 << 20
"""Bytes of a line; a longer one is none of ours."""

_NEWLINE = b"\n"


class AppendedFile:
    """What was appended to a file, which need not exist yet. Thread-safe.

    Lines that cannot be understood are ignored.

    Attributes:
        generation: Changes when another file replaces this one.
    """

    def __init__(self, path: Path) -> None:
        self.generation = 0
        self._path = path
        self._at = 0  # bytes read
        self._size = 0  # bytes of the file at the last look
        self._lock = threading.Lock()
        self.refresh()

    def _forget(self) -> None:
        """Forget all lines: another file replaces this one."""
        raise NotImplementedError

    def _take(self, line: bytes) -> None:
        """Take a line; an invalid one raises ValueError, KeyError, TypeError or AttributeError."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Read what was appended since.

        Raises:
            OutputDamagedError: It is not a regular file.
        """
        with self._lock, contextlib.suppress(FileNotFoundError), reading(self._path) as file:
            if (size := os.fstat(file.fileno()).st_size) < self._size:
                self._at = 0
                self._forget()
                self.generation += 1
            self._size = size
            file.seek(self._at)
            while line := file.readline(_LONGEST):
                if not line.endswith(_NEWLINE):
                    break  # still being written, or a hole of terabytes
                self._at += len(line)
                with contextlib.suppress(
                    ValueError, KeyError, TypeError, AttributeError, RecursionError
                ):
                    self._take(line)

    def _append(self, lines: Sequence[bytes]) -> None:
        """Append lines, without their ends, and take them.

        Raises:
            OSError: The disk refused.
            OutputDamagedError: The file is not a regular one.
        """
        with self._lock:
            fd = open_regular(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            with os.fdopen(fd, "ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read() != _NEWLINE:  # a crash tore the last line
                        file.write(_NEWLINE)
                file.write(b"".join(line + _NEWLINE for line in lines))
                file.flush()
                os.fsync(file.fileno())
                self._size = file.tell()
            for line in lines:
                self._take(line)
