"""Every format that the documentation names is read, and its suffixes are those of images."""

from __future__ import annotations

import io
import re
import struct
import sys
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image
from rawphoto import dng
from samples import BLUE, GREEN, RED, WHITE, bomb, quarters, saved

from captioner.core.errors import BadImageError
from captioner.images.fit import FitOptions, Fitted, fit
from captioner.images.render import render
from captioner.readers.imagefiles import IMAGES
from captioner.settings.options import ImageSettings

SIZE = (64, 32)


def sent(data: bytes, **options: Any) -> Fitted:
    wanted = FitOptions(ImageSettings(**{"min_side": 1, **options}))
    (fitted,) = fit(data, wanted, lambda data, overrides: render(data, wanted, overrides))
    return fitted


def refusal(data: bytes) -> BadImageError:
    with pytest.raises(BadImageError) as caught:
        sent(data)
    return caught.value


def colours(fitted: Fitted) -> list[tuple[int, ...]]:
    """Return the colours of the four quarters, each channel rounded to 0 or 255."""
    with Image.open(io.BytesIO(fitted.data)) as image:
        rgb = image.convert("RGB")
    places = [(x * rgb.width // 4, y * rgb.height // 4) for y in (1, 3) for x in (1, 3)]
    return [tuple(255 * (value > 127) for value in rgb.getpixel(place)) for place in places]


def heic() -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(quarters(SIZE)).save(out, quality=95)
    return out.getvalue()


def photoshop(
    image: Image.Image, alpha: Image.Image | None = None, *, merged: bool = True, layers: int = 0
) -> bytes:
    """Return a Photoshop file of a merged image, with as many layers as it says."""
    channels = [channel.tobytes() for channel in image.split()]
    if alpha is not None:
        channels.append(alpha.tobytes())
    version = struct.pack(">4sHHIIBB", b"8BIM", 1057, 0, 5, 1, merged, 0)
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, len(channels), image.height, image.width, 8, 3)
    section = struct.pack(">IIh", 6, 2, layers) if layers else bytes(4)
    resources = struct.pack(">II", 0, len(version)) + version
    return header + resources + section + bytes(2) + b"".join(channels)


def cursor(body: bytes, size: tuple[int, int] = SIZE) -> bytes:
    """Return a cursor whose point is at 3, 9."""
    return struct.pack("<HHHBBHHHII", 0, 2, 1, *size, 0, 3, 9, len(body), 22) + body


def cursor_bitmap() -> bytes:
    body = bytearray(saved(quarters(SIZE), "DIB"))
    body[8:12] = struct.pack("<i", 2 * SIZE[1])  # with the mask
    return cursor(bytes(body) + bytes(SIZE[1] * SIZE[0] // 8))


def made_by_pillow(kind: str, **options: Any) -> Callable[[], bytes]:
    return lambda: saved(quarters(SIZE), kind, **options)


JPEG = made_by_pillow("JPEG", quality=95)
SQUARE = (64, 64)
SAMPLES: dict[str, list[Callable[[], bytes]]] = {
    ".jpg .jpeg .jpe .jfif": [JPEG],
    ".mpo": [made_by_pillow("MPO", save_all=True, append_images=[Image.new("RGB", SIZE)])],
    ".png": [made_by_pillow("PNG")],
    ".webp": [made_by_pillow("WEBP")],
    ".gif": [made_by_pillow("GIF")],
    ".bmp": [made_by_pillow("BMP")],
    ".dib": [made_by_pillow("DIB")],
    ".tif .tiff": [made_by_pillow("TIFF"), made_by_pillow("TIFF", compression="tiff_lzw")],
    ".avif": [made_by_pillow("AVIF")],
    ".heic .heif": [heic],
    ".jp2 .jpf .jpx": [made_by_pillow("JPEG2000")],
    ".j2k .jpc": [made_by_pillow("JPEG2000", no_jp2=True)],
    ".ico": [lambda: saved(quarters(SQUARE), "ICO", sizes=[SQUARE])],
    ".cur": [lambda: cursor(saved(quarters(SIZE), "PNG")), cursor_bitmap],
    ".icns": [lambda: saved(quarters(SQUARE), "ICNS")],
    ".ppm .pgm .pbm .pnm": [made_by_pillow("PPM")],
    ".tga": [made_by_pillow("TGA"), made_by_pillow("TGA", id_section=b"0123456789")],
    ".psd": [
        lambda: photoshop(quarters(SIZE)),
        lambda: photoshop(quarters(SIZE), Image.new("L", SIZE), layers=2),
        lambda: photoshop(quarters(SIZE), Image.new("L", SIZE, 255), layers=-1),
    ],
    ".dds": [made_by_pillow("DDS"), made_by_pillow("DDS", pixel_format="DXT1")],
    ".qoi": [made_by_pillow("QOI")],
    ".pcx": [made_by_pillow("PCX"), lambda: saved(quarters(SIZE).quantize(16), "PCX")],
    ".sgi .rgb .bw": [made_by_pillow("SGI"), made_by_pillow("SGI", bpc=2)],
    ".dng .cr2 .cr3 .nef .arw .orf .rw2 .raf": [lambda: dng(quarters(SIZE))],
}
"""Makers of files by suffix. All RAW formats are read by one library, and a DNG stands for them."""

RAW = ".dng"
EACH = [
    pytest.param(make, id=f"{suffixes.split()[0]}-{number}")
    for suffixes, makers in SAMPLES.items()
    for number, make in enumerate(makers)
    if not suffixes.startswith(RAW)
]


def test_the_documentation_names_all_suffixes():
    """The table of formats, the suffixes of images in folders and these tests agree."""
    page = (files("captioner") / "docs" / "images.md").read_text("utf-8")
    table = page.partition("## Formats")[2].partition("\n## ")[0]
    rows = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ")]
    documented = re.findall(r"`(\.\w+)`", " ".join(rows))
    assert sorted(documented) == sorted(IMAGES)
    assert sorted(" ".join(SAMPLES).split()) == sorted(IMAGES)


@pytest.mark.parametrize("make", EACH)
def test_each_format_is_sent(make):
    """A file of each format is sent with its colours in their places."""
    found = sent(make(), max_side=64)
    assert found.media_type in ("image/jpeg", "image/png", "image/webp")
    assert colours(found) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("make", EACH)
def test_half_a_file_of_each_format_is_refused(make):
    """Half a file is never sent, unless the half of it is a whole image."""
    data = make()
    if b"MPF\0" in data:
        pytest.skip("the first of its images is whole")
    for part in (data[: len(data) // 2], data[: len(data) * 4 // 5]):
        assert refusal(part).code in ("image_corrupt", "image_unknown_type")


def test_a_pcx_without_its_palette_is_refused():
    """A PCX that lost the palette at its end is not sent in false colours."""
    data = saved(quarters(SIZE).quantize(16), "PCX")
    for lost in (1, 10, 300):
        assert refusal(data[:-lost]).code == "image_corrupt"


def test_photoshop_without_a_merged_image():
    """A Photoshop file that shows a blank in place of its layers is refused; the cure is told."""
    error = refusal(photoshop(Image.new("RGB", SIZE, "white"), merged=False, layers=3))
    assert error.code == "image_unknown_type"
    assert "Maximize Compatibility" in error.message


def test_photoshop_of_16_bits():
    """A Photoshop file that cannot be read is called one; the cure is told."""
    data = bytearray(photoshop(quarters(SIZE)))
    data[22:24] = b"\0\x10"
    error = refusal(bytes(data))
    assert error.code == "image_unknown_type"
    assert "8 bits" in error.message


@pytest.mark.parametrize("suffix", [".cur", ".icns"])
def test_what_hides_in_icons_and_cursors_is_bounded(suffix):
    """An image in an icon is refused by its own size, before it is opened."""
    hidden = bomb(20_000, 20_000)
    part = struct.pack(">4sI", b"ic10", 8 + len(hidden)) + hidden
    icon = {".cur": cursor(hidden), ".icns": struct.pack(">4sI", b"icns", 8 + len(part)) + part}
    assert refusal(icon[suffix]).code == "image_too_large"


def test_a_git_lfs_pointer_is_told():
    """A pointer that was cloned in place of an image is named, with the command that gets it."""
    data = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
    error = refusal(data)
    assert error.code == "image_unknown_type"
    assert "Git LFS pointer" in error.message
    assert "git lfs pull" in error.message


def test_ultra_hdr_is_sent_as_it_is():
    """Of a JPEG with a gain map behind it, the image itself is sent unchanged."""
    data = JPEG()
    assert sent(data + saved(Image.new("L", (16, 16)), "JPEG")).data == data


# -- RAW photographs -------------------------------------------------------------------------------

RAW_BEGINNINGS = {
    "DNG": lambda: dng(quarters(SIZE)),
    "a TIFF of a sensor": lambda: dng(quarters(SIZE), version=False),
    "CR2": lambda: b"II*\0\x10\0\0\0CR\2\0" + bytes(100),
    "CR3": lambda: b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100),
    "RAF": lambda: b"FUJIFILMCCD-RAW 0201" + bytes(100),
    "ORF": lambda: b"IIRO\x08\0\0\0" + bytes(100),
    "RW2": lambda: b"IIU\0\x08\0\0\0" + bytes(100),
}


@pytest.mark.parametrize("name", RAW_BEGINNINGS)
def test_raw_photographs_without_the_extra(name, monkeypatch):
    """A RAW photograph is never taken for a TIFF, whose thumbnail would be sent in its place."""
    monkeypatch.setitem(sys.modules, "rawpy", None)
    error = refusal(RAW_BEGINNINGS[name]())
    assert error.code == "image_needs_extra"
    assert "pip install rawpy" in error.message


def test_a_tiff_with_the_name_of_a_camera_is_no_raw_photograph():
    """A developed photograph in a TIFF is read as any other TIFF."""
    data = saved(quarters(SIZE), "TIFF", tiffinfo={271: "Maker", 272: "Camera"})
    assert colours(sent(data)) == [RED, GREEN, BLUE, WHITE]


def test_the_preview_of_a_raw_photograph_is_sent():
    """The camera's own picture is sent, not the thumbnail and not the sensor's data."""
    pytest.importorskip("rawpy")
    data = dng(Image.new("RGB", (64, 32)), preview=quarters(SIZE))
    found = sent(data)
    assert (found.width, found.height) == SIZE
    assert colours(found) == [RED, GREEN, BLUE, WHITE]


def test_a_raw_photograph_is_sent_upright():
    """A RAW photograph taken sideways is turned, with a preview and without."""
    pytest.importorskip("rawpy")
    for preview in (None, quarters((128, 64))):
        found = sent(dng(quarters((128, 64)), preview=preview, orientation=6))
        assert found.height == 2 * found.width
        assert colours(found) == [BLUE, RED, WHITE, GREEN]


def test_a_raw_photograph_with_a_small_preview_is_developed():
    """A preview that is too small to stand for the photograph is not sent."""
    pytest.importorskip("rawpy")
    found = sent(dng(quarters((256, 128)), preview=Image.new("RGB", (32, 16))))
    assert (found.width, found.height) == (128, 64)
    assert colours(found) == [RED, GREEN, BLUE, WHITE]


def test_a_cut_raw_photograph_is_refused():
    """A RAW photograph cut anywhere is broken; its thumbnail is never sent."""
    pytest.importorskip("rawpy")
    data = dng(quarters((128, 64)), preview=quarters((128, 64)))
    for end in range(10, len(data), len(data) // 40):
        assert refusal(data[:end]).code in ("image_corrupt", "image_unknown_type")


def test_limits_hold_for_raw_photographs():
    """A RAW photograph of too many pixels is refused before it is developed."""
    pytest.importorskip("rawpy")
    with pytest.raises(BadImageError) as caught:
        sent(dng(quarters((256, 128))), max_image_pixels=10_000)
    assert caught.value.code == "image_too_large"


# -- unusual kinds ---------------------------------------------------------------------------------


def tiff(values: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values, **options)
    return out.getvalue()


PIXELS = np.asarray(quarters(SIZE))
GREY = PIXELS[..., 0]
DEEP = PIXELS.astype(np.uint16) * 257


@pytest.mark.parametrize(
    "data",
    [
        tiff(DEEP, photometric="rgb"),
        tiff(DEEP, photometric="rgb", tile=(16, 16), byteorder=">"),
        tiff(DEEP, photometric="rgb", compression="zlib", predictor=True),
        tiff(PIXELS, photometric="rgb", bigtiff=True),
        tiff(np.moveaxis(PIXELS, -1, 0), photometric="rgb", planarconfig="separate"),
        tiff(np.stack([PIXELS, 0 * PIXELS]), photometric="rgb"),
    ],
)
def test_kinds_of_tiff_in_colour(data):
    """TIFF of 16 bits, in tiles, in planes, large or of several pages is sent in its colours."""
    assert colours(sent(data)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize(
    "data",
    [
        tiff(GREY),
        tiff(255 - GREY, photometric="miniswhite"),
        tiff(GREY.astype(np.uint16) * 257),
        tiff(GREY.astype(np.uint32) * 16_843_009),
        tiff(GREY.astype(np.int16) - 100),
        tiff(GREY.astype(np.float32) / 255),
    ],
)
def test_kinds_of_grey_tiff(data):
    """Grey TIFF of any number of bits shows white where its values are largest."""
    assert colours(sent(data)) == [WHITE, (0, 0, 0), (0, 0, 0), WHITE]


def deep_jpeg2000(bits: int) -> bytes:
    """Return a JPEG 2000 that says that its channels have more than 8 bits."""
    data = bytearray(saved(quarters(SIZE), "JPEG2000", no_jp2=True))
    for channel in range(3):
        data[42 + 3 * channel] = bits - 1
    return bytes(data)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(PIXELS.astype(np.float32), photometric="rgb"), "the TIFF is of a kind"),
        (tiff(GREY.astype(np.float64)), "the TIFF is of a kind"),
        (tiff(np.moveaxis(DEEP, -1, 0), photometric="rgb", planarconfig="separate"), "TIFF"),
        (tiff(PIXELS, photometric="rgb", bigtiff=True, byteorder=">"), "BigTIFF"),
        (deep_jpeg2000(12), "JPEG2000 is of a kind"),
        (JPEG().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "the JPEG is of a kind"),
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
    ],
)
def test_kinds_that_cannot_be_read_are_refused_with_the_cure(data, words):
    """What Pillow cannot read, or shows black or in false colours, is named; what to do is said."""
    error = refusal(data)
    assert error.code == "image_unknown_type"
    assert words in error.message
    assert "save it" in error.message
