"""Runs that give captions a shape, and that find captions which are there already."""

from __future__ import annotations

import json

import pytest
from conftest import rows
from endpoint import Reply, completion

from captioner import SettingsError, run_batch
from captioner.engine.estimate import estimate
from captioner.settings.settings import Settings


@pytest.fixture
def photos(make_photos):
    return make_photos(3)


def texts(folder, suffix="txt"):
    return {path.stem: path.read_text() for path in sorted(folder.glob(f"*.{suffix}"))}


@pytest.fixture
def options(endpoint):
    endpoint.behave = lambda _: Reply(body=completion("a new caption"))
    return {"base_url": endpoint.base_url, "model": "m", "output_format": "txt"}


# -- captions that are there already ------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
async def test_images_with_a_text_are_not_asked_about(photos, options, endpoint, processes):
    """Neither paid for nor changed; an empty file is no caption."""
    (photos / "1.txt").write_text("mine,\nand mine\n")
    (photos / "2.txt").write_text("\n")
    report = await run_batch(photos, photos, **options, processes=processes)
    assert (report.captioned, report.existing, report.failed) == (2, 1, 0)
    assert endpoint.count == 2
    assert texts(photos) == {
        "0": "a new caption\n",
        "1": "mine,\nand mine\n",
        "2": "a new caption\n",
    }
    captions = {row["image"]: row["caption"] for row in rows(photos.with_name("photos.jsonl"))}
    assert captions["1.jpg"] == "mine,\nand mine"
    again = await run_batch(photos, photos, **options)
    assert (again.resumed, endpoint.count) == (3, 2)


async def test_the_estimate_counts_them(photos, options):
    (photos / "1.txt").write_text("mine")
    found = await estimate(Settings.create(photos, photos, **options))
    assert (found.existing, found.requests) == (1, 2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"existing": "append"}, "mine, a new caption\n"),
        ({"existing": "prepend"}, "a new caption, mine\n"),
        ({"existing": "replace"}, "a new caption\n"),
        ({"overwrite": True}, "a new caption\n"),
    ],
)
async def test_texts_are_joined_or_replaced(photos, options, endpoint, given, expected):
    """The same command again changes nothing: what is joined once is not joined twice."""
    (photos / "1.txt").write_text("mine\n")
    for _ in range(2):
        report = await run_batch(photos, photos, **options, **given)
        assert report.failed == 0
        assert texts(photos) == {"0": "a new caption\n", "1": expected, "2": "a new caption\n"}
    assert endpoint.count == 3


async def test_a_run_does_not_start_if_texts_are_an_error(photos, options, endpoint):
    (photos / "1.txt").write_text("mine")
    with pytest.raises(
        SettingsError, match=r"images have a text file that is not empty, 1 of the first 3"
    ):
        await run_batch(photos, photos, **options, existing="error")
    assert endpoint.count == 0
    (photos / "1.txt").unlink()
    await run_batch(photos, photos, **options, existing="error")
    report = await run_batch(photos, photos, **options, existing="error")  # now they are its own
    assert report.resumed == 3


async def test_a_text_that_is_no_text_is_the_images_failure(photos, options):
    (photos / "1.txt").write_bytes(b"caf\xe9")
    report = await run_batch(photos, photos, **options, existing="append")
    assert report.codes == {"bad_sidecar": 1}
    assert (photos / "1.txt").read_bytes() == b"caf\xe9"


async def test_captions_in_fields_are_joined(make_input, endpoint, options):
    """Equal requests share an answer, and each record keeps what it had."""
    source = make_input(1)
    old = ["A dog.", "", 7]
    lines = [{"id": n, "image": "images/0.jpg", "caption": text} for n, text in enumerate(old)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    del options["output_format"]
    report = await run_batch(source, **options, existing="append")
    assert (report.captioned, report.codes, endpoint.count) == (2, {"existing_caption": 1}, 1)
    captions = [row["caption"] for row in rows(source.with_name("input.captions.jsonl"))]
    assert captions == ["A dog. a new caption", "a new caption"]


# -- the shape ----------------------------------------------------------------------------------


async def test_a_caption_is_asked_for_again_and_then_cut(make_input, endpoint):
    """The second request says what was wrong with the first answer."""
    source = make_input(1)
    said = "This is an image of a cat. It sleeps."
    endpoint.behave = lambda _: Reply(body=completion(said))
    options = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(source, **options, forbid="image of", prefix="ohwx cat. ", with_="raw,attempts")
    (row,) = rows(source.with_name("input.captions.jsonl"))
    assert (row["caption"], row["caption_raw"], row["caption_attempts"]) == (
        "ohwx cat. It sleeps.",
        said,
        2,
    )
    assert "'image of'" in endpoint.calls[1].texts[-1]
    with pytest.raises(SettingsError, match="prefix"):
        await run_batch(source, **options, forbid="image of", prefix="other ", with_="raw,attempts")


async def test_the_template_of_a_caption_names_what_is_known_of_the_image(photos, endpoint):
    """What a record lacks is told before its request is paid for."""
    (photos / "0.txt").write_text("1cat")
    (photos / "1.txt").write_text("1dog")
    endpoint.behave = lambda _: Reply(body=completion("{{ stem }}"))
    report = await run_batch(
        photos,
        photos.with_name("out.jsonl"),
        base_url=endpoint.base_url,
        model="m",
        caption_template="{{ sidecar }}, {{ stem }}, {{ caption }}",
    )
    assert report.codes == {"prompt_field": 1}
    assert endpoint.count == 2
    captions = [row["caption"] for row in rows(photos.with_name("out.jsonl"))]
    assert captions == ["1cat, 0, {{ stem }}", "1dog, 1, {{ stem }}"]


async def test_nothing_left_of_a_caption_is_a_failure(make_input, endpoint):
    source = make_input(1)
    endpoint.behave = lambda _: Reply(body=completion("watermark"))
    options = {"base_url": endpoint.base_url, "model": "m"}
    report = await run_batch(source, **options, tag_blacklist="watermark")
    assert report.codes == {"empty": 1}
