"""The tiles of a JPEG 2000: ITU-T T.800, annex A."""

from __future__ import annotations

import struct
from collections import Counter

_BEGIN = b"\xff\x4f\xff\x51"  # SOC and SIZ
_BOX = b"\0\0\0\x0cjP  \r\n\x87\n"
_TILE_PART = 0xFF90


def is_jpeg2000(data: bytes) -> bool:
    """Return whether a file is a JPEG 2000, with or without boxes around it."""
    return data.startswith((_BEGIN, _BOX))


def bits_a_channel(data: bytes) -> int:
    """Return the bits of each value of the first channel of a JPEG 2000."""
    return (data[data.find(_BEGIN) + 42] & 0x7F) + 1


def has_all_tiles(data: bytes) -> bool:
    """Return whether a JPEG 2000 has each part of each tile; decoders leave missing ones black."""
    at = data.find(_BEGIN)
    right, bottom, _, _, width, height, left, top = struct.unpack_from(">8I", data, at + 8)
    tiles = -(-(right - left) // width) * -(-(bottom - top) // height)
    seen: Counter[int] = Counter()
    wanted: dict[int, int] = {}
    at += 2
    while at + 12 <= len(data):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == _TILE_PART:
            tile, length, _, parts = struct.unpack_from(">HIBB", data, at + 4)
            seen[tile] += 1
            wanted[tile] = max(parts, wanted.get(tile, 1))  # 0 if it is not known yet
            at += length or len(data)
        else:
            at += 2 + max(2, length)
    return len(seen) == tiles and all(seen[tile] >= parts for tile, parts in wanted.items())
