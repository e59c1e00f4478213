"""Videos in every kind of input: the request carries their frames in order."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import jpeg, rows
from endpoint import Call, FakeEndpoint
from PIL import Image
from samples import BLUE, GREEN, RED

from captioner import Captioner, SettingsError, run_batch
from captioner.engine.estimate import estimate
from captioner.settings import Settings

pytest.importorskip("av", reason="videos are tested with the extra video")

from films import OLDER, cuts, film

CLIP = film(cuts((RED, 10), (GREEN, 10), (BLUE, 10)))
BACKWARDS = film(cuts((BLUE, 10), (GREEN, 10), (RED, 10)), "vp9 in webm")


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def colours(call: Call) -> list[tuple[int, ...]]:
    """Return the colour of each image of a request."""
    found = [Image.open(io.BytesIO(data)).convert("RGB") for data in call.images]
    return [
        tuple(255 * (value > 127) for value in image.getpixel((20, 20)))  # type: ignore[union-attr]
        for image in found
    ]


def parts(call: Call) -> list[str]:
    """Return the texts of the question, and `image` for each image."""
    content = call.body["messages"][-1]["content"]
    return [part.get("text", "image") for part in content]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of two clips, one in a folder of its own."""
    folder = tmp_path / "clips"
    (folder / "more").mkdir(parents=True)
    (folder / "a.MP4").write_bytes(CLIP)
    (folder / "more" / "b.webm").write_bytes(BACKWARDS)
    return folder


def run(endpoint: FakeEndpoint, source: Path, output: Path, **options: Any) -> Any:
    return run_batch(source, output, base_url=endpoint.base_url, model="m", **options)


async def test_a_folder_of_clips(endpoint, clips, tmp_path):
    """Each clip is a record, and a second run sends nothing."""
    output = tmp_path / "out.jsonl"
    report = await run(endpoint, clips, output, frames=3)
    assert (report.captioned, report.failed) == (2, 0)
    assert sorted(map(colours, endpoint.calls)) == [[BLUE, GREEN, RED], [RED, GREEN, BLUE]]
    assert [row["video"] for row in rows(output)] == ["a.MP4", "more/b.webm"]
    report = await run(endpoint, clips, output, frames=3)
    assert (report.resumed, len(endpoint.calls)) == (2, 2)


async def test_a_mixed_folder(endpoint, clips, tmp_path):
    """Images and clips are records alike; a clip is eight frames by default."""
    (clips / "photo.jpg").write_bytes(jpeg(1))
    output = tmp_path / "out.jsonl"
    report = await run(endpoint, clips, output)
    assert (report.captioned, report.failed) == (3, 0)
    assert sorted(len(call.images) for call in endpoint.calls) == [1, 8, 8]
    assert [next(iter(row)) for row in rows(output)] == ["video", "image", "video"]


async def test_a_field_of_a_record(endpoint, clips):
    """`video` and `videos` name clips; their frames stand in the place of the marker."""
    source = write(
        clips / "in.jsonl",
        {"video": "a.MP4", "prompt": "Before <video> after"},
        {"videos": ["a.MP4", "more/b.webm"], "prompt": "both"},
        {"image": "a.MP4", "prompt": "as an image"},
    )
    report = await run(endpoint, source, clips / "out.jsonl", frames=3)
    assert (report.captioned, report.failed) == (3, 0)
    sent = {call.texts[-1]: call for call in endpoint.calls}
    assert parts(sent["after"]) == ["Before", "image", "image", "image", "after"]
    assert colours(sent["both"]) == [RED, GREEN, BLUE, BLUE, GREEN, RED]
    assert colours(sent["as an image"]) == [RED, GREEN, BLUE]


async def test_times_are_said_where_wished(endpoint, clips):
    """With --frame-times each frame has its time before it; still images have none."""
    (clips / "photo.jpg").write_bytes(jpeg(1))
    source = write(clips / "in.jsonl", {"image": ["a.MP4", "photo.jpg"], "prompt": "Why?"})
    await run(endpoint, source, clips / "out.jsonl", frames="scene:3", frame_times=True)
    (call,) = endpoint.calls
    times = [text for time in ("0.0", "1.0", "2.0") for text in (f"Frame at {time} s:", "image")]
    assert parts(call) == [*times, "image", "Why?"]


