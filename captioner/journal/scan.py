"""Reading an output back: which records it holds, how far it can be trusted, where it breaks.

Changes nothing. Recovery acts on what is found here, and `captioner check` prints it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import orjson

from captioner.core.errors import OutputDamagedError
from captioner.core.keys import KeyTable, RecordKeys
from captioner.journal.checkpoint import Checkpoint, Extent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from captioner.journal.disk import Files

BLOCK = 1 << 22
LONGEST_CUT = 64 << 20
"""Bytes: more than this is never unsynced, so cutting it would destroy what was safe."""

_LINE_GUESS = 300


@dataclass(slots=True)
class Scan:
    """What an output holds.

    Attributes:
        keys: Every whole record, with the offset of its line if that was asked for.
        contents: Content prints of the same records, where a field identifies them.
        whole: The beginning that is whole lines, each a captioned record.
        size: Bytes of the file; more than ``whole.length`` means there is a tail to cut.
        repeated: Lines above the durable length whose key came before, as ``(offset, key)``:
            equal input records, or a piece of the file that is there twice.
    """

    keys: KeyTable
    contents: KeyTable
    whole: Extent
    size: int
    repeated: list[tuple[int, bytes]] = field(default_factory=list)


def scan_output(
    files: Files,
    path: Path,
    fd: int,
    identity: RecordKeys,
    checkpoint: Checkpoint | None,
    *,
    offsets: bool = False,
) -> Scan:
    """Read a whole output.

    Below the durable length the checksum decides; above it every line is validated, and the
    first bad one ends what is whole. Without a checkpoint only a torn last line is forgiven.
    Where the lines are is kept only if ``offsets`` are wanted.

    Raises:
        OutputDamagedError: The file is not what its checkpoint vouches for; says at which byte.
    """
    size = files.size(fd)
    vouched = _vouched_for(files, path, fd, size, checkpoint)
    durable = vouched.length
    keys = KeyTable(size // _LINE_GUESS, offsets=offsets)
    contents = KeyTable(size // _LINE_GUESS if identity.by_field else 0)
    scan = Scan(keys, contents, Extent(), size)
    of_output = identity.of_output
    add = keys.add
    by_field = identity.by_field
    crc = 0
    at = 0
    for lines in _lines(files, fd):
        size_of_lines = sum(map(len, lines)) + len(lines)
        if at + size_of_lines < durable:
            _add_trusted(scan, identity, path, lines, at, durable, offsets=offsets)
            at += size_of_lines
            continue
        for line in lines:
            end = at + len(line) + 1
            key = of_output(line) if end <= size else None
            if key is None or (at >= durable and not _is_json(line)):
                _refuse_or_cut(path, scan, at, durable, end, strict=checkpoint is None)
                scan.whole = Extent(at, crc)
                return scan
            if at >= durable:
                if key in keys:
                    scan.repeated.append((at, key))
                crc = zlib.crc32(b"\n", zlib.crc32(line, crc))
            elif end == durable:
                crc = vouched.crc32
            add(key, at)
            if by_field:
                contents.add(key, identity.content(line))
            at = end
    scan.whole = Extent(at, crc)
    return scan


def _add_trusted(
    scan: Scan,
    identity: RecordKeys,
    path: Path,
    lines: list[bytes],
    at: int,
    durable: int,
    *,
    offsets: bool,
) -> None:
    """Add lines that their checksum vouches for, unvalidated."""
    found = identity.of_outputs(lines)
    if None in found:
        at += sum(len(line) + 1 for line in lines[: found.index(None)])
        _refuse_or_cut(path, scan, at, durable, at, strict=False)
    keys = cast("list[bytes]", found)
    if not offsets:
        scan.keys.add_each(keys)
    for key, line in zip(keys, lines, strict=True) if offsets or identity.by_field else ():
        if offsets:
            scan.keys.add(key, at)
        if identity.by_field:
            scan.contents.add(key, identity.content(line))
        at += len(line) + 1


def _vouched_for(
    files: Files, path: Path, fd: int, size: int, checkpoint: Checkpoint | None
) -> Extent:
    """Return the beginning that the checkpoint vouches for, after checking that it is right."""
    if checkpoint is None:
        return Extent()
    extents = [checkpoint.durable] + ([checkpoint.next] if checkpoint.next else [])
    for extent in extents:
        if size >= extent.length and _crc(files, fd, extent.length) == extent.crc32:
            return extent
    length = checkpoint.durable.length
    if size < length:
        raise OutputDamagedError(
            f"{path.name} has {size:,} bytes, but {length:,} were safely written: something cut "
            f"it. Restore it, or accept what is left with --accept-edits (what is missing is "
            "captioned again), or choose another output with -o."
        )
    raise OutputDamagedError(
        f"{path.name} was changed after it was written (checksum differs in its first "
        f"{length:,} bytes{_first_bad_line(files, fd, length)}). If you changed it on purpose, "
        "run again with --accept-edits; else restore it or choose another output with -o."
    )


def _first_bad_line(files: Files, fd: int, length: int) -> str:
    at = 0
    number = 0
    for lines in _lines(files, fd):
        for line in lines:
            number += 1
            if at >= length:
                return ""
            if not _is_json(line):
                return f"; line {number:,} at byte {at:,} is not valid JSON"
            at += len(line) + 1
    return ""


def _refuse_or_cut(
    path: Path, scan: Scan, at: int, durable: int, end: int, *, strict: bool
) -> None:
    if at < durable:
        raise OutputDamagedError(
            f"{path.name} has a line without a caption at byte {at:,}, below the {durable:,} bytes "
            "that were safely written. It was made with other settings or changed; choose another "
            "output with -o."
        )
    if strict and end <= scan.size:
        raise OutputDamagedError(
            f"{path.name} has a line at byte {at:,} that is no captioned record, and no "
            "checkpoint says that it may be cut. Choose another output with -o, or mend that "
            "line and run again."
        )
    if scan.size - at > LONGEST_CUT:
        raise OutputDamagedError(
            f"{path.name} is unreadable from byte {at:,} on, more than a crash can leave behind. "
            "Restore it, or choose another output with -o."
        )


def _lines(files: Files, fd: int) -> Iterator[list[bytes]]:
    """Yield the lines without their ends, many at a time; a torn last line comes last, alone."""
    offset = 0
    rest = b""
    while block := files.read(fd, BLOCK, offset):
        offset += len(block)
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        yield lines
    if rest:
        yield [rest]


def _crc(files: Files, fd: int, length: int) -> int:
    crc = 0
    at = 0
    while at < length:
        block = files.read(fd, min(BLOCK, length - at), at)
        if not block:
            break
        crc = zlib.crc32(block, crc)
        at += len(block)
    return crc


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True
