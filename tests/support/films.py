"""Videos for tests, made by PyAV. Import it after `pytest.importorskip("av")`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

CODECS = {
    "h264 in mp4": ("mp4", "libx264"),
    "mpeg4 in mp4": ("mp4", "mpeg4"),
    "av1 in mp4": ("mp4", "libsvtav1"),
    "h264 in mov": ("mov", "libx264"),
    "vp8 in webm": ("webm", "libvpx"),
    "vp9 in webm": ("webm", "libvpx-vp9"),
    "h264 in mkv": ("matroska", "libx264"),
    "mpeg4 in avi": ("avi", "mpeg4"),
    "mpeg2 in ts": ("mpegts", "mpeg2video"),
}

OLDER = {
    "mpeg2 in m2ts": ("mpegts", "mpeg2video"),
    "mpeg2 in mpg": ("mpeg", "mpeg2video"),
    "mpeg4 in 3gp": ("3gp", "mpeg4"),
    "flv1 in flv": ("flv", "flv"),
    "wmv2 in wmv": ("asf", "wmv2"),
}
"""Containers of cameras, discs and former years; a cut end does not always show."""


def film(
    frames: Sequence[Image.Image],
    kind: str = "h264 in mp4",
    *,
    rate: int = 10,
    times_ms: Sequence[int] = (),
    turned: int = 0,
    pixel: Fraction | None = None,
    options: dict[str, str] | None = None,
    matrix: str = "",
    full: bool = False,
) -> bytes:
    """Return a video.

    Args:
        frames: Its frames.
        kind: Container and codec, a key of `CODECS` or `OLDER`.
        rate: Frames per second.
        times_ms: When each frame is shown; by default at the rate.
        turned: Degrees by which a player turns it counterclockwise.
        pixel: Width of a pixel divided by its height.
        options: Those of the codec.
        matrix: Colour space that it has and names; none is named by default.
        full: Black is 0 and white is 255.
    """
    container, codec = (CODECS | OLDER)[kind]
    out = io.BytesIO()
    timed = {"mpegts_m2ts_mode": "1"} if kind.endswith("m2ts") else {}
    with av.open(out, "w", format=container, options=timed) as file:
        stream: Any = file.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        if matrix:
            stream.codec_context.colorspace = Colorspace[matrix]
            stream.codec_context.color_range = ColorRange.JPEG if full else ColorRange.MPEG
        if times_ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        if pixel is not None:
            stream.codec_context.sample_aspect_ratio = pixel
        if turned:
            stream.set_display_rotation(turned)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image)
            if matrix:
                frame = frame.reformat(
                    format="yuv420p",
                    dst_colorspace=matrix,
                    dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
                )
            if times_ms:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()


def cuts(*scenes: tuple[tuple[int, int, int], int]) -> list[Image.Image]:
    """Return the frames of scenes, each a colour and a number of frames."""
    return [Image.new("RGB", (64, 48), colour) for colour, count in scenes for _ in range(count)]


def sound() -> bytes:
    """Return an M4A file, which has no pictures."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=8_000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=1_024)
        frame.planes[0].update(bytes(2_048))
        frame.sample_rate = 8_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()
