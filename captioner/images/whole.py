"""Proving that a damaged image file holds a whole image. It needs a decoder."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from typing import TYPE_CHECKING

from PIL import Image

from captioner.images.inspect import corrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from captioner.images.inspect import Mended

_PADDING = tuple(
    hashlib.sha256(seed).digest().replace(b"\xff", b"\xfe") for seed in (b"one", b"other")
)
"""Two sequences of bytes without markers."""

_STRIP = 1 << 20
"""Pixels that are hashed at once."""

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Channels of a PNG by colour type."""

_PASSES = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2))
_INTERLACED = (*_PASSES, (0, 1, 1, 2))
"""First column, columns, first row and rows between two pixels of each pass (Adam7)."""


def prove_whole(image: Mended) -> None:
    """Refuse an image that lacks data.

    A JPEG decoder fills missing data with grey and reports nothing. Bytes behind the data of a
    scan show it: they are decoded only in place of missing data, and then change the image.

    Raises:
        BadImageError: ``image_corrupt``.
        OSError: The image cannot be decoded.
    """
    if image.pieces:
        if len({_digest(padding.join(image.pieces)) for padding in _PADDING}) > 1:
            raise corrupt("the JPEG lacks data")
    elif image.data.startswith(b"\x89PNG") and _inflated(image.data) < _expected(image.data):
        raise corrupt("the PNG lacks data")


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


def _inflated(data: bytes) -> int:
    """Return how many bytes the data of a PNG's image has."""
    packed = zlib.decompressobj()
    length = 0
    for chunk in (*_image_data(data), b""):
        rest = chunk
        while more := packed.decompress(rest, _STRIP):
            length += len(more)
            rest = packed.unconsumed_tail
    if not packed.eof:
        raise corrupt("the PNG is cut short")
    return length


def _image_data(data: bytes) -> Iterator[bytes]:
    at = 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            yield data[at + 8 : at + 8 + length]
        at += 12 + length


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
