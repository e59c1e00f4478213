"""Structures of very many parts are left to decoder processes, with limited memory."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from captioner.core.types import UNCHANGED
from captioner.images.fit import FitOptions, fit
from captioner.images.inspect import DoubtfulImageError, read_structure
from captioner.images.render import render
from captioner.settings.options import ImageSettings

COUNT = 20_000
WANTED = FitOptions(ImageSettings())


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, kind)
    return out.getvalue()


def chunk(kind: bytes) -> bytes:
    return struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind))


def hostile(kind: str) -> bytes:
    """Return an image that any viewer shows, with a multitude of parts without content."""
    jpeg, png, webp, gif = map(encoded, ("JPEG", "PNG", "WEBP", "GIF"))
    if kind == "png":
        return png[:33] + chunk(b"juNk") * COUNT + png[33:]
    if kind == "webp":
        body = webp[12:] + b"JUNK\0\0\0\0" * COUNT
        return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    if kind == "gif":
        at = 13 + (3 << ((gif[10] & 7) + 1))
        return gif[:at] + b"!\xfe" + b"\x01a" * COUNT + b"\0" + gif[at:]
    parts = {"fill": b"\xff", "com": b"\xff\xfe\0\2", "alt": b"\xff\xfe\0\2\xff\xdc\0\2"}
    return jpeg[:2] + parts[kind] * COUNT + jpeg[2:]


@pytest.fixture(params=["png", "webp", "gif", "fill", "com", "alt"])
def image(request: pytest.FixtureRequest) -> bytes:
    return hostile(request.param)


def test_a_long_structure_goes_to_the_decoder(image: bytes) -> None:
    """The decoder gets the whole file, and shows the image."""
    seen: list[bytes] = []
    turns: list[None] = []

    def note(data: bytes, overrides: Any) -> Any:
        seen.append(data)
        return render(data, WANTED, overrides, lambda: turns.append(None))

    with pytest.raises(DoubtfulImageError):
        read_structure(image)
    (frame,) = fit(image, WANTED, note, UNCHANGED)
    assert (frame.width, frame.height) == (64, 64)
    assert seen == [image]
    assert len(turns) == 1


def test_no_more_parts_are_read_than_are_allowed(image: bytes) -> None:
    """The bytes behind them are not even looked at: the answer is the same whatever they are."""
    half = len(image) // 2
    for most in (10, 1_000):
        with pytest.raises(DoubtfulImageError, match="too many parts"):
            read_structure(image[:half] + bytes(half), most)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_a_usual_structure_is_read_at_once(kind: str) -> None:
    found = read_structure(encoded(kind))
    assert found
    assert (found.width, found.height) == (64, 64)
