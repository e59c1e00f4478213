"""Every format, mode and fault that has a rule: one file each, all in one run.

The tests look at what the endpoint received and at the failures file.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pillow_heif
import pytest
from conftest import rows
from endpoint import Call, FakeEndpoint
from PIL import Image, ImageCms, PngImagePlugin
from samples import BLUE, GREEN, RED, WHITE, bomb, png, saved
from samples import quarters as any_quarters

from captioner import run_batch

QUARTERS = [RED, GREEN, BLUE, WHITE]
SECRET = b"52.5163N 13.3777E"
SIZE = (96, 64)


quarters = partial(any_quarters, SIZE)


def animation(kind: str, count: int = 9) -> bytes:
    """Return frames of rising grey: frame n has n * 25."""
    frames = [Image.new("RGB", SIZE, (n * 25,) * 3) for n in range(count)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


def exif() -> bytes:
    """Return EXIF that turns the image by a quarter and says where it was taken."""
    block = Image.Exif()
    block[0x0112] = 6
    block[0x010E] = SECRET.decode()
    return block.tobytes()


def turned(kind: int) -> bytes:
    """Return EXIF whose orientation is of another kind of number than usual."""
    entry = struct.pack("<HHII", 0x0112, kind, 1, 6)
    return b"Exif\0\0II*\0\x08\0\0\0\1\0" + entry + b"\0\0\0\0"


def xmp() -> bytes:
    """Return XMP that turns the image, where EXIF says nothing."""
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description '
        b'tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )


def png_xmp() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp().decode())
    return info


def upright_exif() -> bytes:
    block = Image.Exif()
    block[0x010E] = SECRET.decode()
    return block.tobytes()


def text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Location", SECRET.decode())
    info.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    return info


def half_transparent(mode: str) -> Image.Image:
    """Return an image black on the left, and on the right of a black that cannot be seen."""
    image = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, SIZE[0] // 2, SIZE[1]))
    return image.convert(mode)


def profile(swapped: bool = True) -> bytes:
    """Return an RGB profile whose red is our green, or that of sRGB."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if swapped:
        red, green = data.find(b"rXYZ"), data.find(b"gXYZ")
        data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


def grey_16(kind: str, big: bool = False, **options: Any) -> bytes:
    order = ">" if big else "<"
    row = struct.pack(f"{order}{SIZE[0]}H", *[0x2000] * 48, *[0xC000] * 48)
    image = Image.frombytes("I;16B" if big else "I;16", SIZE, row * SIZE[1])
    return saved(image, kind, **options)


def floats(low: float, high: float, hole: float | None = None) -> bytes:
    image = Image.new("F", SIZE, low)
    if hole is not None:
        image.putpixel((0, 0), hole)
    image.paste(high, (48, 0, 96, 64))
    return saved(image, "TIFF")


def rgb_16_png() -> bytes:
    raw = b"".join(b"\0" + struct.pack(">3H", 0xC000, 0x2000, 0) * SIZE[0] for _ in range(SIZE[1]))
    return png(*SIZE, zlib.compress(raw), depth=16)


def heic(**options: Any) -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(quarters()).save(out, quality=95, **options)
    return out.getvalue()


def mangled(data: bytes, at: float) -> bytes:
    place = int(len(data) * at)
    return data[:place] + b"\xff\x02" + data[place + 2 :]


def multi_image() -> bytes:
    """Return a JPEG as phones write it: a second image, and a film, after the first."""
    return saved(quarters(), "JPEG", quality=95) + saved(Image.new("RGB", SIZE), "JPEG") + SECRET


JPEG = saved(quarters(), "JPEG", quality=95, subsampling=0)
PNG = saved(quarters(), "PNG")
WEBP = saved(quarters(), "WEBP", lossless=True)

CorpusImage = Image.Image


