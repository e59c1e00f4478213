"""Frames of videos, decoded by PyAV. Used in the decoder process only.

A survey reads all packets without decoding them, because headers and indexes of videos may be
wrong. It finds where the frames are, so that each wanted one is reached from the key frame before
it.
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from PIL import Image

from captioner.core.errors import BadImageError
from captioner.images.inspect import broken_video, check_whole, video_format
from captioner.images.scenes import SIDE, scene_changes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from fractions import Fraction

    from captioner.images.fit import FitOptions

FRAMES = 8
"""Frames of a video that are sent by default."""

WORK = 1_000_000_000
"""Pixels of a video up to which scene changes are looked for in all frames; else in key frames."""

_BROADCAST = frozenset({"mpegts", "mpeg"})
"""Containers that begin and end anywhere, and may lose packets in between."""

_UPRIGHT = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
"""What each display matrix does to a frame (ISO/IEC 14496-12, section 6.2.2)."""

_FULL_RANGE = 2
"""FFmpeg's number of the range in which black is 0 and white is 255."""

_MOST_STRETCH = 4
"""Greatest ratio of a pixel's sides that is believed."""


_BUFFER = 1 << 18
"""Bytes that are handed to the demuxer at once."""


class _Survey(NamedTuple):
    """What the packets of a video stream say. Times are in units of the stream.

    Attributes:
        start: Time of the first frame.
        span: From there to the end of the last frame.
        frames: How many there are.
        keys: Times of the key frames, in order.
    """

    start: int
    span: int
    frames: int
    keys: list[int]


class _Decoded(NamedTuple):
    """A frame of PyAV and its time in units of the stream."""

    time: int
    frame: Any


