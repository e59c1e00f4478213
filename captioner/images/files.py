"""Reading image files: regular files only, of limited size, without blocking on pipes."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import TYPE_CHECKING

from captioner.core.cancellation import StoppedError
from captioner.core.descriptors import TOO_MANY_OPEN, are_used_up, patiently
from captioner.core.errors import (
    BadImageError,
    BadRecordError,
    DescriptorsError,
    WouldBlockError,
)
from captioner.core.filenames import spellings
from captioner.images.archives import Archives, check_size, in_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


_NOWAIT = getattr(os, "RWF_NOWAIT", None)
"""Flag of Linux to read only what is in memory already."""

MOST_AT_ONCE = 8 << 20
"""Bytes of a file that are read without a thread."""

MOST_BESIDE = 1 << 20
"""Bytes of the largest text file beside an image that is read."""

STEP = 1 << 18
"""Bytes between the samples that are looked for in memory; systems read ahead as much."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class ImageFolders:
    """The folders in which image files are looked for.

    Args:
        roots: Folders tried in order for a relative path.
        bound: Refuse files outside the first folder, by ``..``, absolute path or link.
        max_bytes: Largest file that is read.
        max_video_bytes: Largest video that is read; by default ``max_bytes``.
        archives: The archives of the run.
        is_over: Whether to give up waiting for a file descriptor; for any thread.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        *,
        bound: bool,
        max_bytes: int,
        max_video_bytes: int | None = None,
        archives: Archives | None = None,
        is_over: Callable[[], bool] = bool,
    ) -> None:
        self._roots = [os.fspath(root) for root in roots]
        self._inside = os.path.realpath(roots[0]).rstrip(os.sep) + os.sep if bound else None
        self._most = max_bytes, max_video_bytes
        self._is_over = is_over
        self._archives = archives or Archives(max_bytes, max_video_bytes)

    def read(self, path: str, reserve: Callable[[int], None], *, waits: bool = True) -> bytes:
        """Return a file's bytes.

        Args:
            path: As the record gives it, or ``archive.tar#member``.
            reserve: Called with the file's size before it is read; may block for memory.
            waits: Wait for the disk if necessary.

        Raises:
            WouldBlockError: The file is not in memory, and ``waits`` is false.
            BadImageError: ``image_missing``, ``image_unreadable``, ``image_not_a_file``,
                ``image_outside_root``, ``image_too_large``, ``image_empty`` or
                ``image_unknown_type``.
        """
        parts = in_archive(path) if "#" in path else None
        if parts and not waits:
            raise WouldBlockError
        try:
            try:
                fd, size = self._open(path)
            except OSError:
                if not waits:
                    raise WouldBlockError from None
                fd, size = self._opened(path)
        except BadImageError:
            if parts is None:
                raise
            archive, member = parts
            return self._archives.read(
                archive, member, lambda: os.fdopen(self._opened(archive)[0], "rb"), reserve
            )
        shown = _shortened(path)
        try:
            check_size(shown, size, *self._most)
            reserve(size)
            if not (waits or _in_memory(fd, size)):
                raise WouldBlockError
            # One byte more than it had shows that the file still grows.
            data = os.read(fd, size + 1)
            while len(data) < size and (more := os.read(fd, size - len(data))):
                data += more
        except OSError as error:
            raise _unreadable(path, error) from None
        finally:
            os.close(fd)
        if not data:
            raise BadImageError("image_empty", f"{shown} is empty")
        if data.startswith(_POINTER):
            raise BadImageError(
                "image_unknown_type",
                f"{shown} is a Git LFS pointer, not the image: fetch it with git lfs pull",
            )
        if len(data) != size:
            raise BadImageError("image_unreadable", f"{shown} changed while it was read")
        return data

    def find(self, path: str) -> str | None:
        """Return the full path of a file, or None if there is none."""
        for one in (path, *spellings(path)):
            for root in self._roots:
                full = os.path.join(root, one)  # noqa: PTH118 - as below
                if os.path.isfile(full):  # noqa: PTH113
                    return full
        return None

    def beside(self, path: str, suffixes: Sequence[str]) -> tuple[str, bytes] | None:
        """Return name and content of a file beside an image that has its name with another suffix.

        Links that lead out of the folder of the image are not followed.

        Args:
            path: The image, as the record gives it.
            suffixes: Tried in order; the first file that is not empty counts.

        Raises:
            BadRecordError: ``bad_sidecar``: the file is larger than `MOST_BESIDE` or cannot be
                read.
        """
        image = None if "#" in path and in_archive(path) else self.find(path)
        if image is None:
            return None
        folder = os.path.realpath(os.path.dirname(image)) + os.sep  # noqa: PTH120 - as below
        if self._inside is not None and not folder.startswith(self._inside):
            return None
        stem = os.path.splitext(os.path.basename(image))[0]  # noqa: PTH119, PTH122 - as below
        for suffix in suffixes:
            if content := _small_file(folder, stem + suffix):
                return stem + suffix, content
        return None

    def nearest(self, path: str, name: str) -> bytes:
        """Return the content of the nearest file with a name in or above the folder of an image.

        It is empty if there is none between that folder and the one in which images are looked for.

        Raises:
            BadRecordError: ``bad_sidecar``; see `beside`.
        """
        image = None if "#" in path and in_archive(path) else self.find(path)
        if image is None:
            return b""
        folder = os.path.realpath(os.path.dirname(image))  # noqa: PTH120 - as below
        for root in self._roots:
            top = os.path.realpath(root).rstrip(os.sep)
            while (folder + os.sep).startswith(top + os.sep):
                if content := _small_file(folder.rstrip(os.sep) + os.sep, name):
                    return content
                if folder in (top, os.sep):
                    break
                folder = os.path.dirname(folder)  # noqa: PTH120 - as below
        return b""

    def _opened(self, path: str) -> tuple[int, int]:
        """Return the descriptor of a regular file and its size; wait for a free descriptor."""
        try:
            return patiently(partial(self._open, path), self._is_over)
        except OSError as error:
            if self._is_over():
                raise StoppedError from None
            raise DescriptorsError(TOO_MANY_OPEN) from error

    def _open(self, path: str) -> tuple[int, int]:
        """Return the descriptor of a regular file and its size.

        Raises:
            OSError: No file can be opened now.
        """
        try:
            found = self._open_as_written(path, path)
            for one in () if found else spellings(path):
                found = found or self._open_as_written(one, path)
        except ValueError:
            raise BadImageError(
                "image_missing", f"{_shortened(path)!r} is not a path: it holds a NUL character"
            ) from None
        if found:
            return found
        where = " or ".join(map(os.path.abspath, self._roots))
        raise BadImageError("image_missing", f"there is no file {_shortened(path)} in {where}")

    def _open_as_written(self, written: str, path: str) -> tuple[int, int] | None:
        """Return the descriptor and size of a file that messages call ``path``; None if missing."""
        for root in self._roots:
            # pathlib takes ten times as long, and this runs for every record.
            full = os.path.join(root, written)  # noqa: PTH118
            try:
                if self._inside is None:
                    fd = os.open(full, _FLAGS)
                else:
                    fd = _open_inside(self._inside, full, _shortened(path))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if are_used_up(error):
                    raise
                raise _unreadable(path, error) from None
            info = os.fstat(fd)
            if stat.S_ISREG(info.st_mode):
                return fd, info.st_size
            os.close(fd)
            raise BadImageError("image_not_a_file", f"{_shortened(path)} is not a regular file")
        return None


def _open_inside(root: str, path: str, shown: str) -> int:
    """Open a file in a folder, even if a folder on its path becomes a link."""
    full = os.path.realpath(path)
    outside = BadImageError("image_outside_root", f"{shown} is outside the image root")
    if not full.startswith(root):
        raise outside
    fd = os.open(full, _FLAGS | os.O_NOFOLLOW)
    try:
        opened = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - see above
    except OSError:  # some systems have no /proc
        return fd
    if not opened.startswith(root):
        os.close(fd)
        raise outside
    return fd


def _small_file(folder: str, name: str) -> bytes:
    """Return the content of a file in a folder without surrounding blanks; empty if missing.

    Raises:
        BadRecordError: See `ImageFolders.beside`.
    """
    try:
        fd = _open_inside(folder, folder + name, name)
    except (FileNotFoundError, BadImageError):
        return b""
    except OSError as error:
        raise BadRecordError("bad_sidecar", f"cannot read {name}: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        content = file.read(MOST_BESIDE + 1)
    if len(content) > MOST_BESIDE:
        raise BadRecordError("bad_sidecar", f"{name} has more than {MOST_BESIDE} bytes")
    return content.strip()


def _in_memory(fd: int, size: int) -> bool:
    """Return whether a file can be read without waiting for the disk, from samples of it."""
    if _NOWAIT is None or size >= MOST_AT_ONCE:
        return False
    try:
        for at in (*range(0, size, STEP), max(size - 1, 0)):
            if not os.preadv(fd, [bytearray(1)], at, _NOWAIT):
                return False
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    return True


def _unreadable(path: str, error: OSError) -> BadImageError:
    return BadImageError(
        "image_unreadable", f"cannot read {_shortened(path)}: {error.strerror or error}"
    )


def _shortened(path: str) -> str:
    return path if len(path) <= 200 else path[:199] + "…"
