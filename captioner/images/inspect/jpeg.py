"""The structure of a JPEG; ITU-T T.81, annex B."""

from __future__ import annotations

import re
import struct
from typing import Any

from captioner.images.inspect.profile import is_srgb
from captioner.images.inspect.structure import (
    XMP_ORIENTATION,
    Kept,
    Structure,
    corrupt,
    orientation_of,
)

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 but DHT, JPG, DAC
_USUAL = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended and progressive: what every decoder takes."""

_TABLES = frozenset({0xC4, 0xCC, 0xDB})
"""DHT, DAC, DQT: what a decoder needs beside header, scans and restart interval."""

_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_MARKER = rb"\xff[^\x00\xd0-\xd7]"
"""The next marker inside image data, where FF is always escaped."""

_JFIF_BYTES = 16


def _searcher() -> Any:
    """Return the search for a marker: RE2's at 17 GB/s; where it has no wheel, `re`'s at 3."""
    try:
        import re2

        options = re2.Options()
        options.encoding = re2.Options.Encoding.LATIN1
        return re2.compile(_MARKER, options)
    except (ImportError, AttributeError):  # there are others of that name
        return re.compile(_MARKER)


_IN_SCAN = _searcher()


def read_jpeg(data: bytes) -> Structure:
    """Walk the segments and scans up to the end of the image; what follows it is not kept.

    Raises:
        BadImageError: ``image_corrupt``.
    """
    return _Walk(data).to_the_end()


class _Walk:
    """A walk over the segments of a file, and what it has found so far."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._kept = Kept(data)
        self._frame = self._precision = self._width = self._height = self._components = 0
        self._orientation = 1
        self._exif = self._xmp = False
        self._profile: dict[int, bytes] = {}
        self._scans = 0

    def to_the_end(self) -> Structure:
        data, kept = self._data, self._kept
        size = len(data)
        at = 2
        while True:
            if data[at] != 0xFF:
                raise corrupt("a JPEG marker is missing")
            marker = data[at + 1]
            begin = at
            at += 1
            if marker == 0xFF:  # a fill byte
                kept.drop(begin, at)
                continue
            at += 1
            if marker == 0xD9:
                kept.drop(at, size)
                return self._found()
            if marker in _ALONE:
                continue
            end = at + (data[at] << 8 | data[at + 1])
            if not at + 2 <= end <= size:
                raise corrupt("a JPEG segment is cut short")
            if marker == 0xDA:
                found = _IN_SCAN.search(data, end)
                if found is None:
                    raise corrupt("the JPEG is cut short")
                self._scans += 1
                end = found.start()
            elif marker in _FRAMES:
                self._frame_header(marker, at)
            elif marker not in _TABLES:
                self._other(marker, begin, at, end)
            at = end

    def _frame_header(self, marker: int, at: int) -> None:
        if self._frame:
            raise corrupt("the JPEG has two headers")
        self._frame = marker
        header = struct.unpack_from(">BHHB", self._data, at + 2)
        self._precision, self._height, self._width, self._components = header

    def _other(self, marker: int, begin: int, at: int, end: int) -> None:
        """Keep of what others wrote into the file only what says how its colours are meant."""
        data = self._data
        if marker < 0xC0 or marker == 0xD8:
            raise corrupt(f"the JPEG has a marker {marker:02X} that cannot be there")
        if marker == 0xDD and end - at == 4:
            return
        head = data[at + 2 : at + 14]
        if marker == 0xE0 and head.startswith(b"JFIF\0"):
            if end - at == _JFIF_BYTES:
                return
            self._kept.drop(begin, end, b"\xff\xe0\0\x10" + head + b"\0\0")  # a thumbnail's place
            return
        if marker == 0xEE and head.startswith(b"Adobe") and len(head) == 12:
            self._kept.drop(begin, end, b"\xff\xee\0\x0e" + head)
            return
        if marker == 0xE1 and head.startswith(b"Exif\0\0"):
            if not self._exif:  # the first one counts
                self._exif = True
                self._orientation = orientation_of(data[at + 2 : end])
        elif marker == 0xE1 and XMP_ORIENTATION in data[at:end]:
            self._xmp = True
        elif marker == 0xE2 and head.startswith(b"ICC_PROFILE\0"):
            self._profile[data[at + 14]] = data[at + 16 : end]
        self._kept.drop(begin, end)

    def _found(self) -> Structure:
        if not (self._width and self._height and self._scans):
            raise corrupt("the JPEG holds no image")
        icc = b"".join(self._profile[number] for number in sorted(self._profile))
        plain = (
            self._frame in _USUAL
            and self._precision == 8
            and self._components in (1, 3)
            and (not icc or is_srgb(icc))
        )
        return Structure(
            "image/jpeg",
            self._width,
            self._height,
            0 if self._xmp and self._orientation == 1 else self._orientation,
            plain,
            parts=self._kept.parts(),
        )
