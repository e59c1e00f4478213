from __future__ import annotations

import io
import random
import struct
import warnings
from typing import Any

import pytest
from conftest import jpeg
from PIL import Image, ImageOps, PngImagePlugin
from samples import BLUE, GREEN, RED, WHITE, bomb, quarters, saved

from captioner.core.errors import BadImageError
from captioner.images.fit import DECODE_ONLY, FitOptions, Fitted
from captioner.images.fit import fit as fit_each
from captioner.images.inspect import read_structure
from captioner.images.render import render
from captioner.settings.options import ImageSettings

MAX_PIXELS = ImageSettings().max_image_pixels


def fit(data: bytes, side: int = 2048, **options: Any) -> Fitted:
    """Return an image fitted in this very process."""
    (fitted,) = frames(data, max_side=side, **{"min_side": 1, **options})
    return fitted


def frames(data: bytes, **options: Any) -> tuple[Fitted, ...]:
    wanted = FitOptions(ImageSettings(**options))
    return fit_each(
        data, wanted, lambda data, image_overrides: render(data, wanted, image_overrides)
    )


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    """Return the colours in the middle of the four quarters, each channel rounded to 0 or 255."""
    width, height = image.size
    places = [(x * width // 4, y * height // 4) for y in (1, 3) for x in (1, 3)]
    rgb = image.convert("RGB")
    return [tuple(255 * (value > 127) for value in rgb.getpixel(place)) for place in places]


def near(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return all(abs(a - b) < 12 for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {"progressive": True}),
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
def test_what_can_be_sent_is_not_touched(kind, mode, options):
    """An image that endpoints take as it is arrives byte for byte, up to the largest side."""
    data = saved(quarters().convert(mode), kind, **options)
    for side in (64, 65, 10_000):
        media_type, sent, *_ = fit(data, side)
        assert media_type == f"image/{kind.lower()}"
        assert sent == data


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize(
    ("size", "side", "wanted"),
    [
        ((64, 32), 63, (63, 32)),
        ((64, 32), 32, (32, 16)),
        ((32, 64), 32, (16, 32)),
        ((64, 64), 1, (1, 1)),
        ((900, 3), 90, (90, 1)),
        ((801, 603), 100, (100, 75)),
    ],
)
def test_what_is_too_large_is_made_smaller(kind, size, side, wanted):
    """The longer side becomes exactly the largest allowed; the shape and content are kept."""
    media_type, sent, *_ = fit(saved(quarters(size), kind), side)
    image = opened(sent)
    assert (media_type, image.format, image.mode) == ("image/jpeg", "JPEG", "RGB")
    assert image.size == wanted
    if min(wanted) >= 16:
        assert colours(image) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_nothing_is_made_larger(kind):
    """An image of another kind becomes a JPEG of the same size."""
    media_type, sent, *_ = fit(saved(quarters(), kind), 10_000)
    assert media_type == "image/jpeg"
    assert opened(sent).size == (64, 32)
    assert colours(opened(sent)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("side", [10_000, 32])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_is_applied(kind, orientation, side):
    """A photograph taken sideways is sent upright, as a viewer would show it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(quarters(), kind, exif=exif.tobytes())
    with Image.open(io.BytesIO(data)) as image:
        wanted = ImageOps.exif_transpose(image)
    media_type, sent, *_ = fit(data, side)
    image = opened(sent)
    scale = max(wanted.size) / max(image.size)
    assert media_type == "image/jpeg"
    assert tuple(round(length * scale) for length in image.size) == wanted.size
    assert max(image.size) == min(64, side)
    assert colours(image) == colours(wanted)
    assert image.getexif().get(0x0112, 1) == 1  # or it would be turned a second time


def test_the_type_comes_from_the_content():
    """The media type does not depend on the file name."""
    assert fit(saved(quarters(), "PNG"), 100)[0] == "image/png"
    assert fit(saved(quarters(), "WEBP"), 100)[0] == "image/webp"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_a_moving_image(kind):
    """Of an animated image the first frame is sent."""
    frames = [quarters(), Image.new("RGB", (64, 32), BLUE), Image.new("RGB", (64, 32), RED)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    media_type, sent, *_ = fit(data, 100)
    assert media_type == ("image/png" if kind == "PNG" else "image/jpeg")
    assert colours(opened(sent)) == [RED, GREEN, BLUE, WHITE]
    assert getattr(opened(sent), "n_frames", 1) == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_parts_become_white(kind, mode):
    """What is transparent is sent as white, not as the black that hides beneath."""
    image = Image.new("RGBA", (64, 32), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 32, 32))
    if kind == "WEBP":
        mode = "RGBA"
    sent = opened(fit(saved(image.convert(mode), kind), 32)[1])
    assert near(sent.getpixel((4, 8)), (0, 0, 0))
    assert near(sent.getpixel((27, 8)), (255, 255, 255))


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_transparent_palette_becomes_white(kind):
    """The transparent colour of a palette is sent as white."""
    image = Image.new("P", (64, 32), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (0, 0, 32, 32))
    sent = opened(fit(saved(image, kind, transparency=0), 32)[1])
    assert near(sent.getpixel((4, 8)), RED)
    assert near(sent.getpixel((27, 8)), WHITE)


def test_inks_become_rgb():
    """A CMYK photograph, which endpoints show in false colours, is sent as RGB."""
    media_type, sent, *_ = fit(saved(quarters().convert("CMYK"), "JPEG"), 1000)
    image = opened(sent)
    assert (media_type, image.mode, image.size) == ("image/jpeg", "RGB", (64, 32))
    assert colours(image) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(kind):
    """A scan with 16 bits of grey is sent with its shades, not as a white page."""
    row = struct.pack("<64H", *[0x2000] * 32, *[0x8000] * 32)
    image = Image.frombytes("I;16", (64, 32), row * 32)
    sent = opened(fit(saved(image, kind), 32)[1])
    assert near(sent.getpixel((4, 8)), (0x20,) * 3)
    assert near(sent.getpixel((27, 8)), (0x80,) * 3)


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"<html>404</html>", b"\xff\xd8", b"%PDF-1.7"])
def test_what_is_no_image_is_said_to_be_none(data):
    """A web page saved under an image's name is not reported as a broken image."""
    with pytest.raises(BadImageError) as caught:
        fit(data, 100)
    assert caught.value.code == "image_unknown_type"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("side", [16, 1000])
def test_half_an_image_is_never_sent(kind, side):
    """Half a file is refused, whether it would have been passed on or re-encoded."""
    data = saved(Image.effect_noise((64, 32), 90), kind)
    with pytest.raises(BadImageError) as caught:
        fit(data[: len(data) // 2], side)
    assert caught.value.code == "image_corrupt"


@pytest.mark.parametrize(
    "data",
    [
        bomb(MAX_PIXELS + 1, 1),
        bomb(100_000, 100_000),
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6),
        b"GIF89a"
        + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
        + b"\2\2D\1\0;",
    ],
)
def test_decompression_bombs_are_refused_unopened(data):
    """A small file that would unfold to gigabytes is refused by its header."""
    with pytest.raises(BadImageError) as caught:
        fit(data, 2000)
    assert caught.value.code == "image_too_large"


def test_large_image_that_is_allowed():
    """An image of ninety million pixels, which Pillow warns of, is sent made smaller."""
    data = saved(Image.new("1", (10_000, 9_000)), "TIFF", compression="group4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        media_type, sent, *_ = fit(data, 64)
    assert media_type == "image/jpeg"
    assert opened(sent).size == (64, 58)


def test_a_long_comment_costs_nothing():
    """A comment longer than a JPEG can hold neither fails the image nor is sent along."""
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "secret " * 10_000)
    for data in (
        saved(quarters().convert("P"), "GIF", comment=b"secret " * 10_000),
        saved(quarters(), "PNG", pnginfo=text),
        saved(quarters(), "JPEG", comment=b"secret " * 9_000),
    ):
        _, sent, *_ = fit(data, 32)
        assert opened(sent).size == (32, 16)
        assert b"secret" not in sent


def test_mutations_give_an_image_or_the_error_for_broken_ones():
    """Damage of any kind fails the record at worst, never the run."""
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [jpeg(exif=exif.tobytes())]
    seeds += [
        saved(quarters((9, 7)), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
    ]
    chance = random.Random(3)
    for data in seeds:
        for _ in range(200):
            mutant = bytearray(data)
            for _ in range(chance.randint(1, 5)):
                mutant[chance.randrange(len(mutant))] = chance.randrange(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    media_type, sent, *_ = fit(bytes(mutant), 8)
                except BadImageError as error:
                    assert error.code in {
                        "image_corrupt",
                        "image_unknown_type",
                        "image_too_large",
                    }
                else:
                    found = read_structure(sent)
                    assert found is not None
                    assert found.media_type == media_type
                    assert max(found.width, found.height) <= 8


# -- options ---------------------------------------------------------------------------------------


def greys(count: int, kind: str = "GIF") -> bytes:
    """Return frames of rising grey: frame n has n * 25."""
    several = [Image.new("RGB", (64, 32), (n * 25,) * 3) for n in range(count)]
    return saved(several[0], kind, save_all=True, append_images=several[1:], lossless=True)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("count", "wanted", "sent"),
    [(9, 1, [0]), (9, 2, [0, 8]), (9, 3, [0, 4, 8]), (9, 5, [0, 2, 4, 6, 8]), (3, 8, [0, 1, 2])],
)
def test_frames_are_spread_evenly(kind, count, wanted, sent):
    """Of an animated image as many frames are sent as are wanted, first and last among them."""
    found = frames(greys(count, kind), frames=wanted)
    shades = [opened(one.data).convert("L").getpixel((30, 15)) for one in found]
    assert [round(shade / 25) for shade in shades] == sent


def test_still_images_have_one_frame():
    """Asking for frames changes nothing for images that do not move."""
    data = saved(quarters(), "PNG")
    assert [one.data for one in frames(data, frames=8)] == [data]
    pages = saved(quarters(), "TIFF", save_all=True, append_images=[quarters()])
    assert len(frames(pages, frames=8)) == 1


def test_background():
    """Transparent parts take the colour that is wished, or stay as they are."""
    image = Image.new("RGBA", (64, 32), (0, 0, 0, 0))
    data = saved(image, "PNG")
    assert near(opened(fit(data, background="#ff0000").data).getpixel((5, 5)), RED)
    assert near(opened(fit(data, background="blue").data).getpixel((5, 5)), BLUE)
    kept = fit(data, background="none")
    assert (kept.media_type, kept.data) == ("image/png", data)
    rendered = fit(data, 32, background="none")
    assert (rendered.media_type, opened(rendered.data).mode) == ("image/png", "RGBA")
    assert opened(rendered.data).getpixel((5, 5))[3] == 0
    webp = saved(image, "WEBP", exif=Image.Exif().tobytes())
    assert opened(fit(webp, background="none").data).convert("RGBA").getpixel((5, 5))[3] == 0


def test_max_bytes():
    """What is too heavy is compressed further, then made smaller, until it fits."""
    noise = Image.effect_noise((300, 200), 90).convert("RGB")
    data = saved(noise, "PNG")
    assert fit(data).data == data
    for most in (60_000, 20_000, 2_000):
        sent = fit(data, max_bytes=most)
        assert sent.media_type == "image/jpeg"
        assert (len(sent.data) + 2) // 3 * 4 <= most
        assert opened(sent.data).size == (sent.width, sent.height)
    with pytest.raises(BadImageError, match="--max-bytes") as caught:
        fit(data, max_bytes=100)
    assert caught.value.code == "image_too_large"


def test_verify():
    """An image whose structure is sound but whose data is not: found if each is decoded."""
    data = bytearray(saved(Image.effect_noise((64, 64), 90), "JPEG"))
    begin = data.index(b"\xff\xda") + 12
    data[begin : begin + 300] = bytes(300)
    broken = bytes(data)
    assert fit(broken).data == broken
    with pytest.raises(BadImageError) as caught:
        fit(saved(quarters(), "WEBP", lossless=True)[:60] + bytes(20), verify="full")
    assert caught.value.code == "image_corrupt"
    sound = saved(quarters(), "JPEG")
    assert fit(sound, verify="full").data == sound
    with_comment = saved(quarters((3000, 10)), "JPEG", comment=b"x")
    assert fit(with_comment, verify="off").data == with_comment
    assert fit(sound[:-50], verify="off").data == sound[:-50]
    assert fit(saved(quarters(), "BMP"), verify="off").media_type == "image/jpeg"


def test_verify_full_decodes(monkeypatch):
    """Every image that passes as it is has been decoded before."""
    seen = []
    wanted = FitOptions(ImageSettings(verify="full"))
    data = saved(quarters(), "PNG")
    fit_each(data, wanted, lambda data, image_overrides: seen.append((data, image_overrides)) or ())
    assert seen == [(data, DECODE_ONLY)]


def icon(png: bytes) -> bytes:
    """Return an icon whose header says 16 pixels, whatever the size of the image in it."""
    return b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + struct.pack("<II", len(png), 22) + png


def test_what_hides_in_an_icon_is_bounded():
    """An icon is refused by the size of the image in it, before it is opened."""
    with pytest.raises(BadImageError) as caught:
        fit(icon(bomb(20_000, 20_000)))
    assert caught.value.code == "image_too_large"
    assert fit(icon(saved(quarters((16, 16)), "PNG"))).width == 16


def test_a_later_frame_may_not_be_larger_than_is_allowed():
    """A film whose second frame enlarges its canvas is refused when that is asked for."""
    first = saved(Image.new("P", (16, 16)), "GIF")[:-1]
    later = b",\0\0\0\0" + struct.pack("<HH", 4_000, 4_000) + b"\0\2\2D\1\0;"
    with pytest.raises(BadImageError) as caught:
        frames(first + later, frames=2, max_image_pixels=1_000_000)
    assert caught.value.code in ("image_too_large", "image_corrupt")
