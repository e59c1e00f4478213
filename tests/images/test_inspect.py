from __future__ import annotations

import importlib
import io
import random
import struct
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import jpeg
from PIL import Image
from samples import chunk

from captioner.core.errors import BadImageError
from captioner.images.inspect import jpeg as jpeg_reader
from captioner.images.inspect import read_structure

SIZE = (23, 17)


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = SIZE, **options: Any) -> bytes:
    noise = random.Random(7)
    image = Image.new("RGB", size)
    image.putdata([tuple(noise.randbytes(3)) for _ in range(size[0] * size[1])])
    out = io.BytesIO()
    image = image.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(100)
    image.save(out, kind, **options)
    return out.getvalue()


def frames(kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    images = [Image.new("RGB", SIZE, colour) for colour in ("red", "green", "blue")]
    images[0].save(out, kind, save_all=True, append_images=images[1:], **options)
    return out.getvalue()


def exif(orientation: int, order: str = "<") -> bytes:
    """Return a TIFF structure that holds an orientation behind another tag."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(order + "HHIHH", 0x0100, 3, 1, 23, 0)
    entries += struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return head + struct.pack(order + "IH", 8, 2) + entries + struct.pack(order + "I", 0)


def decodes(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


JPEG = encoded("JPEG")
SMALL = {
    "JPEG": JPEG,
    "JPEG progressive": encoded("JPEG", progressive=True),
    "JPEG grey": encoded("JPEG", "L"),
    "JPEG restarts": encoded("JPEG", restart_marker_blocks=1),
    "JPEG EXIF": encoded("JPEG", exif=b"Exif\0\0" + exif(6)),
    "PNG": encoded("PNG"),
    "PNG palette": encoded("PNG", "P"),
    "APNG": frames("PNG"),
    "GIF": encoded("GIF", "P"),
    "GIF animated": frames("GIF"),
    "GIF comment": encoded("GIF", "P", comment=b"x" * 300),
    "WebP": encoded("WEBP"),
    "WebP lossless": encoded("WEBP", lossless=True),
    "WebP alpha": encoded("WEBP", "RGBA"),
    "WebP EXIF": encoded("WEBP", exif=exif(6)),
    "WebP animated": frames("WEBP"),
}


@pytest.mark.parametrize(
    ("kind", "mode", "options", "plain"),
    [
        ("JPEG", "RGB", {}, True),
        ("JPEG", "RGB", {"progressive": True}, True),
        ("JPEG", "RGB", {"subsampling": 0, "quality": 100}, True),
        ("JPEG", "L", {}, True),
        ("JPEG", "CMYK", {}, False),
        ("PNG", "RGB", {}, True),
        ("PNG", "RGBA", {}, True),
        ("PNG", "L", {}, True),
        ("PNG", "LA", {}, True),
        ("PNG", "P", {}, True),
        ("PNG", "1", {}, True),
        ("GIF", "P", {}, False),
        ("GIF", "L", {}, False),
        ("GIF", "RGB", {"interlace": 1}, False),
        ("WEBP", "RGB", {}, True),
        ("WEBP", "RGB", {"lossless": True}, True),
        ("WEBP", "RGBA", {}, True),
        ("WEBP", "RGBA", {"lossless": True}, True),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), SIZE, (300, 2), (2, 300)])
def test_kinds(kind, mode, options, plain, size):
    """Type and size of every common kind of file are read from its bytes alone."""
    data = encoded(kind, mode, size, **options)
    found = read_structure(data)
    assert found is not None
    assert found[:5] == (f"image/{kind.lower()}", *size, 1, plain)
    assert found.transparent == (mode in ("RGBA", "LA"))
    assert not found.moving
    if found.content:
        part = io.BytesIO(found.content)
        with Image.open(io.BytesIO(data)) as whole, Image.open(part) as kept:
            assert (kept.mode, kept.tobytes()) == (whole.mode, whole.tobytes())


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_moving_images_are_told_apart(kind):
    """An animated image is known as one, and never passed on as it is."""
    data = frames(kind)
    found = read_structure(data)
    assert found is not None
    assert (found.width, found.height, found.moving) == (*SIZE, True)
    assert found.content != data


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM"])
def test_other_kinds_are_left_to_the_decoder(kind):
    """A kind that is not walked is neither accepted nor refused here."""
    assert read_structure(encoded(kind)) is None


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8", b"RIFF", b"<svg/>", b"GIF88a", b"\0" * 64]
)
def test_what_is_no_image_has_no_structure(data):
    """Bytes of no known kind give no structure and no crash."""
    assert read_structure(data) is None


@pytest.mark.parametrize("name", SMALL)
def test_truncation_at_every_byte_is_found(name):
    """A file cut anywhere is either found broken or still decodes in full; none slips through."""
    data = SMALL[name]
    assert read_structure(data) is not None
    caught = 0
    for end in range(len(data)):
        part = data[:end]
        try:
            found = read_structure(part)
        except BadImageError as error:
            assert error.code == "image_corrupt"
            caught += 1
        else:
            assert decodes(part) == (found is not None), f"cut to {end} of {len(data)} bytes"
    assert caught > len(data) // 4


@pytest.mark.parametrize("name", SMALL)
def test_mutations_raise_only_the_error_for_broken_images(name):
    """Flipped, removed, doubled and overwritten bytes never crash the reader or hang it."""
    data = SMALL[name]
    chance = random.Random(name)
    for _ in range(400):
        mutant = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(min(len(mutant), chance.choice((40, len(data)))))
            how = chance.randrange(4)
            if how == 0:
                mutant[at] ^= 1 << chance.randrange(8)
            elif how == 1:
                mutant[at : at + 4] = chance.choice((b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff"))
            elif how == 2:
                del mutant[at : at + chance.randint(1, 9)]
            else:
                mutant[at:at] = mutant[at : at + chance.randint(1, 9)]
        try:
            found = read_structure(bytes(mutant))
        except BadImageError as error:
            assert error.code == "image_corrupt"
        else:
            assert found is None or (found.width > 0 and found.height > 0)


def test_every_flipped_bit_of_a_png_is_found():
    """A PNG that bit rot has touched anywhere behind its signature is not sent."""
    data = SMALL["PNG"]
    for at in range(8, len(data)):
        mutant = bytearray(data)
        mutant[at] ^= 0x10
        with pytest.raises(BadImageError):
            read_structure(bytes(mutant))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read(orientation, order):
    """How a camera was held is known for JPEG, PNG and WebP, in either byte order."""
    tiff = exif(orientation, order)
    with_png = SMALL["PNG"]
    files = [
        JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff + JPEG[2:],
        with_png[:33] + chunk(b"eXIf", tiff) + with_png[33:],
        with_png[:-12] + chunk(b"eXIf", tiff) + with_png[-12:],  # behind the pixels
        encoded("WEBP", exif=tiff),
        encoded("WEBP", exif=b"Exif\0\0" + tiff),
        encoded("WEBP", "RGBA", lossless=True, exif=tiff),
    ]
    for data in files:
        found = read_structure(data)
        assert found is not None
        assert found.orientation == orientation


@pytest.mark.parametrize(
    "tiff",
    [
        exif(0),
        exif(9),
        exif(0xFFFF),
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"XX*\0" + exif(6)[4:],
        exif(6)[:20],
        b"II*\0\x08\0\0\0\xff\xff" + b"\0" * 30,
        b"MM\0*\x08\0\0\0\0\1",
    ],
)
def test_senseless_orientation_counts_as_upright(tiff):
    """A damaged EXIF block does not cost the image."""
    data = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff + JPEG[2:]
    found = read_structure(data)
    assert found is not None
    assert found.orientation == 1


@pytest.fixture(params=["RE2", "re"])
def _search(request: pytest.FixtureRequest) -> Iterator[None]:
    """Search markers with RE2, and with the standard library where RE2 is not installed."""
    if request.param == "RE2":
        pytest.importorskip("re2")
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "re2", None)
        importlib.reload(jpeg_reader)
    yield
    importlib.reload(jpeg_reader)


@pytest.mark.usefixtures("_search")
def test_a_jpeg_scan_ends_at_a_marker():
    """Either search finds every marker in the data, and only markers."""
    middle = len(JPEG) - 100
    assert JPEG[middle - 1] != 0xFF
    for byte in range(256):
        data = JPEG[:middle] + bytes((0xFF, byte, 0, 0)) + JPEG[middle:]
        if byte == 0 or 0xD0 <= byte <= 0xD7:  # escaped, or a restart
            found = read_structure(data)
            assert found is not None
            assert found.content == data
        elif byte == 0xD9:  # the end
            found = read_structure(data)
            assert found is not None
            assert found.content == data[: middle + 2]
        else:
            with pytest.raises(BadImageError):
                read_structure(data)


def test_images_that_begin_alike_are_each_looked_through():
    """What was found in one image does not change what is found in the next."""
    noise = random.Random(3)
    scan = JPEG.index(b"\xff\xda") + 20
    progressive = encoded("JPEG", progressive=True)
    late = b"\xff\xe1" + struct.pack(">H", 8 + len(exif(6))) + b"Exif\0\0" + exif(6)
    heads = [JPEG, SMALL["JPEG EXIF"], progressive, encoded("JPEG", icc_profile=b"x" * 200)]
    heads.append(JPEG[:-2] + late + JPEG[-2:])  # what comes behind its data is its own

    def look(data: bytes) -> object:
        try:
            found = read_structure(data)
        except BadImageError as error:
            return error.code, error.message
        assert found is not None
        return found[:7], found.content

    outcomes = set()
    for _ in range(400):
        before = noise.choice(heads)
        data = bytearray(noise.choice([before, JPEG]))
        for _ in range(noise.randrange(3)):
            data[noise.randrange(scan, len(data))] = noise.choice([0xFF, 0xD9, 0xD8, 0xDA, 0x00])
        data = data[: noise.choice([len(data), len(data) - 1, noise.randrange(scan, len(data))])]
        data += noise.choice([b"", b"\0\0", b"\xff\xd9", JPEG])
        alone = look(bytes(data))
        look(before)
        assert look(bytes(data)) == alone
        outcomes.add(alone[0] if isinstance(alone[0], str) else "fine")
    assert outcomes == {"fine", "image_corrupt"}


def test_a_thumbnail_does_not_stand_for_the_image():
    """Size and end come from the image, not from the thumbnail in its EXIF block."""
    thumbnail = jpeg(size=(4, 4))
    block = b"Exif\0\0" + exif(3) + thumbnail
    head = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block
    found = read_structure(head + JPEG[2:])
    assert found is not None
    assert found[:4] == ("image/jpeg", *SIZE, 3)
    assert found.content == JPEG
    with pytest.raises(BadImageError):
        read_structure(head + JPEG[2:-2])


def test_bytes_behind_the_end_are_no_fault():
    """Padding that cameras and downloads add behind the end does not cost the image."""
    for name, data in SMALL.items():
        assert read_structure(data + b"\0" * 100) == read_structure(data), name


def test_fill_bytes_between_jpeg_segments_are_no_fault():
    """Fill bytes before a marker, which the standard allows, do not cost the image."""
    found, usual = read_structure(JPEG[:2] + b"\xff" * 5 + JPEG[2:]), read_structure(JPEG)
    assert found is not None
    assert usual is not None
    assert found[:7] == usual[:7]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xda\0\2\xff\xd9",
        b"\xff\xd8\xff" + b"\0" * 50,
        b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 1, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b""),
        b"GIF89a" + b"\1\0\1\0\0\0\0" + b";",
        b"GIF89a" + b"\0\0\0\0\0\0\0" + SMALL["GIF"][13:],
        b"RIFF\x0c\0\0\0WEBPJUNK\0\0\0\0",
    ],
)
def test_files_without_an_image_are_broken(data):
    """A file that has the right beginning but no image in it is not sent."""
    with pytest.raises(BadImageError, match="the image is broken"):
        read_structure(data)


@pytest.mark.parametrize("name", ["WebP", "WebP lossless", "WebP alpha", "WebP EXIF"])
def test_webp_whose_chunk_is_longer_than_the_file_is_broken(name):
    """A WebP whose first chunk cannot be whole is not sent, though the length of all is right."""
    data = bytearray(SMALL[name])
    data[16:20] = struct.pack("<I", len(data))
    assert not decodes(bytes(data))
    with pytest.raises(BadImageError):
        read_structure(bytes(data))


def test_webp_without_pixels_is_broken():
    """A WebP that announces an image in its header and holds none is not sent."""
    header = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\x0f\0\0" + b"\x0f\0\0"
    data = b"RIFF" + struct.pack("<I", 4 + len(header)) + b"WEBP" + header
    assert not decodes(data)
    with pytest.raises(BadImageError):
        read_structure(data)


@pytest.mark.parametrize(("name", "at"), [("WebP", 23), ("WebP lossless", 20)])
def test_webp_whose_signature_is_mangled_is_broken(name, at):
    """A WebP whose pixels do not begin as they must is not sent."""
    data = bytearray(SMALL[name])
    data[at] ^= 0xFF
    assert not decodes(bytes(data))
    with pytest.raises(BadImageError):
        read_structure(bytes(data))
