"""The structure of a JPEG: ITU-T T.81, annex B."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any

from captioner.images.inspect.profile import is_srgb
from captioner.images.inspect.structure import (
    XMP_ORIENTATION,
    Structure,
    cut_out,
    doubtful,
    long_walk,
    orientation_of,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILL, _START, _END, _SCAN, _RESTART_INTERVAL = 0xFF, 0xD8, 0xD9, 0xDA, 0xDD
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15; not DHT, JPG, DAC
_COMMON_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive
_NO_LENGTH = frozenset({0x01, _END, *range(0xD0, 0xD8)})  # TEM, EOI, RST0 to RST7
_ALWAYS_KEPT = frozenset({0xC4, 0xCC, 0xDB, _SCAN}) | _NO_LENGTH  # DHT, DAC, DQT and the data


def _search() -> Any:
    """Return the search for the next marker in a scan, where data bytes of FF are escaped.

    RE2 searches at 17 GB/s; the standard library, used where RE2 is not installed, at 3.
    """
    marker = rb"\xff[^\x00\xd0-\xd7]"
    try:
        import re2

        options = re2.Options()
        options.encoding = re2.Options.Encoding.LATIN1
        return re2.compile(marker, options).search
    except (ImportError, AttributeError):  # other packages have this name too
        return re.compile(marker).search


_next_marker = _search()


def read_jpeg(data: bytes, most: int) -> Structure:
    """Read the marker segments and scans (T.81, B.1.1) from SOI to the first EOI.

    The content has the segments that a decoder needs, and nothing behind EOI.

    Raises:
        LongWalkError: There are more than ``most``.
        DoubtfulImageError: It is not as it must be.
    """
    frame = precision = height = width = components = end = 0
    has_scan = in_xmp = False
    exif = b""
    profile: dict[int, bytes] = {}
    cuts: list[tuple[int, int, bytes]] = []
    for marker, begin, end in _segments(data, most):
        if marker in _ALWAYS_KEPT:
            has_scan = has_scan or marker == _SCAN
        elif marker in _FRAMES:
            if frame:
                raise doubtful("the JPEG has two headers")
            frame = marker
            precision, height, width, components = struct.unpack_from(">BHHB", data, begin + 4)
        else:
            segment = data[begin:end]
            needed = _needed(marker, segment)
            if not needed:
                cut_out(cuts, begin, end)
            elif needed != segment:
                cuts.append((begin, end, needed))
            if marker == _APP1 and segment.startswith(b"Exif\0\0", 4):
                exif = exif or segment[4:]  # the first one counts
            elif marker == _APP1:
                in_xmp = in_xmp or XMP_ORIENTATION in segment
            elif marker == _APP2 and segment.startswith(b"ICC_PROFILE\0", 4):
                profile[data[begin + 16]] = segment[18:]
    if end < len(data):
        cut_out(cuts, end, len(data))
    if not (width and height and has_scan):
        raise doubtful("the JPEG holds no image")
    return Structure(
        "image/jpeg",
        width,
        height,
        orientation_of(exif, in_xmp=in_xmp),
        plain=frame in _COMMON_FRAMES
        and precision == 8
        and components in (1, 3)
        and is_srgb(b"".join(profile[number] for number in sorted(profile))),
        content=without(data, cuts),
    )


def _segments(data: bytes, most: int) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, begin and end of each segment, of SOS with its scan."""
    end = 2
    marker = _START
    while marker != _END:
        most -= 1
        if most < 0:
            raise long_walk()
        begin = end
        if data[begin] != 0xFF:
            raise doubtful("a JPEG marker is missing")
        marker = data[begin + 1]
        if marker == _FILL:
            end = begin + 1
        elif marker in _NO_LENGTH:
            end = begin + 2
        else:
            end = begin + 2 + (data[begin + 2] << 8 | data[begin + 3])
            if end < begin + 4:
                raise doubtful("a JPEG segment has no length")
            if end > len(data):
                raise doubtful("a JPEG segment is cut short")
        if marker == _SCAN:
            found = _next_marker(data, end)
            if found is None:
                raise doubtful("the JPEG is cut short")
            end = found.start()
        yield marker, begin, end


def _needed(marker: int, segment: bytes) -> bytes:
    """Return the part of a segment that a decoder needs to show the image."""
    if marker < 0xC0 or marker == _START:
        raise doubtful(f"the JPEG has a marker {marker:02X} that cannot be there")
    head = segment[4:16]
    if marker == _RESTART_INTERVAL and len(segment) == 6:
        return segment
    if marker == _APP0 and head.startswith(b"JFIF\0") and len(head) == 12:
        return b"\xff\xe0\0\x10" + head + b"\0\0"  # without a thumbnail
    if marker == _APP14 and head.startswith(b"Adobe") and len(head) == 12:
        return b"\xff\xee\0\x0e" + head
    return b""
