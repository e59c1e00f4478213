"""The ImageDescription of an EXIF block (TIFF 6.0, EXIF 2.32).

EXIF says that the text is ASCII. It is UTF-8, as MWG 2.0 (2010) says and photo libraries read it.
"""

from __future__ import annotations

import struct

_IMAGE_DESCRIPTION = 0x010E
_ASCII, _SHORT, _RATIONAL = 2, 3, 5
_PREFIX = b"Exif\0"  # and one more byte: not a part of the offsets


def with_description(block: bytes, text: str) -> bytes | None:
    """Return an EXIF block with another ImageDescription; nothing that it has is moved.

    A new first directory is appended. So all other offsets, such as those of maker notes and of
    the thumbnail, stay valid.

    Args:
        block: The block, with or without ``Exif`` and two bytes in front.
        text: The description, without NUL.

    Returns:
        The block, or None if the old one cannot be read.
    """
    start = 6 if block.startswith(_PREFIX) else 0
    tiff = block[start:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, first)
        end = first + 2 + 12 * count
        (following,) = struct.unpack_from(order + "I", tiff, end)
        entries = [tiff[at : at + 12] for at in range(first + 2, end, 12)]
        return block[:start] + _with_directory(tiff, order, entries, following, text)
    except struct.error:
        return None


def new_block(text: str, density: tuple[int, int, int] | None = None) -> bytes:
    """Return an EXIF block with a description.

    Args:
        text: The description, without NUL.
        density: The resolution, which the standard requires in a JPEG: its unit, which is 2 for
            inches and 3 for centimetres, and pixels for each unit, horizontally and vertically.
    """
    start, entries = struct.pack("<4sI", b"II*\0", 0), list[bytes]()
    if density is not None:
        unit, x, y = density
        start += struct.pack("<IIII", x, 1, y, 1)
        entries = [
            struct.pack("<HHII", 0x011A, _RATIONAL, 1, 8),
            struct.pack("<HHII", 0x011B, _RATIONAL, 1, 16),
            struct.pack("<HHIHH", 0x0128, _SHORT, 1, unit, 0),
            struct.pack("<HHIHH", 0x0213, _SHORT, 1, 1, 0),  # YCbCrPositioning: centred
        ]
    return _with_directory(start, "<", entries, 0, text)


def _with_directory(
    tiff: bytes, order: str, entries: list[bytes], following: int, text: str
) -> bytes:
    """Return TIFF data with a first directory at its end: the entries and the description."""
    value = text.encode() + b"\0"
    tiff += b"\0" * (len(tiff) % 2)

    def tag(entry: bytes) -> int:
        return int(struct.unpack_from(order + "H", entry)[0])

    others = [entry for entry in entries if tag(entry) != _IMAGE_DESCRIPTION]
    size = 2 + 12 * (len(others) + 1) + 4
    short = len(value) <= 4
    place = value.ljust(4, b"\0") if short else struct.pack(order + "I", len(tiff) + size)
    own = struct.pack(order + "HHI", _IMAGE_DESCRIPTION, _ASCII, len(value)) + place
    return b"".join(
        [
            tiff[:4],
            struct.pack(order + "I", len(tiff)),
            tiff[8:],
            struct.pack(order + "H", len(others) + 1),
            *sorted([*others, own], key=tag),
            struct.pack(order + "I", following),
            b"" if short else value,
        ]
    )
