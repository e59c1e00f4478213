"""The structure of a PNG: PNG specification, third edition, section 5."""

from __future__ import annotations

import re
import struct
import zlib
from typing import TYPE_CHECKING

from captioner.images.inspect.profile import is_srgb
from captioner.images.inspect.structure import (
    Structure,
    cut_out,
    doubtful,
    long_walk,
    orientation_of,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_IMAGE = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT"})
_ANIMATION = frozenset({b"acTL", b"fcTL", b"fdAT"})
_END = b"\0\0\0\0IEND\xaeB`\x82"
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_ORIENTATION = re.compile(
    rb"Raw profile type (?:exif|xmp|APP1)|XML:com\.adobe\.xmp\x00\x01|tiff:Orient"
)
"""Text that may hold an orientation; compressed XMP may hold one too."""

_WRONG = "a checksum in the PNG is wrong (chunk {!r})"
_MAX_PROFILE = _MAX_TEXT = 1 << 20
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits by colour type."""


def read_png(data: bytes, most: int) -> Structure:
    """Read the chunks (section 5.3) from IHDR to IEND and verify their checksums.

    The content has only the chunks that hold the image.

    Raises:
        LongWalkError: There are more than ``most``.
        DoubtfulImageError: It is not as it must be.
    """
    first: dict[bytes, memoryview] = {}  # the data of the first chunk of each type
    cuts: list[tuple[int, int, bytes]] = []
    in_text = False
    doubt = ""
    at = 8
    for kind, chunk, is_sound in png_chunks(data):
        most -= 1
        if most < 0:
            raise long_walk()
        begin, at = at, at + 12 + len(chunk)
        if not is_sound:
            doubt = _WRONG.format(kind.decode("latin-1"))
        if kind not in _IMAGE:
            cut_out(cuts, begin, at)
            in_text = in_text or (kind in _TEXTS and _ORIENTATION.search(chunk) is not None)
        elif kind == b"IEND" and chunk:
            cuts.append((begin, at, _END))
        first.setdefault(kind, chunk)
    if at < len(data):
        cut_out(cuts, at, len(data))
    width, height, depth, colours = struct.unpack_from(">IIBB", data, 16)
    if not (width and height and b"IDAT" in first) or (colours == 3 and b"PLTE" not in first):
        raise doubtful("the PNG holds no image")
    if depth not in _DEPTHS.get(colours, ()):
        raise doubtful("the PNG's colours are of no kind that exists")
    if b"IEND" not in first:
        doubt = "the PNG is cut short"
    if doubt:
        raise doubtful(doubt)
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


def reduced_png(data: bytes) -> bytes:
    """Return a PNG with the chunks that a decoder needs; of those beside the image the sound ones.

    Text is left out unless it may hold an orientation: decoders refuse long text.

    Raises:
        DoubtfulImageError: It does not begin with its size.
    """
    kept: list[bytes | memoryview] = [data[:8]]
    view = memoryview(data)
    animation = True
    at = 8
    for kind, chunk, is_sound in png_chunks(data):
        begin, at = at, at + 12 + len(chunk)
        if kind in _ANIMATION:
            animation = animation and is_sound
        if kind == b"IDAT" and at > len(data):
            kept.append(_chunk(kind, chunk))
        elif kind in _CRITICAL or (is_sound and kind != b"IEND" and _is_needed(kind, chunk)):
            kept.append(view[begin:at])
    if not animation:
        kept = [piece for piece in kept if piece[4:8] not in _ANIMATION]
    return b"".join((*kept, _END))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Yield the type and data of each chunk, and whether it is whole and its checksum is right.

    The last one is IEND, or the last one before the end of the file. Of a chunk that runs over the
    end, the data is what is there.

    Raises:
        DoubtfulImageError: It does not begin with its size.
    """
    view = memoryview(data)
    at = 8
    kind = b""
    while kind != b"IEND" and at + 8 <= len(data):
        is_first = not kind
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if is_first and (kind != b"IHDR" or length != 13 or end > len(data)):
            raise doubtful("the PNG does not begin with its size")
        body = view[at + 8 : end - 4]
        checksum = zlib.crc32(body, zlib.crc32(kind))
        yield kind, body, checksum == int.from_bytes(view[end - 4 : end])
        at = end


def _chunk(kind: bytes, body: memoryview) -> bytes:
    checksum = zlib.crc32(body, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", checksum)))


def _is_needed(kind: bytes, chunk: memoryview) -> bool:
    if kind in _TEXTS:
        return len(chunk) <= _MAX_TEXT and _ORIENTATION.search(chunk) is not None
    if kind == b"iCCP":
        _, _, packed = bytes(chunk).partition(b"\0")
        return packed[:1] == b"\0" and bool(_profile(bytes(chunk)))
    return kind in _IMAGE or kind in _ANIMATION or kind == b"eXIf"


def _profile(chunk: bytes) -> bytes:
    """Return the profile of an iCCP chunk: a name, a zero, the method, the compressed profile."""
    _, _, packed = chunk.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(packed[1:], _MAX_PROFILE)
    except zlib.error:
        return b""
