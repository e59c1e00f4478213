"""Icons, cursors and Photoshop files: what must be known of them before they are drawn."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

from PIL import Image

from captioner.core.errors import BadImageError
from captioner.images.inspect import corrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_ICON, _CURSOR = b"\0\0\1\0", b"\0\0\2\0"
_BITMAP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})  # lengths

_VERSION_INFO = 1057  # a resource of a Photoshop file


def bounded_icon(data: bytes, bound: Callable[[int, int], None]) -> bytes:
    """Return an icon as Pillow reads it, or any other file unchanged.

    Pillow decodes icons when it opens them, so the sizes of all images in them are read before.

    Args:
        data: The file.
        bound: Refuses an image of too many pixels.

    Raises:
        BadImageError: ``image_corrupt`` or an error of ``bound``.
    """
    if data.startswith(b"icns"):
        for size in _icns_sizes(data):
            bound(*size)
    elif data.startswith(_ICON) or _is_cursor(data):
        data = _ICON + data[4:]  # it differs from a cursor in a point that is not drawn
        for size in _icon_sizes(data):
            bound(*size)
    return data


def _is_cursor(data: bytes) -> bool:
    """Return whether a file is a cursor; TGA can have the same first bytes."""
    if not data.startswith(_CURSOR) or len(data) < 22:
        return False
    count, reserved, at = struct.unpack_from("<H3xB8xI", data, 4)
    if not count or reserved or at < 6 + 16 * count or at + 4 > len(data):
        return False
    return data.startswith(_PNG, at) or int.from_bytes(data[at : at + 4], "little") in (
        _BITMAP_HEADERS
    )


def _icon_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    (count,) = struct.unpack_from("<H", data, 4)
    for entry in range(6, 6 + 16 * count, 16):
        (at,) = struct.unpack_from("<I", data, entry + 12)
        if data.startswith(_PNG, at):
            yield struct.unpack_from(">II", data, at + 16)
        else:
            width, height = struct.unpack_from("<ii", data, at + 4)
            yield abs(width), abs(height) // 2  # the height includes a mask


def _icns_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    (end,) = struct.unpack_from(">I", data, 4)
    if end > len(data):
        raise corrupt("the icon is cut short")
    at = 8
    while at + 8 <= end:
        (length,) = struct.unpack_from(">I", data, at + 4)
        if length < 8:
            raise corrupt("the icon's parts have no length")
        part = data[at + 8 : at + length]
        if part.startswith((_PNG, *_JPEG2000)):
            with Image.open(io.BytesIO(part), formats=["PNG", "JPEG2000"]) as image:
                yield image.size
        at += length


def merged_photoshop(image: Any, data: bytes) -> Image.Image:
    """Return the merged image of an opened Photoshop file.

    Raises:
        BadImageError: ``image_unknown_type``: it was saved without one, and shows a blank.
    """
    for number, _, resource in image.resources:
        if number == _VERSION_INFO and resource[4:5] == b"\0":
            raise BadImageError(
                "image_unknown_type",
                "the Photoshop file holds layers but no merged image; "
                "save it with Maximize Compatibility",
            )
    merged: Image.Image = image
    if image.mode == "RGBA" and not _is_transparent(data):
        merged = image.convert("RGB")  # the fourth channel is a saved selection
    return merged


def _is_transparent(data: bytes) -> bool:
    """Return whether the fourth channel is transparency: the number of layers is negative then."""
    at = 26
    for _ in range(2):  # the palette and the resources
        at += 4 + int.from_bytes(data[at : at + 4])
    section, layers, count = struct.unpack_from(">IIh", data, at)
    return bool(section and layers and count < 0)
