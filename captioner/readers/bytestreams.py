"""The bytes of an input: of a file, of an object in a store, or of standard input."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tempfile
import threading
import weakref
import zlib
from concurrent.futures import Future
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from captioner.core.descriptors import patiently
from captioner.core.errors import DamagedInputError, SettingsError
from captioner.core.extras import needed
from captioner.core.secrets import masked, without_secrets
from captioner.core.types import library_of
from captioner.settings.locations import COMPRESSED, storage_url

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


FILE_ERRORS = (EOFError, OSError, zlib.error)
"""Errors of a file that is damaged or cannot be read."""

_COMPRESSED_BLOCK = 1 << 10
"""Bytes decompressed at once; at worst they become 32,000 times as many."""


def open_stream(path: Path) -> ByteStream:
    """Return the bytes of a file, decompressed by its suffix, or of standard input for ``-``."""
    if str(path) == "-":
        return StandardInput()
    url = storage_url(path)
    return StoredFile(url) if url else LocalFile(path)


class LocalFile:
    """A local file, decompressed by its suffix."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._compressed = path.suffix.lower() in COMPRESSED
        self._damage = FILE_ERRORS if self._compressed else ()

    @property
    def size(self) -> int:
        """Bytes of the file, 0 if it is compressed."""
        return 0 if self._compressed else self._path.stat().st_size

    def _open(self) -> IO[bytes]:
        return open_binary(self._path)

    async def read(self, size: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes from the beginning, about ``size`` at a time.

        Raises:
            DamagedInputError: The file is damaged.
        """
        with await asyncio.to_thread(self._open) as file:
            while True:
                try:
                    block = await asyncio.to_thread(file.read, size)
                except self._damage as error:
                    raise DamagedInputError(f"{self._path.name} is damaged: {error}") from None
                if not block:
                    return
                yield block


class StoredFile(LocalFile):
    """A file in an object store, read through fsspec and decompressed by its suffix."""

    def __init__(self, url: str) -> None:
        super().__init__(Path(url))
        self._url = url
        self._damage = FILE_ERRORS
        self._fsspec = needed("fsspec", f"fsspec {library_of(url)}")

    @property
    def size(self) -> int:
        """Bytes of the file in the store.

        Raises:
            SettingsError: There is no such file, it is a folder, or the store cannot be read.
        """
        try:
            system, path = self._fsspec.core.url_to_fs(self._url)
            found = system.info(path)
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            raise unreadable("the input", self._url, error) from None
        if found.get("type") == "directory":  # some stores read it as an empty file
            raise SettingsError(
                f"the input {without_secrets(self._url)} is a folder, and from an object store "
                "only JSON Lines and JSON are read: name a file, or copy the folder to this machine"
            )
        return int(found.get("size") or 0)

    def _open(self) -> IO[bytes]:
        try:
            return cast("IO[bytes]", self._fsspec.open(self._url, "rb", compression="infer").open())
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            raise unreadable("the input", self._url, error) from None


def unreadable(what: str, url: str, error: Exception) -> SettingsError:
    """Return why a file in an object store cannot be read, in words.

    Args:
        what: What the file is to the user, such as "the input".
        url: Its address.
        error: What the store's library raised.
    """
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file"
    elif isinstance(error, PermissionError):
        reason = "it is forbidden; check the credentials"
    elif isinstance(error, ImportError):
        reason = masked(str(error.__cause__ or error)) or "its library is missing"
        reason += f"; pip install {library_of(url)}"
    else:
        reason = masked(str(error), url) or type(error).__name__
    return SettingsError(f"cannot read {what} {without_secrets(url)}: {reason[:300]}")


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed by its suffix."""
    kind = path.suffix.lower()
    if kind == ".gz":
        return cast("IO[bytes]", patiently(lambda: gzip.open(path)))
    if kind == ".zst":
        return cast("IO[bytes]", io.BufferedReader(_Zstandard(path)))
    return patiently(lambda: path.open("rb"))


class _Zstandard(io.RawIOBase):
    """A Zstandard file. The library's own reader does not detect a truncated file."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._error = zstandard.ZstdError
        self._frame: Any = None
        self._data = memoryview(b"")
        self.fileobj = patiently(lambda: path.open("rb"))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._data:
            block = self.fileobj.read(_COMPRESSED_BLOCK)
            if not block:
                if self._frame is not None:
                    raise EOFError("it is cut short")
                return 0
            try:
                self._data = memoryview(self._decompress(block))
            except self._error as error:
                raise OSError(str(error)) from None
        count = min(len(buffer), len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count

    def _decompress(self, block: bytes) -> bytes:
        found = []
        while block:
            self._frame = self._frame or self._new_frame()
            found.append(self._frame.decompress(block))
            if not self._frame.eof:
                break
            block, self._frame = self._frame.unused_data, None
        return b"".join(found)

    def close(self) -> None:
        self.fileobj.close()
        super().close()


def position(file: IO[bytes]) -> int:
    """Return how many bytes on disk have been read of a file from `open_binary`."""
    raw = getattr(file, "raw", file)
    return int(getattr(raw, "fileobj", file).tell())  # `fileobj` is the compressed file


class StandardInput:
    """Standard input, copied to a temporary file because a run reads its input twice."""

    size = 0

    def __init__(self) -> None:
        self._copy, name = tempfile.mkstemp(prefix="captioner-")
        Path(name).unlink()
        weakref.finalize(self, os.close, self._copy)
        self._length = 0
        self._ended = False

    async def read(self, size: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes copied so far, then new ones."""
        offset = 0
        while True:
            if offset < self._length:
                block = os.pread(self._copy, min(size, self._length - offset), offset)
            elif self._ended or not (block := await _read_standard_input(size)):
                self._ended = True
                return
            else:
                os.pwrite(self._copy, block, self._length)
                self._length += len(block)
            offset += len(block)
            yield block


async def _read_standard_input(size: int) -> bytes:
    """Read in a daemon thread, so that a run can stop while it waits for input."""
    result: Future[bytes] = Future()
    result.set_running_or_notify_cancel()

    def read() -> None:
        try:
            result.set_result(os.read(0, size))
        except OSError as error:
            result.set_exception(error)

    threading.Thread(target=read, daemon=True).start()
    return await asyncio.wrap_future(result)


ByteStream = LocalFile | StandardInput
"""Bytes that can be read several times: ``size``, 0 if unknown, and ``read``."""
