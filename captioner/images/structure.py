"""What a picture's bytes say of themselves, read from their structure alone: nothing is decoded.

Type and size come from the content, never from a name. The walk to the end of the file finds
truncated and mangled pictures in microseconds: markers and end of a JPEG, every chunk's checksum
of a PNG, the blocks of a GIF, the sizes in a WebP.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from captioner.errors import BadImageError


class Structure(NamedTuple):
    """What the bytes say.

    Attributes:
        media_type: For example ``image/jpeg``.
        width: Pixels, before the orientation is applied.
        height: Pixels, before the orientation is applied.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        plain: Endpoints take it as it is: still, and grey or RGB without a profile of inks.
    """

    media_type: str
    width: int
    height: int
    orientation: int = 1
    plain: bool = True


def read_structure(data: bytes) -> Structure | None:
    """Return a JPEG's, PNG's, GIF's or WebP's structure; None for any other kind.

    Raises:
        BadImageError: The file is of one of these kinds but broken; ``image_corrupt``.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _gif(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
    except (IndexError, struct.error):
        raise corrupt("it ends too early") from None
    return None


def corrupt(what: str) -> BadImageError:
    """Return the error for a broken picture."""
    return BadImageError("image_corrupt", f"the image is broken: {what}")


_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 but DHT, JPG, DAC
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})


def _jpeg(data: bytes) -> Structure:
    """Walk the segments up to the first scan; ITU-T T.81, annex B."""
    at = 2
    width = height = components = 0
    orientation = 1
    while True:
        if data[at] != 0xFF:
            raise corrupt("a JPEG marker is missing")
        marker = data[at + 1]
        at += 1
        if marker == 0xFF:  # fill bytes
            continue
        at += 1
        if marker in _ALONE:
            continue
        if marker == 0xD9:
            raise corrupt("the JPEG holds no picture")
        (length,) = struct.unpack_from(">H", data, at)
        if marker in _SIZES:
            height, width, components = struct.unpack_from(">HHB", data, at + 3)
        elif marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _orientation(data[at + 8 : at + length])
        at += length
        if marker == 0xDA:
            break
    if not width or not height:
        raise corrupt("the JPEG does not say its size")
    # Inside a scan FF is always escaped, so the end-of-image marker is unmistakable.
    if data.rfind(b"\xff\xd9") < at:
        raise corrupt("the JPEG is cut short")
    return Structure("image/jpeg", width, height, orientation, components in (1, 3))


def _png(data: bytes) -> Structure:
    """Walk the chunks; PNG third edition, section 5."""
    at = 8
    width = height = 0
    orientation = 1
    pixels = False
    still = True
    while True:
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            raise corrupt("the PNG is cut short")
        (stored,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != stored:
            raise corrupt(f"a checksum in the PNG is wrong (chunk {kind.decode('latin-1')!r})")
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", data, at + 8)
        elif kind == b"IDAT":
            pixels = True
        elif kind == b"eXIf":
            orientation = _orientation(data[at + 8 : end - 4])
        elif kind == b"acTL":
            still = False
        elif kind == b"IEND":
            break
        at = end
    if not width or not height or not pixels:
        raise corrupt("the PNG holds no picture")
    return Structure("image/png", width, height, orientation, still)


def _gif(data: bytes) -> Structure:
    """Walk the blocks up to the first frame's end; GIF89a, appendix A. Never plain: it is drawn."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _table(flags)
    while True:
        kind = data[at]
        if kind == 0x21:
            at = _gif_blocks(data, at + 2)
        elif kind == 0x2C:
            at = _gif_blocks(data, at + 10 + _table(data[at + 9]) + 1)
            break
        else:
            raise corrupt("the GIF holds no picture")
    if not width or not height:
        raise corrupt("the GIF has no size")
    return Structure("image/gif", width, height, plain=False)


def _table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _gif_blocks(data: bytes, at: int) -> int:
    while size := data[at]:
        at += size + 1
    return at + 1


def _webp(data: bytes) -> Structure:
    """Walk the chunks and read the first one; RFC 9649."""
    (length,) = struct.unpack_from("<I", data, 4)
    end = length + 8
    if end > len(data):
        raise corrupt("the WebP is cut short")
    chunks: dict[bytes, int] = {}
    at = 12
    while at + 8 <= end:
        (size,) = struct.unpack_from("<I", data, at + 4)
        chunks.setdefault(data[at : at + 4], at + 8)
        at += 8 + size
        if at > len(data):
            raise corrupt("the WebP is cut short")
        at += size % 2
    lossy, lossless = chunks.get(b"VP8 "), chunks.get(b"VP8L")
    orientation = 1
    plain = True
    if (start := chunks.get(b"VP8X")) == 20:
        flags = data[start]
        width = int.from_bytes(data[start + 4 : start + 7], "little") + 1
        height = int.from_bytes(data[start + 7 : start + 10], "little") + 1
        plain = not flags & 0x02  # animated
        if b"EXIF" in chunks:
            tiff = data[chunks[b"EXIF"] :]
            orientation = _orientation(tiff.removeprefix(b"Exif\0\0"))
        if lossy is None and lossless is None and b"ANMF" not in chunks:
            raise corrupt("the WebP holds no picture")
    elif lossy is not None:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, lossy + 6))
    elif lossless is not None:
        (bits,) = struct.unpack_from("<I", data, lossless + 1)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        raise corrupt("the WebP holds no picture")
    if lossy is not None and data[lossy + 3 : lossy + 6] != b"\x9d\x01\x2a":
        raise corrupt("the WebP's picture does not begin as it must")
    if lossless is not None and data[lossless] != 0x2F:
        raise corrupt("the WebP's picture does not begin as it must")
    if not width or not height:
        raise corrupt("the WebP has no size")
    return Structure("image/webp", width, height, orientation, plain)


def _orientation(tiff: bytes) -> int:
    """Return tag 0x0112 of the first directory; 1 where it is missing or senseless."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == 0x0112 and kind == 3:
                (value,) = struct.unpack_from(order + "H", tiff, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
