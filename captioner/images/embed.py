"""XMP in copies of images: the packet is put into the file, and the image itself is not touched.

JPEG: Adobe's XMP specification, part 3. PNG: an iTXt chunk. WebP: RFC 9649, section 2.7.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from captioner.core.errors import BadImageError
from captioner.images.inspect import corrupt, media_type_of, read_structure

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_IN_JPEG = 65_502
"""Bytes of a packet that fit into one segment."""

_MARK = b"http://ns.adobe.com/xap/1.0/\0"
_FIRST = (b"\xff\xe0", b"\xff\xe1")
"""Segments of a JPEG that stay before the packet: JFIF and EXIF."""

_KEYWORD = b"XML:com.adobe.xmp"
_HAS_XMP, _HAS_ALPHA = 0x04, 0x10  # flags of a WebP


def with_xmp(data: bytes, change: Callable[[bytes], bytes], most: int) -> bytes:
    """Return an image with another XMP packet.

    Args:
        data: A JPEG, PNG or WebP.
        change: Returns the packet for the one that the image has, which may be empty.
        most: Bytes of the largest packet.

    Raises:
        BadImageError: ``image_unknown_type`` for other formats, ``image_corrupt`` for an image
            whose structure is damaged, ``image_too_large`` for a packet that does not fit.
    """
    ways = {"image/jpeg": _in_jpeg, "image/png": _in_png, "image/webp": _in_webp}
    way = ways.get(media_type_of(data))
    if way is None:
        raise BadImageError("image_unknown_type", "only JPEG, PNG and WebP get XMP")

    def packet(old: bytes) -> bytes:
        made = change(old)
        if len(made) > most:
            raise BadImageError("image_too_large", f"the XMP has more than {most} bytes")
        return made

    try:
        return way(data, packet)
    except (struct.error, IndexError, zlib.error):
        raise corrupt("its structure is damaged") from None


def _check_end(at: int, data: bytes) -> None:
    if at > len(data):
        raise corrupt("it is cut short")


def _in_jpeg(data: bytes, packet: Callable[[bytes], bytes]) -> bytes:
    at, old = 2, b""
    before, after = [data[:2]], list[bytes]()
    while data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        (size,) = struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + size]
        at += 2 + size
        _check_end(at, data)
        if segment[4:].startswith(_MARK):
            old = segment[4 + len(_MARK) :]
        else:
            (before if segment[:2] in _FIRST and not after else after).append(segment)
    new = _MARK + packet(old)
    before.append(b"\xff\xe1" + struct.pack(">H", len(new) + 2) + new)
    return b"".join([*before, *after, data[at:]])


def _in_png(data: bytes, packet: Callable[[bytes], bytes]) -> bytes:
    at, old = 8, b""
    before, after = [data[:8]], list[bytes]()
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + size]
        at += 12 + size
        _check_end(at, data)
        body = chunk[8:-4]
        if kind == b"iTXt" and body.startswith(_KEYWORD + b"\0"):
            old = _text_of(body)
        else:
            (after if after or kind == b"IDAT" else before).append(chunk)
        if kind == b"IEND":
            after.append(data[at:])
            break
    body = _KEYWORD + b"\0\0\0\0\0" + packet(old)
    check = struct.pack(">I", zlib.crc32(b"iTXt" + body))
    before.append(struct.pack(">I", len(body)) + b"iTXt" + body + check)
    return b"".join([*before, *after])


def _text_of(body: bytes) -> bytes:
    """Return the text of an iTXt chunk."""
    flags = body[len(_KEYWORD) + 1 :]
    text = flags[2:].split(b"\0", 2)[2]
    if not flags[0]:
        return text
    return zlib.decompressobj().decompress(text, 16 << 20)


def _in_webp(data: bytes, packet: Callable[[bytes], bytes]) -> bytes:
    at, old = 12, b""
    chunks: list[tuple[bytes, bytes]] = []
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + size]
        at += 8 + size
        _check_end(at, data)
        at += size % 2
        if kind == b"XMP ":
            old = body
        else:
            chunks.append((kind, body))
    if chunks[0][0] != b"VP8X":
        found = read_structure(data)
        if found is None:
            raise corrupt("its size is unknown")
        sides = (struct.pack("<I", side - 1)[:3] for side in (found.width, found.height))
        flags = _HAS_ALPHA if found.transparent else 0
        chunks.insert(0, (b"VP8X", bytes([flags, 0, 0, 0]) + b"".join(sides)))
    head = chunks[0][1]
    chunks[0] = (b"VP8X", bytes([head[0] | _HAS_XMP]) + head[1:])
    chunks.append((b"XMP ", packet(old)))
    whole = b"".join(
        struct.pack("<4sI", kind, len(body)) + body + b"\0" * (len(body) % 2)
        for kind, body in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(whole)) + b"WEBP" + whole
