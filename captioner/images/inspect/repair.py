"""Damaged images as a decoder gets them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from captioner.images.inspect.formats import media_type_of, read_structure
from captioner.images.inspect.jpeg_pieces import jpeg_pieces
from captioner.images.inspect.png import reduced_png
from captioner.images.inspect.structure import DoubtfulImageError, LongWalkError, corrupt
from captioner.images.inspect.webp import repaired_webp

if TYPE_CHECKING:
    from collections.abc import Callable

    from captioner.core.errors import BadImageError

_LARGE = 4 << 20
"""Bytes of a damaged file; each may take 60 when it is taken apart."""


class Repaired(NamedTuple):
    """An image as a decoder can read it.

    Attributes:
        data: The file, without what decoders cannot handle.
        doubt: What is not as it must be; only decoding shows whether the image is whole.
        pieces: The data of a JPEG in doubt; each piece but the last ends with data of a scan.
    """

    data: bytes
    doubt: BadImageError | None = None
    pieces: tuple[bytes, ...] = ()


def repaired(data: bytes, before_heavy: Callable[[], None] = lambda: None) -> Repaired:
    """Return what a decoder gets. Sound files are unchanged, except that a PNG loses its text.

    Args:
        data: The file.
        before_heavy: Called before the parts of a file are read that may take much memory.

    Raises:
        BadImageError: ``image_corrupt``: so much is missing that no decoder can read it.
    """
    doubt = None
    if data[1:4] == b"\5\1\x08" and _is_pcx_without_palette(data):
        raise corrupt("the PCX is cut short")
    try:
        try:
            read_structure(data)
        except LongWalkError:
            before_heavy()
            read_structure(data, len(data))
    except DoubtfulImageError as error:
        doubt = error
        if len(data) > _LARGE:
            before_heavy()
    if media_type_of(data) == "image/png":
        return Repaired(reduced_png(data), doubt)
    if doubt and media_type_of(data) == "image/webp":
        return Repaired(repaired_webp(data), doubt)
    if doubt and data.startswith(b"\xff\xd8"):
        try:
            pieces = jpeg_pieces(data)
        except (IndexError, KeyError, ValueError, struct.error):
            raise corrupt("its headers cannot be read") from None
        return Repaired(b"".join(pieces), doubt, pieces)
    return Repaired(data, doubt)


def _is_pcx_without_palette(data: bytes) -> bool:
    """Return whether the palette is missing at the end, without which colours would be grey."""
    is_indexed = data[:1] == b"\n" and data[65:66] == b"\1"
    return is_indexed and data[68:69] != b"\2" and data[-769:-768] != b"\x0c"
