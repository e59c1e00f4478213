"""The file of failed records: appended to, read back with forgiveness, compacted at the end.

It has no durable length. A line that a crash tore is dropped, and its record is pending again.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import orjson

from captioner.core.keys import KEY_BYTES, KeyTable
from captioner.journal.disk import write_all

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from captioner.journal.disk import Files

_BLOCK = 1 << 22


def failures_path(output: Path) -> Path:
    """Return where the failures of an output go: ``x.jsonl`` to ``x.failed.jsonl``."""
    return output.with_name(f"{output.stem}.failed.jsonl")


def read_failures(files: Files, fd: int) -> Iterator[tuple[int, bytes, str, bytes]]:
    """Yield ``(offset, key, code, line)`` of every readable failure."""
    at = 0
    rest = b""
    while block := files.read(fd, _BLOCK, at + len(rest)):
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        for line in lines:
            with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError, ValueError):
                failure = orjson.loads(line)
                key = bytes.fromhex(failure["key"])
                if len(key) == KEY_BYTES:
                    yield at, key, str(failure.get("code", "")), line
            at += len(line) + 1


class FailuresFile:
    """One file of failures; made when the first record fails.

    Args:
        files: The disk.
        path: The file.

    Attributes:
        left: Failures found at opening that no record has claimed yet, with their offsets.
        dirty: Something was written since the last sync.
    """

    def __init__(self, files: Files, path: Path) -> None:
        self.path = path
        self.left = KeyTable()
        self.dirty = False
        self._files = files
        self._fd = -1
        self._size = 0
        self._torn = False  # holds lines that cannot be read

    def open(self) -> None:
        """Read what is there; a torn last line is sealed so that the next one stands alone."""
        if self._files.kind(self.path) == "missing":
            return
        self._open()
        readable = 0
        for offset, key, _, line in read_failures(self._files, self._fd):
            self.left.add(key, offset)
            readable += len(line) + 1
        self._torn = readable != self._size

    def _open(self) -> None:
        new = self._files.kind(self.path) == "missing"
        self._fd = self._files.open(self.path, create=True)
        self._size = size = self._files.size(self._fd)
        if new:
            self._files.sync_folder(self.path.parent)
        elif size and self._files.read(self._fd, 1, size - 1) != b"\n":
            self._size += write_all(self._files, self._fd, b"\n", size)

    @property
    def opened(self) -> bool:
        """There is one, and it is open."""
        return self._fd >= 0

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def since(self, at: int) -> KeyTable:
        """Return the records of the lines from some offset on."""
        table = KeyTable(offsets=False)
        if self._fd >= 0:
            for offset, key, _, _ in read_failures(self._files, self._fd):
                if offset >= at:
                    table.add(key)
        return table

    def forgive(self, code: str, into: KeyTable | None = None) -> KeyTable:
        """Take failures of one code, or ``all``, out of `left` into a table; return it."""
        forgiven = KeyTable() if into is None else into
        if self._fd >= 0:
            for offset, key, its_code, _ in read_failures(self._files, self._fd):
                if code in ("all", its_code) and self.left.take(key, offset) is not None:
                    forgiven.add(key, offset)
        return forgiven

    def kinds(self) -> dict[str, tuple[int, int, str]]:
        """Return how many failures of each code there are, with the line and message of one."""
        found: dict[str, tuple[int, int, str]] = {}
        if self._fd >= 0:
            for _, _, code, line in read_failures(self._files, self._fd):
                failure = orjson.loads(line)
                number = failure.get("line")
                first = (number if isinstance(number, int) else 0, str(failure.get("message", "")))
                count, number, message = found.get(code, (0, *first))
                found[code] = count + 1, number, message
        return found

    def append(self, lines: bytes) -> None:
        """Write whole lines.

        Raises:
            OSError: Not written; the file ends on a line as before, so it can be tried again.
        """
        if self._fd < 0:
            self._open()
        self._size += write_all(self._files, self._fd, lines, self._size)
        self.dirty = True

    def sync(self) -> None:
        """Return when what was appended is on disk."""
        if self.dirty:
            self.dirty = False
            self._files.sync(self._fd)

    def overtaken(self, offsets: Collection[int], captioned: KeyTable) -> set[int]:
        """Return which of some failures have a newer outcome than their line says.

        Args:
            offsets: Lines that no record of the input claimed.
            captioned: The records in the output.

        Returns:
            Those whose key is in the output, or in a line that a record did claim. The rest
            have lost their input record and are kept.
        """
        if not offsets:
            return set()
        keys = {
            offset: key
            for offset, key, _, _ in read_failures(self._files, self._fd)
            if offset in offsets
        }
        wanted = set(keys.values())
        newer = {
            key
            for offset, key, _, _ in read_failures(self._files, self._fd)
            if key in wanted and offset not in offsets
        }
        return {offset for offset, key in keys.items() if key in newer or key in captioned}

    def compact(self, stale: Collection[int]) -> None:
        """Remove lines by their offsets, and unreadable ones; an empty file goes altogether.

        Raises:
            OSError: The disk refused; the failures are the old or the new ones, whole.
        """
        if not stale and not self._torn:
            return
        partial = self.path.with_name(self.path.name + ".partial")
        fd = self._files.open(partial, fresh=True)
        size = 0
        try:
            for offset, _, _, line in read_failures(self._files, self._fd):
                if offset not in stale:
                    size += write_all(self._files, fd, line + b"\n", size)
            self._files.sync(fd)
        finally:
            self._files.close(fd)
        self.close()
        self._torn = False
        if size:
            self._files.replace(partial, self.path)
        else:
            self._files.remove(partial)
            self._files.remove(self.path)
        self._files.sync_folder(self.path.parent)
        if size:
            self._open()

    def close(self) -> None:
        """Release the file."""
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1
