"""Images inside tar and zip archives, read in place: ``archive.tar#folder/image.jpg``."""

from __future__ import annotations

import contextlib
import io
import re
import tarfile
import threading
import zipfile
from collections import OrderedDict
from typing import IO, TYPE_CHECKING

from captioner.core.cancellation import StoppedError
from captioner.core.errors import BadImageError, RunError
from captioner.core.media import is_video

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPEN_AT_ONCE = 16
"""Archives that stay open; others are opened and listed again."""

_IN_ARCHIVE = re.compile(r"(.+?\.(?:tar|zip))#(.+)", re.IGNORECASE | re.DOTALL)


def in_archive(reference: str) -> tuple[str, str] | None:
    """Return an archive and the file in it, or None if a reference names no archive."""
    found = _IN_ARCHIVE.fullmatch(reference)
    return (found[1], found[2]) if found else None


def check_size(shown: str, size: int, most: int, most_of_video: int | None = None) -> None:
    """Refuse a file that is too large to be read.

    Args:
        shown: The file, as messages name it; its suffix tells whether it is a video.
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
            f"{shown} has {size:,} bytes or more; the most is {limit:,} ({option})",
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
            BadImageError: ``image_missing``, ``image_unreadable``, ``image_empty`` or
                ``image_too_large``.
        """
        shown = f"{name}#{member}"[:200]
        try:
            archive = self._archive(name, opening)
            size = archive.size(member)
            check_size(shown, size, *self._most)
            reserve(size)
            data = archive.read(member)
        except KeyError:
            raise BadImageError("image_missing", f"there is no {shown}") from None
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
    """One archive: opened when it is used, again if another thread has closed it.

    A name that is not in the archive raises KeyError.
    """

    def __init__(self, name: str, opening: Callable[[], IO[bytes]]) -> None:
        self._is_zip = name.lower().endswith(".zip")
        self._opening = opening
        self._lock = threading.Lock()
        self._file: IO[bytes] = io.BytesIO()
        self._members: dict[str, tuple[int | zipfile.ZipInfo, int]] | None = None

    def size(self, member: str) -> int:
        with self._lock:
            return self._find(member)[1]

    def read(self, member: str) -> bytes:
        with self._lock:
            place, size = self._find(member)
            if isinstance(place, zipfile.ZipInfo):
                with self._zip.open(place) as file:
                    return file.read(size)
            self._file.seek(place)
            return self._file.read(size)

    def close(self) -> None:
        with self._lock:
            self._members = None
            with contextlib.suppress(OSError):
                self._file.close()

    def _find(self, member: str) -> tuple[int | zipfile.ZipInfo, int]:
        """Return the place of a file in the archive and its size."""
        if self._members is None:
            self._file = self._opening()
            try:
                self._members = self._list(self._file)
            except BaseException:
                self._file.close()
                raise
        return self._members[_normal(member)]

    def _list(self, file: IO[bytes]) -> dict[str, tuple[int | zipfile.ZipInfo, int]]:
        if not self._is_zip:
            return dict(_tar_members(file))
        self._zip = zipfile.ZipFile(file)
        infos = self._zip.infolist()
        return {
            _normal(info.filename): (info, info.file_size) for info in infos if not info.is_dir()
        }


def _tar_members(file: IO[bytes]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the name, offset and size of each file, up to the cut in a truncated archive."""
    found = False
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while True:
            try:
                member = tar.next()
            except tarfile.ReadError:
                if found:
                    return
                raise
            if member is None:
                return
            if member.isreg() and not member.issparse():
                found = True
                yield _normal(member.name), (member.offset_data, member.size)
            tar.members = []  # type: ignore[attr-defined] # frees the memory they take


def _normal(member: str) -> str:
    return member.removeprefix("./")