def video_frames(
    data: bytes, wanted: FitOptions, bound: Callable[[int, int], None]
) -> Iterator[tuple[Image.Image, float]]:
    """Yield the wanted frames of a video, upright and in order, with their times in seconds.

    Args:
        data: The file.
        wanted: Which frames.
        bound: Called with the size of each frame; raises if it is too large.

    Raises:
        BadImageError: ``image_corrupt``, ``image_too_large`` or ``image_needs_extra``.
    """
    try:
        import av
    except ImportError:
        raise BadImageError(
            "image_needs_extra", "the file is a video; pip install av reads it"
        ) from None
    check_whole(data)
    count, by_scene = wanted.images.frames_of(FRAMES)
    try:
        with _opened(data) as container:
            survey = _survey(container, _stream_of(container, bound))
        times = [survey.start + survey.span * (2 * n + 1) // (2 * count) for n in range(count)]
        if by_scene:
            with _opened(data) as container:
                film = _Film(container, _stream_of(container, bound), survey, bound)
                times = film.scenes(count) or times
        with _opened(data) as container:
            yield from _Film(container, _stream_of(container, bound), survey, bound).at(times)
    except MemoryError:
        raise
    except av.FFmpegError as error:
        raise broken_video(error.strerror or "it cannot be decoded") from None


def _opened(data: bytes) -> Any:
    """Open a video. Its format is given, since some other formats lead to further files."""
    import av

    return av.open(
        io.BytesIO(data), format=video_format(data), buffer_size=_BUFFER, io_open=_refuse
    )


def _refuse(*_: object) -> NoReturn:
    raise PermissionError("a video may not lead to another file")


def _stream_of(container: Any, bound: Callable[[int, int], None]) -> Any:
    """Return the video stream, ready for decoding; the demuxer passes over all others."""
    from av.stream import Discard, Disposition

    several = [
        one for one in container.streams.video if not one.disposition & Disposition.attached_pic
    ]
    if not several:
        if container.streams.audio:
            raise BadImageError(
                "image_corrupt", "the video has only sound, and no pictures to send"
            )
        raise broken_video("it has no pictures")
    best = container.streams.best("video")
    chosen = best if best in several else several[0]
    for stream in container.streams:
        if stream.index != chosen.index:
            stream.discard = Discard.all
    if chosen.codec_context is None:
        raise broken_video("no decoder knows its codec")
    bound(chosen.width, chosen.height)
    chosen.codec_context.thread_count = 1
    return chosen


def _survey(container: Any, stream: Any) -> _Survey:
    keys: list[int] = []
    start = end = count = 0
    for packet in container.demux(stream):
        time = packet.dts if packet.pts is None else packet.pts
        if time is None or packet.is_discard:
            continue  # the mark of the end, or cut off by an edit list
        if packet.is_corrupt and container.format.name not in _BROADCAST:
            raise broken_video("a part of it is damaged or missing")
        start, end = (min(start, time), max(end, time)) if count else (time, time)
        end = max(end, time + (packet.duration or 0))
        count += 1
        if packet.is_keyframe:
            keys.append(time)
    if not count:
        raise broken_video("it has no frames")
    return _Survey(start, end - start, count, sorted(keys))


class _Film:
    """A video stream, decoded a frame at a time from the start of the file."""

    def __init__(
        self, container: Any, stream: Any, survey: _Survey, bound: Callable[[int, int], None]
    ) -> None:
        self._container = container
        self._stream = stream
        self._survey = survey
        self._bound = bound
        self._seeks = True
        self._decoded = self._decode()
        self._shown: _Decoded | None = None
        self._ahead: _Decoded | None = None

    def scenes(self, count: int) -> list[int]:
        """Return the times of the strongest changes; none if there is too little to compare."""
        survey, stream = self._survey, self._stream
        if survey.frames * stream.width * stream.height > WORK:
            if len(survey.keys) < count:
                return []
            stream.codec_context.skip_frame = "NONKEY"
        return scene_changes(((time, _miniature(frame)) for time, frame in self._decoded), count)

    def at(self, times: list[int]) -> Iterator[tuple[Image.Image, float]]:
        """Yield the frames that are shown at some times, each once."""
        last: int | None = None
        for wanted in times:
            found = self._find(wanted)
            if found is not None and found.time != last:
                last = found.time
                seconds = float((last - self._survey.start) * self._stream.time_base)
                if found.frame.is_corrupt:
                    raise broken_video(f"it is damaged at {seconds:.1f} s")
                image = _upright(found.frame, self._stream.sample_aspect_ratio)
                self._bound(*image.size)
                yield image, seconds
        if last is None:
            raise broken_video("no frame of it can be decoded")

    def _find(self, time: int) -> _Decoded | None:
        """Return the frame that is shown at a time not before the last one."""
        keys = self._survey.keys
        key = keys[max(0, bisect_right(keys, time) - 1)] if keys else self._survey.start
        passed = self._ahead or self._shown
        if self._seeks and key > (passed.time if passed else self._survey.start):
            self._seek(key)
            ahead = self._peek()
            if ahead is None or ahead.time > time:  # the index is wrong
                self._seek(self._survey.start)
                self._seeks = False
        while (ahead := self._peek()) and (self._shown is None or ahead.time <= time):
            self._shown, self._ahead = ahead, None
        return self._shown

    def _seek(self, time: int) -> None:
        import av

        try:
            self._container.seek(time, stream=self._stream)
        except av.FFmpegError:
            self._seeks = False  # frames are decoded from here on
            return
        self._decoded = self._decode()
        self._shown = self._ahead = None

    def _peek(self) -> _Decoded | None:
        if self._ahead is None:
            self._ahead = next(self._decoded, None)
        return self._ahead

    def _decode(self) -> Iterator[_Decoded]:
        import av

        time = self._survey.start
        may_begin_anywhere = self._container.format.name in _BROADCAST
        for packet in self._container.demux(self._stream):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                if may_begin_anywhere:
                    continue
                raise
            for frame in frames:
                self._bound(frame.width, frame.height)
                time = time + 1 if frame.pts is None else frame.pts
                may_begin_anywhere = False
                yield _Decoded(time, frame)


def _miniature(frame: Any) -> Image.Image:
    small = frame.reformat(SIDE, SIDE, format="rgb24", interpolation="AREA", threads=1)
    plane = small.planes[0]
    return Image.frombuffer("RGB", (SIDE, SIDE), bytes(plane), "raw", "RGB", plane.line_size, 1)


def _upright(frame: Any, pixel: Fraction | None) -> Image.Image:
    """Return a frame as a player shows it.

    Args:
        frame: The frame.
        pixel: Width of a pixel divided by its height; None if unknown.
    """
    image: Image.Image = frame.to_image(
        src_color_range=frame.color_range, dst_color_range=_FULL_RANGE, threads=1
    )
    if pixel and pixel != 1 and 1 / _MOST_STRETCH <= pixel <= _MOST_STRETCH:
        width = max(1, round(image.width * pixel))
        image = image.resize((width, image.height), Image.Resampling.LANCZOS)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
        longest = max(map(abs, (a, b, c, d)), default=0) or 1
        turn = _UPRIGHT.get(tuple(round(one / longest) for one in (a, b, c, d)))
        image = image if turn is None else image.transpose(turn)
    return image
