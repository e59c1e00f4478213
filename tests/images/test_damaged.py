"""Damaged files: those that hold a whole image are sent, all others are refused."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image, ImageCms
from samples import BLUE, GREEN, RED, WHITE, bomb, chunk, quarters, saved

from captioner.core.errors import BadImageError
from captioner.images.fit import FitOptions, Fitted, fit
from captioner.images.render import render
from captioner.settings.options import ImageSettings

SIZE = (96, 64)


def sent(data: bytes, **options: Any) -> Fitted:
    wanted = FitOptions(ImageSettings(**{"min_side": 1, **options}))
    (fitted,) = fit(data, wanted, lambda data, overrides: render(data, wanted, overrides))
    return fitted


def code_of(data: bytes) -> str:
    """Return the code of the failure; empty if the image is sent."""
    try:
        sent(data)
    except BadImageError as error:
        return error.code
    return ""


def is_right(data: bytes) -> bool:
    """Return whether what is sent shows the four quarters."""
    with Image.open(io.BytesIO(sent(data).data)) as image:
        rgb = image.convert("RGB")
    places = [(x * SIZE[0] // 4, y * SIZE[1] // 4) for y in (1, 3) for x in (1, 3)]
    colours = [tuple(255 * (value > 127) for value in rgb.getpixel(place)) for place in places]
    return rgb.size == SIZE and colours == [RED, GREEN, BLUE, WHITE]


def textured() -> Image.Image:
    """Return the quarters with noise, so that all parts of the data matter."""
    noise = Image.effect_noise(SIZE, 60).convert("RGB")
    return Image.blend(quarters(SIZE), noise, 0.3)


# -- JPEG ------------------------------------------------------------------------------------------


def with_thumbnail(data: bytes) -> bytes:
    """Return a JPEG with an EXIF block that holds a JPEG, and its end mark."""
    thumbnail = saved(Image.new("RGB", (16, 16), "black"), "JPEG")
    block = b"Exif\0\0II*\0" + struct.pack("<IHI", 8, 0, 0) + thumbnail
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block + data[2:]


JPEGS = {
    "baseline": saved(textured(), "JPEG"),
    "progressive": saved(textured(), "JPEG", progressive=True),
    "full colour": saved(textured(), "JPEG", subsampling=0),
    "restarts": saved(textured(), "JPEG", restart_marker_blocks=3),
    "progressive restarts": saved(
        textured(), "JPEG", progressive=True, restart_marker_blocks=5, optimize=True
    ),
    "inks": saved(textured().convert("CMYK"), "JPEG"),
}
JPEGS["thumbnail"] = with_thumbnail(JPEGS["baseline"])
JPEGS["restarts, thumbnail"] = with_thumbnail(JPEGS["restarts"])


def segments(data: bytes) -> list[int]:
    """Return where the segments begin, up to the first scan."""
    places = [2]
    while data[places[-1] + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, places[-1] + 2)
        places.append(places[-1] + 2 + length)
    return places


def put(data: bytes, at: int, more: bytes) -> bytes:
    return data[:at] + more + data[at:]


def comment(length: int) -> bytes:
    """Return a comment of 20 letters that says it has another length."""
    return b"\xff\xfe" + struct.pack(">H", 2 + length) + b"c" * 20


IN_HEADER = {
    "one stray byte": b"\x01",
    "stray bytes": b"abcdefg",
    "zeros": bytes(50),
    "fill bytes": b"\xff\xff\xff",
    "length 0": b"\xff\xe5\0\0",
    "length 1": b"\xff\xe5\0\1",
    "comment of length 0": b"\xff\xfe\0\0",
    "a length one too small": comment(19),
    "a length three too small": comment(17),
    "a length one too large": comment(21),
    "a length two too large": comment(22),
}


def restart_markers(data: bytes) -> list[int]:
    begin = segments(data)[-1]
    return [begin + found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", data[begin:])]


def damaged_jpegs(data: bytes) -> Iterator[bytes]:
    for at in segments(data):
        for more in IN_HEADER.values():
            yield put(data, at, more)
    for at in restart_markers(data)[::3]:
        for more in (b"\xff", b"\xff\xff\xff", b"\1\2\3"):
            yield put(data, at, more)
    for more in (b"\0\0\0", b"\xff\xff"):
        yield put(data, len(data) - 2, more)


@pytest.mark.parametrize("name", JPEGS)
def test_jpegs_that_viewers_show_are_sent(name):
    """Stray bytes, fill bytes and wrong lengths do not cost a JPEG whose image is whole."""
    for data in damaged_jpegs(JPEGS[name]):
        assert is_right(data)


@pytest.mark.parametrize("name", JPEGS)
def test_the_end_mark_of_a_jpeg_may_be_missing(name):
    """A JPEG is whole if the data of its scans is, whatever comes in place of its end mark."""
    data = JPEGS[name][:-2]
    cut_comment, stray = b"\xff\xfe\0\x20half", b"\xff\xdb"
    for end in (b"", b"\xff", b"\xff\xff", b"\0\0\0", cut_comment, stray):
        assert is_right(data + end)
        assert sent(data + end).data.endswith(b"\xff\xd9")
    assert code_of(data[:-4]) == "image_corrupt"


@pytest.mark.parametrize("strays", [b"\0", b"\0\0\0\0", b"\r\n", b"abcdefgh"])
def test_stray_bytes_behind_the_first_marker(strays):
    """A JPEG may begin with bytes that mean nothing, even where its type is told from."""
    assert is_right(put(JPEGS["baseline"], 2, strays))


@pytest.mark.parametrize("name", JPEGS)
def test_a_damaged_jpeg_that_is_cut_is_refused(name):
    """A damaged JPEG that is also cut short is broken, with or without an end mark put behind."""
    whole = put(JPEGS[name], segments(JPEGS[name])[1], b"abcdefg")
    for end in range(4, len(whole) - 12, max(10, len(whole) // 60)):
        assert code_of(whole[:end]) in ("image_corrupt", "image_unknown_type")
        assert code_of(whole[:end] + b"\xff\xd9") in ("image_corrupt", "image_unknown_type")


def test_a_missing_part_between_restarts_is_found():
    """A JPEG that lacks a restart interval is not sent with a grey stripe in it."""
    stray = b"\xff\xe5\0\0"
    data = put(JPEGS["restarts"], 2, stray)
    first, second = (at + len(stray) for at in restart_markers(JPEGS["restarts"])[3:5])
    assert is_right(data)
    assert code_of(data[:first] + data[second:]) == "image_corrupt"
    assert code_of(data[: first + 2] + data[second:]) == "image_corrupt"


def test_missing_scans_of_a_progressive_jpeg_are_found():
    """A progressive JPEG that lacks its last scans is not sent blurred."""
    data = put(JPEGS["progressive"], 2, b"\xff\xe5\0\0")
    scans = [found.start() for found in re.finditer(rb"\xff\xda\0", data)]
    assert len(scans) > 3
    for at in scans[1:]:
        assert code_of(data[:at] + b"\xff\xd9") == "image_corrupt"


@pytest.mark.parametrize("length", [0, 20, 33])
def test_a_thumbnail_is_never_sent_in_place_of_the_image(length):
    """If the block around a thumbnail has a wrong length, the thumbnail is not the image."""
    data = bytearray(JPEGS["thumbnail"])
    data[4:6] = struct.pack(">H", length)
    assert code_of(bytes(data)) == "image_corrupt"


def test_a_damaged_photograph_is_sent_upright_and_in_its_colours():
    """Orientation and colour profile of a damaged JPEG count."""
    exif = Image.Exif()
    exif[0x0112] = 6
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = saved(quarters(SIZE), "JPEG", exif=exif.tobytes(), icc_profile=lab)
    found = sent(put(data, segments(data)[-1], b"abc"))
    assert (found.width, found.height) == (SIZE[1], SIZE[0])
    with Image.open(io.BytesIO(found.data)) as image:
        assert image.convert("RGB").getpixel((48, 16))[0] > 200
        assert image.convert("RGB").getpixel((16, 16))[2] > 200


# -- PNG -------------------------------------------------------------------------------------------


def wrong(kind: bytes, body: bytes) -> bytes:
    """Return a chunk whose checksum is wrong."""
    made = bytearray(chunk(kind, body))
    made[-1] ^= 1
    return bytes(made)


def split(data: bytes, count: int) -> list[bytes]:
    """Return a PNG's beginning, its data in several chunks, and its end."""
    begin, end = data.index(b"IDAT") - 4, len(data) - 12
    packed = data[begin + 8 : end - 4]
    size = len(packed) // count + 1
    parts = [chunk(b"IDAT", packed[at : at + size]) for at in range(0, len(packed), size)]
    return [data[:begin], *parts, data[end:]]


