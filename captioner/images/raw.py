"""Camera RAW photographs: recognition, and the preview that the camera put into the file."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.core.errors import BadImageError
from captioner.images.inspect import corrupt, read_structure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BEGINNINGS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0")  # RAF, ORF, RW2
_TIFFS = {b"II*\0": "<", b"MM\0*": ">"}

_NEW_SUBFILE_TYPE, _COMPRESSION, _PHOTOMETRIC, _MAKE = 254, 259, 262, 271
_SUB_IFDS, _DNG_VERSION = 330, 50706
_PLACES = ((273, 279), (324, 325))
"""Offsets and lengths of strips and of tiles."""

_OF_SENSORS = frozenset({32803, 34892})  # colour filter array, linear RAW
_BY_CAMERAS = frozenset({32767, 32770, 34713, 65535})  # Sony, Samsung, Nikon, Pentax

_FORMATS = {1: "B", 3: "H", 4: "I", 13: "I"}  # BYTE, SHORT, LONG, IFD
_MOST_IFDS = 32
_MOST_VALUES = 100_000

_SMALLEST = 1_024
"""A preview whose longer side has fewer pixels does not stand for the photograph."""


class _Tags(NamedTuple):
    """The values of the tags of a directory that are numbers, and all its tags."""

    numbers: dict[int, tuple[int, ...]]
    names: frozenset[int]

    def first(self, tag: int) -> int:
        return (*self.numbers.get(tag, ()), 0)[0]


def has_directory(data: bytes) -> bool:
    """Return whether a file is a TIFF with a whole first directory."""
    return any(True for _ in _directories(data))


def is_raw(data: bytes) -> bool:
    """Return whether a file is a RAW photograph, although most of these look like TIFF.

    A decoder of TIFF would show the thumbnail of a RAW photograph as if it were the photograph.
    """
    if data.startswith(_BEGINNINGS) or data[4:12] == b"ftypcrx ":
        return True
    if data[:4] not in _TIFFS:
        return False
    if data[8:10] == b"CR":
        return True
    directories = [*_directories(data)]
    return any(
        tags.first(_PHOTOMETRIC) in _OF_SENSORS or tags.first(_COMPRESSION) in _BY_CAMERAS
        for tags in directories
    ) or any(
        _DNG_VERSION in main.names
        or (main.first(_NEW_SUBFILE_TYPE) & 1 == 1 and {_MAKE, _SUB_IFDS} <= main.names)
        for main in directories[:1]
    )


def raw_preview(data: bytes, bound: Callable[[int, int], None]) -> bytes:
    """Return the preview in a RAW photograph; developed from the sensor's data if it is small.

    Args:
        data: The file.
        bound: Refuses an image of too many pixels.

    Raises:
        BadImageError: ``image_needs_extra``, ``image_corrupt`` or an error of ``bound``.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each thread takes address space
    try:
        import rawpy
    except ImportError:
        raise BadImageError(
            "image_needs_extra",
            "the image is a camera RAW file; pip install rawpy reads it",
        ) from None
    for tags in _directories(data):
        for offsets, lengths in _PLACES:
            places = zip(tags.numbers.get(offsets, ()), tags.numbers.get(lengths, ()), strict=False)
            if any(offset + length > len(data) for offset, length in places):
                raise corrupt("the RAW file is cut short")
    try:
        return _shown(rawpy, data, bound)
    except rawpy.LibRawError as error:
        (reason,) = error.args or (b"",)
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise corrupt(f"the RAW file cannot be read: {text}") from None


def _shown(rawpy: Any, data: bytes, bound: Callable[[int, int], None]) -> bytes:
    """Return the preview, or the developed photograph."""
    with rawpy.imread(io.BytesIO(data)) as raw:
        try:
            preview = raw.extract_thumb()
        except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
            preview = None
        width, height = raw.sizes.width, raw.sizes.height
        if preview is not None and preview.format == rawpy.ThumbFormat.JPEG:
            shown = bytes(preview.data)
            with contextlib.suppress(BadImageError):  # a damaged preview is not sent
                found = read_structure(shown)
                if found and max(found.width, found.height) >= min(_SMALLEST, max(width, height)):
                    return shown
        bound(width, height)
        return _portable(raw.postprocess(half_size=True, use_camera_wb=True))


def _portable(pixels: Any) -> bytes:
    """Return an array of RGB pixels as a PPM file."""
    height, width, _ = pixels.shape
    values: bytes = pixels.tobytes()
    return b"P6 %d %d 255\n" % (width, height) + values


def _directories(data: bytes) -> Iterator[_Tags]:
    """Yield the directories of a TIFF, the main one first; none of another or a cut file."""
    order = _TIFFS.get(data[:4], "")
    if not order:
        return
    (at,) = struct.unpack_from(order + "I", data.ljust(8, b"\0"), 4)
    main = _tags(data, order, at)
    if main is None:
        return
    yield main
    for at in main.numbers.get(_SUB_IFDS, ())[:_MOST_IFDS]:
        tags = _tags(data, order, at)
        if tags is not None:
            yield tags


def _tags(data: bytes, order: str, at: int) -> _Tags | None:
    """Return the tags of the directory at a place; None if it runs over the end."""
    if at + 2 > len(data):
        return None
    (count,) = struct.unpack_from(order + "H", data, at)
    if at + 2 + 12 * count > len(data):
        return None
    numbers, names = {}, set()
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", data, entry)
        names.add(tag)
        if kind not in _FORMATS or values > _MOST_VALUES:
            continue
        layout = f"{order}{values}{_FORMATS[kind]}"
        place = entry + 8
        if struct.calcsize(layout) > 4:
            (place,) = struct.unpack_from(order + "I", data, place)
        with contextlib.suppress(struct.error):  # the values are behind the end
            numbers[tag] = struct.unpack_from(layout, data, place)
    return _Tags(numbers, frozenset(names))
