"""File operations of the commit protocol.

The journal uses the disk only through `Files`, so that tests can run the same code on a simulated
disk that crashes, tears writes or fails the n-th call.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import socket
import stat
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from captioner.core.descriptors import TOO_MANY_OPEN, are_used_up, patient
from captioner.core.errors import (
    DescriptorsError,
    DiskError,
    OutputBusyError,
    OutputDamagedError,
    SettingsError,
)
from captioner.core.regular import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["missing", "file", "folder", "other"]
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone leaves data in the drive


class Files:
    """The real disk. Every method may raise `OSError`.

    Methods that open a file raise `OutputDamagedError` for anything but a regular file.
    """

    @patient
    def open(
        self, path: Path, *, create: bool = False, new: bool = False, private: bool = False
    ) -> int:
        """Open a file to read and write.

        Args:
            path: The file. A symbolic link is refused, whatever its target.
            create: Create the file if it is missing.
            new: Create the file, which must not exist.
            private: A file that is created is readable for its owner only.
        """
        flags = os.O_RDWR
        flags |= os.O_CREAT if create or new else 0
        flags |= os.O_EXCL if new else 0
        return open_regular(path, flags, 0o600 if private else 0o666)

    @patient
    def open_to_read(self, path: Path) -> int:
        """Open a file for reading."""
        return open_regular(path)

    def is_at(self, fd: int, path: Path) -> bool:
        """Return whether an open file still is what a path names; links are not followed."""
        try:
            return os.path.samestat(path.lstat(), os.fstat(fd))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def is_removed(self, fd: int) -> bool:
        """Return whether an open file has no name any more."""
        return not os.fstat(fd).st_nlink

    def is_linked(self, path: Path) -> bool:
        """Return whether an existing file has further names (hard links)."""
        return path.lstat().st_nlink > 1

    def adopt_mode(self, fd: int, target: Path, *, private: bool) -> None:
        """Give a new file the mode of the file that it replaces.

        If there is none, it gets the default of the user, or 0600 if it is ``private``.
        """
        try:
            mode = stat.S_IMODE(target.lstat().st_mode) & 0o777
        except FileNotFoundError:
            mode = 0o600 if private else 0o666 & ~_umask()
        with contextlib.suppress(PermissionError):  # some file systems have no modes
            os.fchmod(fd, mode)

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
        """Write at ``offset``; return the number of bytes written, which may be smaller."""
        return os.pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        """Set a file's size to a smaller one."""
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """Return when the file's data is on the disk."""
        if _FULL_SYNC is not None:
            fcntl.fcntl(fd, _FULL_SYNC)
        elif sys.platform == "linux":
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    @patient
    def sync_folder(self, folder: Path) -> None:
        """Return when the folder's entries are on the disk."""
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
                raise
        finally:
            os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file, atomically replacing the target."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file if it exists."""
        path.unlink(missing_ok=True)

    @patient
    def names(self, folder: Path) -> list[str]:
        """Return the names in a folder."""
        return [path.name for path in folder.iterdir()]

    def kind(self, path: Path) -> Kind:
        """Return what is at a path; a symbolic link is ``other``, whatever its target."""
        try:
            mode = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return "missing"
        if stat.S_ISREG(mode):
            return "file"
        return "folder" if stat.S_ISDIR(mode) else "other"

    def lock_file(self, fd: int, path: Path) -> None:
        """Lock an open file itself, until it is closed.

        Raises:
            OutputBusyError: Another process has locked it, under this name or another one.
        """
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(path, "another process, maybe under another name") from None

    @patient
    def lock(self, path: Path) -> int:
        """Take an exclusive lock, which ends with this process; return a descriptor for `unlock`.

        Raises:
            OutputBusyError: Another process holds it; the message names host and process.
            SettingsError: The file is no lock.
        """
        while True:
            fd = open_regular(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder removes the file at its end: ours may be another one by now.
                if self.is_at(fd, path):
                    _refuse_other_content(path, os.pread(fd, 300, 0))
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)
                    return fd
            except BlockingIOError:
                host, _, pid = os.pread(fd, 300, 0).decode(errors="replace").strip().partition(" ")
                os.close(fd)
                who = f"process {pid} on {host}" if pid else "another process"
                raise _busy(path.with_suffix(""), who) from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def holder(self, path: Path) -> str:
        """Return who holds a lock, as ``host pid``; empty if it is free."""
        try:
            fd = open_regular(path)
        except (OSError, OutputDamagedError):
            return ""
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(fd, 300, 0).decode(errors="replace").strip() or "another process"
        finally:
            os.close(fd)
        return ""

    def unlock(self, fd: int, path: Path) -> None:
        """Release a lock and remove its file, unless it is another one by now."""
        if self.is_at(fd, path):
            path.unlink(missing_ok=True)
        os.close(fd)


