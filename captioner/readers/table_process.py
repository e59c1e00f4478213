"""The parent's side of the table process: see `table_child`."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import suppress
from multiprocessing.connection import Pipe
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.descriptors import patiently
from captioner.core.errors import DecoderError
from captioner.core.extras import needed
from captioner.core.subprocesses import start_child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

_START_S = 60.0
_STARTS = 3
_READY = b"ready"


class UnreadableRow(str):
    """Why a single row cannot be read."""

    __slots__ = ()


class TableReader:
    """Reads tables in a child process, which starts when it is first needed.

    For one thread at a time, except `stop`.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._stopped = threading.Event()

    def tables(self, path: Path, kind: str) -> Iterator[tuple[float, Any]]:
        """Yield the validated record batches of a file, each with the share of it read so far.

        Batches have a few megabytes when decoded, or one row. For what cannot be read, the reason
        takes the place of the batch: an `UnreadableRow`, or another text for more.

        Args:
            path: The file.
            kind: ``parquet`` or ``arrow``.

        Raises:
            DecoderError: The process cannot be started.
        """
        return self._ask("tables", path, kind)

    def schema(self, path: Path, kind: str) -> Any:
        """Return the schema of a file; None if it cannot be read."""
        found = None
        for _, content in self._ask("schema", path, kind):
            found = None if isinstance(content, str) else content.schema
        return found

    def _ask(self, what: str, path: Path, kind: str) -> Iterator[tuple[float, Any]]:
        """Yield what the child sends; ask another one if the system killed the first."""
        received = 0
        for is_last in (False, True):
            if self._stopped.is_set():
                return
            child = self._child = self._child or self._start()
            finished = False
            try:
                for share, content in child.ask(what, path, kind, received):
                    yield share, content
                    received += 1
                finished = True
            except (EOFError, OSError):
                if self._stopped.is_set():
                    return
                if is_last or child.status() != -signal.SIGKILL:
                    yield 1.0, "reading it crashed the process that reads tables"
                    return
            finally:
                if not finished:
                    self.end()
            if finished:
                return

    def _start(self) -> _Child:
        for _ in range(_STARTS):
            try:
                child = patiently(_Child, self._stopped.is_set)
            except OSError as error:
                raise DecoderError(
                    f"cannot start a process that reads tables: {error.strerror}"
                ) from None
            with suppress(EOFError, OSError):
                if child.is_ready():
                    return child
            child.close()
            if self._stopped.is_set():
                break
        raise DecoderError("cannot start a process that reads tables")

    def end(self) -> None:
        """End the process; the next call starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def stop(self) -> None:
        """End the process while another thread waits for it; this table ends, others are empty."""
        self._stopped.set()
        if (child := self._child) is not None:
            child.kill()


class _Child:
    """One process and the connection to it."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        try:
            with theirs:
                self._process = start_child("captioner.readers.table_child", theirs.fileno())
        except OSError:
            self._connection.close()
            raise

    def is_ready(self) -> bool:
        """Wait until it has started."""
        return self._connection.poll(_START_S) and self._connection.recv_bytes() == _READY

    def ask(self, what: str, path: Path, kind: str, skip: int) -> Iterator[tuple[float, Any]]:
        """Yield what it sends about a file."""
        ipc = needed("pyarrow").ipc
        connection: Connection = self._connection
        connection.send_bytes(orjson.dumps([what, kind, skip]))
        connection.send_bytes(os.fsencode(path))
        while True:
            part, share, *reason = orjson.loads(connection.recv_bytes())
            if part == "end":
                return
            if part == "batch":
                with ipc.open_stream(connection.recv_bytes()) as stream:
                    yield share, stream.read_next_batch()
            else:
                yield share, UnreadableRow(reason[0]) if part == "row" else reason[0]

    def status(self) -> int:
        """Return the exit status of a process whose connection has ended."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(_START_S)
        return 0

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> None:
        """End it and the connection to it."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def __del__(self) -> None:
        """End it with the reader that was left."""
        if hasattr(self, "_process"):
            self.close()
