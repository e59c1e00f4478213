"""Proving that a damaged image file holds a whole image. It needs a decoder."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from typing import TYPE_CHECKING

from PIL import Image

from captioner.images.inspect import corrupt, has_all_tiles, is_jpeg2000, png_chunks

if TYPE_CHECKING:
    from captioner.images.inspect import Repaired

_PADDING = tuple(
    hashlib.sha256(seed).digest().replace(b"\xff", b"\xfe")
    for seed in (b"one", b"other", b"third", b"last")
)
"""Sequences of bytes without markers."""

_STRIP = 1 << 20
"""Pixels that are hashed at once."""

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Channels of a PNG by colour type."""

_PASSES = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2))
_INTERLACED = (*_PASSES, (0, 1, 1, 2))
"""First column, columns, first row and rows between two pixels of each pass (Adam7)."""


def prove_whole(image: Repaired) -> None:
    """Refuse an image that lacks data although decoders show it.

    A JPEG 2000 decoder leaves missing tiles black. A JPEG decoder fills missing data with grey and
    reports nothing. Bytes behind the data of a
    scan show it: they are decoded only in place of missing data, and then change the image.

    Raises:
        BadImageError: ``image_corrupt``.
        OSError: The image cannot be decoded.
    """
    if image.pieces:
        if len({_digest(padding.join(image.pieces)) for padding in _PADDING}) > 1:
            raise corrupt("the JPEG lacks data; it may be cut short")
    elif image.doubt and image.data.startswith(b"\x89PNG") and not _has_all_rows(image.data):
        raise corrupt("the PNG lacks data; it may be cut short")
    elif is_jpeg2000(image.data) and not has_all_tiles(image.data):
        raise corrupt("the JPEG 2000 lacks data; it may be cut short")


def _digest(data: bytes) -> bytes:
    """Return a digest of the pixels."""
    found = hashlib.sha256()
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        image.load()
        rows = max(1, _STRIP // image.width)
        for top in range(0, image.height, rows):
            box = (0, top, image.width, min(image.height, top + rows))
            found.update(image.crop(box).tobytes())
    return found.digest()


def _has_all_rows(data: bytes) -> bool:
    """Return whether the data of a PNG's image is all there and matches one of its two checksums.

    Raises:
        BadImageError: ``image_corrupt``: it cannot be decompressed.
    """
    packed = zlib.decompressobj()
    length = 0
    is_sound = True
    try:
        for kind, chunk, matches in png_chunks(data):
            if kind == b"IDAT":
                is_sound = is_sound and matches
                rest: bytes | memoryview = chunk
                while more := packed.decompress(rest, _STRIP):
                    length += len(more)
                    rest = packed.unconsumed_tail
    except zlib.error:
        raise corrupt("the PNG's data is damaged") from None
    return length >= _expected(data) and (packed.eof or is_sound)


def _expected(data: bytes) -> int:
    """Return how many bytes the image has: each row begins with one for its filter."""
    width, height, depth, colours, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _CHANNELS[colours]
    length = 0
    for left, across, top, down in _INTERLACED if interlaced else ((0, 1, 0, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            length += rows * (1 + (columns * bits + 7) // 8)
    return length
