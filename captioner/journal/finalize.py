"""Steps that rewrite an output: input order, rows to replace, one JSON array.

Each writes a new file that atomically replaces the old one, so after a crash the file has its old
or its new content and the step can be repeated.
"""

from __future__ import annotations

import asyncio
from array import array
from itertools import islice
from typing import TYPE_CHECKING

from captioner.core.jsonbytes import json_array
from captioner.core.keys import KeyTable, off_the_loop
from captioner.journal.checkpoint import Extent
from captioner.journal.companions import REPLACED, unused_path
from captioner.journal.disk import atomic_write, disk_errors, temporary_file
from captioner.journal.made import note_made

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from captioner.core.types import InputRecord
    from captioner.journal.disk import Files, TemporaryFile
    from captioner.journal.journal import Journal

_WINDOW = 1 << 20
_ROWS = 20_000


async def order_output(journal: Journal, lines: AsyncIterator[list[InputRecord]]) -> int:
    """Put an open output into input order, lines without an input record last.

    ``lines`` is the whole input, read again.

    Returns:
        The number of lines without an input record.

    Raises:
        DiskError: The disk refused; the output is as it was.
        StoppedError: The run was cancelled; likewise.
    """
    keys = await asyncio.to_thread(journal.rescan)
    offsets = array("Q")
    last = -1
    ordered = True
    async for batch in lines:
        journal.raise_if_stopped()
        for key in await off_the_loop(journal.identity.of_records, batch):
            offset = keys.take(key)
            if offset is not None:
                ordered = ordered and offset > last
                last = offset
                offsets.append(offset)
    orphans = await asyncio.to_thread(lambda: sorted(keys.offsets()))
    if not ordered or (orphans and orphans[0] < last):
        offsets.extend(orphans)
        await asyncio.to_thread(_replace, journal, offsets)
    return len(orphans)


def find_rows(journal: Journal, wanted: Callable[[bytes, bytes], bool]) -> KeyTable:
    """Return the rows of an open output for which ``wanted(key, line)`` is true, with offsets."""
    found = KeyTable()
    offsets = sorted(journal.rescan().offsets())
    for offset, line in zip(offsets, _lines_at(journal, offsets), strict=True):
        key = journal.identity.of_output(line[:-1])
        if key is not None and wanted(key, line[:-1]):
            found.add(key, offset)
    return found


def set_rows_aside(journal: Journal, moved: Collection[int]) -> None:
    """Move the lines at some offsets to a new file beside an open output.

    Their records are pending again.

    Raises:
        DiskError: The disk refused; the output is as it was.
    """
    rows, offsets = sorted(moved), journal.rescan().offsets()
    target = unused_path(journal.files, journal.path, REPLACED)
    with disk_errors("write", target), atomic_write(target, journal.files, private=True) as file:
        _copy(journal, rows, file)
    for line in _lines_at(journal, rows):
        if (key := journal.identity.of_output(line[:-1])) is not None:
            journal.done.take(key)
    _replace(journal, sorted(offset for offset in offsets if offset not in moved))
    note_made(journal)


def _replace(journal: Journal, offsets: Sequence[int]) -> None:
    """Replace the journal by its lines at some offsets, in that order."""
    with disk_errors("write", journal.path), temporary_file(journal.path, journal.files) as file:
        _copy(journal, offsets, file)
        journal.files.sync(file.fd)
        journal.replace(file.path, Extent(file.size, file.crc32))


def _copy(journal: Journal, offsets: Sequence[int], file: TemporaryFile) -> None:
    for start in range(0, len(offsets), _ROWS):
        file.write(b"".join(_lines_at(journal, offsets[start : start + _ROWS])))


def write_array(lines: Iterable[bytes], target: Path, files: Files) -> None:
    """Write rows (without line ends) as one JSON array, a row a line.

    Raises:
        DiskError: The disk refused; the target is as it was.
    """
    parts = json_array(lines)
    with disk_errors("write", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target, files) as file:
            while some := list(islice(parts, _ROWS)):
                file.write(b"".join(some))
            file.write(b"\n")


def _lines_at(journal: Journal, offsets: Sequence[int]) -> Iterator[bytes]:
    """Yield the lines at some offsets; one read serves neighbouring lines."""
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
