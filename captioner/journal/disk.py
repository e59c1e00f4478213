"""The file operations the commit protocol rests on, in one replaceable place.

The journal reaches the disk only through this class, so that tests can run the same code against
a simulated disk that crashes, tears writes or fails the n-th call.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import sys
from pathlib import Path
from typing import Literal

from captioner.core.errors import OutputBusyError

Kind = Literal["missing", "file", "folder", "other"]
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone leaves data in the drive


class Files:
    """The real disk. Every method may raise `OSError`."""

    def open(self, path: Path, *, create: bool = False, fresh: bool = False) -> int:
        """Open a file for reading and writing; ``fresh`` empties it, ``create`` makes it."""
        flags = os.O_RDWR | os.O_CLOEXEC
        flags |= os.O_CREAT if create or fresh else 0
        flags |= os.O_TRUNC if fresh else 0
        return os.open(path, flags, 0o666)

    def open_to_read(self, path: Path) -> int:
        """Open a file that is only looked at."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """Close a file."""
        os.close(fd)

    def size(self, fd: int) -> int:
        """Return a file's size in bytes."""
        return os.fstat(fd).st_size

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes from ``offset``; empty at the end."""
        return os.pread(fd, size, offset)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        """Write at ``offset``; return how many bytes were taken, which may be fewer."""
        return os.pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        """Cut a file."""
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """Return when the file's data is on the platter."""
        if _FULL_SYNC is not None:
            fcntl.fcntl(fd, _FULL_SYNC)
        elif sys.platform == "linux":
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    def sync_folder(self, folder: Path) -> None:
        """Return when the folder's entries are on the platter."""
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
                raise
        finally:
            os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Put one file in another's place, atomically."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file if it is there."""
        path.unlink(missing_ok=True)

    def kind(self, path: Path) -> Kind:
        """Return what is at that path itself; a link is ``other`` whatever it leads to."""
        try:
            mode = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return "missing"
        if stat.S_ISREG(mode):
            return "file"
        return "folder" if stat.S_ISDIR(mode) else "other"

    def lock(self, path: Path) -> int:
        """Take an exclusive lock that ends with this process, however it ends.

        Returns:
            A descriptor for `unlock`.

        Raises:
            OutputBusyError: Another process holds it; the message names host and process.
        """
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder removes the file when it ends: what we locked may be gone by now.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(path.stat(), os.fstat(fd)):
                        os.ftruncate(fd, 0)
                        os.pwrite(fd, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)
                        return fd
            except BlockingIOError:
                host, _, pid = os.pread(fd, 300, 0).decode(errors="replace").strip().partition(" ")
                os.close(fd)
                who = f"process {pid} on {host}" if pid else "another process"
                raise OutputBusyError(
                    f"{path.with_suffix('').name} is being written by {who}; "
                    "wait for it, stop it, or choose another output with -o."
                ) from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def holder(self, path: Path) -> str:
        """Return who holds a lock, as ``host pid``; empty if nobody does."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(fd, 300, 0).decode(errors="replace").strip() or "another process"
        finally:
            os.close(fd)
        return ""

    def unlock(self, fd: int, path: Path) -> None:
        """Release a lock and leave nothing behind."""
        path.unlink(missing_ok=True)
        os.close(fd)


def write_all(files: Files, fd: int, data: bytes, offset: int) -> int:
    """Write all bytes and return how many; after an error the file ends at ``offset`` again."""
    view = memoryview(data)
    done = 0
    try:
        while done < len(view):
            done += files.write(fd, view[done:], offset + done)
    except OSError:
        files.truncate(fd, offset)
        raise
    return done


def is_full(error: OSError) -> bool:
    """Tell whether there was no room: waiting may help."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def network_file_system(path: Path) -> str:
    """Return the type of the network file system a path is on, empty if it is a local one.

    Locks of such a file system may not reach other hosts. Linux only (``/proc/self/mounts``).
    """
    best, kind = "", ""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    target = os.path.realpath(path)
    for line in mounts.splitlines():
        fields = line.split(" ")
        point = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), fields[1])
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    remote = ("nfs", "cifs", "smb", "lustre", "fuse", "9p", "ceph", "gpfs", "beegfs", "afs")
    return kind if kind.startswith(remote) and kind != "fuseblk" else ""
