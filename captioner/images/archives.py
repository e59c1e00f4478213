"""Images inside tar and zip archives, read in place: ``archive.tar#folder/image.jpg``."""

from __future__ import annotations

import contextlib
import re
import tarfile
import threading
import zipfile
from collections import OrderedDict
from typing import IO, TYPE_CHECKING

from captioner.core.errors import BadImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPEN_AT_ONCE = 16
"""Archives that stay open; others are opened and listed again."""

_IN_ARCHIVE = re.compile(r"(.+?\.(?:tar|zip))#(.+)", re.IGNORECASE | re.DOTALL)


def in_archive(reference: str) -> tuple[str, str] | None:
    """Return an archive and the file in it, or None if a reference names no archive."""
    found = _IN_ARCHIVE.fullmatch(reference)
    return (found[1], found[2]) if found else None


def check_size(shown: str, size: int, most: int) -> None:
    """Refuse a file that is too large to be read.

    Raises:
        BadImageError: ``image_too_large``.
    """
    if size > most:
        raise BadImageError(
            "image_too_large",
            f"{shown} has {size:,} bytes or more; the most is {most:,} (--max-image-bytes)",
        )


class Archives:
    """The archives of a run. May be used from any thread.

    Args:
        max_bytes: Largest file that is read.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Archive] = OrderedDict()

    def read(
        self,
        name: str,
        member: str,
        opening: Callable[[], IO[bytes]],
        reserve: Callable[[int], None],
    ) -> bytes:
        """Return the bytes of a file in an archive.

        Args:
            name: The archive.
            member: The path in the archive.
            opening: Opens the archive.
            reserve: Called with the file's size before it is read; may block for memory.

        Raises:
            BadImageError: ``image_missing``, ``image_unreadable``, ``image_empty`` or
                ``image_too_large``.
        """
        shown = f"{name}#{member}"[:200]
        member = _normal(member)
        try:
            archive = self._archive(name, opening)
            with archive.opened() as files:
                size = files.size(member)
            check_size(shown, size, self._max_bytes)
            reserve(size)
            with archive.opened() as files:
                data = files.read(member)
        except KeyError:
            raise BadImageError("image_missing", f"there is no {shown}") from None
        except BadImageError:
            raise
        except Exception as error:  # noqa: BLE001 - broken archives raise many kinds of errors
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise BadImageError("image_unreadable", f"cannot read {shown}: {reason}") from None
        if not data:
            raise BadImageError("image_empty", f"{shown} is empty")
        if len(data) != size:
            raise BadImageError("image_unreadable", f"{shown} is cut short")
        return data

    def _archive(self, name: str, opening: Callable[[], IO[bytes]]) -> _Archive:
        dropped = None
        with self._lock:
            archive = self._open.pop(name, None)
            if archive is None:
                archive = _Archive(_Zip if name.lower().endswith(".zip") else _Tar, opening)
            self._open[name] = archive
            if len(self._open) > OPEN_AT_ONCE:
                _, dropped = self._open.popitem(last=False)
        if dropped is not None:
            dropped.close()
        return archive

    def close(self) -> None:
        """Close all archives."""
        with self._lock:
            archives, self._open = self._open, OrderedDict()
        for archive in archives.values():
            archive.close()


class _Archive:
    """One archive: opened when it is used, again if another thread has closed it."""

    def __init__(self, kind: type[_Zip | _Tar], opening: Callable[[], IO[bytes]]) -> None:
        self._kind = kind
        self._opening = opening
        self._lock = threading.Lock()
        self._files: _Zip | _Tar | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[_Zip | _Tar]:
        """Lock the archive and yield its files."""
        with self._lock:
            if self._files is None:
                file = self._opening()
                try:
                    self._files = self._kind(file)
                except BaseException:
                    file.close()
                    raise
            yield self._files

    def close(self) -> None:
        with self._lock:
            if self._files is not None:
                with contextlib.suppress(OSError):
                    self._files.file.close()
            self._files = None


class _Tar:
    """The files of a tar archive. A name that is not in it raises KeyError."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._places: dict[str, tuple[int, int]] = {}
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := self._next(tar)) is not None:
                if member.isreg() and not member.issparse():
                    self._places[_normal(member.name)] = member.offset_data, member.size
                tar.members = []  # type: ignore[attr-defined] # frees the memory they take

    def _next(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        """Return the next member; in a truncated archive, those before the cut are used."""
        try:
            return tar.next()
        except tarfile.ReadError:
            if self._places:
                return None
            raise

    def size(self, member: str) -> int:
        return self._places[member][1]

    def read(self, member: str) -> bytes:
        begin, size = self._places[member]
        self.file.seek(begin)
        return self.file.read(size)


class _Zip:
    """The files of a zip archive. A name that is not in it raises KeyError."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._zip = zipfile.ZipFile(file)
        self._infos = {
            _normal(info.filename): info for info in self._zip.infolist() if not info.is_dir()
        }

    def size(self, member: str) -> int:
        return self._infos[member].file_size

    def read(self, member: str) -> bytes:
        with self._zip.open(self._infos[member]) as file:
            return file.read(self._infos[member].file_size)


def _normal(member: str) -> str:
    return member.removeprefix("./")
