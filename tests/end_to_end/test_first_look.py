"""What a run checks before it sends anything, and records that have a caption already."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import jpeg, rows

from captioner import run_batch
from captioner.core.errors import SettingsError
from captioner.engine.estimate import estimate
from captioner.settings.settings import Settings


def _write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _images(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))


def _some_captioned(folder: Path) -> Path:
    """Write five records, of which two have a caption of their own."""
    _images(folder, 5)
    own = {1: "a human's caption", 3: 'with "quotes" and é'}
    return _write(
        folder / "in.jsonl",
        [
            {"image": f"{n}.jpg", **({"caption": own[n]} if n in own else {}), "id": n}
            for n in range(5)
        ],
    )


async def test_captions_in_the_input_are_not_overwritten(tmp_path, endpoint) -> None:
    """By default a run does not start: it counts the captions and names the choices."""
    source = _some_captioned(tmp_path)
    with pytest.raises(SettingsError) as caught:
        await run_batch(source, base_url=endpoint.base_url, model="m")
    said = str(caught.value)
    assert "records have a 'caption' already, 2 of the first 5." in said
    assert "--existing skip" in said
    assert "--existing replace" in said
    assert "--output-field" in said
    assert endpoint.count == 0
    assert not source.with_name("in.captions.jsonl").exists()


async def test_estimate_refuses_as_the_run_does(tmp_path, endpoint) -> None:
    settings = Settings.create(_some_captioned(tmp_path), base_url=endpoint.base_url, model="m")
    with pytest.raises(SettingsError, match="already, 2 of the first 5"):
        await estimate(settings)


@pytest.mark.parametrize("processes", [1, 2])
async def test_existing_captions_are_skipped(tmp_path, endpoint, processes) -> None:
    """Records with a caption pass through byte for byte; only the others are sent."""
    source = _some_captioned(tmp_path)
    options = {"base_url": endpoint.base_url, "model": "m", "existing": "skip"}
    report = await run_batch(source, processes=processes, **options)
    assert (report.captioned, report.existing, report.failed) == (3, 2, 0)
    assert report.complete
    assert endpoint.count == 3
    output = source.with_name("in.captions.jsonl")
    before, after = source.read_bytes().splitlines(), output.read_bytes().splitlines()
    assert [row["id"] for row in rows(output)] == [0, 1, 2, 3, 4]
    assert (after[1], after[3]) == (before[1], before[3])
    again = await run_batch(source, processes=processes, **options)
    assert (again.resumed, again.calls, endpoint.count) == (5, 0, 3)
    found = await estimate(Settings.create(source, **options))
    assert (found.existing, found.requests) == (2, 3)


async def test_existing_captions_are_replaced_when_asked(tmp_path, endpoint) -> None:
    source = _some_captioned(tmp_path)
    report = await run_batch(source, base_url=endpoint.base_url, model="m", existing="replace")
    assert (report.captioned, report.existing, endpoint.count) == (5, 0, 5)
    captions = [row["caption"] for row in rows(source.with_name("in.captions.jsonl"))]
    assert "a human's caption" not in captions


async def test_an_empty_caption_is_none(tmp_path, endpoint) -> None:
    """A table with an empty column for captions is captioned, whatever --existing says."""
    _images(tmp_path, 3)
    values = ["", None, "  "]
    source = _write(
        tmp_path / "in.jsonl",
        [{"image": f"{n}.jpg", "caption": value} for n, value in enumerate(values)],
    )
    report = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert (report.captioned, report.existing) == (3, 0)


async def test_a_caption_behind_the_first_thousand_is_a_failure(tmp_path, endpoint) -> None:
    """The look at the start does not see it, but it is not lost."""
    _images(tmp_path, 1)
    records: list[dict[str, Any]] = [{"image": "0.jpg", "id": n} for n in range(1_001)]
    records[-1]["caption"] = "a human's"
    source = _write(tmp_path / "in.jsonl", records)
    report = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert (report.captioned, report.failed) == (1_000, 1)
    assert report.codes == {"existing_caption": 1}
    (failure,) = rows(Path(report.failures))
    assert failure["record"]["caption"] == "a human's"


async def test_a_run_without_one_usable_record_does_not_start(tmp_path, endpoint) -> None:
    """A wrong --image-field is found at once, with what the records do have."""
    _images(tmp_path, 1)
    source = _write(tmp_path / "in.jsonl", [{"file": "0.jpg", "id": n} for n in range(1_000)])
    for field in (None, "picture"):
        with pytest.raises(SettingsError) as caught:
            await run_batch(source, base_url=endpoint.base_url, model="m", image_field=field)
        said = str(caught.value)
        assert "none of the first 1000 records can be sent" in said
        assert "'file', 'id'" in said
        assert "--image-field" in said
    assert endpoint.count == 0
    report = await run_batch(source, base_url=endpoint.base_url, model="m", image_field="file")
    assert report.captioned == 1_000


async def test_one_usable_record_is_enough(tmp_path, endpoint) -> None:
    """Bad records at the start are failures as long as one in a thousand can be sent."""
    _images(tmp_path, 1)
    records = [{"image": "nowhere.jpg", "id": n} for n in range(1_000)]
    records[-1]["image"] = "0.jpg"
    report = await run_batch(
        _write(tmp_path / "in.jsonl", records), base_url=endpoint.base_url, model="m"
    )
    assert (report.captioned, report.failed) == (1, 999)


async def test_an_input_written_again_is_not_paid_again(tmp_path, endpoint) -> None:
    """Records with other key order or spacing are not sent again without a word."""
    _images(tmp_path, 20)
    records = [{"id": n, "image": f"{n}.jpg"} for n in range(20)]
    source = _write(tmp_path / "in.jsonl", records)
    options = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(source, **options)
    before = source.with_name("in.captions.jsonl").read_bytes()
    _write(source, [{"image": one["image"], "id": one["id"]} for one in records])
    with pytest.raises(SettingsError) as caught:
        await run_batch(source, **options)
    assert "0 of the 20 captions" in str(caught.value)
    assert "--id-field" in str(caught.value)
    assert "--accept-changes" in str(caught.value)
    assert endpoint.count == 20
    assert source.with_name("in.captions.jsonl").read_bytes() == before
    report = await run_batch(source, accept_changes=True, dedup=False, **options)
    assert (report.captioned, report.orphans) == (20, 20)


async def test_an_input_that_grew_at_its_beginning_is_continued(tmp_path, endpoint) -> None:
    """New records before the old ones are no sign of another format."""
    _images(tmp_path, 1)
    old = [{"id": n, "image": "0.jpg"} for n in range(50)]
    source = _write(tmp_path / "in.jsonl", old)
    options = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(source, **options)
    _write(source, [{"id": 1_000 + n, "image": "0.jpg"} for n in range(3_000)] + old)
    report = await run_batch(source, **options)
    assert (report.captioned, report.resumed) == (3_000, 50)


async def test_a_list_in_a_cell_of_a_table_is_read(tmp_path, endpoint) -> None:
    """A CSV that captioner wrote from lists is read as those lists."""
    _images(tmp_path, 2)
    chat = [{"from": "human", "value": "<image>\n<image>\nwhich?"}]
    source = _write(tmp_path / "in.jsonl", [{"image": ["0.jpg", "1.jpg"], "conversation": chat}])
    table = tmp_path / "table.csv"
    await run_batch(source, table, base_url=endpoint.base_url, model="m", output_field="a")
    report = await run_batch(table, base_url=endpoint.base_url, model="m", output_field="b")
    assert report.captioned == 1
    assert endpoint.calls[0].body["messages"] == endpoint.calls[1].body["messages"]


async def test_plain_base64_in_a_field_is_an_image(tmp_path, endpoint) -> None:
    data = base64.b64encode(jpeg(7)).decode()
    source = _write(tmp_path / "in.jsonl", [{"image": data}])
    report = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert report.captioned == 1
    url = endpoint.calls[0].body["messages"][-1]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
