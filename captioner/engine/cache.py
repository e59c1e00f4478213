"""Cache of responses from run to run, in SQLite: safe for concurrent runs and after a crash."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import sqlite3
import threading
import time
import zlib
from hashlib import blake2b
from typing import TYPE_CHECKING

from captioner.core.descriptors import none_left, patiently
from captioner.core.errors import OutputDamagedError, SettingsError
from captioner.core.regular import open_regular

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

FILE = "captions.sqlite"
BATCH = 64
"""Responses that are written together; a crash loses them, and their requests are sent again."""

MAX_BYTES = 10 << 30
"""Size of the cache above which its oldest responses are removed."""

_WAIT_S = 10.0
_KEPT = 0.9
"""Share of its largest size that a cache keeps when it grows beyond that."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB UNIQUE NOT NULL, value BLOB, crc INTEGER
);
CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID;
INSERT OR IGNORE INTO responses (key, value, crc) SELECT key, value, NULL FROM answers;
DROP TABLE answers;
"""
"""The table; an earlier version's had another name, no order and no checksums."""

_TABLE, _EARLIER = ("table", "responses"), ("table", "answers")
_COLUMNS = ["number", "key", "value", "crc"]
_CONTENTS = "SELECT type, name FROM sqlite_schema WHERE name NOT GLOB 'sqlite_*'"
"""What a file has of tables; a view or a trigger of others would run whenever ours is used."""

_PUT = "INSERT OR REPLACE INTO responses (key, value, crc) VALUES (?, ?, ?)"
_REMOVE = (
    "DELETE FROM responses WHERE number IN (SELECT number FROM responses ORDER BY number LIMIT ?)"
)


