"""Cache of responses from run to run, in SQLite: safe for concurrent runs and after a crash."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from hashlib import blake2b
from typing import TYPE_CHECKING

from captioner.core.errors import OutputDamagedError, SettingsError
from captioner.core.regular import open_regular

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

FILE = "captions.sqlite"
BATCH = 64
"""Responses that are written together; a crash loses them, and their requests are sent again."""

_WAIT_S = 10.0
_TABLE = "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"


class Cache:
    """Responses by key. `get` is for any thread, `put` for the event loop.

    Args:
        folder: The folder; it is created if it does not exist.
        settings: A digest of the settings that affect a response.

    Raises:
        SettingsError: The cache cannot be opened.
    """

    def __init__(self, folder: Path, settings: bytes) -> None:
        self._settings = settings
        self._path = folder / FILE
        self._pending: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        self._writing: threading.Thread | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._make_private()
            self._reader = self._connect()
            self._begin()
        except (OSError, sqlite3.Error) as error:
            raise SettingsError(f"cache: cannot use {self._path}: {error}") from None

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
                self._reader.execute("PRAGMA journal_mode=WAL")
                self._reader.execute(_TABLE)
                self._reader.commit()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.05)
            else:
                return

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_WAIT_S, check_same_thread=False)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

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
                    "SELECT value FROM answers WHERE key = ?", (key,)
                ).fetchone()
            except sqlite3.Error:
                return b""  # the request is sent instead
        return bytes(row[0]) if row else b""

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
                with contextlib.closing(self._connect()) as connection, connection:
                    connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", batch)
        except sqlite3.Error as error:
            logger.warning("the cache %s cannot be written: %s", self._path, error)
        with self._lock:
            for key, value in batch:
                if self._pending.get(key) is value:
                    del self._pending[key]
            self._writing = None
