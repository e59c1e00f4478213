"""Reading an output: which records it holds and how much of it can be trusted.

Changes nothing. Recovery acts on the result, and `captioner check` prints it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from captioner.core.errors import OutputDamagedError
from captioner.core.humanize import exactly
from captioner.core.keys import KeyTable, RecordKeys
from captioner.core.lines import BLOCK, iter_lines
from captioner.journal.checkpoint import Checkpoint, Extent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Read = Callable[[int, int], bytes]

LONGEST_CUT = 64 << 20
"""Bytes. A crash never leaves a longer unsynced tail, so a longer one is not cut."""

_TYPICAL_LINE = 300


@dataclass(slots=True)
class Scan:
    """What an output holds.

    Attributes:
        keys: The key of every whole record, with the offset of its line if requested.
        contents: Hashes of the same records' content, if a field identifies records.
        whole: The part from the start of the file that consists of whole, captioned records.
        size: Bytes of the file. If larger than ``whole.length``, there is a tail to cut.
        repeated: ``(offset, key)`` of lines above the durable length whose key occurred before:
            equal input records, or a part of the file that was written twice.
    """

    keys: KeyTable
    contents: KeyTable
    whole: Extent
    size: int
    repeated: list[tuple[int, bytes]] = field(default_factory=list)


def scan_output(
    read: Read,
    size: int,
    path: Path,
    identity: RecordKeys,
    checkpoint: Checkpoint | None,
    *,
    offsets: bool = False,
) -> Scan:
    """Read a whole output.

    Up to the durable length the checksum proves that the file is intact. After it every line is
    validated, and the first bad one ends the scan. Without a checkpoint only a torn last line is
    accepted as the trace of a crash.

    Args:
        read: Called with a size and an offset, for a block at a time; it may raise to end the scan.
        size: Bytes of the file.
        path: The file, for messages.
        identity: Computes the keys.
        checkpoint: How much of the file is durable.
        offsets: Store the offset of its line with each key. Default: False.

    Raises:
        OutputDamagedError: The file differs from its checkpoint; the message says where.
    """
    durable = _durable_extent(read, path, size, checkpoint)
    contents = KeyTable(size // _TYPICAL_LINE if identity.by_field else 0)
    scan = Scan(KeyTable(size // _TYPICAL_LINE, offsets=offsets), contents, durable, size)

    def read_durable(count: int, offset: int) -> bytes:
        return read(min(count, durable.length - offset), offset)

    at = 0
    for lines in iter_lines(read_durable, unfinished=True, name=path.name):
        _add_durable(scan, identity, path, lines, at, offsets=offsets)
        at += sum(map(len, lines)) + len(lines)
    at, crc = durable.length, durable.crc32
    for lines in iter_lines(read, at, unfinished=True, name=path.name):
        for line in lines:
            end = at + len(line) + 1
            key = identity.of_output(line) if end <= size else None
            if key is None or not _is_json(line):
                _refuse_unless_torn(path, at, end, size, has_checkpoint=checkpoint is not None)
                scan.whole = Extent(at, crc)
                return scan
            if key in scan.keys:
                scan.repeated.append((at, key))
            scan.keys.add(key, at)
            if identity.by_field:
                contents.add(key, identity.content(line))
            at, crc = end, zlib.crc32(b"\n", zlib.crc32(line, crc))
    scan.whole = Extent(at, crc)
    return scan


def _add_durable(
    scan: Scan,
    identity: RecordKeys,
    path: Path,
    lines: list[bytes],
    at: int,
    *,
    offsets: bool,
) -> None:
    """Add lines below the durable length, without validation: their checksum is right."""
    found = list(map(identity.of_output, lines))
    keys = [key for key in found if key is not None]
    if len(keys) < len(lines):
        number = found.index(None)
        at += sum(len(line) + 1 for line in lines[:number])
        raise OutputDamagedError(
            f"{path.name} has a line without a caption at byte {at}, within the "
            f"{scan.whole.length} bytes that were safely written. It was made with other "
            "settings or changed; choose another output with -o."
        )
    if not offsets:
        scan.keys.add_each(keys)
    for key, line in zip(keys, lines, strict=True) if offsets or identity.by_field else ():
        if offsets:
            scan.keys.add(key, at)
        if identity.by_field:
            scan.contents.add(key, identity.content(line))
        at += len(line) + 1


def _durable_extent(read: Read, path: Path, size: int, checkpoint: Checkpoint | None) -> Extent:
    """Return the extent in the checkpoint whose checksum the file has."""
    if checkpoint is None:
        return Extent()
    for extent in (checkpoint.durable, checkpoint.next):
        if extent and size >= extent.length and _crc(read, extent.length) == extent.crc32:
            return extent
    length = checkpoint.durable.length
    if size < length:
        raise OutputDamagedError(
            f"{path.name} was shortened: it has {exactly(size, 'byte')}, and {length} were on "
            "disk. Restore it, or keep the rest with --accept-changes=edits (missing records are "
            "captioned again), or choose another output with -o."
        )
    raise OutputDamagedError(
        f"{path.name} was changed after it was written: the checksum of its first {length} "
        f"bytes differs{_first_bad_line(read, length)}. If you changed it on purpose, run "
        "again with --accept-changes=edits. If not, restore it or choose another output with -o."
    )


def _first_bad_line(read: Read, length: int) -> str:
    at = number = 0
    for lines in iter_lines(read, unfinished=True):
        for line in lines:
            number += 1
            if at >= length:
                return ""
            if not _is_json(line):
                return f"; line {number} at byte {at} is not valid JSON"
            at += len(line) + 1
    return ""


def _refuse_unless_torn(path: Path, at: int, end: int, size: int, *, has_checkpoint: bool) -> None:
    """Raise if a crash cannot have left the bad line at an offset."""
    if not has_checkpoint and end <= size:
        raise OutputDamagedError(
            f"the line at byte {at} of {path.name} is not a captioned record, and there is no "
            "checkpoint that allows cutting it off. Choose another output with -o, or correct "
            "the line and run again."
        )
    if size - at > LONGEST_CUT:
        raise OutputDamagedError(
            f"{path.name} is unreadable from byte {at} on, more than a crash can leave behind. "
            "Restore it, or choose another output with -o."
        )


def _crc(read: Read, length: int) -> int:
    crc = at = 0
    while block := read(min(BLOCK, length - at), at):
        crc = zlib.crc32(block, crc)
        at += len(block)
    return crc


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def keys_since(read: Read, identity: RecordKeys, start: int) -> KeyTable:
    """Return the records of an output's lines from an offset on; ``read`` as in `scan_output`."""
    table = KeyTable(offsets=False)
    for lines in iter_lines(read, start):
        keys = map(identity.of_output, lines)
        table.add_each([key for key in keys if key is not None])
    return table
