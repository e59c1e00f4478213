"""Videos made by PyAV, and animated images: which frames are sent, and how broken ones fail."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from typing import Any

import pytest
from PIL import Image
from samples import BLUE, GREEN, RED, WHITE, quarters, saved

from captioner.core.errors import BadImageError
from captioner.core.types import UNCHANGED
from captioner.images.decoder_pool import DecoderPool
from captioner.images.fit import FitOptions, Fitted, fit
from captioner.images.render import render
from captioner.settings.options import ImageSettings

pytest.importorskip("av", reason="videos are tested with the extra video")

from films import CODECS, cuts, film, sound

BLACK, YELLOW = (0, 0, 0), (255, 255, 0)


def frames(data: bytes, **options: Any) -> tuple[Fitted, ...]:
    """Return the frames that are sent, fitted in this very process."""
    wanted = FitOptions(ImageSettings(**{"min_side": 1, **options}))
    return fit(data, wanted, lambda data, overrides: render(data, wanted, overrides))


def opened(frame: Fitted) -> Image.Image:
    return Image.open(io.BytesIO(frame.data)).convert("RGB")


def colour(frame: Fitted, place: tuple[float, float] = (0.5, 0.5)) -> tuple[int, ...]:
    """Return the colour at a place, each channel rounded to 0 or 255."""
    image = opened(frame)
    found = image.getpixel((int(image.width * place[0]), int(image.height * place[1])))
    return tuple(255 * (value > 127) for value in found)


def corners(frame: Fitted) -> list[tuple[int, ...]]:
    """Return the colours in the middle of the four quarters."""
    return [colour(frame, (x, y)) for y in (0.25, 0.75) for x in (0.25, 0.75)]


def shown(data: bytes, **options: Any) -> list[tuple[float | None, tuple[int, ...]]]:
    """Return time and colour of each frame that is sent."""
    return [
        (None if one.time_s is None else round(one.time_s, 2), colour(one))
        for one in frames(data, **options)
    ]


def refused(data: bytes, **options: Any) -> BadImageError:
    with pytest.raises(BadImageError) as caught:
        frames(data, **options)
    return caught.value


THREE = cuts((RED, 10), (GREEN, 10), (BLUE, 10))
PLANTED = cuts((RED, 7), (GREEN, 3), (BLUE, 16), (YELLOW, 4))


@pytest.mark.parametrize("kind", CODECS)
def test_frames_are_the_centres_of_equal_parts(kind):
    """Of three seconds in three parts: those at 0.5, 1.5 and 2.5 s, whatever the container."""
    data = film(THREE, kind)
    assert shown(data, frames=3) == [(0.5, RED), (1.5, GREEN), (2.5, BLUE)]
    assert shown(data, frames=1) == [(1.5, GREEN)]


@pytest.mark.parametrize("kind", CODECS)
def test_scene_changes_are_found(kind):
    """The first frame and those right after the planted cuts, in order of time."""
    data = film(PLANTED, kind)
    assert shown(data, frames="scene:4") == [(0, RED), (0.7, GREEN), (1, BLUE), (2.6, YELLOW)]


def test_the_strongest_changes_count():
    """With fewer frames than changes, the weaker changes are left out."""
    data = film(cuts((BLACK, 5), ((60, 60, 60), 5), (WHITE, 5), ((200, 200, 200), 5)))
    assert [time for time, _ in shown(data, frames="scene:2")] == [0, 1]
    assert [time for time, _ in shown(data, frames="scene:3")] == [0, 0.5, 1]
    assert [time for time, _ in shown(data, frames="scene:1")] == [0]


def test_long_videos_are_compared_at_key_frames(monkeypatch):
    """A video with more pixels than can be decoded in time is looked at in its key frames only."""
    monkeypatch.setattr("captioner.images.video.WORK", 1)
    fixed = {"g": "10", "sc_threshold": "0"}
    data = film(cuts((RED, 10), (GREEN, 14), (BLUE, 6), (YELLOW, 10)), options=fixed)
    assert shown(data, frames="scene:3") == [(0, RED), (1, GREEN), (3, YELLOW)]
    one_key = film(PLANTED, options={"g": "300", "sc_threshold": "0"})
    assert [time for time, _ in shown(one_key, frames="scene:3")] == [0.5, 1.5, 2.5]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "AVIF"])
def test_scene_changes_of_animated_images(kind):
    """Animated images have scene changes, too, and times from the durations of their frames."""
    first, *others = PLANTED
    data = saved(first, kind, save_all=True, append_images=others, duration=100)
    found = shown(data, frames="scene:4")
    assert [shade for _, shade in found] == [RED, GREEN, BLUE, YELLOW]
    assert [time for time, _ in found] == pytest.approx([0, 0.7, 1, 2.6], abs=0.01)


def test_times_of_animated_images_add_up_the_durations():
    several = [Image.new("RGB", (64, 48), shade) for shade in (RED, GREEN, BLUE)]
    data = saved(
        several[0], "GIF", save_all=True, append_images=several[1:], duration=[300, 1200, 50]
    )
    assert shown(data, frames=3) == [(0, RED), (0.3, GREEN), (1.5, BLUE)]


def test_a_video_is_eight_frames_and_an_animated_image_one():
    data = film(THREE)
    times = [time for time, _ in shown(data)]
    assert times == pytest.approx([3 * (2 * n + 1) / 16 for n in range(8)], abs=0.1)
    gif = saved(THREE[0], "GIF", save_all=True, append_images=THREE[10::10])
    assert shown(gif) == [(None, RED)]


def test_a_frame_is_sent_once():
    """A video with fewer frames than are wanted has each of them once."""
    assert shown(film(cuts((RED, 1), (BLUE, 1))), frames=9) == [(0, RED), (0.1, BLUE)]


def test_times_count_not_frames():
    """With a variable frame rate the frame that is shown at a time is taken."""
    data = film(
        cuts((RED, 8), (GREEN, 1), (BLUE, 1)), times_ms=[*range(0, 80, 10), 100, 3_900], rate=100
    )
    assert shown(data, frames=4) == [(0.1, GREEN)]
    assert shown(data, frames="scene:3") == [(0, RED), (0.1, GREEN), (3.9, BLUE)]


def test_frames_between_key_frames_are_exact():
    """Each wanted frame is the right one, wherever the key frames and reordered frames are."""
    greys = [Image.new("RGB", (64, 48), (2 * n, 2 * n, 2 * n)) for n in range(100)]
    data = film(greys, options={"g": "7", "bf": "3"})
    for one in frames(data, frames=20):
        assert opened(one).getpixel((30, 20))[0] / 2 == pytest.approx(10 * one.time_s, abs=1.6)


@pytest.mark.parametrize(
    ("turned", "seen"),
    [
        (0, [RED, GREEN, BLUE, WHITE]),
        (90, [GREEN, WHITE, RED, BLUE]),
        (180, [WHITE, BLUE, GREEN, RED]),
        (-90, [BLUE, RED, WHITE, GREEN]),
    ],
)
@pytest.mark.parametrize("kind", ["h264 in mp4", "h264 in mov"])
def test_rotation(turned, seen, kind):
    """A telephone's video comes upright."""
    (found,) = frames(film([quarters((64, 32))] * 3, kind, turned=turned), frames=1)
    assert corners(found) == seen
    assert (found.width, found.height) == ((32, 64) if turned in (90, -90) else (64, 32))


