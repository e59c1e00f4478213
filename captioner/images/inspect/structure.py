"""What the readers of all formats share.

Type and size come from the content, never from a file name. Reading the structure to the end of
the image finds truncated and damaged files in microseconds. It also shows which bytes are the
image: all others, such as the place where a photograph was taken, are not sent.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from captioner.core.errors import BadImageError


class Structure(NamedTuple):
    """What the bytes of an image say about it.

    Attributes:
        media_type: For example ``image/jpeg``.
        width: Pixels, before the orientation is applied.
        height: Pixels, before the orientation is applied.
        orientation: EXIF orientation, 1 (upright) to 8; 0 if only a decoder can find it.
        plain: Endpoints show it correctly: 8 bits, grey or RGB, in sRGB colours.
        transparent: It may have transparent pixels.
        moving: It has several frames.
        content: The file without its metadata; empty if the metadata cannot be cut out.
    """

    media_type: str
    width: int
    height: int
    orientation: int = 1
    plain: bool = True
    transparent: bool = False
    moving: bool = False
    content: bytes = b""


MOST_STEPS = 10_000
"""Most segments, chunks or blocks that are read outside a decoder process."""


class DoubtfulImageError(BadImageError):
    """The structure is not as it must be. A decoder has the last word on whether it matters."""


class LongWalkError(DoubtfulImageError):
    """The structure has so many parts that only a decoder process may read them."""


def long_walk() -> LongWalkError:
    """Return the error for an image of more parts than may be read."""
    return LongWalkError("image_corrupt", "the image is broken: it has too many parts")


def cut_out(cuts: list[tuple[int, int, bytes]], begin: int, end: int) -> None:
    """Append a cut without a replacement, or make the last one longer if they adjoin."""
    if cuts and cuts[-1][1] == begin and not cuts[-1][2]:
        begin = cuts.pop()[0]
    cuts.append((begin, end, b""))


def corrupt(reason: str) -> BadImageError:
    """Return the error for a broken image."""
    return BadImageError("image_corrupt", f"the image is broken: {reason}")


def doubtful(reason: str) -> DoubtfulImageError:
    """Return the error for a structure that is not as it must be."""
    return DoubtfulImageError("image_corrupt", f"the image is broken: {reason}")


def without(data: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    """Return data with pieces replaced; each cut is a begin, an end and the replacement."""
    if not cuts:
        return data
    pieces: list[bytes | memoryview] = []
    view = memoryview(data)
    at = 0
    for begin, end, replacement in cuts:
        pieces += view[at:begin], replacement
        at = end
    return b"".join((*pieces, view[at:]))


XMP_ORIENTATION = b"tiff:Orientation"
"""The property of XMP that decoders use if EXIF has no orientation."""


def orientation_of(exif: bytes, *, in_xmp: bool) -> int:
    """Return the orientation (tag 0x0112 of EXIF's first directory).

    It is 1 if the tag is missing or invalid, or 0 if XMP has an orientation in that case.
    """
    found = _exif_orientation(exif.removeprefix(b"Exif\0\0"))
    return 0 if in_xmp and found == 1 else found


def _exif_orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == 0x0112 and kind in (3, 4):  # SHORT or LONG
                (value,) = struct.unpack_from(order + " HI"[kind - 2], tiff, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
