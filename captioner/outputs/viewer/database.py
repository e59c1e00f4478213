"""A private SQLite file beside an output, used again only if this program closed it.

SQLite trusts the files that it opens, and a data set from a stranger may bring one with any name.
So the header of a file must hold a digest of the file's own device and inode, which the author of
a data set cannot know. The digest is written when the file is closed. A file that a crash left, a
copy or any other file is removed, and a new one is made. SQLite would also take pages from a log
beside the file. This program leaves none, so that one that is there is a stranger's and is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
from typing import TYPE_CHECKING

from captioner.core.errors import OutputDamagedError
from captioner.core.keys import digest
from captioner.core.regular import open_regular

if TYPE_CHECKING:
    from pathlib import Path

_LOGS = ("-journal", "-wal", "-shm")
"""Endings of the files from which SQLite restores a database."""

_HEADER = b"SQLite format 3\0"
_VERSION, _APPLICATION = slice(60, 64), slice(68, 72)
"""Where the header of an SQLite file has two numbers for its users."""


class Database:
    """A database; temporary where the file cannot be used, such as in a folder that is read-only.

    Args:
        path: The file.
        about: What its content depends on; a file about something else is replaced.

    Attributes:
        connection: The database. Changes are lost, and the file with them, unless it is closed.
        is_new: Whether it is empty.
    """

    def __init__(self, path: Path, about: bytes) -> None:
        self._path, self._about = path, about
        self._fd = -1
        self.is_new = True
        with contextlib.suppress(OSError, OutputDamagedError):
            self._open()
        self.connection = sqlite3.connect(
            path.absolute() if self._fd >= 0 else "", isolation_level=None, check_same_thread=False
        )
        if self._fd >= 0 and not self._is_named():
            self.connection.close()
            self._release()
            self.connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in (
            "trusted_schema = OFF", "cell_size_check = ON", "locking_mode = EXCLUSIVE",
            "journal_mode = OFF", "synchronous = OFF", "cache_size = -32768", "user_version = 0",
        ):  # fmt: skip
            self.connection.execute(f"PRAGMA {pragma}")

    def _open(self) -> None:
        """Open the file, or create it; leave nothing open if another process uses it."""
        with contextlib.suppress(FileNotFoundError, OutputDamagedError):
            self._take(open_regular(self._path, os.O_RDWR))
            self.is_new = not self._is_ours()
        for ending in _LOGS:
            self._path.with_name(self._path.name + ending).unlink(missing_ok=True)
        if self.is_new:
            self._release()
            self._path.unlink(missing_ok=True)
            self._take(open_regular(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL))

    def _take(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        self._fd = fd

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self.is_new = -1, True

    def _is_named(self) -> bool:
        """Return whether the path still names the open file."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._fd), self._path.lstat())
        return False

    def _is_ours(self) -> bool:
        found = os.fstat(self._fd)
        is_private = found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077
        head = os.pread(self._fd, 100, 0)
        signed = head[_VERSION] + head[_APPLICATION] == self._signature()
        return is_private and found.st_nlink == 1 and head.startswith(_HEADER) and signed

    def _signature(self) -> bytes:
        found = os.fstat(self._fd)
        place = f"{found.st_dev} {found.st_ino} {sqlite3.sqlite_version}".encode()
        return digest(place + self._about)[:8]

    def close(self, *, keep: bool) -> None:
        """Close the database; remove its file unless it is to be kept."""
        if self._fd < 0:
            self.connection.close()
            return
        if keep and self._is_named():
            os.fsync(self._fd)
            for name, where in (("user_version", slice(4)), ("application_id", slice(4, 8))):
                value = int.from_bytes(self._signature()[where], "big", signed=True)
                self.connection.execute(f"PRAGMA {name} = {value}")
            self.connection.close()
        else:
            self.connection.close()
            if self._is_named():
                self._path.unlink()
        self._release()
