"""The file of failed records: appended to during a run, compacted at its end.

Unlike the output it has no durable length: a line that a crash tore is ignored, and its record is
pending again.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import orjson

from captioner.core.keys import KEY_BYTES, KeyTable
from captioner.core.lines import iter_lines
from captioner.journal.disk import atomic_write, write_all

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from captioner.journal.disk import Files
    from captioner.journal.watch import Watch


_AGAIN = "again"


class StoredFailure(NamedTuple):
    """A line of the failures file.

    Attributes:
        offset: Where it begins.
        key: The record's key.
        again: The record is captioned again, and the failure no longer counts.
    """

    offset: int
    key: bytes
    code: str
    line: bytes
    again: bool


def read_failures(
    files: Files, fd: int, name: str = "the file of failures"
) -> Iterator[StoredFailure]:
    """Yield every readable failure.

    Raises:
        OutputDamagedError: A line is too long; the message has the name.
    """
    at = 0
    for lines in iter_lines(partial(files.read, fd), name=name):
        for line in lines:
            with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError, ValueError):
                failure = orjson.loads(line)
                key = bytes.fromhex(failure["key"])
                if len(key) == KEY_BYTES:
                    code, again = str(failure.get("code", "")), failure.get(_AGAIN) is True
                    yield StoredFailure(at, key, code, line, again)
            at += len(line) + 1


class FailuresFile:
    """One file of failures; created when the first record fails.

    Attributes:
        unclaimed: Failures found at opening that no input record has claimed yet, with offsets.
        retrying: Failures found at opening whose records are captioned again, with offsets.
        dirty: Something was written since the last sync.
        size: Bytes of the file.
    """

    def __init__(self, files: Files, path: Path) -> None:
        self.path = path
        self.unclaimed = KeyTable()
        self.retrying = KeyTable()
        self.dirty = False
        self.size = 0
        self._files = files
        self._fd = -1
        self._unreadable = False  # some lines are
        self._is_obstructed = False  # something else has the name

    def open(self) -> None:
        """Read the file if it exists; a torn last line gets an end."""
        if self._files.kind(self.path) == "missing":
            return
        self._open(new=False)
        readable = 0
        for offset, key, _, line, again in self.read():
            (self.retrying if again else self.unclaimed).add(key, offset)
            readable += len(line) + 1
        self._unreadable = readable != self.size

    def _open(self, *, new: bool) -> None:
        self._fd = self._files.open(self.path, new=new, private=True)
        self.size = size = self._files.size(self._fd)
        if new:
            self._files.sync_folder(self.path.parent)
        elif size and self._files.read(self._fd, 1, size - 1) != b"\n":
            self.size += write_all(self._files, self._fd, b"\n", size)

    def read(self) -> Iterator[StoredFailure]:
        """Yield every readable failure."""
        return read_failures(self._files, self._fd, self.path.name) if self._fd >= 0 else iter(())

    def keys_since(self, start: int) -> KeyTable:
        """Return the records of the lines from an offset on."""
        table = KeyTable(offsets=False)
        for failure in self.read():
            if failure.offset >= start:
                table.add(failure.key)
        return table

    def retry(self, offsets: Collection[int]) -> None:
        """Mark failures, by the offsets of their lines: their records are captioned again.

        The marks are in the file, so that a run after a crash tries those that are left.

        Raises:
            OSError: The disk refused; the file has its old or its new content.
        """
        if not offsets:
            return
        with atomic_write(self.path, self._files) as file:
            for failure in self.read():
                line = failure.line
                if failure.offset in offsets and not failure.again:
                    line = line.rstrip()[:-1] + b',"%s":true}' % _AGAIN.encode()
                file.write(line + b"\n")
        self.close()
        self.unclaimed, self.retrying = KeyTable(), KeyTable()
        self.open()

    def by_code(self) -> dict[str, tuple[int, int, str]]:
        """Return for each code the number of failures, and line and message of the first."""
        found: dict[str, tuple[int, int, str]] = {}
        for _, _, code, line, _ in self.read():
            failure = orjson.loads(line)
            number = failure.get("line")
            first = (number if isinstance(number, int) else 0, str(failure.get("message", "")))
            count, number, message = found.get(code, (0, *first))
            found[code] = count + 1, number, message
        return found

    def append(self, lines: bytes) -> None:
        """Write whole lines, unless another program created the file during the run.

        Raises:
            OSError: Nothing was written; the call can be repeated.
        """
        if self._fd < 0:
            try:
                self._open(new=True)
            except FileExistsError:
                self.dirty = self._is_obstructed = True  # the next commit notes it
                return
        self.size += write_all(self._files, self._fd, lines, self.size)
        self.dirty = True

    def sync(self) -> None:
        """Return when what was appended is on disk."""
        if self.dirty:
            self.dirty = False
            if self._fd >= 0:
                self._files.sync(self._fd)

    def watch(self, watch: Watch) -> None:
        """Have a watch compare the file with what was written to it."""
        if self._fd >= 0:
            watch.look(self._fd, self.path, self.size, exact=False)
        elif self._is_obstructed:
            watch.obstruct(self.path)

    def superseded(self, offsets: Collection[int], captioned: KeyTable) -> set[int]:
        """Return which of the failures that no input record claimed have a newer outcome.

        Their key is in the output (``captioned``), or in a line that a record claimed. The others
        have lost their input record and are kept.
        """
        if not offsets:
            return set()
        keys = {one.offset: one.key for one in self.read() if one.offset in offsets}
        wanted = set(keys.values())
        newer = {one.key for one in self.read() if one.key in wanted and one.offset not in offsets}
        return {offset for offset, key in keys.items() if key in newer or key in captioned}

    def compact(self, stale: Collection[int]) -> None:
        """Remove unreadable lines and those at the given offsets; remove an empty file.

        Raises:
            OSError: The disk refused; the file has its old or its new content.
        """
        if self._fd < 0 or not (stale or self._unreadable):
            return
        empty = all(one.offset in stale for one in self.read())
        if empty:
            self._files.remove(self.path)
            self._files.sync_folder(self.path.parent)
        else:
            with atomic_write(self.path, self._files) as file:
                for one in self.read():
                    if one.offset not in stale:
                        file.write(one.line + b"\n")
        self.close()
        self._unreadable = False
        if not empty:
            self._open(new=False)

    def close(self) -> None:
        """Release the file."""
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1
