"""Captions for photo libraries: XMP beside the images, and in copies of them."""

from __future__ import annotations

import io
import json
from functools import partial

import pytest
from conftest import jpeg
from defusedxml.ElementTree import fromstring
from endpoint import Reply, completion
from PIL import Image

from captioner import run_batch
from captioner.core.errors import BadImageError
from captioner.images.embed import Embedding, embed
from captioner.images.fit import FitOptions
from captioner.images.render import look
from captioner.outputs.export.xmp import packet
from captioner.settings.options import ImageSettings

OLD = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"'
    b' xmlns:dc="http://purl.org/dc/elements/1.1/" dc:description="old">'
    b"<dc:subject><rdf:Bag><rdf:li>river</rdf:li></rdf:Bag></dc:subject>"
    b"</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def exif_of(data: bytes) -> dict:
    return look(data, FitOptions(ImageSettings()), ["exif"])["exif"]


def photo(kind: str, size=(33, 21), mode="RGB", **options) -> bytes:
    out = io.BytesIO()
    image = Image.radial_gradient("L").resize(size).convert(mode)
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", "xmp": OLD}),
        ("PNG", {}),
        ("PNG", {"mode": "RGBA"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True, "mode": "RGBA"}),
        ("WEBP", {"xmp": OLD}),
    ],
)
def test_the_caption_is_in_the_copy_and_nothing_else_is_changed(kind, options):
    """Other programs read it, the pixels are the same, and a second caption takes its place."""
    data = photo(kind, **options)
    for said in ("A dog < a cat & \x07 «ñ»", "Second"):
        data = embed(data, Embedding(partial(packet, said=(said, [])), said))
    assert exif_of(data)["description"] == "Second"
    assert data.count(b"x:xmpmeta>") == 1
    assert (b'Rating="4"' in data) == ("xmp" in options)
    before, after = (Image.open(io.BytesIO(one)) for one in (photo(kind, **options), data))
    assert (before.size, before.mode) == (after.size, after.mode)
    assert before.tobytes() == after.tobytes()


def test_keywords_are_added_to_those_that_are_there():
    root = fromstring(packet(OLD, ("new", ["bridge", "river"])))
    words = [one.text for one in root.iter() if one.tag.endswith("}li")]
    assert words == ["new", "river", "bridge"]
    assert b"old" not in packet(OLD, ("new", []))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"no image", "image_unknown_type"),
        (photo("GIF"), "image_unknown_type"),
        (photo("JPEG")[:10], "image_corrupt"),
        (photo("PNG")[:30], "image_corrupt"),
        (photo("WEBP")[:30], "image_corrupt"),
        (photo("JPEG")[:2] + b"\xff\xe0\0\0" + photo("JPEG")[2:], "image_corrupt"),
        (photo("JPEG", xmp=b"<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>"), "image_corrupt"),
    ],
)
def test_what_is_no_image_or_has_broken_xmp_is_told(data, code):
    with pytest.raises(BadImageError) as error:
        embed(data, Embedding(partial(packet, said=("a", [])), "a"))
    assert error.value.code == code


def test_a_caption_that_does_not_fit_is_told():
    with pytest.raises(BadImageError, match="more than 65502 bytes"):
        embed(photo("JPEG"), Embedding(partial(packet, said=("x" * 70_000, [])), "x" * 70_000))


async def test_files_beside_the_images_and_copies(tmp_path, endpoint, caplog):
    """Files of other programs and the images themselves are never lost."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        (photos / f"{number}.jpg").write_bytes(jpeg(number))
    (photos / "c.gif").write_bytes(photo("GIF"))
    (photos / "1.jpg.xmp").write_bytes(OLD)
    endpoint.behave = lambda _: Reply(body=completion("A cat."))
    options = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(photos, photos, output_format="xmp", **options)
    assert b">A cat.<" in (photos / "0.jpg.xmp").read_bytes()
    assert (photos / "1.jpg.xmp").read_bytes() == OLD
    assert "1 XMP file was kept" in caplog.text
    await run_batch(photos, photos, output_format="xmp", overwrite=True, **options)
    merged = (photos / "1.jpg.xmp").read_bytes()
    assert b">A cat.<" in merged
    assert b'Rating="4"' in merged
    copies = tmp_path / "copies"
    await run_batch(photos, copies, output_format="images", **options)
    assert sorted(path.name for path in copies.iterdir()) == ["0.jpg", "1.jpg"]
    assert exif_of((copies / "0.jpg").read_bytes()) == {"description": "A cat."}
    assert "1 caption has no file" in caplog.text


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
async def test_copies_have_the_caption_in_exif_or_it_is_told(tmp_path, endpoint, caplog):
    photos, copies = tmp_path / "photos", tmp_path / "copies"
    photos.mkdir()
    (photos / "good.jpg").write_bytes(photo("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + bytes(6)))
    (photos / "bad.jpg").write_bytes(photo("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"))
    endpoint.behave = lambda _: Reply(body=completion("A\x07 cat."))
    options = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(photos, copies, output_format="images", **options)
    with Image.open(copies / "good.jpg") as image:
        assert image.getexif()[0x010E] == "A cat."
    assert exif_of((copies / "bad.jpg").read_bytes()) == {"description": "A cat."}
    assert "1 copy has the caption in XMP, but not in EXIF or not in IPTC" in caplog.text


async def test_an_image_is_never_replaced_by_its_copy(tmp_path, endpoint):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"image": "a.jpg"}) + "\n")
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    options = {"base_url": endpoint.base_url, "model": "m", "output_format": "images"}
    await run_batch(source, tmp_path, overwrite=True, **options)
    assert (tmp_path / "a.jpg").read_bytes() == jpeg(1)


def test_xmp_that_is_nested_deeply_is_that_images_fault():
    """It can be read, but not be written again: an export goes on with the next image."""
    deep = OLD.replace(b"</rdf:RDF>", b"<a>" * 20_000 + b"</a>" * 20_000 + b"</rdf:RDF>")
    with pytest.raises(BadImageError, match="nested too deeply"):
        packet(deep, ("A dog.", []))
