"""The structure of a JPEG; ITU-T T.81, annex B."""

from __future__ import annotations

import re
import struct

from captioner.images.profile import is_srgb
from captioner.images.structure import XMP_ORIENTATION, Kept, Structure, corrupt, orientation_of

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 but DHT, JPG, DAC
_USUAL = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended and progressive: what every decoder takes."""

_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})
"""DHT, DAC, DQT, DRI: what a decoder needs beside header and scans."""

_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_APPLICATION = range(0xE0, 0xF0)
_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
"""The next marker inside picture data, where FF is always escaped. It runs at 3 GB/s."""

_JFIF_BYTES = 16


def read_jpeg(data: bytes) -> Structure:
    """Walk the segments and scans up to the end of the picture; what follows it is not kept.

    Raises:
        BadImageError: ``image_corrupt``.
    """
    return _Walk(data).to_the_end()


class _Walk:
    """A walk over a file, and what it has found so far."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._kept = Kept(data, 2)
        self._frame = self._precision = self._width = self._height = self._components = 0
        self._orientation = 1
        self._exif = self._xmp = False
        self._profile: dict[int, bytes] = {}
        self._scans = 0

    def to_the_end(self) -> Structure:
        data = self._data
        at = 2
        while True:
            if data[at] != 0xFF:
                raise corrupt("a JPEG marker is missing")
            begin = at
            while data[at + 1] == 0xFF:  # fill bytes
                at += 1
            marker = data[at + 1]
            at += 2
            if marker == 0xD9:
                self._kept.keep(begin, at)
                return self._found()
            if marker not in _ALONE:
                (length,) = struct.unpack_from(">H", data, at)
                if length < 2 or at + length > len(data):
                    raise corrupt("a JPEG segment is cut short")
                self._segment(marker, begin, at, at + length)
                at += length
            if marker == 0xDA:
                found = _IN_SCAN.search(data, at)
                if found is None:
                    raise corrupt("the JPEG is cut short")
                self._scans += 1
                self._kept.keep(begin, found.start())
                at = found.start()

    def _segment(self, marker: int, begin: int, at: int, end: int) -> None:
        """Note what a segment says, and whether it is kept; its length stands at ``at``."""
        data = self._data
        if marker in _APPLICATION or marker == 0xFE:
            self._application(marker, begin, at, end)
        elif marker < 0xC0 or marker == 0xD8:
            raise corrupt(f"the JPEG has a marker {marker:02X} that cannot be there")
        elif marker in _FRAMES:
            if self._frame:
                raise corrupt("the JPEG has two headers")
            self._frame = marker
            header = struct.unpack_from(">BHHB", data, at + 2)
            self._precision, self._height, self._width, self._components = header
            self._kept.keep(begin, end)
        elif marker in _TABLES and (marker != 0xDD or end - at == 4):
            self._kept.keep(begin, end)

    def _application(self, marker: int, begin: int, at: int, end: int) -> None:
        """Keep of what others wrote into the file only what says how its colours are meant."""
        data = self._data
        head = data[at + 2 : at + 14]
        if marker == 0xE0 and head.startswith(b"JFIF\0"):
            if end - at == _JFIF_BYTES:
                self._kept.keep(begin, end)
            else:  # it holds a thumbnail
                self._kept.put(b"\xff\xe0\0\x10" + head + b"\0\0")
        elif marker == 0xE1 and head.startswith(b"Exif\0\0"):
            if not self._exif:  # the first one counts
                self._exif = True
                self._orientation = orientation_of(data[at + 2 : end])
        elif marker == 0xE1 and XMP_ORIENTATION in data[at:end]:
            self._xmp = True
        elif marker == 0xE2 and head.startswith(b"ICC_PROFILE\0"):
            self._profile[data[at + 14]] = data[at + 16 : end]
        elif marker == 0xEE and head.startswith(b"Adobe") and len(head) == 12:
            self._kept.put(b"\xff\xee\0\x0e" + head)

    def _found(self) -> Structure:
        if not (self._width and self._height and self._scans):
            raise corrupt("the JPEG holds no picture")
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
