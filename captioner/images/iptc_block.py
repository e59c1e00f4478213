"""The Caption-Abstract in the Photoshop resources of a JPEG (IPTC-IIM 4.2, MWG 2.0 of 2010)."""

from __future__ import annotations

import struct

START = b"Photoshop 3.0\0"
"""Begins the segment that has the resources."""

MOST_CAPTION = 2_000
"""Bytes of a Caption-Abstract, by the standard."""

_IPTC, _DIGEST = 0x0404, 0x0425
_CHARACTER_SET, _UTF_8 = (1, 90), b"\x1b%G"
_CAPTION = (2, 120)
_BINARY = {(2, 125), (2, 202)}
"""Data sets of the second record that are pictures."""

_Set = tuple[tuple[int, int], bytes]


def with_caption(resources: bytes, text: str) -> bytes | None:
    """Return Photoshop resources with another Caption-Abstract, the rest as it is.

    Resources without IPTC stay as they are. The text is cut to `MOST_CAPTION`. The digest of the
    old IPTC, by which other programs would take the new one for an edit, is removed.

    Returns:
        The resources, or None if the old ones cannot be read, or are in a character set that
        does not have the text.
    """
    try:
        parts = _resources(resources)
    except (struct.error, ValueError):
        return None
    found = [value for kind, _, value in parts if kind == _IPTC]
    if not found:
        return resources
    try:
        sets = _with_caption(_data_sets(found[0]), text)
    except (struct.error, ValueError):
        return None
    if sets is None or len(found) > 1:
        return None
    new = b"".join(struct.pack(">BBBH", 0x1C, *name, len(value)) + value for name, value in sets)
    return b"".join(
        head + struct.pack(">I", len(content)) + content + b"\0" * (len(content) % 2)
        for kind, head, value in parts
        if kind != _DIGEST
        for content in [new if kind == _IPTC else value]
    )


def _resources(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """Return number, signature with name, and value of each resource."""
    found: list[tuple[int, bytes, bytes]] = []
    at, end = 0, len(data.rstrip(b"\0"))  # the rest is padding
    while at < end:
        if not data[at : at + 4].isalnum():
            raise ValueError("no signature")
        number, name = struct.unpack_from(">HB", data, at + 4)
        start = at + 6 + (name + 2) // 2 * 2
        (size,) = struct.unpack_from(">I", data, start)
        head, value = data[at:start], data[start + 4 : start + 4 + size]
        if len(value) < size:
            raise ValueError("cut short")
        found.append((number if head[:4] == b"8BIM" else -1, head, value))
        at = start + 4 + size + size % 2
    return found


def _data_sets(data: bytes) -> list[_Set]:
    """Return record, number and value of each data set."""
    found: list[_Set] = []
    at, end = 0, len(data.rstrip(b"\0"))  # the rest is padding
    while at < end:
        mark, record, number, size = struct.unpack_from(">BBBH", data, at)
        value = data[at + 5 : at + 5 + size]
        if mark != 0x1C or size > 0x7FFF or len(value) < size:  # or more bytes have its length
            raise ValueError("no data set, or cut short")
        found.append(((record, number), value))
        at += 5 + size
    return found


def _with_caption(sets: list[_Set], text: str) -> list[_Set] | None:
    """Return data sets with another caption, marked as UTF-8 unless others are not UTF-8."""
    value = text.encode()[:MOST_CAPTION].decode(errors="ignore").encode()
    others = [one for one in sets if one[0] != _CAPTION]
    marked = b"".join(value for name, value in others if name == _CHARACTER_SET)
    if marked != _UTF_8:
        if _readable(others, unmarked=not marked):
            others = [one for one in others if one[0] != _CHARACTER_SET]
            others.append((_CHARACTER_SET, _UTF_8))
        elif not text.isascii():
            return None
    return sorted([*others, (_CAPTION, value)], key=lambda one: one[0][0])


def _readable(sets: list[_Set], *, unmarked: bool) -> bool:
    """Return whether the texts are the same in UTF-8."""
    texts = b"".join(value for name, value in sets if name[0] == 2 and name not in _BINARY)
    if texts.isascii() or not unmarked:
        return texts.isascii()
    try:
        texts.decode()
    except UnicodeDecodeError:
        return False
    return True
