"""The structure of a PNG: PNG specification, third edition, section 5."""

from __future__ import annotations

import re
import struct
import zlib

from captioner.images.inspect.profile import is_srgb
from captioner.images.inspect.structure import Structure, corrupt, orientation_of, without

_IMAGE = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_END = b"\0\0\0\0IEND\xaeB`\x82"
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_ORIENTATION = re.compile(
    rb"Raw profile type (?:exif|xmp|APP1)|XML:com\.adobe\.xmp\x00\x01|tiff:Orient"
)
"""Text that may hold an orientation; compressed XMP may hold one too."""

_MAX_PROFILE = 1 << 20
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits by colour type."""


def read_png(data: bytes) -> Structure:
    """Read the chunks (section 5.3) from IHDR to IEND and verify their checksums.

    The content has only the chunks that hold the image.

    Raises:
        BadImageError: ``image_corrupt``.
    """
    at = 8
    first: dict[bytes, memoryview] = {}  # the data of the first chunk of each type
    cuts: list[tuple[int, int, bytes]] = []
    view = memoryview(data)
    in_text = False
    while b"IEND" not in first:
        length, kind = struct.unpack_from(">I4s", data, at)
        begin, at = at, at + 12 + length
        if at > len(data):
            raise corrupt("the PNG is cut short")
        if zlib.crc32(view[begin + 4 : at - 4]) != int.from_bytes(view[at - 4 : at]):
            raise corrupt(f"a checksum in the PNG is wrong (chunk {kind.decode('latin-1')!r})")
        if not first and (kind != b"IHDR" or length != 13):
            raise corrupt("the PNG does not begin with its size")
        chunk = view[begin + 8 : at - 4]
        if kind not in _IMAGE:
            cuts.append((begin, at, b""))
            in_text = in_text or (kind in _TEXTS and _ORIENTATION.search(chunk) is not None)
        elif kind == b"IEND" and length:
            cuts.append((begin, at, _END))
        first.setdefault(kind, chunk)
    if at < len(data):
        cuts.append((at, len(data), b""))
    width, height, depth, colours = struct.unpack_from(">IIBB", data, 16)
    if not (width and height and b"IDAT" in first) or (colours == 3 and b"PLTE" not in first):
        raise corrupt("the PNG holds no image")
    if depth not in _DEPTHS.get(colours, ()):
        raise corrupt("the PNG's colours are of no kind that exists")
    return Structure(
        "image/png",
        width,
        height,
        orientation_of(bytes(first.get(b"eXIf", b"")), in_xmp=in_text),
        plain=depth <= 8 and is_srgb(_profile(bytes(first.get(b"iCCP", b"")))),
        transparent=b"tRNS" in first or colours in (4, 6),
        moving=b"acTL" in first,
        content=without(data, cuts),
    )


def _profile(chunk: bytes) -> bytes:
    """Return the profile of an iCCP chunk: a name, a zero, the method, the compressed profile."""
    _, _, packed = chunk.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(packed[1:], _MAX_PROFILE)
    except zlib.error:
        return b""
