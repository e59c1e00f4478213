"""The structure of a PNG; PNG third edition, section 5."""

from __future__ import annotations

import re
import struct
import zlib

from captioner.images.inspect.profile import is_srgb
from captioner.images.inspect.structure import Kept, Structure, corrupt, orientation_of

_IMAGE = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_END = b"\0\0\0\0IEND\xaeB`\x82"
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_ORIENTATION = re.compile(
    rb"Raw profile type (?:exif|xmp|APP1)|XML:com\.adobe\.xmp\x00\x01|tiff:Orient"
)
"""Where else than in eXIf an orientation may be said; packed XMP may hold one."""

_MAX_PROFILE = 1 << 20
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits by colour type."""


def read_png(data: bytes) -> Structure:
    """Walk the chunks, their checksums included; only those that hold the image are kept.

    Raises:
        BadImageError: ``image_corrupt``.
    """
    at = 8
    found: dict[bytes, int] = {}  # where the first chunk of each kind holds its data
    kept = Kept(data)
    view = memoryview(data)
    turned = False
    while b"IEND" not in found:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise corrupt("the PNG is cut short")
        (stored,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[at + 4 : end - 4]) != stored:
            raise corrupt(f"a checksum in the PNG is wrong (chunk {kind.decode('latin-1')!r})")
        if not found and (kind != b"IHDR" or length != 13):
            raise corrupt("the PNG does not begin with its size")
        if kind not in _IMAGE:
            kept.drop(at, end)
            if kind in _TEXTS and _ORIENTATION.search(data, at + 8, end - 4):
                turned = True
        elif kind == b"IEND" and length:
            kept.drop(at, end, _END)
        found.setdefault(kind, at + 8)
        at = end
    kept.drop(at, len(data))
    width, height, depth, colours = struct.unpack_from(">IIBB", data, 16)
    if not (width and height and b"IDAT" in found) or (colours == 3 and b"PLTE" not in found):
        raise corrupt("the PNG holds no image")
    if depth not in _DEPTHS.get(colours, ()):
        raise corrupt("the PNG's colours are of no kind that exists")
    orientation = orientation_of(_chunk(data, found.get(b"eXIf")))
    profile = _profile(_chunk(data, found.get(b"iCCP")))
    return Structure(
        "image/png",
        width,
        height,
        0 if turned and orientation == 1 else orientation,
        plain=depth <= 8 and (not profile or is_srgb(profile)),
        transparent=b"tRNS" in found or colours in (4, 6),
        moving=b"acTL" in found,
        parts=kept.parts(),
    )


def _chunk(data: bytes, at: int | None) -> bytes:
    if at is None:
        return b""
    (length,) = struct.unpack_from(">I", data, at - 8)
    return data[at : at + length]


def _profile(chunk: bytes) -> bytes:
    """Return the profile of an iCCP chunk: a name, a zero, the method, the compressed profile."""
    _, _, packed = chunk.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(packed[1:], _MAX_PROFILE)
    except zlib.error:
        return b""
