"""Finishing an output: input order, and formats that cannot be appended to.

Everything here is made anew from the journal into a file of its own, synced and put in place by a
rename, so a crash at any moment leaves the old or the new file, and the step can be repeated.
"""

from __future__ import annotations

import asyncio
import zlib
from array import array
from itertools import islice
from typing import TYPE_CHECKING

from captioner.core.errors import DiskError
from captioner.journal.checkpoint import Extent
from captioner.journal.journal import companion

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from captioner.core.keys import RecordKeys
    from captioner.core.types import InputRecord
    from captioner.journal.disk import Files
    from captioner.journal.journal import Journal

_WINDOW = 1 << 20
_ROWS = 20_000


async def order_output(
    journal: Journal, identity: RecordKeys, lines: AsyncIterator[list[InputRecord]], files: Files
) -> int:
    """Put the output into input order, lines without an input record last.

    Args:
        journal: The journal, open.
        identity: Finds records again.
        lines: The whole input once more.
        files: The disk.

    Returns:
        How many lines have no input record.

    Raises:
        DiskError: The disk refused; the output is as it was.
    """
    keys = await asyncio.to_thread(journal.rescan)
    offsets = array("Q")
    last = -1
    ordered = True
    async for batch in lines:
        for line in batch:
            offset = keys.take(line.key or identity.of_input(line.raw))
            if offset is not None:
                ordered = ordered and offset > last
                last = offset
                offsets.append(offset)
    orphans = sorted(keys.offsets())
    if orphans and orphans[0] < last:
        ordered = False
    if not ordered:
        offsets.extend(orphans)
        partial = companion(journal.path, ".partial")
        extent = await asyncio.to_thread(_copy, journal, offsets, partial, files)
        await asyncio.to_thread(journal.replace, partial, extent)
    return len(orphans)


def quarantine_rows(
    journal: Journal, identity: RecordKeys, unwanted: Callable[[bytes], bool], files: Files
) -> list[bytes]:
    """Take lines out of an open output, so that their records are pending again.

    They are kept in a file of their own beside it, whose name ends in ``.rejected-<n>``.

    Args:
        journal: The journal, open.
        identity: Finds records again.
        unwanted: Tells by a line, without its end, whether it is to go.
        files: The disk.

    Returns:
        The keys of the lines that were taken out.

    Raises:
        DiskError: The disk refused; the output is as it was.
    """
    keys = journal.rescan()
    kept, gone = array("Q"), array("Q")
    places = sorted(keys.offsets())
    for at in range(0, len(places), _ROWS):
        some = places[at : at + _ROWS]
        for offset, line in zip(some, _lines_at(journal, some), strict=True):
            (gone if unwanted(line[:-1]) else kept).append(offset)
    taken: list[bytes] = []
    if gone:
        number = 1
        while files.kind(companion(journal.path, f".rejected-{number}")) != "missing":
            number += 1
        _copy(journal, gone, companion(journal.path, f".rejected-{number}"), files)
        for line in _lines_at(journal, gone):
            if (key := identity.of_output(line[:-1])) is not None:
                journal.done.take(key)
                taken.append(key)
        partial = companion(journal.path, ".partial")
        journal.replace(partial, _copy(journal, kept, partial, files))
    return taken


def _copy(journal: Journal, offsets: Sequence[int], partial: Path, files: Files) -> Extent:
    """Copy lines of the journal to a file, in the order of their offsets; sync it."""
    try:
        out = _Writer(files, partial)
        try:
            for at in range(0, len(offsets), _ROWS):
                out.write(b"".join(_lines_at(journal, offsets[at : at + _ROWS])))
            files.sync(out.fd)
        finally:
            files.close(out.fd)
    except OSError as error:
        raise _refused(partial, error) from error
    return Extent(out.size, out.crc)


def write_array(lines: Iterable[bytes], target: Path, files: Files) -> None:
    """Write rows as one JSON array, a record a line.

    Args:
        lines: The rows, without their ends.
        target: What is written, put in place whole.
        files: The disk.

    Raises:
        DiskError: The disk refused; the target is as it was.
    """
    partial = companion(target, ".partial")
    try:
        out = _Writer(files, partial)
        try:
            out.write(b"[")
            between = b"\n"
            left = iter(lines)
            while some := list(islice(left, _ROWS)):
                out.write(between + b",\n".join(some))
                between = b",\n"
            out.write(b"\n]\n")
            files.sync(out.fd)
        finally:
            files.close(out.fd)
        files.replace(partial, target)
        files.sync_folder(target.parent)
    except OSError as error:
        raise _refused(target, error) from error


def _lines_at(journal: Journal, offsets: Sequence[int]) -> Iterator[bytes]:
    """Yield the lines at some offsets; neighbours are served from one read."""
    start = 0
    window = b""
    for offset in offsets:
        at = offset - start
        end = window.find(b"\n", at) if 0 <= at < len(window) else -1
        size = _WINDOW
        while end < 0:
            start, at = offset, 0
            window = journal.read(size, offset)
            end = window.find(b"\n")
            size *= 4
        yield window[at : end + 1]


class _Writer:
    """Appends to a fresh file and keeps count."""

    def __init__(self, files: Files, path: Path) -> None:
        self._files = files
        self.fd = files.open(path, fresh=True)
        self.size = 0
        self.crc = 0

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += self._files.write(self.fd, view[done:], self.size + done)
        self.size += done
        self.crc = zlib.crc32(data, self.crc)


def _refused(path: Path, error: OSError) -> DiskError:
    return DiskError(
        f"the disk refused to write {path.name}: {error.strerror or error}. The captions are "
        "safe; make room and run the same command again."
    )