class Cache:
    """Responses by key. `get` is for any thread, `put` for the event loop.

    A damaged file is set aside with a warning, and a new one is begun.

    Args:
        folder: The folder; it is created if it does not exist.
        settings: A digest of the settings that affect a response.
        max_bytes: Size of the file above which the oldest responses are removed.

    Raises:
        SettingsError: The cache cannot be opened.
    """

    def __init__(self, folder: Path, settings: bytes, max_bytes: int = MAX_BYTES) -> None:
        self._settings = settings
        self._path = folder / FILE
        self._max_bytes = max_bytes
        self._inode = 0  # of the file that is open
        self._pending: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        self._writing: threading.Thread | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._open()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._set_aside(error)
        except (OSError, sqlite3.Error) as error:
            raise SettingsError(f"cache: cannot use {self._path}: {error}") from None

    def _open(self) -> None:
        self._make_private()
        self._inode = self._path.stat().st_ino
        self._reader = self._connect()
        try:
            self._inode = self._path.stat().st_ino
            self._begin()
        except BaseException:
            self._reader.close()
            raise

    def _make_private(self) -> None:
        """Create the file, for its owner only; SQLite gives its other files the same mode.

        SQLite would follow links, so there must be none.

        Raises:
            SettingsError: Something else than a regular file has the name of one of the files.
        """
        for ending in ("", "-wal", "-shm", "-journal"):
            path = self._path.with_name(FILE + ending)
            try:
                os.close(open_regular(path, os.O_RDONLY if ending else os.O_RDWR | os.O_CREAT))
            except FileNotFoundError:
                continue
            except OutputDamagedError:
                raise SettingsError(f"cache: {path} is not a regular file; remove it") from None

    def _begin(self) -> None:
        """Create the table. Another run may do the same now, which SQLite does not wait for."""
        until = time.monotonic() + _WAIT_S
        while True:
            try:
                self._reader.execute("PRAGMA auto_vacuum=INCREMENTAL")
                self._reader.execute("PRAGMA journal_mode=WAL")
                found = set(self._reader.execute(_CONTENTS))
                if not found <= {_TABLE, _EARLIER}:
                    raise _ForeignError("it has tables of another program")
                if _TABLE not in found or _EARLIER in found:
                    self._reader.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
                columns = self._reader.execute("PRAGMA table_xinfo(responses)")
                if [column[1] for column in columns] != _COLUMNS:
                    raise _ForeignError("its table has other columns")
            except sqlite3.OperationalError as error:
                self._reader.rollback()
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.05)
            else:
                return

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_WAIT_S, check_same_thread=False)
        try:
            connection.execute("PRAGMA synchronous=NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Rename a damaged file, unless another run did that already, and begin a new one.

        Raises:
            OSError, sqlite3.Error: That is not possible.
        """
        if self._path.stat().st_ino == self._inode:
            numbers = itertools.count(1)
            names = (self._path.with_name(f"{FILE}.damaged-{number}") for number in numbers)
            aside = next(path for path in names if not path.exists())
            self._path.rename(aside)
            for ending in ("-wal", "-shm"):
                self._path.with_name(FILE + ending).unlink(missing_ok=True)
            logger.warning(
                "the cache is damaged (%s): it is now %s, and a new one is begun", error, aside
            )
        self._open()

    def key(self, questions: tuple[tuple[bytes, ...], ...]) -> bytes:
        """Return the key of a record's messages, a cryptographic hash because it is stored."""
        hasher = blake2b(self._settings, digest_size=16)
        for pieces in questions:
            for piece in pieces:
                hasher.update(piece)
        return hasher.digest()

    def get(self, key: bytes) -> bytes:
        """Return a response; empty if there is none."""
        with self._lock:
            if found := self._pending.get(key):
                return found
            try:
                row = self._reader.execute(
                    "SELECT value, crc FROM responses WHERE key = ?", (key,)
                ).fetchone()
            except sqlite3.Error as error:
                self._after(error)
                return b""  # the request is sent instead
        if row is None or not isinstance(row[0], bytes):
            return b""
        value, checksum = row
        return value if checksum in (None, zlib.crc32(value)) else b""

    def put(self, key: bytes, value: bytes) -> None:
        """Store a response; returns at once."""
        with self._lock:
            self._pending[key] = value
            due = len(self._pending) >= BATCH and self._writing is None
            if due:
                self._writing = threading.Thread(target=self._write, name="captioner-cache")
        if due and self._writing is not None:
            self._writing.start()

    def close(self) -> None:
        """Write the remaining responses."""
        writing = self._writing
        if writing is not None:
            writing.join()
        self._write()
        self._reader.close()

    def _write(self) -> None:
        with self._lock:
            batch = list(self._pending.items())
        try:
            if batch:
                self._store(batch)
        except (OSError, sqlite3.Error) as error:
            logger.warning("the cache %s cannot be written: %s", self._path, error)
        with self._lock:
            for key, value in batch:
                if self._pending.get(key) is value:
                    del self._pending[key]
            self._writing = None

    def _store(self, batch: list[tuple[bytes, bytes]]) -> None:
        rows = [(key, value, zlib.crc32(value)) for key, value in batch]
        for is_last in (False, True):
            try:
                with contextlib.closing(patiently(self._connected)) as connection:
                    with connection:
                        connection.executemany(_PUT, rows)
                    self._make_room(connection)
            except sqlite3.DatabaseError as error:
                if is_last or not _is_damage(error):
                    raise
                with self._lock:
                    self._after(error)
            else:
                return

    def _connected(self) -> sqlite3.Connection:
        """Return a connection.

        Raises:
            OSError: No file can be opened now.
        """
        try:
            return self._connect()
        except sqlite3.Error:
            if none_left():
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None
            raise

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """Remove the oldest responses if the cache is larger than it may be."""
        while (used := _used(connection)) > self._max_bytes:
            (count,) = connection.execute("SELECT COUNT(*) FROM responses").fetchone()
            surplus = 1 - self._max_bytes * _KEPT / used
            if not count:
                return
            with connection:
                connection.execute(_REMOVE, (max(1, int(count * surplus)),))
            connection.execute("PRAGMA incremental_vacuum").fetchall()

    def _after(self, error: sqlite3.Error) -> None:
        """After an error: begin a new file if it shows that this one is damaged."""
        if not _is_damage(error):
            return
        try:
            self._reader.close()
            self._set_aside(error)
        except (OSError, sqlite3.Error, SettingsError) as another:
            logger.warning("the cache %s cannot be used: %s", self._path, another)


class _ForeignError(sqlite3.DatabaseError):
    """The file is a database of something else."""


def _is_damage(error: sqlite3.Error) -> bool:
    if isinstance(error, _ForeignError):
        return True
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without its extension
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _used(connection: sqlite3.Connection) -> int:
    """Return the bytes of a database without its free pages."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
