"""A damaged JPEG taken apart, as leniently as decoders read it: T.81, annex B."""

from __future__ import annotations

import re
import struct

from captioner.images.inspect.structure import corrupt

_END, _SCAN, _RESTART_INTERVAL = 0xD9, 0xDA, 0xDD
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15; not DHT, JPG, DAC
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_TABLES = frozenset({0xC4, 0xCC, 0xDB, _RESTART_INTERVAL})  # DHT, DAC, DQT, DRI
_SKIPPED = frozenset({0xDC, 0xFE, *range(0xE0, 0xF0)})  # DNL, COM, APP0 to APP15
_KNOWN = _FRAMES | _TABLES | _SKIPPED | {_SCAN, _END}
_KEPT = (b"JFIF\0", b"Exif\0\0", b"http://ns.adobe.com/xap/", b"ICC_PROFILE\0", b"Adobe")

_marker = re.compile(rb"\xff[\xc0-\xfe]")
_scan_marker = re.compile(rb"\xff([\x01-\xfe])")
_other_frame = re.compile(rb"\xff(?:(\xd8\xff)|[\xc0-\xc2]\0[\x0b\x11]\x08)")

_OFF = 4
"""Most bytes by which the length of a segment may be too large."""


class _Frame:
    """The components of the image, and which of their coefficients have come."""

    def __init__(self, marker: int, body: bytes) -> None:
        _, self._height, self._width, count = struct.unpack_from(">BHHB", body)
        places = range(6, 6 + 3 * count, 3)
        self._sampling = {body[at]: divmod(body[at + 1], 16) for at in places}
        if not (self._width and self._height and all(map(all, self._sampling.values()))):
            raise corrupt("the JPEG holds no image")
        self._is_progressive = marker in _PROGRESSIVE
        self._lacking = {component: set(range(64)) for component in self._sampling}

    @property
    def is_whole(self) -> bool:
        """Whether there were scans for all coefficients."""
        return not any(self._lacking.values())

    def units_of(self, scan: bytes) -> int:
        """Return how many units (MCUs) a scan has by its header."""
        components = scan[1 : 1 + 2 * scan[0] : 2]
        first, last, bits = scan[-3:] if self._is_progressive else (0, 63, 0)
        for component in components:
            if not bits & 15:  # all bits are there now
                self._lacking[component].difference_update(range(first, last + 1))
        most_x = max(x for x, _ in self._sampling.values())
        most_y = max(y for _, y in self._sampling.values())
        x, y = self._sampling[components[0]] if len(components) == 1 else (1, 1)
        return _ceil(self._width * x, 8 * most_x) * _ceil(self._height * y, 8 * most_y)


def jpeg_pieces(data: bytes) -> tuple[bytes, ...]:
    """Return the pieces of a JPEG, each but the last of which ends with data of a scan.

    Stray bytes, fill bytes and wrong lengths are left out. Bytes put between the pieces change the
    decoded image only if it lacks data: see `captioner.images.whole`.

    Raises:
        BadImageError: ``image_corrupt``: data is missing, or it is not clear what the image is.
    """
    pieces: list[bytes] = []
    piece = bytearray(b"\xff\xd8")
    frame: _Frame | None = None
    interval = 0
    data += b"\xff\xd9"  # if its own end mark is missing
    at = _next(data, 2)
    while (marker := data[at + 1]) != _END:
        end = _end(data, at)
        body = data[at + 4 : end]
        if marker in _FRAMES:
            if frame:
                raise corrupt("the JPEG has two headers")
            frame = _Frame(marker, body)
        elif marker == _RESTART_INTERVAL:
            (interval,) = struct.unpack_from(">H", body)
        if marker not in _SKIPPED or body.startswith(_KEPT):
            piece += struct.pack(">HH", 0xFF00 | marker, 2 + len(body)) + body
        if marker == _SCAN:
            if frame is None:
                raise corrupt("the JPEG holds no image")
            units = frame.units_of(body)
            restarts = _ceil(units, interval) - 1 if interval else 0
            parts, end = _scan(data, end, restarts)
            for part in parts:
                pieces.append(bytes(piece) + part)
                piece.clear()
        at = _next(data, end, is_whole=frame is not None and frame.is_whole)
    if frame is None or not frame.is_whole:
        raise corrupt("the JPEG lacks data; it may be cut short")
    other = _other_frame.search(data, at + 2)
    if other and not other[1]:  # this was a thumbnail
        raise corrupt("the JPEG has two headers")
    return (*pieces, bytes(piece) + b"\xff\xd9")


def _next(data: bytes, at: int, *, is_whole: bool = False) -> int:
    """Return where the next segment begins; bytes before it are strays.

    A segment that runs over the end is no stray where one is expected. It is the end of an image
    that is whole.
    """
    expected = at
    while found := _marker.search(data, at):
        at = found.start()
        if data[at + 1] == 0xD8:
            raise corrupt("the JPEG begins twice")
        if _is_segment(data, at):
            return at
        if at == expected and data[at + 1] in _KNOWN:
            break
        at += 1
    if is_whole:
        return len(data) - 2
    raise corrupt("the JPEG is cut short")


def _is_segment(data: bytes, at: int) -> bool:
    marker = data[at + 1]
    if marker not in _KNOWN or marker == _END:
        return marker == _END
    length = int.from_bytes(data[at + 2 : at + 4])
    return (length >= 2 or marker in _SKIPPED) and at + 2 + length <= len(data)


def _end(data: bytes, at: int) -> int:
    """Return where a segment ends; a length that is a little too large is corrected."""
    end = at + max(4, 2 + int.from_bytes(data[at + 2 : at + 4]))
    if data[at + 1] not in _SKIPPED or data[end : end + 1] == b"\xff":
        return end
    for earlier in range(end - 1, max(at + 4, end - _OFF) - 1, -1):
        if data[earlier] == 0xFF and _is_segment(data, earlier):
            after = earlier + 2 + int.from_bytes(data[earlier + 2 : earlier + 4])
            if data[earlier + 1] == _SCAN or data[after : after + 1] == b"\xff":
                return earlier
    return end


def _scan(data: bytes, begin: int, restarts: int) -> tuple[list[bytes], int]:
    """Return the data of a scan, each part but the first with its restart marker; and its end."""
    parts: list[bytes] = []
    restart = b""
    at = begin
    while True:
        found = _scan_marker.search(data, at)
        if found is None:
            raise corrupt("the JPEG is cut short")
        parts.append(restart + data[begin : found.start()].rstrip(b"\xff"))  # without fill bytes
        begin = at = found.end()
        restart = b"\xff" + found[1]
        number = found[1][0] - 0xD0
        if not 0 <= number <= 7:
            break
        if number != (len(parts) - 1) % 8:
            raise corrupt("a part of the JPEG is missing")
    if len(parts) - 1 not in (restarts, restarts + 1):  # some encoders write one at the end
        raise corrupt("a part of the JPEG is missing")
    return parts, found.end() - 2


def _ceil(number: int, by: int) -> int:
    return -(-number // by)
