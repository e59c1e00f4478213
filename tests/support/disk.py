"""A simulated disk for crash tests, after SQLite's crash tests (https://sqlite.org/testing.html).

What is written is seen at once but reaches the platter only when it is synced. At a kill -9 the
page cache survives and the write under way may be cut short. At a power loss each unsynced
512-byte sector is there or not, sizes may run ahead of the data (holes read as zeros), and what
was done to names since the folder's last sync has happened up to some point only.
"""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Literal

from captioner.core.errors import OutputBusyError
from captioner.journal.disk import Files, Kind

SECTOR = 512
FOLDER = Path("/sim")
Mode = Literal["kill", "power"]


class Crash(Exception):  # noqa: N818 - it is no error, it is the end of the process
    """The process is gone."""


class Inode:
    def __init__(self) -> None:
        self.live = bytearray()
        self.durable = b""
        self.pending: list[tuple[int, bytes] | int] = []  # writes, or sizes it was cut to

    def write(self, offset: int, data: bytes) -> None:
        if offset > len(self.live):
            self.live += bytes(offset - len(self.live))
        self.live[offset : offset + len(data)] = data
        self.pending.append((offset, data))

    def cut(self, size: int) -> None:
        del self.live[size:]
        self.pending.append(size)

    def sync(self) -> None:
        self.durable = bytes(self.live)
        self.pending = []

    def lose_power(self, rng: random.Random) -> None:
        image = bytearray(self.durable)
        kept: dict[int, bool] = {}
        for step in self.pending:
            if isinstance(step, int):
                if rng.random() < 0.5:
                    del image[step:]
                continue
            offset, data = step
            if rng.random() < 0.9 and offset + len(data) > len(image):
                image += bytes(offset + len(data) - len(image))
            for at in range(offset, min(offset + len(data), len(image))):
                sector = at // SECTOR
                if sector not in kept:
                    kept[sector] = rng.random() < 0.6
                if kept[sector]:
                    image[at] = data[at - offset]
        self.live = image
        self.sync()


class SimulatedDisk(Files):
    """Counts operations and crashes when its budget is spent."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.inodes: dict[Path, Inode] = {}
        self.durable_names: dict[Path, Inode] = {}
        self.pending_names: list[tuple[Path, Inode | None]] = []
        self.open_files: dict[int, Inode] = {}
        self.locked: set[Path] = set()
        self.locked_files: dict[int, Inode] = {}
        self.lock_files: set[Path] = set()  # a crash leaves them
        self.budget: int | None = None
        self.crashed = False
        self.operations = 0

    # -- crashing ---------------------------------------------------------------------------

    def step(self) -> None:
        if self.crashed:
            raise Crash
        self.operations += 1
        if self.budget is not None:
            self.budget -= 1
            if self.budget < 0:
                self.crashed = True
                raise Crash

    def restart(self, mode: Mode) -> None:
        """What the next process finds."""
        self.crashed = False
        self.open_files = {}
        self.locked = set()
        self.locked_files = {}
        if mode == "kill":
            return
        self.inodes = dict(self.durable_names)
        for path, inode in self.pending_names[: self.rng.randint(0, len(self.pending_names))]:
            self._name(self.inodes, path, inode)
        self.pending_names = []
        self.durable_names = dict(self.inodes)
        for inode in {id(i): i for i in self.inodes.values()}.values():
            inode.lose_power(self.rng)

    @staticmethod
    def _name(names: dict[Path, Inode], path: Path, inode: Inode | None) -> None:
        if inode is None:
            names.pop(path, None)
        else:
            for other in [p for p, i in names.items() if i is inode]:
                del names[other]
            names[path] = inode

    def _rename(self, path: Path, inode: Inode | None) -> None:
        self._name(self.inodes, path, inode)
        self.pending_names.append((path, inode))

    # -- the file layer ---------------------------------------------------------------------

    def open(
        self, path: Path, *, create: bool = False, new: bool = False, private: bool = False
    ) -> int:
        self.step()
        inode = self.inodes.get(path)
        if inode is None:
            if not (create or new):
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            inode = Inode()
            self._rename(path, inode)
        elif new:
            raise FileExistsError(errno.EEXIST, "file exists", str(path))
        fd = max(self.open_files, default=2) + 1
        self.open_files[fd] = inode
        return fd

    def open_to_read(self, path: Path) -> int:
        return self.open(path)

    def close(self, fd: int) -> None:
        if not self.crashed:
            self.locked_files.pop(fd, None)
            del self.open_files[fd]

    def is_at(self, fd: int, path: Path) -> bool:
        if self.crashed:
            raise Crash
        return self.inodes.get(path) is self.open_files[fd]

    def is_removed(self, fd: int) -> bool:
        return self.open_files[fd] not in self.inodes.values()

    def is_linked(self, path: Path) -> bool:
        return False

    def adopt_mode(self, fd: int, target: Path, *, private: bool) -> None:
        self.step()

    def lock_file(self, fd: int, path: Path) -> None:
        if self.open_files[fd] in self.locked_files.values():
            raise OutputBusyError("busy")
        self.locked_files[fd] = self.open_files[fd]

    def size(self, fd: int) -> int:
        self.step()
        return len(self.open_files[fd].live)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        if self.crashed:
            raise Crash
        return bytes(self.open_files[fd].live[offset : offset + size])

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        inode = self.open_files[fd]
        try:
            self.step()
        except Crash:
            if torn := bytes(data[: self.rng.randrange(len(data) + 1)]):
                inode.write(offset, torn)
            raise
        part = len(data) if self.rng.random() < 0.8 else self.rng.randint(1, len(data))
        inode.write(offset, bytes(data[:part]))
        return part

    def truncate(self, fd: int, size: int) -> None:
        self.step()
        self.open_files[fd].cut(size)

    def sync(self, fd: int) -> None:
        self.step()
        self.open_files[fd].sync()

    def sync_folder(self, folder: Path) -> None:
        self.step()
        assert folder == FOLDER
        self.durable_names = dict(self.inodes)
        self.pending_names = []

    def replace(self, source: Path, target: Path) -> None:
        self.step()
        self._rename(target, self.inodes[source])

    def remove(self, path: Path) -> None:
        self.step()
        if path in self.inodes:
            self._rename(path, None)

    def kind(self, path: Path) -> Kind:
        if self.crashed:
            raise Crash
        there = path in self.inodes or path in self.lock_files
        return "folder" if path == FOLDER else "file" if there else "missing"

    def names(self, folder: Path) -> list[str]:
        return [path.name for path in self.inodes if path.parent == folder]

    def lock(self, path: Path) -> int:
        if path in self.locked:
            raise OutputBusyError("busy")
        self.locked.add(path)
        self.lock_files.add(path)
        return 1

    def unlock(self, fd: int, path: Path) -> None:
        if not self.crashed:
            self.locked.discard(path)
            self.lock_files.discard(path)

    def holder(self, path: Path) -> str:
        return "somebody" if path in self.locked else ""

    def content(self, path: Path) -> bytes:
        return bytes(self.inodes[path].live) if path in self.inodes else b""
