"""What img2dataset writes: each row of its tables has a caption or a line of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from conftest import jpeg, rows
from inputs import captioned, mark

from captioner import SettingsError
from captioner.readers.registry import open_input


def table(path: Path, numbers: list[int], *, lost: int, images: bool = False) -> Path:
    """As img2dataset writes it: a row for each download, with its image if tables hold them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [
        {"key": f"{number:09}", "url": f"http://x/{number}", "status": "success",
         "error_message": None, "width": 32, "exif": "{}"}
        for number in numbers
    ]  # fmt: skip
    failed = {"status": "failed_to_download", "error_message": "HTTP Error 404"}
    found.append({**found[0], "key": f"{lost:09}", "url": f"http://x/{lost}", **failed})
    columns = pa.Table.from_pylist(found)
    if images:
        data = [*map(jpeg, numbers), None]
        columns = columns.append_column("jpg", pa.array(data, pa.binary()))
    pq.write_table(columns, path)
    return path


def files(folder: Path, numbers: list[int], suffix: str = "jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number:09}.{suffix}").write_bytes(jpeg(number))
        (folder / f"{number:09}.json").write_text(json.dumps({"url": f"http://x/{number}"}))
        (folder / f"{number:09}.txt").write_text("alt")


async def test_tables_that_hold_the_images(tmp_path, endpoint):
    source = tmp_path / "out"
    table(source / "00000.parquet", [0, 1], lost=5, images=True)
    table(source / "00001.parquet", [2], lost=6, images=True)
    (source / "00000_stats.json").write_text("{}")
    assert open_input(source).format == "img2dataset"
    found = await captioned(source, endpoint, tmp_path / "done.jsonl")
    pictures = {row["url"]: row["caption"].rpartition("[")[2][:-1] for row in found.rows}
    assert pictures == {f"http://x/{n}": mark(jpeg(n)) for n in range(3)}
    assert found.codes == ["not_downloaded"] * 2
    assert "HTTP Error 404" in found.messages


def test_images_of_such_tables_are_exported(tmp_path, endpoint, run_command):
    source = tmp_path / "out"
    table(source / "00000.parquet", [0, 1], lost=5, images=True)
    (source / "00000_stats.json").write_text("{}")
    options = ("--base-url", endpoint.base_url, "--model", "m")
    done = tmp_path / "done.jsonl"
    assert run_command(source, "-o", done, *options).returncode == 3
    assert run_command("export", done, "--to", tmp_path / "done.parquet").returncode == 0
    exported = pq.read_table(tmp_path / "done.parquet").to_pylist()
    assert [row["jpg"] for row in exported] == [jpeg(0), jpeg(1)]
    assert all(row["caption"] for row in exported)


async def test_a_folder_without_its_table_is_read(tmp_path, endpoint):
    """As an interrupted download leaves the last one; a table may be cut short as well."""
    source = tmp_path / "out"
    table(source / "00000.parquet", [0], lost=5)
    (source / "00000_stats.json").write_text("{}")
    files(source / "00000", [0])
    files(source / "00001", [1])
    files(source / "00002", [2])
    (source / "00002.parquet").write_bytes(b"PAR1" + bytes(20))
    found = await captioned(source, endpoint, tmp_path / "done.jsonl")
    names = {n: f"0000{n}/{n:09}.jpg" for n in range(3)}
    assert found.pictures() == {names[n]: mark(jpeg(n)) for n in range(3)}
    assert sorted(found.codes) == ["bad_table", "not_downloaded"]


async def test_a_first_download_that_was_interrupted(tmp_path, endpoint):
    """There are no statistics yet, and the table has no end."""
    source = tmp_path / "out"
    files(source / "00000", [0, 1])
    (source / "00000.parquet").write_bytes(b"PAR1")
    found = await captioned(source, endpoint, tmp_path / "done.jsonl")
    assert len(found.rows) == 2
    assert found.codes == ["bad_table"]


@pytest.mark.parametrize("kind", ["files", "tars"])
async def test_a_success_without_its_file_is_a_failure(tmp_path, endpoint, kind):
    source = tmp_path / "out"
    for shard in ("00000", "00001"):
        table(source / f"{shard}.parquet", [0, 1, 2], lost=5)
        (source / f"{shard}_stats.json").write_text("{}")
    files(source / "00000", [0, 2])
    if kind == "tars":
        with webdataset.TarWriter(str(source / "00000.tar")) as shard:
            for number in (0, 2):
                shard.write({"__key__": f"{number:09}", "jpg": jpeg(number)})
    found = await captioned(source, endpoint, tmp_path / "done.jsonl")
    assert len(found.rows) == 2
    assert found.codes.count("image_missing") == 4
    assert "has no file of the key 000000001: download it again" in found.messages


async def test_a_picture_and_a_video_of_one_key(tmp_path, endpoint):
    """The picture is sent, which is told; the option chooses."""
    source = tmp_path / "out"
    table(source / "00000.parquet", [0], lost=5)
    (source / "00000_stats.json").write_text("{}")
    files(source / "00000", [0])
    (source / "00000" / "000000000.mp4").write_bytes(b"no video")
    found = await captioned(source, endpoint, tmp_path / "done.jsonl")
    assert found.pictures() == {"00000/000000000.jpg": mark(jpeg(0))}
    assert found.rows[0]["mp4"] == "00000/000000000.mp4"
    assert any("--image-field mp4 sends the videos" in told for told in found.warnings)
    chosen = await captioned(source, endpoint, tmp_path / "jpg.jsonl", image_field="jpg")
    assert chosen.pictures("jpg") == {"00000/000000000.jpg": mark(jpeg(0))}
    await captioned(source, endpoint, tmp_path / "mp4.jsonl", image_field="mp4")
    assert [row["code"] for row in rows(tmp_path / "mp4.failed.jsonl")][-1] != "no_image"


def test_downloads_without_images_are_refused(tmp_path):
    """As --output_format dummy and tfrecord leave them."""
    table(tmp_path / "00000.parquet", [0], lost=5)
    (tmp_path / "00000_stats.json").write_text("{}")
    with pytest.raises(SettingsError, match="--output_format webdataset, files or parquet"):
        open_input(tmp_path)


@pytest.mark.parametrize("name", ["my_stats.json", "00000_stats.json.bak", "x00000_stats.json"])
def test_other_statistics_are_not_those_of_img2dataset(tmp_path, name):
    """Only the number of a shard before them tells whose they are."""
    files(tmp_path / "pictures", [1, 2])
    (tmp_path / "pictures" / name).write_text("{}")
    assert open_input(tmp_path / "pictures").format != "img2dataset"
