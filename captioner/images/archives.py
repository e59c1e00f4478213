"""Images inside tar and zip archives, read in place: ``archive.tar#folder/image.jpg``."""

from __future__ import annotations

import contextlib
import io
import posixpath
import re
import stat
import threading
import zipfile
from collections import OrderedDict
from typing import IO, TYPE_CHECKING

from captioner.core.archive_index import ArchiveIndex, tar_index
from captioner.core.cancellation import StoppedError
from captioner.core.errors import BadImageError, RunError
from captioner.core.media import is_video

if TYPE_CHECKING:
    from collections.abc import Callable

OPEN_AT_ONCE = 16
"""Archives that stay open; others are opened and listed again."""

_LONGEST_TARGET = 4_096
"""Bytes of a path that a link in a zip archive leads to."""

_ENCRYPTED = 1
"""Bit of a member's flags in a zip archive (APPNOTE.TXT, section 4.4.4)."""

_UTF8 = 1 << 11
"""Bit of a member whose name is UTF-8."""

_IN_ARCHIVE = re.compile(r"(.+?\.(?:tar|zip))#(.+)", re.IGNORECASE | re.DOTALL)


def in_archive(reference: str) -> tuple[str, str] | None:
    """Return an archive and the file in it, or None if a reference names no archive."""
    found = _IN_ARCHIVE.fullmatch(reference)
    return (found[1], found[2]) if found else None


def check_size(shown: str, size: int, most: int, most_of_video: int | None = None) -> None:
    """Refuse a file that is too large to be read.

    Args:
        shown: The file, as messages name it; its suffix says whether it is a video.
        size: Its bytes.
        most: The most bytes of an image.
        most_of_video: The most bytes of a video; by default those of an image.

    Raises:
        BadImageError: ``image_too_large``.
    """
    if size <= most and (most_of_video is None or size <= most_of_video):
        return
    limit, option = most, "--max-image-bytes"
    if most_of_video is not None and is_video(shown.partition("?")[0]):
        limit, option = most_of_video, "--max-video-bytes"
    if size > limit:
        raise BadImageError(
            "image_too_large",
            f"{shown} has {size} bytes or more; the most is {limit} ({option})",
        )


class Archives:
    """The archives of a run. May be used from any thread.

    Args:
        max_bytes: Largest file that is read.
        max_video_bytes: Largest video that is read; by default ``max_bytes``.
    """

    def __init__(self, max_bytes: int, max_video_bytes: int | None = None) -> None:
        self._most = max_bytes, max_video_bytes
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
            BadImageError: ``image_missing``, ``image_ambiguous``, ``image_unreadable``,
                ``image_empty`` or ``image_too_large``.
        """
        shown = f"{name}#{member}"[:200]
        try:
            archive = self._archive(name, opening)
            size = archive.size(member)
            check_size(shown, size, *self._most)
            reserve(size)
            data = archive.read(member)
        except (BadImageError, RunError, StoppedError):
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
            archive = self._open.pop(name, None) or _Archive(name, opening)
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

    def __init__(self, name: str, opening: Callable[[], IO[bytes]]) -> None:
        self._name = name
        self._opening = opening
        self._lock = threading.Lock()
        self._file: IO[bytes] = io.BytesIO()
        self._contents: _Tar | _Zip | None = None

    def size(self, member: str) -> int:
        """Return the size of a file; `ArchiveIndex.find` names the errors."""
        with self._lock:
            if self._contents is None:
                self._file = self._opening()
                try:
                    kind = _Zip if self._name.lower().endswith(".zip") else _Tar
                    self._contents = kind(self._file, self._name)
                except BaseException:
                    self._file.close()
                    raise
            return self._contents.size(member)

    def read(self, member: str) -> bytes:
        """Return the bytes of a file whose size was asked for."""
        self.size(member)
        with self._lock:
            return self._contents.read(member) if self._contents else b""

    def close(self) -> None:
        with self._lock:
            self._contents = None
            with contextlib.suppress(OSError):
                self._file.close()


class _Tar:
    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._index = tar_index(file, name)

    def size(self, member: str) -> int:
        return self._index.find(member)[1]

    def read(self, member: str) -> bytes:
        offset, size = self._index.find(member)
        self._file.seek(offset)
        return self._file.read(size)


def _names(info: zipfile.ZipInfo) -> set[str]:
    """Return the names of a member in a zip archive, which may not say how they are encoded.

    zipfile decodes such a name by code page 437, but most programs write it in UTF-8 or in the
    encoding of their system.
    """
    if info.flag_bits & _UTF8 or info.filename.isascii():
        return {info.filename}
    return {info.filename, info.filename.encode("cp437").decode("utf-8", "surrogateescape")}


class _Zip:
    def __init__(self, file: IO[bytes], name: str) -> None:
        self._name = name
        self._zip = zipfile.ZipFile(file)
        self._index = ArchiveIndex[zipfile.ZipInfo](
            name, lambda one, other: (one.file_size, one.CRC) == (other.file_size, other.CRC)
        )
        for info in self._zip.infolist():
            is_link = stat.S_ISLNK(info.external_attr >> 16) and not info.flag_bits & _ENCRYPTED
            if is_link and info.file_size <= _LONGEST_TARGET:
                inside = posixpath.dirname(info.filename)
                target = self._zip.read(info).decode("utf-8", "surrogateescape")
                target = posixpath.normpath(posixpath.join(inside, target))
                self._index.add_link(info.filename, target)
            elif not info.is_dir():
                for one in _names(info):
                    self._index.add(one, info)

    def size(self, member: str) -> int:
        return self._index.find(member).file_size

    def read(self, member: str) -> bytes:
        info = self._index.find(member)
        if info.flag_bits & _ENCRYPTED:
            raise BadImageError(
                "image_unreadable",
                f"{self._name}#{member} is encrypted: unpack the archive with its password"[:300],
            )
        with self._zip.open(info) as file:
            return file.read(info.file_size)
