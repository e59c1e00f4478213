"""Recognition of the formats whose structure is read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from captioner.images.inspect.gif import read_gif
from captioner.images.inspect.jpeg import read_jpeg
from captioner.images.inspect.png import read_png
from captioner.images.inspect.structure import MOST_STEPS, DoubtfulImageError, doubtful
from captioner.images.inspect.webp import read_webp

if TYPE_CHECKING:
    from captioner.images.inspect.structure import Structure

_READERS = {
    "image/jpeg": read_jpeg,
    "image/png": read_png,
    "image/gif": read_gif,
    "image/webp": read_webp,
}


_LATE_JPEG = re.compile(rb"\xff\xd8.{1,999}?\xff[\xc4\xdb\xe0-\xef\xfe]", re.DOTALL)
"""Stray bytes behind the first marker."""


def media_type_of(data: bytes) -> str:
    """Return the media type of a JPEG, PNG, GIF or WebP by its first bytes; empty for others."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if data.startswith(b"RIFF") and data[8:12] == b"WEBP" else ""


def read_structure(data: bytes, most: int = MOST_STEPS) -> Structure | None:
    """Return the structure of a JPEG, PNG, GIF or WebP; None for any other format.

    Args:
        data: The file.
        most: Most segments, chunks or blocks to read.

    Raises:
        LongWalkError: It has more.
        DoubtfulImageError: The file is of one of these formats but not as it must be.
    """
    read = _READERS.get(media_type_of(data))
    if read is None and _LATE_JPEG.match(data):
        raise doubtful("a JPEG marker is missing")
    try:
        return read(data, most) if read else None
    except DoubtfulImageError:
        raise
    except Exception:  # noqa: BLE001 - reading past the end raises many kinds of errors
        raise doubtful("it ends too early") from None