def shows_quarters(image: CorpusImage) -> None:
    width, height = image.size
    places = [(x * width // 4, y * height // 4) for y in (1, 3) for x in (1, 3)]
    rgb = image.convert("RGB")
    for place, wanted in zip(places, QUARTERS, strict=True):
        assert near(rgb.getpixel(place), wanted), (place, rgb.getpixel(place), wanted)


def shows_turned_quarters(image: CorpusImage) -> None:
    assert image.size == (64, 96)
    shows_quarters(image.transpose(Image.Transpose.ROTATE_90))


def shows(
    left: tuple[int, ...], right: tuple[int, ...], off: int = 8
) -> Callable[[CorpusImage], None]:
    def check(image: CorpusImage) -> None:
        rgb = image.convert("RGB")
        width, height = image.size
        found = rgb.getpixel((width // 4, height // 2)), rgb.getpixel((3 * width // 4, height // 2))
        assert near(found[0], left, off), found
        assert near(found[1], right, off), found

    return check


def near(found: Any, wanted: tuple[int, ...], off: int = 24) -> bool:
    return all(abs(a - b) <= off for a, b in zip(found, wanted, strict=True))


def grey(value: int) -> tuple[int, int, int]:
    return (value,) * 3


def measures(*size: int) -> Callable[[CorpusImage], None]:
    def check(image: CorpusImage) -> None:
        assert image.size == size

    return check


# Sent as they are, without metadata.
AS_IT_IS: dict[str, bytes] = {
    "jpeg": JPEG,
    "jpeg progressive": saved(quarters(), "JPEG", progressive=True, quality=95),
    "jpeg grey": saved(quarters(mode="L"), "JPEG"),
    "jpeg restarts": saved(quarters(), "JPEG", restart_marker_blocks=1),
    "png": PNG,
    "png palette": saved(quarters(mode="P"), "PNG"),
    "png grey": saved(quarters(mode="L"), "PNG"),
    "png one bit": saved(quarters(mode="1"), "PNG"),
    "webp lossless": WEBP,
    "webp lossy": saved(quarters(), "WEBP", quality=90),
}

WITH_METADATA: dict[str, tuple[bytes, bytes]] = {
    "jpeg exif": (saved(quarters(), "JPEG", quality=95, subsampling=0, exif=upright_exif()), JPEG),
    "jpeg xmp": (saved(quarters(), "JPEG", quality=95, subsampling=0, xmp=SECRET), JPEG),
    "jpeg comment": (saved(quarters(), "JPEG", quality=95, subsampling=0, comment=SECRET), JPEG),
    "jpeg srgb": (
        saved(quarters(), "JPEG", quality=95, subsampling=0, icc_profile=profile(swapped=False)),
        JPEG,
    ),
    "jpeg after the end": (JPEG + SECRET, JPEG),
    "jpeg second image": (multi_image(), saved(quarters(), "JPEG", quality=95)),
    "png text": (saved(quarters(), "PNG", pnginfo=text()), PNG),
    "png exif": (saved(quarters(), "PNG", exif=upright_exif()), PNG),
    "png srgb": (saved(quarters(), "PNG", icc_profile=profile(swapped=False)), PNG),
    "jpeg and a zip archive": (JPEG + b"PK\3\4" + SECRET + b"PK\5\6" + bytes(18), JPEG),
    "png after the end": (PNG + SECRET, PNG),
    "webp exif": (saved(quarters(), "WEBP", lossless=True, exif=upright_exif()), WEBP),
    "webp xmp": (saved(quarters(), "WEBP", lossless=True, xmp=SECRET), WEBP),
}

REENCODED: dict[str, tuple[bytes, Callable[[CorpusImage], None]]] = {
    "gif": (saved(quarters(), "GIF"), shows_quarters),
    "gif moving": (animation("GIF"), shows(grey(0), grey(0))),
    "webp moving": (animation("WEBP"), shows(grey(0), grey(0))),
    "bmp": (saved(quarters(), "BMP"), shows_quarters),
    "tiff": (saved(quarters(), "TIFF"), shows_quarters),
    "tiff lzw": (saved(quarters(), "TIFF", compression="tiff_lzw"), shows_quarters),
    "tiff jpeg": (saved(quarters(), "TIFF", compression="jpeg"), shows_quarters),
    "tiff g4": (saved(Image.new("1", SIZE, 1), "TIFF", compression="group4"), shows(WHITE, WHITE)),
    "tiff cmyk": (saved(quarters(mode="CMYK"), "TIFF"), shows_quarters),
    "tiff lab": (
        saved(Image.new("LAB", SIZE, (136, 208, 195)), "TIFF"),
        shows((255, 0, 0), (255, 0, 0), 40),
    ),
    "tiff pages": (
        saved(quarters(), "TIFF", save_all=True, append_images=[Image.new("RGB", SIZE)]),
        shows_quarters,
    ),
    "tiff 16 bits": (grey_16("TIFF"), shows(grey(0x20), grey(0xC0))),
    "tiff 16 bits big-endian": (grey_16("TIFF", big=True), shows(grey(0x20), grey(0xC0))),
    "tiff 32 bits": (
        saved(Image.new("I", SIZE, 0xC000), "TIFF"),
        shows(grey(0xC0), grey(0xC0)),
    ),
    "tiff float 0..1": (floats(0.25, 0.75), shows(grey(64), grey(191))),
    "tiff float 0..255": (floats(25, 200), shows(grey(25), grey(200))),
    "tiff float elevation": (floats(-50.0, 4800.0), shows(grey(0), grey(255))),
    "avif": (saved(quarters(), "AVIF", quality=95), shows_quarters),
    "avif turned": (saved(quarters(), "AVIF", quality=95, exif=exif()), shows_turned_quarters),
    "heic": (heic(), shows_quarters),
    "jpeg 2000": (saved(quarters(), "JPEG2000"), shows_quarters),
    "jpeg 2000 stream": (saved(quarters(), "JPEG2000", no_jp2=True), shows_quarters),
    "ico": (saved(any_quarters((64, 64)), "ICO", sizes=[(16, 16), (64, 64)]), measures(64, 64)),
    "ppm": (saved(quarters(), "PPM"), shows_quarters),
    "tga": (saved(quarters(), "TGA"), shows_quarters),
    "jpeg cmyk": (saved(quarters(mode="CMYK"), "JPEG", quality=95), shows_quarters),
    "jpeg turned": (saved(quarters(), "JPEG", exif=exif(), quality=95), shows_turned_quarters),
    "png turned": (saved(quarters(), "PNG", exif=exif()), shows_turned_quarters),
    "webp turned": (
        saved(quarters(), "WEBP", lossless=True, exif=exif()),
        shows_turned_quarters,
    ),
    "tiff turned": (saved(quarters(), "TIFF", exif=exif()), shows_turned_quarters),
    "jpeg other colours": (
        saved(Image.new("RGB", SIZE, (250, 10, 10)), "JPEG", icc_profile=profile()),
        shows(GREEN, GREEN, 60),
    ),
    "png other colours": (
        saved(Image.new("RGB", SIZE, (250, 10, 10)), "PNG", icc_profile=profile()),
        shows(GREEN, GREEN, 60),
    ),
    "webp other colours": (
        saved(Image.new("RGB", SIZE, (250, 10, 10)), "WEBP", icc_profile=profile(), lossless=True),
        shows(GREEN, GREEN, 60),
    ),
    "jpeg broken profile": (saved(quarters(), "JPEG", icc_profile=b"x" * 200), shows_quarters),
    "png transparent": (saved(half_transparent("RGBA"), "PNG"), shows(grey(0), WHITE)),
    "png grey transparent": (saved(half_transparent("LA"), "PNG"), shows(grey(0), WHITE)),
    "png transparent palette": (
        saved(half_transparent("RGBA").quantize(4), "PNG"),
        shows(grey(0), WHITE),
    ),
    "png transparent colour": (
        saved(Image.new("RGB", SIZE, (9, 9, 9)), "PNG", transparency=(9, 9, 9)),
        shows(WHITE, WHITE),
    ),
    "webp transparent": (
        saved(half_transparent("RGBA"), "WEBP", lossless=True),
        shows(grey(0), WHITE),
    ),
    "webp lossy transparent": (saved(half_transparent("RGBA"), "WEBP"), shows(grey(0), WHITE)),
    "gif transparent": (saved(half_transparent("RGBA"), "GIF"), shows(grey(0), WHITE)),
    "tiff transparent": (saved(half_transparent("RGBA"), "TIFF"), shows(grey(0), WHITE)),
    "png 16 bits": (grey_16("PNG"), shows(grey(0x20), grey(0xC0))),
    "png 16 bits colour": (rgb_16_png(), shows((0xC0, 0x20, 0), (0xC0, 0x20, 0))),
    "too large": (saved(any_quarters((3000, 1000)), "PNG"), measures(2048, 683)),
    "too small": (saved(any_quarters((9, 6)), "PNG"), measures(42, 28)),
    "one pixel": (saved(Image.new("RGB", (1, 1), RED), "PNG"), shows(RED, RED)),
    "a line": (saved(Image.new("RGB", (2000, 2), RED), "PNG"), measures(2000, 28)),
    "a column": (saved(Image.new("RGB", (2, 9000), RED), "PNG"), measures(28, 2048)),
}

REENCODED |= {
    "jpeg turned by a long": (
        saved(quarters(), "JPEG", exif=turned(kind=4), quality=95),
        shows_turned_quarters,
    ),
    "jpeg turned by xmp": (saved(quarters(), "JPEG", xmp=xmp(), quality=95), shows_turned_quarters),
    "jpeg turned twice": (
        saved(quarters(), "JPEG", exif=exif(), quality=95).replace(
            b"\xff\xdb", b"\xff\xe1\0\x10Exif\0\0II*\0\x08\0\0\0\xff\xdb", 1
        ),
        shows_turned_quarters,
    ),
    "png turned by xmp": (saved(quarters(), "PNG", pnginfo=png_xmp()), shows_turned_quarters),
    "webp turned by xmp": (
        saved(quarters(), "WEBP", lossless=True, xmp=xmp()),
        shows_turned_quarters,
    ),
    "tiff float with holes": (floats(0.25, 0.75, hole=math.nan), shows(grey(64), grey(191))),
    "tiff float to infinity": (floats(0.25, 0.75, hole=math.inf), shows(grey(64), grey(191))),
    "png 16 bits transparent": (grey_16("PNG", transparency=0x20), shows(grey(0x20), grey(0xC0))),
}

SEGMENTS = {
    name: JPEG.replace(b"\xff\xdb", b"\xff" + segment + SECRET + b"\xff\xdb", 1)
    for name, segment in {
        "jpeg adobe and more": b"\xee\0\x1fAdobe\0d\0\0\0\0\1",
        "jpeg jpg0": b"\xf0\0\x13",
        "jpeg jpg13": b"\xfd\0\x13",
        "jpeg dhp": b"\xde\0\x13",
        "jpeg restart and more": b"\xdd\0\x15\0\0",
    }.items()
}

FAULTS: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "image_empty", "empty"),
    "text": (b"hello", "image_unknown_type", "known type"),
    "html": (b"<!DOCTYPE html><html>404", "image_unknown_type", "web page"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image_unknown_type", "SVG"),
    "pdf": (b"%PDF-1.7\n", "image_unknown_type", "PDF"),
    "zip": (b"PK\3\4" + b"\0" * 60, "image_unknown_type", "zip"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image_unknown_type", "Post"),
    "jpeg cut": (JPEG[:-40], "image_corrupt", "lacks data; it may be cut short"),
    "jpeg half": (JPEG[: len(JPEG) // 2], "image_corrupt", ""),
    "jpeg headers only": (JPEG[:200], "image_corrupt", ""),
    "jpeg mangled": (mangled(JPEG, 0.9), "image_corrupt", "JPEG"),
    "png cut": (PNG[:-40], "image_corrupt", "lacks data; it may be cut short"),
    "png mangled": (mangled(PNG, 0.5), "image_corrupt", "damaged"),
    "webp cut": (WEBP[:-9], "image_corrupt", "cut short"),
    "gif cut": (saved(quarters(), "GIF")[:60], "image_corrupt", ""),
    "bmp cut": (saved(quarters(), "BMP")[:900], "image_corrupt", ""),
    "tiff cut": (saved(quarters(), "TIFF")[:900], "image_corrupt", ""),
    "avif cut": (saved(quarters(), "AVIF")[:-200], "image_corrupt", ""),
    "heic cut": (heic()[:-100], "image_corrupt", ""),
    "jpeg 2000 cut": (saved(quarters(), "JPEG2000")[:120], "image_corrupt", ""),
    "png bomb": (bomb(40_000, 40_000), "image_too_large", "--max-image-pixels"),
    "gif bomb": (
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
        "image_too_large",
        "--max-image-pixels",
    ),
    "tiff bomb": (
        saved(Image.new("1", (20_000, 20_000)), "TIFF", compression="group4"),
        "image_too_large",
        "--max-image-pixels",
    ),
}


class Corpus:
    """All files of the corpus, captioned by one run."""

    def __init__(self, folder: Path, server: FakeEndpoint) -> None:
        files = {name: (folder / f"{number}.jpg") for number, name in enumerate(self.all())}
        for name, data in self.all().items():
            files[name].write_bytes(data)
        records = [{"image": path.name, "prompt": name} for name, path in files.items()]
        source = folder / "in.jsonl"
        source.write_text("".join(json.dumps(record) + "\n" for record in records))
        self.report = asyncio.run(run_batch(source, base_url=server.base_url, model="m"))
        self.calls: dict[str, Call] = {call.texts[0]: call for call in server.calls}
        self.captioned = {row["prompt"] for row in rows(folder / "in.captions.jsonl")}
        failed = rows(Path(str(self.report.failures)))
        self.failed = {row["record"]["prompt"]: row for row in failed}

    @staticmethod
    def all() -> dict[str, bytes]:
        found = AS_IT_IS | SEGMENTS
        for several in (WITH_METADATA, REENCODED, FAULTS):
            found |= {name: one[0] for name, one in several.items()}
        return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    server = FakeEndpoint()
    server.start()
    yield Corpus(tmp_path_factory.mktemp("corpus"), server)
    server.stop()


def received(corpus: Corpus, name: str) -> tuple[str, bytes]:
    assert name not in corpus.failed, corpus.failed[name]
    (url,) = corpus.calls[name].urls
    (data,) = corpus.calls[name].images
    return url.partition(";")[0].removeprefix("data:"), data


def test_every_file_has_its_outcome(corpus: Corpus) -> None:
    """Each record is captioned or in the failures file, and no file is in both."""
    assert not corpus.captioned & corpus.failed.keys()
    assert corpus.captioned | corpus.failed.keys() == corpus.all().keys()
    assert corpus.failed.keys() == FAULTS.keys()


@pytest.mark.parametrize("name", AS_IT_IS)
def test_passed_on_as_it_is(corpus: Corpus, name: str) -> None:
    """An accepted format arrives byte for byte, with the type of its content, not of its name."""
    kind, data = received(corpus, name)
    assert data == AS_IT_IS[name]
    assert kind == f"image/{name.partition(' ')[0]}"


@pytest.mark.parametrize("name", WITH_METADATA)
def test_metadata_stays_here(corpus: Corpus, name: str) -> None:
    """Where a photograph was taken is cut out without touching the image."""
    _, data = received(corpus, name)
    assert SECRET not in data
    assert data == WITH_METADATA[name][1]


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments_that_could_hold_anything_stay_here(corpus: Corpus, name: str) -> None:
    """Segments that no decoder needs are cut out, whatever their names are."""
    _, data = received(corpus, name)
    assert SECRET not in data
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.size == SIZE


@pytest.mark.parametrize("name", REENCODED)
def test_reencoded(corpus: Corpus, name: str) -> None:
    """What endpoints do not accept, or would show differently, is re-encoded."""
    kind, data = received(corpus, name)
    assert kind == "image/jpeg"
    assert SECRET not in data
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert not image.getexif()
        assert "icc_profile" not in image.info
        REENCODED[name][1](image)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_explained(corpus: Corpus, name: str) -> None:
    """The failures file says what is wrong with each file that cannot be sent."""
    _, code, words = FAULTS[name]
    line = corpus.failed[name]
    assert line["code"] == code, line
    assert words in line["message"]
    assert name not in corpus.calls
