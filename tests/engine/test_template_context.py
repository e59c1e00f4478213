"""What templates may name besides the fields of the record."""

from __future__ import annotations

import base64
import io
import json

import pytest
from conftest import jpeg, rows
from photographs import photograph
from PIL import Image, ImageDraw, ImageFont, TiffImagePlugin

from captioner import run_batch
from captioner.core.errors import BadRecordError
from captioner.core.types import ImageOverrides, ImageRef
from captioner.engine.estimate import estimate
from captioner.engine.template_context import RecordContext
from captioner.engine.templates import Templates
from captioner.images.decoder_pool import DecoderPool
from captioner.images.files import ImageFolders
from captioner.images.fit import FitOptions
from captioner.images.render import look
from captioner.settings.options import ImageSettings
from captioner.settings.settings import Settings

WANTED = FitOptions(ImageSettings())


def values(folder, names, fields=None, image="cats/a.jpg", *, bound=False) -> dict:
    folders = ImageFolders([folder], bound=bound, max_bytes=1 << 20)
    return RecordContext(
        fields or {},
        ImageRef(path=image),
        names,
        folders,
        "caption",
        lambda: folders.read(image, lambda _: None),
        lambda data, names: look(data, WANTED, names),
    ).values


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.jpg").write_bytes(jpeg(1))
    return tmp_path


# -- files beside the image ---------------------------------------------------------------------


def test_the_first_file_beside_the_image_that_is_not_empty_counts(folder):
    """An empty .txt says nothing; a .json is a value."""
    assert values(folder, ["sidecar"]) == {}
    (folder / "cats" / "a.json").write_text('{"title": "Tom"}')
    assert values(folder, ["sidecar"]) == {"sidecar": {"title": "Tom"}}
    (folder / "cats" / "a.caption").write_text("\ufeffa cät\n", "utf-8")
    (folder / "cats" / "a.txt").write_text(" \n")
    assert values(folder, ["sidecar"]) == {"sidecar": "a cät"}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"caf\xe9", "a.txt is not UTF-8 text: byte 4 is 0xe9"),
        ("a.json", b'{"a":', "not valid JSON"),
        ("a.txt", b"x" * (1 << 20) + b"x", "more than 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_the_records_failure(folder, name, content, told):
    (folder / "cats" / name).write_bytes(content)
    with pytest.raises(BadRecordError) as error:
        values(folder, ["sidecar"])
    assert error.value.code == "bad_sidecar"
    assert told in error.value.message


def test_only_files_in_the_folder_of_the_image_are_read(folder, tmp_path_factory):
    """A data set brings no link by which a secret of this machine gets into a prompt."""
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.txt"
    secret.write_text("secret")
    (folder / "cats" / "a.txt").symlink_to(secret)
    assert values(folder, ["sidecar"]) == {}
    (secret.parent / "secret.jpg").write_bytes(jpeg(2))
    outside = str(secret.with_suffix(".jpg"))
    assert values(folder, ["sidecar"], image=outside) == {"sidecar": "secret"}
    assert values(folder, ["sidecar"], image=outside, bound=True) == {}


def test_an_old_caption_is_that_of_the_record_or_of_the_file_beside_the_image(folder):
    (folder / "cats" / "a.txt").write_text("from the file")
    assert values(folder, ["existing"]) == {"existing": "from the file"}
    fields = {"caption": "from the record"}
    assert values(folder, ["existing"], fields) == {"existing": "from the record"}


def test_names_and_fields_of_the_record(folder):
    """A field of the record goes before a name of ours."""
    found = values(folder, ["folder", "stem", "path"], {"folder": "mine"})
    path = {"parts": ["cats", "a.jpg"], "name": "a.jpg", "suffix": ".jpg"}
    assert found == {"stem": "a", "path": path}


def test_what_is_known_to_be_empty_is_not_missing(folder):
    """The folder of an image at the top, and the text in an image that has none."""
    (folder / "a.jpg").write_bytes(jpeg(1))
    assert values(folder, ["folder"], image="a.jpg") == {"folder": ""}
    (folder / "a.json").write_text('""')
    assert values(folder, ["sidecar", "existing"], image="a.jpg") == {"sidecar": ""}
    context = RecordContext(
        {}, ImageRef(path="a.jpg"), ["ocr"], None, "caption", lambda: b"x", lambda *_: {"ocr": ""}
    )
    assert context.values == {"ocr": ""}


# -- EXIF, IPTC, XMP and OCR --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_what_a_photograph_says_about_itself(kind):
    found = look(photograph(kind), WANTED, ["exif"])["exif"]
    wanted = {
        "camera": "Canon EOS R5",
        "title": "The bridge",
        "keywords": ["river", "bridge"],
        "people": ["Ada Example"],
        "place": "Lyon, France",
    }
    assert {name: found.get(name) for name in wanted} == wanted
    if kind != "TIFF":
        assert (found["date"], found["lens"]) == ("2024-05-31 18:30:00", "RF 50mm F1.2")
        assert (found["latitude"], found["longitude"]) == (45.76, -4.85)
        assert found["altitude"] == 173.5


def test_iptc_keywords_of_an_older_program():
    """They stand in a Photoshop block of a JPEG, or in a tag of a TIFF."""
    data = b"".join(
        bytes([0x1C, 2, number]) + len(text).to_bytes(2, "big") + text
        for number, text in ((25, b"old town"), (25, b"night"), (90, b"Krak\xc3\xb3w"))
    )
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[TiffImagePlugin.IPTC_NAA_CHUNK] = data
    tags.tagtype[TiffImagePlugin.IPTC_NAA_CHUNK] = 7
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "TIFF", tiffinfo=tags)
    found = look(out.getvalue(), WANTED, ["exif"])["exif"]
    assert found == {"keywords": ["old town", "night"], "place": "Kraków"}


