"""Reading an image's bytes: regular files only, bounded, never blocking on what is no file."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import IO, TYPE_CHECKING

from captioner.core.errors import BadImageError, WouldBlockError
from captioner.images.archives import Archives, check_size, in_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


_AT_ONCE = getattr(os, "RWF_NOWAIT", None)
"""Has Linux read only what is in memory already."""

MOST_AT_ONCE = 8 << 20
"""Bytes of a file that are read without a thread."""

STEP = 1 << 18
"""Bytes from one byte to the next that is looked for in memory; disks are read ahead as far."""

_BYTE = [bytearray(1)]
"""Takes a byte that nobody looks at."""

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class ImageFolders:
    """Where relative paths start from, and where files may lie.

    Args:
        roots: Folders tried in order for a relative path.
        bound: No file may lie outside the first folder, by ``..``, absolute path or link.
        max_bytes: Largest file that is read.
        archives: Archives that have been opened.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        *,
        bound: bool,
        max_bytes: int,
        archives: Archives | None = None,
    ) -> None:
        self._roots = [os.fspath(root) for root in roots]
        self._inside = os.path.realpath(roots[0]).rstrip(os.sep) + os.sep if bound else None
        self._max_bytes = max_bytes
        self._archives = archives or Archives(max_bytes)

    def read(self, path: str, reserve: Callable[[int], None], *, waits: bool = True) -> bytes:
        """Return a file's bytes.

        Args:
            path: As the record gives it, or ``archive.tar#member``.
            reserve: Called with the file's size before it is read; may block for memory.
            waits: The disk may be waited for; else only what is in memory is read.

        Raises:
            NotAtOnceError: It would have to be waited for.
            BadImageError: ``image_missing``, ``image_unreadable``, ``image_not_a_file``,
                ``image_outside_root``, ``image_too_large`` or ``image_empty``.
        """
        if "#" in path and (parts := in_archive(path)):
            if not waits:
                raise WouldBlockError
            try:
                fd = self._open(path)  # a file may be called so
            except BadImageError:
                archive, member = parts
                opening = partial(self._open_archive, archive)
                return self._archives.read(archive, member, opening, reserve)
        else:
            fd = self._open(path)
        path = _brief(path)
        try:
            info = _regular(fd, path)
            check_size(path, info.st_size, self._max_bytes)
            reserve(info.st_size)
            if not (waits or _in_memory(fd, info.st_size)):
                raise WouldBlockError
            # One byte more than it had: if it still grows it is not whole.
            data = os.read(fd, info.st_size + 1)
            while len(data) < info.st_size and (more := os.read(fd, info.st_size - len(data))):
                data += more
        except OSError as error:
            raise _unreadable(path, error) from None
        finally:
            os.close(fd)
        if not data:
            raise BadImageError("image_empty", f"{path} is empty")
        if len(data) != info.st_size:
            raise BadImageError("image_unreadable", f"{path} changed while it was read")
        return data

    def find(self, path: str) -> str | None:
        """Return where a file is that a relative path leads to; None where there is none."""
        for root in self._roots:
            full = path if path[:1] == "/" else os.path.join(root, path)  # noqa: PTH118
            if os.path.isfile(full):  # noqa: PTH113
                return full
        return None

    def _open_archive(self, path: str) -> IO[bytes]:
        fd = self._open(path)
        try:
            _regular(fd, path)
        except BadImageError:
            os.close(fd)
            raise
        return os.fdopen(fd, "rb")

    def _open(self, path: str) -> int:
        missing: OSError | None = None
        for root in self._roots:
            # pathlib costs ten times as much here, and this is every record.
            full = path if path[:1] == "/" else os.path.join(root, path)  # noqa: PTH118
            try:
                if self._inside is not None:
                    full = os.path.realpath(full)
                    if not full.startswith(self._inside):
                        raise BadImageError(
                            "image_outside_root", f"{_brief(path)} lies outside the image root"
                        )
                    return self._opened_inside(full)
                return os.open(full, _FLAGS)
            except (FileNotFoundError, NotADirectoryError) as error:
                missing = error
            except OSError as error:
                raise _unreadable(path, error) from None
            except ValueError:
                raise BadImageError(
                    "image_missing", f"{_brief(path)!r} is no path: it holds a NUL character"
                ) from None
        where = " or ".join(map(os.path.abspath, self._roots))
        raise BadImageError(
            "image_missing", f"there is no file {_brief(path)} in {where}"
        ) from missing

    def _opened_inside(self, path: str) -> int:
        """Open a file that lies inside the root, also if a folder on the way is swapped now."""
        fd = os.open(path, _FLAGS | os.O_NOFOLLOW)
        try:
            really = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - as above
        except OSError:  # not every system tells
            return fd
        if self._inside is not None and not really.startswith(self._inside):
            os.close(fd)
            raise BadImageError("image_outside_root", f"{_brief(path)} lies outside the image root")
        return fd


def _regular(fd: int, path: str) -> os.stat_result:
    """Return what an open file is, if it is one."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise BadImageError("image_not_a_file", f"{_brief(path)} is not a regular file")
    return info


def _in_memory(fd: int, size: int) -> bool:
    """Tell whether a file can be read without waiting for the disk, by a byte here and there."""
    if _AT_ONCE is None or size >= MOST_AT_ONCE:
        return False
    try:
        for at in range(0, size, STEP):
            if not os.preadv(fd, _BYTE, at, _AT_ONCE):
                return False
        return os.preadv(fd, _BYTE, size - 1, _AT_ONCE) > 0
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise


def _unreadable(path: str, error: OSError) -> BadImageError:
    return BadImageError(
        "image_unreadable", f"cannot read {_brief(path)}: {error.strerror or error}"
    )


def _brief(path: str) -> str:
    return path if len(path) <= 200 else path[:199] + "…"
