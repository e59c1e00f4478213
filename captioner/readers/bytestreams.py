"""The bytes of an input, some at a time: of a file, of a compressed one, of standard input."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tempfile
import threading
import weakref
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from aiofiles.threadpool import wrap

from captioner.core.errors import DamagedInputError, SettingsError
from captioner.core.extras import needed
from captioner.settings.locations import COMPRESSED, storage_url

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

    from captioner.core.types import InputRecord


_COMPRESSED_BLOCK = 1 << 10
"""Bytes that are decompressed at once: at the worst they become 32,000 times as many."""


class Blocks(Protocol):
    """Bytes that can be read again and again."""

    @property
    def size(self) -> int:
        """How many there are, 0 if that is not known."""
        ...

    def read(self, size: int) -> AsyncGenerator[bytes, None]:
        """Yield them from the beginning, about ``size`` at a time.

        Raises:
            DamagedInputError: They end where they should not.
        """
        ...


def blocks_of(path: Path) -> Blocks:
    """Return the bytes of a file, decompressed by its suffix, or of standard input for ``-``."""
    if str(path) == "-":
        return StandardInput()
    if url := storage_url(path):
        return Stored(url)
    if path.suffix.lower() in COMPRESSED:
        return Compressed(path)
    return Plain(path)


class Plain:
    """A file as it is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._path.stat().st_size

    async def read(self, size: int) -> AsyncGenerator[bytes, None]:
        """Yield its bytes."""
        # Closed here and not in a thread: one that has not begun when a run is stopped never does.
        with self._path.open("rb") as opened:
            file = wrap(opened)
            while block := await file.read(size):
                yield block


class Stored:
    """A file in an object store, read through fsspec."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._fsspec = needed("fsspec", "s3")

    @property
    def size(self) -> int:
        """Bytes of the file as it lies there."""
        system, path = self._fsspec.core.url_to_fs(self._url)
        return int(system.size(path) or 0)

    async def read(self, size: int) -> AsyncGenerator[bytes, None]:
        """Yield its bytes, decompressed by its suffix."""
        opened = await asyncio.to_thread(self._open)
        try:
            while block := await asyncio.to_thread(_read, opened, size, Path(self._url)):
                yield block
        finally:
            await asyncio.to_thread(opened.close)

    def _open(self) -> IO[bytes]:
        try:
            return cast("IO[bytes]", self._fsspec.open(self._url, "rb", compression="infer").open())
        except Exception as error:  # noqa: BLE001 - each store has errors of its own
            raise SettingsError(f"cannot read the input {self._url}: {error}") from None


class Compressed:
    """A gzip or Zstandard file."""

    size = 0

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self, size: int) -> AsyncGenerator[bytes, None]:
        """Yield what was compressed."""
        file = open_binary(self._path)
        try:
            while block := await asyncio.to_thread(_read, file, size, self._path):
                yield block
        finally:
            file.close()


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed by its suffix."""
    kind = path.suffix.lower()
    if kind == ".gz":
        return cast("IO[bytes]", gzip.open(path))
    if kind == ".zst":
        return cast("IO[bytes]", io.BufferedReader(_Zstandard(path)))
    return path.open("rb")


def _read(file: IO[bytes], size: int, path: Path) -> bytes:
    try:
        return file.read(size)
    except (EOFError, OSError, zlib.error) as error:
        raise DamagedInputError(f"{path.name} is damaged: {error}") from None


class _Zstandard(io.RawIOBase):
    """A Zstandard file; the library's own reader takes one that is cut short for a whole one."""

    def __init__(self, path: Path) -> None:
        zstandard = needed("zstandard", "zst")
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._error = zstandard.ZstdError
        self._frame: Any = None
        self._left = memoryview(b"")
        self._file = path.open("rb")

    @property
    def position(self) -> int:
        """Bytes of the file that are behind."""
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = self._file.read(_COMPRESSED_BLOCK)
            if not block:
                if self._frame is not None:
                    raise EOFError("it is cut short")
                return 0
            try:
                self._left = memoryview(self._decompress(block))
            except self._error as error:
                raise OSError(str(error)) from None
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _decompress(self, block: bytes) -> bytes:
        found = []
        while block:
            self._frame = self._frame or self._new()
            found.append(self._frame.decompress(block))
            if not self._frame.eof:
                break
            block, self._frame = self._frame.unused_data, None
        return b"".join(found)

    def close(self) -> None:
        self._file.close()
        super().close()


def position(file: IO[bytes]) -> int:
    """Return how many bytes of an opened file are behind, as it lies on disk."""
    raw = getattr(file, "raw", None)
    if isinstance(raw, _Zstandard):
        return raw.position
    return int(getattr(file, "fileobj", file).tell())  # of gzip: the file it reads


class StandardInput:
    """Standard input, kept on disk as it is read: finishing reads the input once more."""

    size = 0

    def __init__(self) -> None:
        self._kept, name = tempfile.mkstemp(prefix="captioner-")
        Path(name).unlink()
        weakref.finalize(self, os.close, self._kept)
        self._length = 0
        self._ended = False

    async def read(self, size: int) -> AsyncGenerator[bytes, None]:
        """Yield what came so far, then what comes."""
        at = 0
        while True:
            if at < self._length:
                block = os.pread(self._kept, min(size, self._length - at), at)
            elif self._ended:
                return
            else:
                block = await _in_daemon(lambda: os.read(0, size))
                if not block:
                    self._ended = True
                    return
                os.pwrite(self._kept, block, self._length)
                self._length += len(block)
            at += len(block)
            yield block


async def _in_daemon(work: Callable[[], bytes]) -> bytes:
    """Wait for a call in a thread that nobody waits for when the run is stopped."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def settle(result: bytes | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result or b"")

    def run() -> None:
        try:
            outcome: tuple[bytes | None, Exception | None] = work(), None
        except Exception as error:  # noqa: BLE001 - raised again for whoever waits
            outcome = None, error
        loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True).start()
    return await done


async def from_thread(
    make: Callable[[], Iterator[list[InputRecord]]],
) -> AsyncIterator[list[InputRecord]]:
    """Yield what a blocking iterator yields."""
    batches: Any = await asyncio.to_thread(make)
    while True:
        step = asyncio.ensure_future(asyncio.to_thread(next, batches, None))
        try:
            batch = await asyncio.shield(step)
        except asyncio.CancelledError:
            # The thread is in it still; what it holds is let go when it comes out.
            step.add_done_callback(lambda done: (done.exception(), batches.close()))
            raise
        if batch is None:
            return
        try:
            yield batch
        except GeneratorExit:
            batches.close()
            raise