_LOCK = re.compile(rb"\0*|\S+ \d+\n")  # a power loss may leave zeros


def _refuse_other_content(path: Path, content: bytes) -> None:
    """Raise `SettingsError` for a lock that is another program's file under a name of ours."""
    if not _LOCK.fullmatch(content):
        raise SettingsError(
            f"{path} is in the place of a lock, but captioner has not written it; "
            "remove it or choose another output with -o"
        )


def _busy(path: Path, who: str) -> OutputBusyError:
    return OutputBusyError(
        f"{path.name} is being written by {who}; "
        "wait for it, stop it, or choose another output with -o."
    )


def _umask() -> int:
    """Return the mode bits that new files do not get, as far as possible without setting them."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("\nUmask:")[2].split(maxsplit=1)[0], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_all(files: Files, fd: int, data: bytes, offset: int) -> int:
    """Write all bytes and return their number; after an error the file is cut at ``offset``."""
    view = memoryview(data)
    done = 0
    try:
        while done < len(view):
            done += files.write(fd, view[done:], offset + done)
    except OSError:
        files.truncate(fd, offset)
        raise
    return done


class TemporaryFile:
    """A new file beside its target, which only its owner can read until it takes its place.

    ``size`` and ``crc32`` are those of the bytes from `write`.
    """

    def __init__(self, target: Path, files: Files) -> None:
        name = f"{_temporary_prefix(target)}{secrets.token_hex(4)}.partial"
        self.path = target.with_name(name)
        self.fd = files.open(self.path, new=True, private=True)
        self.size = 0
        self.crc32 = 0
        self._files = files

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self.size += write_all(self._files, self.fd, data, self.size)
        self.crc32 = zlib.crc32(data, self.crc32)


def _temporary_prefix(target: Path) -> str:
    """Return how the names of a target's temporary files begin, within the 255 bytes of a name."""
    return f"{target.name[:50]}.{zlib.crc32(os.fsencode(target.name)):08x}"


@contextmanager
def temporary_file(target: Path, files: Files) -> Iterator[TemporaryFile]:
    """Yield a new file beside the target; an exception removes it."""
    file = TemporaryFile(target, files)
    try:
        yield file
    except BaseException:
        with contextlib.suppress(OSError):
            files.remove(file.path)
        raise
    finally:
        files.close(file.fd)


@contextmanager
def atomic_write(target: Path, files: Files, *, private: bool = False) -> Iterator[TemporaryFile]:
    """Yield a new file that is synced and takes the target's place and mode at the end.

    After an exception or a crash the target is as it was. A link in its place is replaced.
    ``private`` is for a target that does not exist yet: only its owner can read it.
    """
    with temporary_file(target, files) as file:
        yield file
        files.adopt_mode(file.fd, target, private=private)
        files.sync(file.fd)
        files.replace(file.path, target)
        files.sync_folder(target.parent)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield the path of an empty file to write to, which takes the target's place at the end.

    Raises:
        DiskError: The disk refused; the target is as it was.
    """
    with disk_errors("write", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target, Files()) as file:
            yield file.path


def remove_temporary_files(files: Files, *targets: Path) -> None:
    """Remove temporary files that a crash left. No other process may be writing the targets."""
    for folder in {target.parent for target in targets}:
        prefixes = tuple(_temporary_prefix(path) for path in targets if path.parent == folder)
        for name in files.names(folder):
            if name.startswith(prefixes) and name.endswith(".partial"):
                files.remove(folder / name)


def disk_error(verb: str, path: Path, error: OSError) -> DiskError | DescriptorsError:
    """Return the error of a run whose disk refused to do something with a file."""
    if are_used_up(error):
        return DescriptorsError(TOO_MANY_OPEN)
    return DiskError(
        f"the disk refused to {verb} {path.name}: {error.strerror or error}. Captions written "
        "before are safe. Make room or repair the disk, then run the same command again."
    )


@contextmanager
def disk_errors(verb: str, path: Path) -> Iterator[None]:
    """Raise errors of the disk inside the block as `disk_error`."""
    try:
        yield
    except OSError as error:
        raise disk_error(verb, path, error) from error


def is_full(error: OSError) -> bool:
    """Return whether the disk or a quota is full, so that waiting may help."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def network_file_system(path: Path) -> str:
    """Return the type of the network file system of a path; empty for a local one.

    Locks on a network file system may not be seen by other hosts. Linux only.
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
