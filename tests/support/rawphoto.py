"""Photographs as cameras write them before they are developed."""

from __future__ import annotations

import struct
from typing import Any

from PIL import Image
from samples import saved

_ASCII, _SHORT, _LONG, _RATIONAL = 2, 3, 4, 5
_SIZES = {1: "B", _SHORT: "H", _LONG: "I"}


class _Writer:
    """A TIFF in the making."""

    def __init__(self) -> None:
        self.data = bytearray(b"II*\0\0\0\0\0")

    def put(self, value: bytes) -> int:
        at = len(self.data)
        self.data += value + b"\0" * (len(value) % 2)
        return at

    def directory(self, tags: dict[int, tuple[int, Any]]) -> int:
        entries = b""
        for tag, (kind, values) in sorted(tags.items()):
            if kind == _ASCII:
                packed, count = values, len(values)
            elif kind == _RATIONAL:
                packed, count = struct.pack(f"<{2 * len(values)}I", *sum(values, ())), len(values)
            else:
                packed, count = struct.pack(f"<{len(values)}{_SIZES[kind]}", *values), len(values)
            if len(packed) > 4:
                packed = struct.pack("<I", self.put(packed))
            entries += struct.pack("<HHI", tag, kind, count) + packed.ljust(4, b"\0")
        return self.put(struct.pack("<H", len(entries) // 12) + entries + bytes(4))


def dng(
    image: Image.Image,
    *,
    preview: Image.Image | None = None,
    orientation: int = 1,
    version: bool = True,
) -> bytes:
    """Return a DNG of an image with even sides.

    Args:
        image: What the sensor saw.
        preview: What the camera showed, if it kept that.
        orientation: How the camera was held.
        version: Whether the file says that it is a DNG.
    """
    file = _Writer()
    width, height = image.size
    rgb = image.convert("RGB").tobytes()
    sensor = bytearray()
    for y in range(height):
        for x in range(width):
            channel = (x % 2) + (y % 2)  # RGGB
            sensor += struct.pack("<H", rgb[3 * (y * width + x) + channel] * 257)
    thumbnail = image.convert("RGB").resize((16, 8)).tobytes()
    raw = {
        254: (_LONG, [0]), 256: (_LONG, [width]), 257: (_LONG, [height]), 258: (_SHORT, [16]),
        259: (_SHORT, [1]), 262: (_SHORT, [32803]), 273: (_LONG, [file.put(bytes(sensor))]),
        277: (_SHORT, [1]), 278: (_LONG, [height]), 279: (_LONG, [len(sensor)]),
        33421: (_SHORT, [2, 2]), 33422: (1, [0, 1, 1, 2]), 50717: (_LONG, [65535]),
    }  # fmt: skip
    parts = [file.directory(raw)]
    if preview is not None:
        jpeg = saved(preview, "JPEG", quality=95)
        shown = {
            254: (_LONG, [1]), 256: (_LONG, [preview.width]), 257: (_LONG, [preview.height]),
            258: (_SHORT, [8, 8, 8]), 259: (_SHORT, [7]), 262: (_SHORT, [6]),
            273: (_LONG, [file.put(jpeg)]), 277: (_SHORT, [3]), 278: (_LONG, [preview.height]),
            279: (_LONG, [len(jpeg)]),
        }  # fmt: skip
        parts.append(file.directory(shown))
    one = (1, 1)
    matrix = [one if at % 4 == 0 else (0, 1) for at in range(9)]
    main = {
        254: (_LONG, [1]), 256: (_LONG, [16]), 257: (_LONG, [8]), 258: (_SHORT, [8, 8, 8]),
        259: (_SHORT, [1]), 262: (_SHORT, [2]), 271: (_ASCII, b"Maker\0"),
        272: (_ASCII, b"Camera\0"), 273: (_LONG, [file.put(thumbnail)]),
        274: (_SHORT, [orientation]), 277: (_SHORT, [3]), 278: (_LONG, [8]),
        279: (_LONG, [len(thumbnail)]), 330: (_LONG, parts), 50708: (_ASCII, b"Maker Camera\0"),
        50721: (_RATIONAL, matrix), 50728: (_RATIONAL, [one] * 3),
    }  # fmt: skip
    if version:
        main |= {50706: (1, [1, 4, 0, 0]), 50707: (1, [1, 1, 0, 0])}
    file.data[4:8] = struct.pack("<I", file.directory(main))
    return bytes(file.data)