def test_a_mirrored_video_is_shown_as_players_do():
    """The matrix of the track may mirror, which is no rotation."""
    data = film([quarters((64, 32))] * 3)
    at = data.index(b"tkhd") + 4 + 40
    mirrored = struct.pack(">9i", -1 << 16, 0, 0, 0, 1 << 16, 0, 64 << 16, 0, 1 << 30)
    (found,) = frames(data[:at] + mirrored + data[at + 36 :], frames=1)
    assert corners(found) == [GREEN, RED, WHITE, BLUE]


def test_pixels_that_are_not_square():
    """A frame has the proportions that players give it."""
    (found,) = frames(film(cuts((RED, 3)), pixel=Fraction(4, 3)), frames=1)
    assert found.width / found.height == pytest.approx(64 * 4 / 3 / 48, abs=0.05)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("matrix", ["ITU601", "ITU709"])
def test_colours_follow_what_the_video_says_of_them(matrix, full):
    """Cameras say BT.709; a decoder that takes it for BT.601 shows other colours."""
    data = film(cuts(((200, 60, 30), 3)), matrix=matrix, full=full)
    (found,) = frames(data, frames=1)
    assert opened(found).getpixel((30, 20)) == pytest.approx((200, 60, 30), abs=6)


def test_a_codec_that_nothing_decodes():
    data = film(cuts((RED, 3)), "h264 in mkv").replace(b"V_MPEG4/ISO/AVC", b"V_XYZW4/ISO/AVC")
    error = refused(data)
    assert (error.code, error.message) == (
        "image_corrupt",
        "the video is broken: no decoder knows its codec",
    )


