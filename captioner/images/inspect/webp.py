"""The structure of a WebP; RFC 9649."""

from __future__ import annotations

import struct

from captioner.images.inspect.profile import is_srgb
from captioner.images.inspect.structure import XMP_ORIENTATION, Structure, corrupt, orientation_of

_ALPHA, _ANIMATION = 0x10, 0x02


def read_webp(data: bytes) -> Structure:
    """Walk the chunks; only those that hold the image are kept, in a container made anew.

    Raises:
        BadImageError: ``image_corrupt``.
    """
    (length,) = struct.unpack_from("<I", data, 4)
    end = length + 8
    if end > len(data):
        raise corrupt("the WebP is cut short")
    chunks: dict[bytes, memoryview] = {}
    view = memoryview(data)
    at = 12
    while at + 8 <= end:
        kind, size = struct.unpack_from("<4sI", data, at)
        chunks.setdefault(kind, view[at : at + 8 + size])
        at += 8 + size
        if at > len(data):
            raise corrupt("the WebP is cut short")
        at += size % 2
    image = chunks.get(b"VP8 ") or chunks.get(b"VP8L")
    flags = 0
    if header := chunks.get(b"VP8X"):
        flags = header[8]
        width = int.from_bytes(header[12:15], "little") + 1
        height = int.from_bytes(header[15:18], "little") + 1
        if image is None and b"ANMF" not in chunks:
            raise corrupt("the WebP holds no image")
    elif image is None:
        raise corrupt("the WebP holds no image")
    if image is not None:
        own_width, own_height, own_alpha = _image(image)
        flags |= own_alpha
        if header is None:
            width, height = own_width, own_height
        elif not flags & _ANIMATION and (own_width, own_height) != (width, height):
            raise corrupt("the WebP has two sizes")
    if not width or not height:
        raise corrupt("the WebP has no size")
    profile = bytes(chunks.get(b"ICCP", b""))[8:]
    exif = bytes(chunks.get(b"EXIF", b""))[8:]
    orientation = orientation_of(exif)
    xmp = bytes(chunks.get(b"XMP ", b""))
    moving = bool(flags & _ANIMATION)
    return Structure(
        "image/webp",
        width,
        height,
        0 if orientation == 1 and XMP_ORIENTATION in xmp else orientation,
        plain=not moving and (not profile or is_srgb(profile)),
        transparent=bool(flags & _ALPHA),
        moving=moving,
        parts=() if image is None else _container(image, chunks, flags),
    )


def _image(chunk: memoryview) -> tuple[int, int, int]:
    """Return width, height and the flag of transparency of a VP8 or VP8L chunk."""
    if bytes(chunk[:4]) == b"VP8L":
        if chunk[8] != 0x2F:
            raise corrupt("the WebP's image does not begin as it must")
        (bits,) = struct.unpack_from("<I", chunk, 9)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, _ALPHA if bits >> 28 & 1 else 0
    if bytes(chunk[11:14]) != b"\x9d\x01\x2a":
        raise corrupt("the WebP's image does not begin as it must")
    width, height = struct.unpack_from("<HH", chunk, 14)
    return width & 0x3FFF, height & 0x3FFF, 0


def _container(
    image: memoryview, chunks: dict[bytes, memoryview], flags: int
) -> tuple[bytes | memoryview, ...]:
    """Return a whole WebP of one image, and its transparency if that is a chunk of its own."""
    kept: list[bytes | memoryview] = []
    alpha = chunks.get(b"ALPH")
    if flags & _ALPHA and alpha is not None and bytes(image[:4]) == b"VP8 ":
        header = bytes(chunks[b"VP8X"]) if b"VP8X" in chunks else b""
        if len(header) < 18:
            return ()
        kept += [header[:8] + bytes([_ALPHA]) + header[9:18], *_padded(alpha)]
    kept += _padded(image)
    size = 4 + sum(map(len, kept))
    return (b"RIFF" + struct.pack("<I", size) + b"WEBP", *kept)


def _padded(chunk: memoryview) -> list[bytes | memoryview]:
    return [chunk, b"\0"] if len(chunk) % 2 else [chunk]