BOMB = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c SYSTEM "file:///etc/passwd">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&b;&c;'
    "</x:xmpmeta>"
)


@pytest.mark.parametrize("xmp", [BOMB, "<not closed", "<a>" * 9_000 + "</a>" * 9_000])
def test_hostile_metadata_is_no_metadata(xmp):
    """The rest of the file is still read."""
    found = look(photograph(xmp=xmp), WANTED, ["exif"])["exif"]
    assert found["camera"] == "Canon EOS R5"
    assert "title" not in found


def test_an_image_is_looked_at_in_the_decoder_process():
    """Also what a process cannot decode; that is told when the image is to be sent."""
    with DecoderPool(WANTED, 1) as pool:
        assert pool.look(photograph(), ["exif"])["exif"]["place"] == "Lyon, France"
        assert pool.look(b"no image", ["exif"]) == {"exif": {}}
        (frame,) = pool.render(photograph(), ImageOverrides(0.5, reencode=True))
    assert frame.media_type == "image/jpeg"


def test_the_text_in_an_image_is_read():
    image = Image.new("RGB", (640, 200), "white")
    font = ImageFont.load_default(60)
    ImageDraw.Draw(image).text((20, 60), "HARVEST MARKET", fill="black", font=font)
    out = io.BytesIO()
    image.save(out, "PNG")
    with DecoderPool(FitOptions(ImageSettings(image_timeout=200.0)), 1) as pool:
        assert pool.look(out.getvalue(), ["ocr"]) == {"ocr": "HARVEST MARKET"}


# -- in templates -------------------------------------------------------------------------------


def test_templates_that_name_nothing_of_it_ask_for_nothing():
    assert Templates("", "What is {{ title }}? {{ record.sidecar }}").names == frozenset()
    assert Templates("{{ stem }}", "{% if exif.date is defined %}x{% endif %}").names == {
        "stem",
        "exif",
    }


def test_missing_ones_are_empty_if_the_user_says_so():
    template = "A{{ title }}{{ exif.date }}{{ nothing }}{% for one in exif.keywords %}x{% endfor %}"
    assert Templates("", template, strict=False).fill({"nothing": None}).prompt == "A"
    for one in ("{{ title }}", "{{ exif.date }}", "{{ sidecar }}"):
        with pytest.raises(BadRecordError) as error:
            _ = Templates("", one).fill({}).prompt
        assert error.value.code == "prompt_field"


async def test_in_a_run(tmp_path, endpoint):
    """Each image is asked about with the words beside it; one without them fails by name."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.jpg").write_bytes(jpeg(number))
    (photos / "0.txt").write_text("1girl, {{ 7 * 7 }}")
    (photos / "1.txt").write_text("1boy")
    report = await run_batch(
        photos,
        tmp_path / "out.jsonl",
        base_url=endpoint.base_url,
        model="m",
        prompt="Weave these tags into prose: {{ sidecar }}. Name: {{ stem }}",
    )
    assert (report.captioned, report.failed) == (2, 1)
    assert sorted(call.texts[0] for call in endpoint.calls) == [
        "Weave these tags into prose: 1boy. Name: 1",
        "Weave these tags into prose: 1girl, {{ 7 * 7 }}. Name: 0",
    ]
    (failure,) = rows(tmp_path / "out.failed.jsonl")
    assert (failure["code"], failure["record"]) == ("prompt_field", {"image": "2.jpg"})
    assert "sidecar" in failure["message"]


async def test_an_estimate_and_several_processes_read_it_as_well(tmp_path, endpoint):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(photograph())
    (photos / "b.jpg").write_bytes(jpeg(2))
    options = {"base_url": endpoint.base_url, "model": "m", "prompt": "In {{ exif.place }}?"}
    settings = Settings.create(photos, tmp_path / "out.jsonl", **options)
    found = await estimate(settings)
    assert (found.requests, found.bad) == (1, {"prompt_field": 1})
    report = await run_batch(photos, tmp_path / "out.jsonl", **options, processes=2)
    assert (report.captioned, report.codes) == (1, {"prompt_field": 1})
    assert endpoint.calls[0].texts == ["In Lyon, France?"]


async def test_exif_of_an_image_in_the_record(tmp_path, endpoint):
    """Wherever an image is, what it says about itself is known before it is asked about."""
    source = tmp_path / "in.jsonl"
    record = {"image": {"bytes": base64.b64encode(photograph()).decode()}}
    source.write_text(json.dumps(record) + "\n")
    report = await run_batch(
        source,
        base_url=endpoint.base_url,
        model="m",
        prompt="Taken in {{ exif.place }} with {{ exif.camera }}?",
    )
    assert report.captioned == 1
    assert endpoint.calls[0].texts == ["Taken in Lyon, France with Canon EOS R5?"]
