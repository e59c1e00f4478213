"""Opening the files that captioner keeps beside an output, where others may have put files.

Symbolic links are not followed, and only regular files are opened, without waiting: a data set from
a stranger may bring a link or a pipe with the name of any such file.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import IO, TYPE_CHECKING

from captioner.core.errors import OutputDamagedError

if TYPE_CHECKING:
    from pathlib import Path


def open_regular(path: Path, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """Open a file that captioner reads or writes beside an output, and return its descriptor.

    Anybody who can write in the folder may have put something else there: symbolic links are not
    followed, and a pipe or a device does not block.

    Args:
        path: The file.
        flags: Flags of `os.open`.
        mode: Mode of a file that is created.

    Raises:
        OutputDamagedError: It is not a regular file.
        OSError: The disk refused.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise OutputDamagedError(not_regular(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OutputDamagedError(not_regular(path))
    return fd


def not_regular(path: Path) -> str:
    """Return the sentence about a path that is in the place of one of our files."""
    return (
        f"{path} is not a regular file (a folder, link or device); "
        "remove it or choose another output with -o"
    )


def reading(path: Path) -> IO[bytes]:
    """Open a regular file for reading; see `open_regular`."""
    return os.fdopen(open_regular(path), "rb")


def writing(path: Path, *, new: bool = False) -> IO[bytes]:
    """Open a regular file for writing; see `open_regular`.

    Args:
        path: A file from `replacing`.
        new: Create the file instead, for the owner only; what has the name is removed.
    """
    if new:
        path.unlink(missing_ok=True)
    flags = os.O_CREAT | os.O_EXCL if new else 0
    return os.fdopen(open_regular(path, os.O_WRONLY | flags), "wb", buffering=1 << 20)
