"""Captions in copies of images: XMP, EXIF and IPTC are put into the file, the rest stays.

JPEG: Adobe's XMP specification, part 3. PNG: chunks iTXt and eXIf. WebP: RFC 9649, section 2.7.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from captioner.core.errors import BadImageError
from captioner.images import exif_block, iptc_block
from captioner.images.inspect import corrupt, media_type_of, read_structure

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_IN_SEGMENT = 65_533
_MOST_PACKET = 65_502
"""Bytes of an XMP packet that fit into one segment of a JPEG."""

_XMP, _EXIF = b"http://ns.adobe.com/xap/1.0/\0", b"Exif\0"
_JFIF, _MANY_PICTURES = b"JFIF\0", b"MPF\0"
_FIRST = (b"\xff\xe0", b"\xff\xe1")
"""Segments of a JPEG that stay before the packet: JFIF and EXIF."""

_KEYWORD = b"XML:com.adobe.xmp"
_OLD_EXIF = (b"Raw profile type exif\0", b"Raw profile type APP1\0")
"""Texts of a PNG in which programs kept EXIF before there was a chunk for it."""

_HAS_XMP, _HAS_EXIF, _HAS_ALPHA = 0x04, 0x08, 0x10  # flags of a WebP


@dataclass
class Embedding:
    """What is put into one copy.

    Args:
        packet: Returns the XMP packet with the description for the one that the image has, which
            may be empty.
        description: The text for EXIF and IPTC, without NUL.
    """

    packet: Callable[[bytes], bytes]
    description: str
    incomplete: bool = field(default=False, init=False)
    """Whether EXIF or IPTC of the image lacks the description: it is damaged, too large or not in
    UTF-8, and stayed as it was."""

    def xmp(self, old: bytes) -> bytes:
        """Return the packet; BadImageError ``image_too_large`` if it does not fit."""
        made = self.packet(old)
        if len(made) > _MOST_PACKET:
            raise BadImageError("image_too_large", f"the XMP has more than {_MOST_PACKET} bytes")
        return made

    def exif(self, old: bytes, most: int | None = None) -> bytes:
        """Return the EXIF block with the description, or the old one if that cannot be."""
        return self._or_old(exif_block.with_description(old, self.description), old, most)

    def iptc(self, old: bytes, most: int) -> bytes:
        """Return the Photoshop resources with the description, or the old ones."""
        return self._or_old(iptc_block.with_caption(old, self.description), old, most)

    def _or_old(self, new: bytes | None, old: bytes, most: int | None) -> bytes:
        if new is None or (most is not None and len(new) > most):
            self.incomplete = True
            return old
        return new


def embed(data: bytes, new: Embedding) -> bytes:
    """Return an image with a caption in XMP and EXIF, and in IPTC if it has IPTC.

    Args:
        data: A JPEG, PNG or WebP.
        new: What is put into it; learns whether EXIF or IPTC stayed as it was.

    Raises:
        BadImageError: ``image_unknown_type`` for other formats, ``image_corrupt`` for an image
            whose structure is damaged, ``image_too_large`` for a packet that does not fit.
    """
    ways = {"image/jpeg": _in_jpeg, "image/png": _in_png, "image/webp": _in_webp}
    way = ways.get(media_type_of(data))
    if way is None:
        raise BadImageError("image_unknown_type", "only JPEG, PNG and WebP get captions")
    try:
        return way(data, new)
    except (struct.error, IndexError, zlib.error):
        raise corrupt("its structure is damaged") from None


def _check_end(at: int, data: bytes) -> None:
    if at > len(data):
        raise corrupt("it is cut short")


def _in_jpeg(data: bytes, new: Embedding) -> bytes:
    at, old = 2, b""
    segments = list[bytes]()
    behind_list = False  # MPF says how far behind itself the other pictures are
    while data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        (size,) = struct.unpack_from(">H", data, at + 2)
        if size < 2:
            raise corrupt("a segment has no length")
        segment = data[at : at + 2 + size]
        at += 2 + size
        _check_end(at, data)
        if segment[4:].startswith(_XMP):
            if behind_list:
                raise corrupt("its XMP is behind the list of its other pictures")
            old = segment[4 + len(_XMP) :]
        else:
            segments.append(segment)
            behind_list |= segment[1] == 0xE2 and segment[4:].startswith(_MANY_PICTURES)
    packet = new.xmp(old)  # first: what fits into it fits into EXIF
    _describe(segments, new)
    first = next((i for i, one in enumerate(segments) if one[:2] not in _FIRST), len(segments))
    segments.insert(first, _segment(0xE1, _XMP + packet))
    return b"".join([data[:2], *segments, data[at:]])


def _describe(segments: list[bytes], new: Embedding) -> None:
    """Put the description into the segments of a JPEG, EXIF and IPTC."""
    exif, iptc, pictures = (
        [i for i, one in enumerate(segments) if one[1] == kind and one[4:].startswith(start)]
        for kind, start in ((0xE1, _EXIF), (0xED, iptc_block.START), (0xE2, _MANY_PICTURES))
    )

    def fixed(found: list[int]) -> bool:
        """Several segments are one block; behind MPF is what MPF finds by its distance."""
        return len(found) > 1 or bool(found and pictures and pictures[0] < found[0])

    if fixed(iptc):
        new.incomplete = True
    elif iptc:
        start = iptc_block.START
        old = segments[iptc[0]][4 + len(start) :]
        content = start + new.iptc(old, _MOST_IN_SEGMENT - len(start))
        segments[iptc[0]] = _segment(0xED, content)
    if fixed(exif):
        new.incomplete = True
    elif exif:
        segments[exif[0]] = _segment(0xE1, new.exif(segments[exif[0]][4:], _MOST_IN_SEGMENT))
    else:
        place = next((i for i, one in enumerate(segments) if one[1] != 0xE0), len(segments))
        block = exif_block.new_block(new.description, _density(segments))
        segments.insert(place, _segment(0xE1, b"Exif\0\0" + block))


def _segment(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(content) + 2) + content


def _density(segments: list[bytes]) -> tuple[int, int, int]:
    """Return unit and resolution of a JPEG as EXIF has them; its default is 72 for each inch."""
    first = segments[0] if segments else b""
    if first[4:].startswith(_JFIF) and len(first) >= 16 and first[11] in (1, 2):
        x, y = struct.unpack_from(">HH", first, 12)
        if x and y:
            return first[11] + 1, x, y
    return 2, 72, 72


def _in_png(data: bytes, new: Embedding) -> bytes:
    at, old = 8, b""
    before, after = [data[:8]], list[bytes]()
    exif = old_exif = False
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + size]
        at += 12 + size
        _check_end(at, data)
        body = chunk[8:-4]
        if kind == b"iTXt" and body.startswith(_KEYWORD + b"\0"):
            old = _text_of(body)
            continue
        if kind == b"eXIf" and not exif:
            exif, chunk = True, _chunk(kind, new.exif(body))
        old_exif = old_exif or body.startswith(_OLD_EXIF)
        (after if after or kind == b"IDAT" else before).append(chunk)
        if kind == b"IEND":
            after.append(data[at:])
            break
    if old_exif and not exif:
        new.incomplete = True
    elif not exif:
        before.append(_chunk(b"eXIf", exif_block.new_block(new.description)))
    before.append(_chunk(b"iTXt", _KEYWORD + b"\0\0\0\0\0" + new.xmp(old)))
    return b"".join([*before, *after])


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _text_of(body: bytes) -> bytes:
    """Return the text of an iTXt chunk."""
    flags = body[len(_KEYWORD) + 1 :]
    text = flags[2:].split(b"\0", 2)[2]
    if not flags[0]:
        return text
    return zlib.decompressobj().decompress(text, 16 << 20)


def _in_webp(data: bytes, new: Embedding) -> bytes:
    at, old, exif = 12, b"", False
    chunks: list[tuple[bytes, bytes]] = []
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + size]
        at += 8 + size
        _check_end(at, data)
        at += size % 2
        if kind == b"XMP ":
            old = body
            continue
        if kind == b"EXIF" and not exif:
            exif, body = True, new.exif(body)
        chunks.append((kind, body))
    if chunks[0][0] != b"VP8X":
        found = read_structure(data)
        if found is None:
            raise corrupt("its size is unknown")
        sides = (struct.pack("<I", side - 1)[:3] for side in (found.width, found.height))
        flags = _HAS_ALPHA if found.transparent else 0
        chunks.insert(0, (b"VP8X", bytes([flags, 0, 0, 0]) + b"".join(sides)))
    head = chunks[0][1]
    chunks[0] = (b"VP8X", bytes([head[0] | _HAS_XMP | _HAS_EXIF]) + head[1:])
    if not exif:
        chunks.append((b"EXIF", exif_block.new_block(new.description)))
    chunks.append((b"XMP ", new.xmp(old)))
    whole = b"".join(
        struct.pack("<4sI", kind, len(body)) + body + b"\0" * (len(body) % 2)
        for kind, body in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(whole)) + b"WEBP" + whole
