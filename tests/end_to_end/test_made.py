"""What made a row: its own fields, and what the output remembers."""

from __future__ import annotations

import hashlib
import json

import pytest
from conftest import rows
from endpoint import Reply, completion

from captioner import OutputDamagedError, run_batch
from captioner.journal.companions import made_path
from captioner.journal.disk import Files
from captioner.journal.made import read_made
from captioner.outputs.export import export
from captioner.outputs.reader import OutputReader
from captioner.outputs.viewer.store import ViewerStore


@pytest.fixture
def photos(make_photos):
    return make_photos(6)


@pytest.fixture
def run(photos, endpoint, tmp_path):
    endpoint.behave = lambda call: Reply(body=completion(f"{call.texts[-1]} {call.number}"))

    async def start(**options):
        given = {"base_url": endpoint.base_url, "model": "m", "accept_changes": True, **options}
        return await run_batch(photos, tmp_path / "out.jsonl", **given)

    return start


def prompts(output):
    """Return what readers take for the prompt of each row."""
    reader = OutputReader(output)
    found = {row["image"]: " ".join(reader.contents.prompt(row)) for row in reader.rows()}
    reader.close()
    return found


def spoken(output):
    """Return the prompt that the model repeated in each caption."""
    return {row["image"]: row["caption"].rpartition(" ")[0] for row in rows(output)}


async def test_each_row_keeps_the_prompt_that_it_had(run, tmp_path):
    """Readers, the page and LLaVA show it, whatever later runs ask; also after a second change."""
    output = tmp_path / "out.jsonl"
    await run(prompt="first", limit=2)
    assert not made_path(output).exists()  # as long as nothing changes, nothing is written
    await run(prompt="second", limit=4)
    await run(prompt="third of {{ image }}")
    expected = {"0.jpg": "first", "1.jpg": "first", "2.jpg": "second", "3.jpg": "second"}
    expected |= {name: f"third of {name}" for name in ("4.jpg", "5.jpg")}
    assert spoken(output) == prompts(output) == expected

    store = ViewerStore(output, image_root=None)
    store.status()
    shown = {row["fields"]["image"]: row["prompt"] for row in store.display("rows", list(range(6)))}
    store.close()
    assert shown == expected

    export(output, tmp_path / "llava.json", "llava")
    entries = json.loads((tmp_path / "llava.json").read_text())
    asked = {one["image"]: one["conversations"][0]["value"] for one in entries}
    assert {name: text.rpartition("\n")[2] for name, text in asked.items()} == expected


async def test_a_row_that_is_made_again_has_the_new_prompt(run, tmp_path):
    output = tmp_path / "out.jsonl"
    await run(prompt="first")
    await run(prompt="second", redo="image == '1.jpg' or image == '2.jpg'")
    assert spoken(output) == prompts(output)
    assert prompts(output)["1.jpg"] == "second"
    await run(prompt="second", redo="image == '0.jpg'")
    assert spoken(output) == prompts(output)
    assert list(prompts(output).values()).count("second") == 3


async def test_equal_settings_need_no_note_and_a_broken_one_is_told(run, tmp_path):
    output = tmp_path / "out.jsonl"
    await run(prompt="first", limit=1)
    await run(prompt="first", limit=2)
    assert read_made(Files(), output).settings == []
    await run(prompt="second", limit=3)
    made_path(output).write_bytes(b'{"settings": []}\n' + bytes(18))
    with pytest.raises(OutputDamagedError, match="Restore it, or remove it"):
        await run(prompt="third")


async def test_rows_can_say_what_made_them(run, photos, tmp_path):
    """The prompt as it was sent, the digest of the file, and a digest of all settings."""
    output = tmp_path / "out.jsonl"
    extras = "prompt,model,image_digest,settings"
    await run(prompt="What is in {{ image }}?", with_=extras, limit=1)
    await run(prompt="What is in {{ image }}?", with_=extras, limit=2, concurrency=3)
    await run(prompt="Why?", with_=extras, limit=3)
    first, second, third = rows(output)
    assert first["caption_prompt"] == "What is in 0.jpg?"
    assert third["caption_prompt"] == "Why?"
    data = (photos / "1.jpg").read_bytes()
    expected = hashlib.blake2b(data, digest_size=16).hexdigest()
    assert second["caption_image_digest"] == expected
    assert first["caption_settings"] == second["caption_settings"] != third["caption_settings"]
    assert first["caption_model"] == "m"


async def test_records_that_share_a_request_have_digests_of_their_own(run, photos, tmp_path):
    """Their images are sent alike, but are other files."""
    from PIL import Image

    for path in photos.iterdir():
        path.unlink()
    for name, level in (("a.bmp", None), ("b.png", 1)):
        Image.new("RGB", (64, 64), "red").save(
            photos / name, **({"compress_level": level} if level else {})
        )
    await run(with_="image_digest,prompt", prompt="x", ask="caption=What?,short=Say less")
    for row in rows(tmp_path / "out.jsonl"):
        data = (photos / row["image"]).read_bytes()
        expected = hashlib.blake2b(data, digest_size=16).hexdigest()
        assert row["caption_image_digest"] == expected
