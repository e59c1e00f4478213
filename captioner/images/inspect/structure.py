"""What an image's bytes say of themselves, read from their structure alone: nothing is decoded.

Type and size come from the content, never from a name. The walk to the end of the image finds
truncated and mangled ones in microseconds, and notes which bytes are the image: the others, such
as where a photograph was taken, are not ours to send.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from captioner.core.errors import BadImageError


class Structure(NamedTuple):
    """What the bytes say.

    Attributes:
        media_type: For example ``image/jpeg``.
        width: Pixels, before the orientation is applied.
        height: Pixels, before the orientation is applied.
        orientation: EXIF orientation, 1 to 8; 1 is upright, 0 is said where only decoders look.
        plain: Endpoints see it as people do: 8 bits, grey or RGB, in the colours of sRGB.
        transparent: Some of it may be.
        moving: It has several frames.
        parts: The image without metadata; joined they are a whole file.
    """

    media_type: str
    width: int
    height: int
    orientation: int = 1
    plain: bool = True
    transparent: bool = False
    moving: bool = False
    parts: tuple[bytes | memoryview, ...] = ()


class Kept:
    """What is left of a file after pieces were dropped, front to back.

    Args:
        data: The file.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._from = 0
        self._parts: list[bytes | memoryview] = []

    def drop(self, begin: int, end: int, instead: bytes = b"") -> None:
        """Leave a piece out, or put something in its place."""
        if begin < end:
            if begin > self._from:
                self._parts.append(memoryview(self._data)[self._from : begin])
            if instead:
                self._parts.append(instead)
            self._from = end

    def parts(self) -> tuple[bytes | memoryview, ...]:
        """Return all that is left; the file itself where that is all of it."""
        if not self._from:
            return (self._data,)
        if self._from < len(self._data):
            self._parts.append(memoryview(self._data)[self._from :])
        return tuple(self._parts)


def corrupt(what: str) -> BadImageError:
    """Return the error for a broken image."""
    return BadImageError("image_corrupt", f"the image is broken: {what}")


XMP_ORIENTATION = b"tiff:Orientation"
"""XMP may say it as well; where EXIF does not, decoders look there."""


def orientation_of(exif: bytes) -> int:
    """Return tag 0x0112 of EXIF's first directory; 1 where it is missing or senseless."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == 0x0112 and kind in (3, 4):
                (value,) = struct.unpack_from(order + " HI"[kind - 2], tiff, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