def test_frames_are_made_smaller():
    (found,) = frames(film(cuts((RED, 3))), frames=1, max_side=32)
    assert (found.width, found.height) == (32, 24)


@pytest.mark.parametrize("kind", [kind for kind in CODECS if not kind.endswith("ts")])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.99])
def test_a_truncated_video_is_broken(kind, part):
    data = film(PLANTED, kind)
    error = refused(data[: int(len(data) * part)])
    assert error.code == "image_corrupt"
    assert "the video is broken" in error.message


def test_a_truncated_video_with_its_index_in_front():
    """Such a video plays until it breaks off; it is refused all the same."""
    data = film(PLANTED)
    begin, end = data.index(b"mdat") - 4, data.index(b"moov") - 4
    index = bytearray(data[end:])
    at = index.index(b"stco") + 8
    (count,) = struct.unpack_from(">I", index, at)
    for place in range(at + 4, at + 4 + 4 * count, 4):
        (offset,) = struct.unpack_from(">I", index, place)
        struct.pack_into(">I", index, place, offset + len(index))
    streamable = data[:begin] + index + data[begin:end]
    assert shown(streamable, frames=1) == [(1.5, BLUE)]
    assert refused(streamable[:-30], frames=1).code == "image_corrupt"


def test_a_video_that_was_written_as_a_stream():
    """Who writes an AVI into a pipe cannot say how long it becomes."""
    data = bytearray(film(THREE, "mpeg4 in avi"))
    places = [4, data.index(b"movi") - 4]
    for at in places:
        data[at : at + 4] = b"\xff" * 4
    assert shown(bytes(data), frames=3) == shown(film(THREE, "mpeg4 in avi"), frames=3)


def test_noise_is_no_video():
    """What only begins like one fails with a sentence."""
    for begin in (b"\0\0\0\x18ftypisom", b"\x1aE\xdf\xa3", b"RIFF\0\1\0\0AVI ", b"\0\0\1\xba"):
        error = refused(begin + bytes(range(256)) * 4)
        assert error.code == "image_corrupt"
        assert "the video is broken" in error.message


@pytest.mark.parametrize("kind", ["h264 in mp4", "vp9 in webm", "mpeg4 in avi"])
def test_damage_fails_one_record_at_most(kind):
    """Whatever bytes are damaged: the video is broken, too large, or frames of it are sent."""
    data = film(THREE, kind)
    for at in range(12, len(data) - 30, 97):
        broken = data[:at] + bytes(range(200, 230)) + data[at + 30 :]
        try:
            found = frames(broken, frames=3)
        except BadImageError as error:
            assert error.code in ("image_corrupt", "image_too_large", "image_unknown_type")
        else:
            assert 1 <= len(found) <= 3


def test_a_file_with_only_sound_says_so():
    error = refused(sound())
    assert (error.code, error.message) == (
        "image_corrupt",
        "the video has only sound, and no pictures to send",
    )


def test_a_header_that_lies_about_the_duration():
    """The frames count, not what the header says of them."""
    data = bytearray(film(THREE))
    for box, at in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
        begin = data.index(box) + at
        data[begin : begin + 4] = (0x7FFFFFF0).to_bytes(4, "big")
    assert [time for time, _ in shown(bytes(data), frames=3)] == [0.5, 1.5, 2.5]


def test_too_many_pixels_are_refused():
    error = refused(film(cuts((RED, 3))), max_image_pixels=3_000)
    assert (error.code, "--max-image-pixels" in error.message) == ("image_too_large", True)


def test_in_the_decoder_process():
    """Frames and their times come back from the process that meets the bytes."""
    with DecoderPool(FitOptions(ImageSettings(min_side=1, frames=3)), 1) as pool:
        found = pool.render(film(THREE), UNCHANGED)
    assert [(one.time_s, colour(one)) for one in found] == [(0.5, RED), (1.5, GREEN), (2.5, BLUE)]


def test_without_the_extra_the_command_is_named(monkeypatch):
    data = film(cuts((RED, 3)))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    error = refused(data)
    assert error.code == "image_needs_extra"
    assert "pip install av" in error.message
