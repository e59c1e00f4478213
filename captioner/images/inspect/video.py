"""Videos: recognised by their first bytes, and checked for a cut end."""

from __future__ import annotations

from captioner.core.errors import BadImageError

_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"})
_STILLS = frozenset(
    {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
    | {b"crx ", b"jp2 ", b"jpx ", b"jpm ", b"jxl "}
)
"""Brands of files in the same boxes that are images."""

_BEGINNINGS = {
    b"\x1aE\xdf\xa3": "matroska",
    b"\0\0\1\xba": "mpeg",
    b"FLV\1": "flv",
    b"0&\xb2u\x8ef\xcf\x11": "asf",
}
_SEGMENT = b"\x18S\x80g"
_PACKET = 188
_TIMED_PACKET = 192
"""Bytes of a packet of a camera or a Blu-ray disc, which begins with four bytes of time."""
_NO_LENGTH = 0xFFFFFFFF


def video_format(data: bytes) -> str:
    """Return FFmpeg's name of a video's container by its first bytes; empty for other files.

    ``mov`` is MP4, M4V and QuickTime, ``matroska`` also WebM.
    """
    if data[4:8] in _BOXES and data[0] < 0x20:  # the size of the first box, not text
        return "" if data[4:8] == b"ftyp" and data[8:12] in _STILLS else "mov"
    for begin, name in _BEGINNINGS.items():
        if data.startswith(begin):
            return name
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    packets = data[: 3 * _PACKET : _PACKET], data[4 : 3 * _TIMED_PACKET : _TIMED_PACKET]
    return "mpegts" if b"GGG" in packets and not data.startswith(b"GIF8") else ""


def check_whole(data: bytes) -> None:
    """Refuse a video whose end is missing, as far as its container tells.

    Raises:
        BadImageError: ``image_corrupt``.
    """
    end = {"mov": _end_of_boxes, "matroska": _end_of_segment, "avi": _end_of_riff}.get(
        video_format(data)
    )
    wanted = end(data) if end else 0
    if wanted > len(data):
        raise broken_video(f"it has {len(data)} of {wanted} bytes")


def broken_video(reason: str) -> BadImageError:
    """Return the error for a broken video."""
    return BadImageError("image_corrupt", f"the video is broken: {reason}")


def _end_of_boxes(data: bytes) -> int:
    """Return where the last box with content ends (ISO/IEC 14496-12, section 4.2)."""
    at = 0
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            break  # up to the end of the file, or not a box
        at += size
        if kind in (b"moov", b"mdat", b"moof") and at > len(data):
            return at
    return 0


def _end_of_segment(data: bytes) -> int:
    """Return where the first segment ends (RFC 8794, section 4); 0 if it does not say."""
    head, width = _vint(data, 4)
    at = 4 + width + head
    if data[at : at + 4] != _SEGMENT:
        return 0
    size, width = _vint(data, at + 4)
    is_unknown = size == (1 << 7 * width) - 1
    return 0 if is_unknown else at + 4 + width + size


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of variable length and its length in bytes."""
    first = data[at] if at < len(data) else 0
    width = 9 - first.bit_length()
    return int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1), width


def _end_of_riff(data: bytes) -> int:
    """Return where the first list of chunks ends; 0 if it was written without a length."""
    length = int.from_bytes(data[4:8], "little")
    return 0 if length == _NO_LENGTH else 8 + length
