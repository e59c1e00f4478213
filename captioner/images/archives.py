"""Images inside tar and zip archives, read in place: ``archive.tar#folder/image.jpg``."""

from __future__ import annotations

import contextlib
import re
import tarfile
import threading
import zipfile
from collections import OrderedDict
from typing import IO, TYPE_CHECKING, Protocol

from captioner.core.errors import BadImageError

if TYPE_CHECKING:
    from collections.abc import Callable

OPEN_AT_ONCE = 16
"""Archives whose list of members is kept; of others it is read again."""

_IN_ARCHIVE = re.compile(r"(.+?\.(?:tar|zip))#(.+)", re.IGNORECASE | re.DOTALL)


def in_archive(reference: str) -> tuple[str, str] | None:
    """Return an archive and its member, None if a reference does not name them."""
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
    """The archives of a run, each opened once and read by any thread.

    Args:
        max_bytes: Largest member that is read.
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
        """Return a member's bytes.

        Args:
            name: The archive.
            member: Its path inside.
            opening: Opens the archive.
            reserve: Called with the member's size before it is read; may block for memory.

        Raises:
            BadImageError: ``image_missing``, ``image_unreadable``, ``image_empty`` or
                ``image_too_large``.
        """
        shown = f"{name}#{member}"[:200]
        try:
            archive = self._archive(name, opening)
            size = archive.size(member)
            check_size(shown, size, self._max_bytes)
            reserve(size)
            data = archive.read(member, size)
        except KeyError:
            raise BadImageError("image_missing", f"there is no {shown}") from None
        except BadImageError:
            raise
        except Exception as error:  # noqa: BLE001 - broken archives break in many ways
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
        """Close all of them."""
        with self._lock:
            archives, self._open = self._open, OrderedDict()
        for archive in archives.values():
            archive.close()


class _Members(Protocol):
    """What an archive holds. A member that is none raises KeyError."""

    def size(self, member: str) -> int: ...

    def read(self, member: str, size: int) -> bytes: ...


class _Archive:
    """One archive, open while it is used; whoever still reads when it is closed opens it again."""

    def __init__(self, name: str, opening: Callable[[], IO[bytes]]) -> None:
        self._opening = opening
        self._kind = _Zip if name.lower().endswith(".zip") else _Tar
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._members: _Members | None = None

    def size(self, member: str) -> int:
        with self._lock:
            return self._opened().size(member)

    def read(self, member: str, size: int) -> bytes:
        with self._lock:
            return self._opened().read(member, size)

    def _opened(self) -> _Members:
        if self._members is None:
            self._file = self._opening()
            try:
                self._members = self._kind(self._file)
            except BaseException:
                self._file.close()
                raise
        return self._members

    def close(self) -> None:
        with self._lock:
            self._members = None
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()


class _Tar:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := self._next(tar)) is not None:
                if member.isreg() and not member.issparse():
                    self._places[_plain(member.name)] = member.offset_data, member.size
                tar.members = []  # type: ignore[attr-defined] # it would keep them all

    def _next(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        """Return the next member; where an archive is cut short, those before the cut count."""
        try:
            return tar.next()
        except tarfile.ReadError:
            if self._places:
                return None
            raise

    def size(self, member: str) -> int:
        return self._places[_plain(member)][1]

    def read(self, member: str, size: int) -> bytes:
        self._file.seek(self._places[_plain(member)][0])
        return self._file.read(size)


class _Zip:
    def __init__(self, file: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(file)
        self._infos = {_plain(info.filename): info for info in self._zip.infolist()}

    def size(self, member: str) -> int:
        info = self._infos[_plain(member)]
        if info.is_dir():
            raise KeyError(member)
        return info.file_size

    def read(self, member: str, size: int) -> bytes:
        with self._zip.open(self._infos[_plain(member)]) as file:
            return file.read(size)


def _plain(member: str) -> str:
    return member.removeprefix("./")