PNGS = {
    "colour": saved(textured(), "PNG"),
    "palette": saved(quarters(SIZE).quantize(16), "PNG"),
    "transparent": saved(textured().convert("RGBA"), "PNG"),
    "animated": saved(textured(), "PNG", save_all=True, append_images=[quarters(SIZE)]),
}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXTRAS = {
    b"tEXt": b"a\0hello",
    b"zTXt": b"a\0\0" + zlib.compress(b"x" * 99),
    b"iTXt": b"a\0\0\0\0\0hello",
    b"pHYs": b"\0\0\1\0\0\0\1\0\1",
    b"gAMA": b"\0\0\xb1\x8f",
    b"tIME": b"\7\xd0\1\1\1\1\1",
    b"iCCP": b"a\0\0" + zlib.compress(SRGB),
    b"eXIf": b"II*\0\x08\0\0\0\0\0\0\0\0\0",
    b"vpAg": b"123456789",
}
LONG = zlib.compress(b"x" * (2 << 20))


@pytest.mark.parametrize("name", PNGS)
@pytest.mark.parametrize("kind", EXTRAS)
def test_damage_of_what_is_not_the_image_does_not_cost_a_png(name, kind):
    """A chunk that is cut out anyway may have a wrong checksum or too little in it."""
    data = PNGS[name]
    for at in (33, len(data) - 12):
        assert is_right(put(data, at, wrong(kind, EXTRAS[kind])))
        if kind != b"vpAg":
            assert is_right(put(data, at, chunk(kind, EXTRAS[kind][:3])))


