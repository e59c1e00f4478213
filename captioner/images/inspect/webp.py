"""The structure of a WebP: RFC 9649, section 2."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

from captioner.core.errors import BadImageError
from captioner.images.inspect.profile import is_srgb
from captioner.images.inspect.structure import (
    XMP_ORIENTATION,
    Structure,
    doubtful,
    long_walk,
    orientation_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEPT = frozenset({b"EXIF", b"XMP "})
_KEPT_WHOLE = frozenset({b"VP8X", b"ICCP", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L"})
_ALPHA, _ANIMATION = 0x10, 0x02  # flags of the VP8X chunk


def read_webp(data: bytes, most: int) -> Structure:
    """Read the chunks of the RIFF container (RFC 9649, 2.3 to 2.7).

    The content is a new container with only the chunks that hold the image.

    Raises:
        LongWalkError: There are more than ``most``.
        DoubtfulImageError: It is not as it must be.
    """
    chunks = _chunks(data, most)
    image = chunks.get(b"VP8 ") or chunks.get(b"VP8L")
    if image is None and not (b"VP8X" in chunks and b"ANMF" in chunks):
        raise doubtful("the WebP holds no image")
    flags = 0
    if header := chunks.get(b"VP8X"):
        flags = header[8]
        width = int.from_bytes(header[12:15], "little") + 1
        height = int.from_bytes(header[15:18], "little") + 1
    if image is not None:
        own_width, own_height, own_alpha = _bitstream(image)
        flags |= own_alpha
        if header is None:
            width, height = own_width, own_height
        elif not flags & _ANIMATION and (own_width, own_height) != (width, height):
            raise doubtful("the WebP has two sizes")
    if not width or not height:
        raise doubtful("the WebP has no size")
    moving = bool(flags & _ANIMATION)
    return Structure(
        "image/webp",
        width,
        height,
        orientation_of(
            bytes(chunks.get(b"EXIF", b""))[8:],
            in_xmp=XMP_ORIENTATION in bytes(chunks.get(b"XMP ", b"")),
        ),
        plain=not moving and is_srgb(bytes(chunks.get(b"ICCP", b""))[8:]),
        transparent=bool(flags & _ALPHA),
        moving=moving,
        content=b"" if image is None else _container(image, chunks, flags),
    )


def _chunks(data: bytes, most: int) -> dict[bytes, memoryview]:
    """Return the first chunk of each type, with its header and without padding."""
    (length,) = struct.unpack_from("<I", data, 4)
    if length + 8 > len(data):
        raise doubtful("the WebP is cut short")
    chunks: dict[bytes, memoryview] = {}
    view = memoryview(data)
    at = 12
    while at + 8 <= length + 8:
        most -= 1
        if most < 0:
            raise long_walk()
        kind, size = struct.unpack_from("<4sI", data, at)
        begin, at = at, at + 8 + size
        if at > len(data):
            raise doubtful("the WebP is cut short")
        chunks.setdefault(kind, view[begin:at])
        at += size % 2
    return chunks


def repaired_webp(data: bytes) -> bytes:
    """Return a WebP whose lengths are those of what is there.

    Cut chunks are left out, except EXIF and XMP, which may tell the orientation.

    Raises:
        DoubtfulImageError: The chunks do not end where the file does, or where it should.
    """
    view = memoryview(data)
    kept: dict[bytes, list[memoryview]] = {}
    at = 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        chunk = view[at + 8 : at + 8 + size]
        if kind in _KEPT or (kind in _KEPT_WHOLE and len(chunk) == size):
            if kind == b"ANMF":
                kept.setdefault(kind, []).append(chunk)
            else:
                kept.setdefault(kind, [chunk])
        at += 8 + size + size % 2
    if at > len(data) and at != 8 + int.from_bytes(data[4:8], "little"):
        raise doubtful("the WebP lacks data")
    pieces: list[bytes | memoryview] = []
    for kind, chunks in kept.items():
        for chunk in chunks:
            pieces += struct.pack("<4sI", kind, len(chunk)), chunk, b"\0" * (len(chunk) % 2)
    return b"RIFF" + struct.pack("<I", 4 + sum(map(len, pieces))) + b"WEBP" + b"".join(pieces)


def webp_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield each width and height in pixels that a WebP's headers state.

    A decoder makes room for the canvas when it opens the file, damaged or not.
    """
    at = 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        if kind == b"VP8X":
            head = data[at + 12 : at + 18].ljust(6, b"\0")
            yield int.from_bytes(head[:3], "little") + 1, int.from_bytes(head[3:], "little") + 1
        elif kind in (b"VP8 ", b"VP8L"):
            with contextlib.suppress(BadImageError, struct.error, IndexError):
                yield _bitstream(memoryview(data)[at : at + 18])[:2]
        at += 8 + size + size % 2


def _bitstream(chunk: memoryview) -> tuple[int, int, int]:
    """Return the width, the height and the transparency flag of a VP8 or VP8L chunk."""
    if bytes(chunk[:4]) == b"VP8L":
        if chunk[8] != 0x2F:
            raise doubtful("the WebP's image does not begin as it must")
        (bits,) = struct.unpack_from("<I", chunk, 9)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, _ALPHA if bits >> 28 & 1 else 0
    if bytes(chunk[11:14]) != b"\x9d\x01\x2a":
        raise doubtful("the WebP's image does not begin as it must")
    width, height = struct.unpack_from("<HH", chunk, 14)
    return width & 0x3FFF, height & 0x3FFF, 0


def _container(image: memoryview, chunks: dict[bytes, memoryview], flags: int) -> bytes:
    """Return a WebP of one image, with its ALPH chunk if it has one."""
    kept = [image]
    alpha = chunks.get(b"ALPH")
    if flags & _ALPHA and alpha is not None and bytes(image[:4]) == b"VP8 ":
        header = bytes(chunks.get(b"VP8X", b""))
        if len(header) < 18:
            return b""
        kept = [memoryview(header[:8] + bytes([_ALPHA]) + header[9:18]), alpha, image]
    body = b"".join(bytes(chunk) + b"\0" * (len(chunk) % 2) for chunk in kept)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
