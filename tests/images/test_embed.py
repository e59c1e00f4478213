"""Captions in EXIF and IPTC of copies, as programs read them that are not ours."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess

import pytest
from PIL import ExifTags, Image, IptcImagePlugin, PngImagePlugin

from captioner.core.errors import BadImageError
from captioner.images.embed import Embedding, embed
from captioner.images.fit import FitOptions
from captioner.images.render import look
from captioner.settings.options import ImageSettings

SAID = "Ein Hund am Fluß «ñ» 猫 🐈."
XMP = (
    b"<?xpacket begin='' id='W5M0MpCehiHzreSzNTczkc9d'?><x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    b"<?xpacket end='w'?>"
)
MAKER_NOTE = b"Maker\0" + bytes(range(100))


def photo(kind="JPEG", **options) -> bytes:
    out = io.BytesIO()
    Image.radial_gradient("L").resize((33, 21)).convert("RGB").save(out, kind, **options)
    return out.getvalue()


def put(data: bytes, text: str = SAID) -> tuple[bytes, bool]:
    """Return the copy, and whether its EXIF or IPTC lacks the description."""
    new = Embedding(lambda _: XMP, text)
    copy = embed(data, new)
    assert XMP in copy
    before, after = (Image.open(io.BytesIO(one)) for one in (data, copy))
    assert before.tobytes() == after.tobytes()
    return copy, new.incomplete


def exif_of(data: bytes) -> Image.Exif:
    return Image.open(io.BytesIO(data)).getexif()


def description(data: bytes) -> str:
    """Return ImageDescription, which Pillow takes for Latin-1."""
    return exif_of(data)[0x010E].encode("latin-1").decode()


def camera(order: str, old: str | None = "old") -> bytes:
    """Return EXIF of a camera: with maker note, place, and thumbnail."""
    exif = Image.Exif()
    exif.endian = order
    exif[0x0110], exif[0x0112] = "Camera", 1
    if old is not None:
        exif[0x010E] = old
    exif[0x8769] = {0x927C: MAKER_NOTE, 0x9003: "2024:05:31 18:30:00"}
    exif[0x8825] = {1: "N", 2: (45.0, 45.0, 36.0)}
    block = bytearray(exif.tobytes())
    mark = order + "I"
    first = 6 + struct.unpack_from(mark, block, 10)[0]
    (count,) = struct.unpack_from(order + "H", block, first)
    struct.pack_into(mark, block, first + 2 + 12 * count, len(block) - 6)  # the next directory
    thumbnail = struct.pack(order + "HHHII", 1, 0x0201, 4, 1, len(block) - 6 + 18)
    return bytes(block) + thumbnail + b"\0\0\0\0" + b"thumbnail"


# -- EXIF ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("text", [SAID, "abc", "Fünf", ""])
def test_exif_is_made_where_there_is_none(kind, text):
    copy, incomplete = put(photo(kind), text)
    assert (description(copy), incomplete) == (text, False)
    assert put(copy, text)[1] is False


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("old", [None, "old", "an old one"])
def test_nothing_that_exif_has_is_moved(kind, order, old):
    """Directories, maker note and thumbnail stay where they are: they point at each other."""
    block = camera(order, old)
    data, incomplete = photo(kind, exif=block), False
    for text in ("First.", SAID):
        data, incomplete = put(data, text)
        assert (description(data), incomplete) == (text, False)
    exif = exif_of(data)
    assert (exif[0x0110], exif[0x0112]) == ("Camera", 1)
    assert exif.get_ifd(ExifTags.IFD.Exif)[0x927C] == MAKER_NOTE
    assert exif.get_ifd(ExifTags.IFD.GPSInfo)[2] == (45.0, 45.0, 36.0)
    now = Image.open(io.BytesIO(data)).info["exif"].removeprefix(b"Exif\0\0")
    assert now[8 : len(block) - 6] == block[14:]
    place = exif.get_ifd(ExifTags.IFD.IFD1)[0x0201]
    assert now[place : place + 9] == b"thumbnail"


def test_new_exif_says_of_the_resolution_what_jfif_says():
    copy, _ = put(photo(dpi=(300, 200)))
    exif = exif_of(copy)
    assert (exif[0x0128], exif[0x011A], exif[0x011B]) == (2, 300, 200)
    assert Image.open(io.BytesIO(copy)).info["dpi"] == (300, 200)
    assert copy[2:4] == b"\xff\xe0"  # JFIF is first


def test_exif_that_would_be_too_large_stays():
    block = camera("<").ljust(65_500, b"\0")
    copy, incomplete = put(photo(exif=block))
    assert incomplete
    assert block in copy


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II",
        b"XX*\0\x08\0\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"MM\0*\0\0\0\x08\0\x02" + bytes(20),
        b"II*\0\x08\0\0\0\0\0",  # without a next directory
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_stays(block):
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(block)) + b"Exif\0\0" + block
    plain = photo()
    new = Embedding(lambda _: XMP, SAID)
    copy = embed(plain[:2] + segment + plain[2:], new)
    assert new.incomplete
    assert segment in copy
    assert XMP in copy
    assert Image.open(io.BytesIO(copy)).tobytes() == Image.open(io.BytesIO(plain)).tobytes()


def test_exif_in_several_segments_stays():
    segment = b"\xff\xe1" + struct.pack(">H", 8 + 30) + b"Exif\0\0" + bytes(30)
    data = photo(exif=camera("<"))
    copy, incomplete = put(data[:2] + segment + data[2:])
    assert incomplete
    assert segment in copy
    assert SAID.encode() not in copy


def test_a_png_with_exif_as_text_stays_turned():
    """A chunk for EXIF would hide the text, and so the orientation."""
    info = PngImagePlugin.PngInfo()
    block = Image.Exif()
    block[0x0112] = 6
    raw = block.tobytes()
    info.add_text("Raw profile type exif", f"\nexif\n{len(raw):8}\n{raw.hex()}\n", zip=True)
    copy, incomplete = put(photo("PNG", pnginfo=info))
    assert incomplete
    assert exif_of(copy)[0x0112] == 6


def test_the_other_pictures_of_a_file_are_found():
    out = io.BytesIO()
    small = Image.new("RGB", (9, 9), "red")
    Image.new("RGB", (40, 40)).save(
        out, "MPO", save_all=True, append_images=[small], exif=camera(">")
    )
    copy, incomplete = put(out.getvalue())
    assert (description(copy), incomplete) == (SAID, False)
    image = Image.open(io.BytesIO(copy))
    image.seek(1)
    assert image.size == (9, 9)
    image.load()


def test_xmp_behind_the_list_of_other_pictures_is_not_moved():
    """Without it they would be at another place than the list says."""
    pictures = b"\xff\xe2" + struct.pack(">H", 30) + b"MPF\0" + bytes(24)
    old = b"http://ns.adobe.com/xap/1.0/\0" + XMP
    data = photo()
    data = data[:20] + pictures + b"\xff\xe1" + struct.pack(">H", len(old) + 2) + old + data[20:]
    with pytest.raises(BadImageError, match="other pictures"):
        embed(data, Embedding(lambda _: XMP, SAID))


def test_captioner_reads_what_it_wrote():
    """Also where only EXIF has the description."""
    copy, _ = put(photo(), SAID)
    assert look(copy, FitOptions(ImageSettings()), ["exif"])["exif"]["description"] == SAID


# -- IPTC ---------------------------------------------------------------------------------------


def data_set(record: int, number: int, value: bytes) -> bytes:
    return struct.pack(">BBBH", 0x1C, record, number, len(value)) + value


def resource(number: int, value: bytes, name: bytes = b"\0\0") -> bytes:
    head = b"8BIM" + struct.pack(">H", number) + name + struct.pack(">I", len(value))
    return head + value + b"\0" * (len(value) % 2)


def pressed(iptc: bytes, more: bytes = b"", **options) -> bytes:
    """Return a JPEG with IPTC, and a digest of another one."""
    content = b"Photoshop 3.0\0" + more + resource(0x0404, iptc) + resource(0x0425, b"d" * 16)
    segment = b"\xff\xed" + struct.pack(">H", len(content) + 2) + content
    data = photo(**options)
    return data[:20] + segment + data[20:]  # behind JFIF


def iptc_of(data: bytes) -> dict:
    return IptcImagePlugin.getiptcinfo(Image.open(io.BytesIO(data))) or {}


OTHERS = data_set(2, 0, b"\0\2") + data_set(2, 25, b"river") + data_set(2, 25, b"bridge")


@pytest.mark.parametrize("old", [b"", data_set(2, 120, b"old"), data_set(2, 120, b"odd") * 2])
@pytest.mark.parametrize("mark", [b"", data_set(1, 90, b"\x1b%G"), data_set(1, 90, b"\x1b.A")])
def test_iptc_gets_the_caption_and_keeps_the_rest(old, mark):
    other = resource(0x03F0, b"a caption", b"\4name\0") + resource(0x0BB7, b"odd")
    copy, incomplete = put(pressed(mark + OTHERS + old + data_set(7, 10, b"x"), other))
    assert not incomplete
    found = iptc_of(copy)
    assert (found[2, 120], found[1, 90]) == (SAID.encode(), b"\x1b%G")
    assert found[2, 25] == [b"river", b"bridge"]
    assert found[7, 10] == b"x"
    assert other in copy
    assert resource(0x0425, b"d" * 16) not in copy  # it would say that the IPTC was edited
    assert description(copy) == SAID
    assert iptc_of(put(copy)[0]) == found


def test_no_iptc_is_made():
    copy, _ = put(photo())
    assert b"Photoshop" not in copy
    assert iptc_of(copy) == {}


def test_iptc_in_an_old_character_set_is_not_taken_for_utf_8():
    """A mark would change how its keywords are read. What is ASCII is the same in both."""
    keyword = data_set(2, 25, "Brücke".encode("latin-1"))
    data = pressed(OTHERS + keyword + data_set(2, 120, b"old"))
    copy, incomplete = put(data)
    assert incomplete
    assert iptc_of(copy) == iptc_of(data)
    copy, incomplete = put(data, "A bridge.")
    assert not incomplete
    assert iptc_of(copy)[2, 120] == b"A bridge."
    assert (1, 90) not in iptc_of(copy)


def test_unmarked_keywords_in_utf_8_are_marked():
    copy, _ = put(pressed(data_set(2, 25, "Brücke".encode())))
    assert iptc_of(copy)[1, 90] == b"\x1b%G"
    assert iptc_of(copy)[2, 25] == "Brücke".encode()


def test_a_long_caption_is_cut_in_iptc_only():
    """The standard allows 2,000 bytes, and no half characters."""
    copy, incomplete = put(pressed(OTHERS), "a" + "猫" * 1_000)
    assert not incomplete
    assert iptc_of(copy)[2, 120].decode() == "a" + "猫" * 666
    assert description(copy) == "a" + "猫" * 1_000


@pytest.mark.parametrize(
    "iptc",
    [
        b"no data set",
        data_set(2, 120, b"old")[:-1],
        b"\x1c\x02",
        b"\x1c\x02\x78\x80\x04\xff\xff\xff\xff",
        b"\x1c\x02\x78\xff\xff" + bytes(9),
        b"\x1c\x02\xca\x80\x04" + struct.pack(">I", 40_000) + bytes(40_000),
    ],
)
def test_damaged_iptc_stays(iptc):
    data = pressed(iptc)
    new = Embedding(lambda _: XMP, SAID)
    copy = embed(data, new)
    assert new.incomplete
    assert resource(0x0404, iptc) + resource(0x0425, b"d" * 16) in copy
    assert description(copy) == SAID


@pytest.mark.parametrize(
    "more", [b"8BIM", b"8BIM\4\4\xff", resource(0x0404, b"")[:-4] + b"\xff" * 4, b"\xff" * 40]
)
def test_damaged_resources_stay(more):
    data = pressed(data_set(2, 120, b"old"), more)
    new = Embedding(lambda _: XMP, SAID)
    copy = embed(data, new)
    assert new.incomplete
    assert data[20:120] in copy


def test_iptc_behind_the_list_of_other_pictures_stays():
    """The list says how far behind itself they are."""
    iptc = data_set(2, 120, b"old")
    data = pressed(iptc)
    pictures = b"\xff\xe2" + struct.pack(">H", 30) + b"MPF\0" + bytes(24)
    behind = pictures + data[20:]
    new = Embedding(lambda _: XMP, SAID)
    copy = embed(data[:20] + behind, new)
    assert new.incomplete
    assert copy.endswith(behind)


def test_iptc_in_several_segments_stays():
    data = pressed(data_set(2, 120, b"old"))
    second = data[20 : data.index(b"d" * 16) + 16]
    copy, incomplete = put(data[:20] + second + data[20:])
    assert incomplete
    assert second + second in copy


# -- a program that photo libraries use -----------------------------------------------------------


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_exiftool_reads_the_caption_everywhere_and_has_nothing_to_say(tmp_path):
    (tmp_path / "a.jpg").write_bytes(put(pressed(OTHERS))[0])
    (tmp_path / "b.png").write_bytes(put(photo("PNG"))[0])
    (tmp_path / "c.webp").write_bytes(put(photo("WEBP"))[0])
    (tmp_path / "d.jpg").write_bytes(put(photo())[0])
    command = ["exiftool", "-j", "-a", "-G1", "-validate", "-warning", "-ImageDescription"]
    command += ["-Caption-Abstract", "-r", str(tmp_path)]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    for row in sorted(rows, key=lambda one: one["SourceFile"]):
        assert row["IFD0:ImageDescription"] == SAID
        assert row["ExifTool:Validate"] == "OK"
        assert ("IPTC:Caption-Abstract" in row) == row["SourceFile"].endswith("a.jpg")
        assert row.get("IPTC:Caption-Abstract", SAID) == SAID