@pytest.mark.parametrize("name", PNGS)
@pytest.mark.parametrize(
    "text",
    [
        chunk(b"zTXt", b"a\0\0" + LONG),
        chunk(b"iTXt", b"a\0\1\0\0\0" + LONG),
        chunk(b"tEXt", b"a\0" + b"x" * (2 << 20)),
        chunk(b"iCCP", b"a\0\0" + zlib.compress(SRGB + bytes(2 << 20))),
        chunk(b"iCCP", b"a\0\5" + zlib.compress(SRGB)),
    ],
)
def test_long_text_does_not_cost_a_png(name, text):
    """Text and profiles of more than a megabyte do not matter, even if the PNG is re-encoded."""
    data = put(PNGS[name], 33, text)
    assert is_right(data)
    assert sent(data, max_side=32).width == 32


@pytest.mark.parametrize("name", PNGS)
def test_the_end_of_a_png_may_be_missing(name):
    """A PNG is whole if the data of its image is, whatever became of its checksums and end mark."""
    data = PNGS[name]
    for length in range(1, 21):
        assert is_right(data[:-length])
    assert is_right(data[:-1] + b"\0")
    assert is_right(data[:-12] + chunk(b"tEXt", b"a\0hello")[:-5])


@pytest.mark.parametrize("name", PNGS)
def test_a_cut_png_is_refused(name):
    """A PNG that ends within its data is broken, also where a chunk ends."""
    data = PNGS[name]
    end = data.index(b"fcTL", data.index(b"IDAT")) - 4 if name == "animated" else len(data) - 12
    for at in {*range(1, end - 20, max(1, end // 60)), *range(end - 20, end - 10)}:
        assert code_of(data[:at]) in ("image_corrupt", "image_unknown_type")
    if name == "animated":
        return
    begin, *parts, _ = split(data, 4)
    for count in range(len(parts)):
        assert code_of(begin + b"".join(parts[:count])) == "image_corrupt"


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT"])
def test_a_wrong_checksum_of_the_image_is_final(kind):
    """A flipped bit in the image itself costs the PNG."""
    data = PNGS["palette"]
    begin = data.index(kind)
    for at in range(begin, begin + 16):
        mutant = bytearray(data)
        mutant[at] ^= 0x20
        assert code_of(bytes(mutant)) == "image_corrupt"


def test_a_lost_part_of_a_damaged_png_is_found():
    """A PNG that lacks a part of its data is not sent with a black stripe."""
    begin, *parts, end = split(PNGS["colour"], 4)
    text = wrong(b"tEXt", b"a\0b")
    assert is_right(begin + text + b"".join(parts) + end)
    for lost in range(len(parts)):
        rest = parts[:lost] + parts[lost + 1 :]
        assert code_of(begin + text + b"".join(rest) + end) == "image_corrupt"
        renamed = [*parts[:lost], parts[lost].replace(b"IDAT", b"iDAT"), *parts[lost + 1 :]]
        assert code_of(begin + b"".join(renamed) + end) == "image_corrupt"
    rows = bytes(SIZE[1] // 2 * (1 + 3 * SIZE[0]))
    assert code_of(begin + text + chunk(b"IDAT", zlib.compress(rows)) + end) == "image_corrupt"


def test_a_wrong_checksum_of_sound_data():
    """A PNG whose writer made wrong checksums is sent: its data has another one."""
    begin, *parts, end = split(PNGS["colour"], 4)
    for at in range(len(parts)):
        damaged = [*parts]
        damaged[at] = parts[at][:-1] + bytes([parts[at][-1] ^ 1])
        assert is_right(begin + b"".join(damaged) + end)
        damaged[at] = put(parts[at], 20, b"x")[:20] + parts[at][21:]
        assert code_of(begin + b"".join(damaged) + end) == "image_corrupt"


# -- other formats and limits ----------------------------------------------------------------------


def test_stray_bytes_in_a_gif():
    """What stands before the first frame of a GIF does not cost it, if decoders skip it."""
    data = saved(quarters(SIZE).quantize(16), "GIF")
    table = 13 + (3 << (data[10] & 7) + 1)
    assert is_right(put(data, table, b"\0\0"))


CUT: dict[str, bytes] = {
    "WebP": saved(textured(), "WEBP"),
    "WebP lossless": saved(textured(), "WEBP", lossless=True),
    "WebP transparent": saved(textured().convert("RGBA"), "WEBP"),
    "WebP profile": saved(textured(), "WEBP", icc_profile=SRGB),
    "GIF": saved(textured().quantize(16), "GIF"),
    "BMP": saved(textured(), "BMP"),
    "TIFF": saved(textured(), "TIFF"),
    "TIFF LZW": saved(textured(), "TIFF", compression="tiff_lzw"),
    "AVIF": saved(textured(), "AVIF"),
    "JPEG 2000": saved(textured(), "JPEG2000"),
    "JPEG 2000 tiles": saved(textured(), "JPEG2000", tile_size=(32, 32)),
    "JPEG 2000 codestream": saved(textured(), "JPEG2000", no_jp2=True, tile_size=(32, 32)),
}


def pixels(fitted: Fitted) -> bytes:
    with Image.open(io.BytesIO(fitted.data)) as image:
        return image.convert("RGB").tobytes()


@pytest.mark.parametrize("name", CUT)
def test_a_cut_image_is_refused_unless_it_is_whole(name):
    """What is sent of a cut file looks as the whole file does."""
    data = CUT[name]
    whole = pixels(sent(data, max_side=64))
    step = max(1, len(data) // 80)
    tiles = [found.start() for found in re.finditer(rb"\xff\x90\0\n", data)]
    for end in {*range(1, len(data), step), *range(len(data) - 30, len(data)), *tiles}:
        if not (code := code_of(data[:end])):
            assert pixels(sent(data[:end], max_side=64)) == whole, end
        assert code in ("", "image_corrupt", "image_unknown_type")


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
def test_the_end_of_a_webp_may_be_missing():
    """A WebP is whole if its pixels are, whatever became of the metadata behind them."""
    exif = Image.Exif()
    exif[0x010E] = "a place" * 20
    exif[0x0112] = 6
    data = saved(quarters(SIZE), "WEBP", exif=exif.tobytes(), lossless=True)
    for end in range(data.index(b"EXIF"), data.index(b"EXIF") + 8):
        assert is_right(data[:end])
    found = sent(data[:-40])
    assert (found.width, found.height) == (SIZE[1], SIZE[0])
    data = saved(quarters(SIZE), "WEBP", lossless=True)
    assert is_right(data[:4] + struct.pack("<I", 9_999) + data[8:])
    assert code_of(data[:-9]) == "image_corrupt"


def test_a_webp_that_lost_a_part_in_the_middle_is_refused():
    """The bytes behind a gap are not taken for pixels."""
    exif = Image.Exif()
    exif[0x010E] = "a place" * 20
    data = saved(textured(), "WEBP", exif=exif.tobytes())
    for at in range(60, data.index(b"EXIF") - 60, 50):
        assert code_of(data[:at] + data[at + 20 :]) == "image_corrupt"


@pytest.mark.parametrize(
    "break_it",
    [
        lambda data: put(data, 2, b"\0"),
        lambda data: put(data, 2, b"\xff\xe5\0\0"),
    ],
)
def test_limits_hold_for_damaged_images(break_it: Callable[[bytes], bytes]):
    """A damaged image of too many pixels is refused by its header, as any other."""
    frame = JPEGS["baseline"].index(b"\xff\xc0")
    data = bytearray(JPEGS["baseline"])
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    assert code_of(break_it(bytes(data))) == "image_too_large"
    assert code_of(bomb(60_000, 60_000)[:-12]) == "image_too_large"