async def test_what_changes_the_request_is_another_job(endpoint, clips, tmp_path):
    """Other frames are not mixed with those of an earlier run, nor taken from its cache."""
    output, cache = tmp_path / "out.jsonl", tmp_path / "cache"
    await run(endpoint, clips, output, frames=3, cache=cache)
    for options in ({"frames": 2}, {"frames": 3, "frame_times": True}):
        with pytest.raises(SettingsError, match="frame"):
            await run(endpoint, clips, output, cache=cache, **options)
        report = await run(endpoint, clips, tmp_path / f"{options}.jsonl", cache=cache, **options)
        assert (report.captioned, report.cached) == (2, 0)


async def test_members_of_tar_shards(endpoint, tmp_path):
    with tarfile.open(tmp_path / "in.tar", "w") as shard:
        for name, data in (("a.mp4", CLIP), ("a.txt", b"the first"), ("b.webm", BACKWARDS)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    report = await run(endpoint, tmp_path / "in.tar", tmp_path / "out.jsonl", frames=3)
    assert (report.captioned, report.failed) == (2, 0)
    assert sorted(map(colours, endpoint.calls)) == [[BLUE, GREEN, RED], [RED, GREEN, BLUE]]


async def test_a_column_of_a_table(endpoint, tmp_path):
    """Bytes in a column `video`, as Hugging Face's data sets have them, or a path."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    column = [{"bytes": CLIP, "path": "a.mp4"}, {"bytes": BACKWARDS, "path": None}]
    pq.write_table(pa.table({"video": column, "n": [1, 2]}), tmp_path / "in.parquet")
    report = await run(endpoint, tmp_path / "in.parquet", tmp_path / "out.jsonl", frames=3)
    assert (report.captioned, report.failed) == (2, 0)
    assert sorted(map(colours, endpoint.calls)) == [[BLUE, GREEN, RED], [RED, GREEN, BLUE]]


async def test_broken_and_missing_clips_are_failures(endpoint, clips):
    (clips / "cut.mp4").write_bytes(CLIP[:-300])
    (clips / "empty.mov").write_bytes(b"")
    (clips / "text.mkv").write_bytes(b"not a video")
    report = await run(endpoint, clips, clips.parent / "out.jsonl", frames=1)
    codes = {"image_corrupt": 1, "image_empty": 1, "image_unknown_type": 1}
    assert (report.captioned, report.codes) == (2, codes)


async def test_one_clip_from_python(endpoint, clips):
    async with Captioner(base_url=endpoint.base_url, model="m", frames=3) as captioner:
        await captioner.caption(clips / "a.MP4")
    assert [colours(call) for call in endpoint.calls] == [[RED, GREEN, BLUE]]


async def test_the_estimate_counts_frames(clips):
    found = await estimate(Settings.create(clips, model="gpt-4o", frames=5))
    assert (found.records, found.images) == (2, 10)


async def test_exports(endpoint, clips, tmp_path):
    """LLaVA's format names a clip as `video`, and a tar shard holds it under its suffix."""
    source = clips
    await run(endpoint, source, tmp_path / "llava.json", output_format="llava")
    entries = json.loads((tmp_path / "llava.json").read_text())
    assert [entry["video"] for entry in entries] == ["a.MP4", "more/b.webm"]
    await run(endpoint, source, tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as shard:
        names = shard.getnames()
    assert [name for name in names if name.endswith(("mp4", "mkv"))] == [
        "000000000.mp4",
        "000000001.mkv",
    ]
    await run(endpoint, source, clips, output_format="txt")
    assert (clips / "a.txt").read_text().strip()


def test_without_the_extra_a_folder_of_clips_stops_at_once(monkeypatch, clips, endpoint):
    """Nothing but videos, and nothing that reads them: the message says what to install."""
    monkeypatch.setattr("captioner.readers.registry.find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SettingsError, match=r"pip install av$"):
        asyncio.run(run(endpoint, clips, clips.parent / "out.jsonl"))
    assert not endpoint.calls


@pytest.mark.parametrize("kind", OLDER)
async def test_containers_of_former_years(tmp_path, endpoint, kind):
    """As the input itself and in a folder."""
    folder = tmp_path / "clips"
    folder.mkdir()
    clip = folder / f"a.{kind.rpartition(' ')[2]}"
    clip.write_bytes(film(cuts((RED, 10), (GREEN, 10)), kind))
    for number, source in enumerate((clip, folder)):
        output = tmp_path / f"{number}.jsonl"
        await run_batch(
            source, output, base_url=endpoint.base_url, model="m", frames="2", dedup=False
        )
        assert [row["video"] for row in rows(output)] == [clip.name]
        assert colours(endpoint.calls[number]) == [RED, GREEN]
