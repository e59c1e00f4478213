"""Every output format, read back by the library made for it."""

from __future__ import annotations

import csv
import gc
import io
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from conftest import jpeg, rows
from PIL import Image

from captioner import run_batch
from captioner.settings.locations import FOLDER_FORMATS

pytestmark = [  # what those libraries leave open is theirs to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

IMAGES = [jpeg(number, (40 + number, 30)) for number in range(5)]


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Close here what those libraries leave open, and not during a later test."""
    yield
    gc.collect()


@pytest.fixture
def source(tmp_path) -> Path:
    """Five images, one of them without a usable record, and values of every kind."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, data in enumerate(IMAGES):
        (folder / f"{number}.jpg").write_bytes(data)
    records: list[dict[str, Any]] = [
        {"id": 7, "image": "0.jpg", "prompt": "q0", "tags": ["a", "b"], "score": 1},
        {"id": 3, "image": ["1.jpg"], "prompt": "q1", "tags": [], "score": 0.5, "more": {"x": 1}},
        {"id": 5, "image": "missing.jpg", "prompt": "q2"},
        {"id": 9, "image": "3.jpg", "prompt": 'a "quote",\nand a line', "big": 2**70},
    ]
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def caption(endpoint, source):
    """Caption the source into an output of some name; returns the output's path."""

    async def caption(name: str, **options: Any) -> Path:
        settings = {"base_url": endpoint.base_url, "model": "m", **options}
        report = await run_batch(source, source.parent / name, **settings)
        assert (report.captioned + report.resumed, report.failed, report.complete) == (3, 1, True)
        return source.parent / name

    return caption


def journal_of(output: Path) -> list[dict[str, Any]]:
    return rows(output.with_name(output.name + ".jsonl"))


async def test_json(caption):
    output = await caption("out.json")
    assert json.loads(output.read_bytes()) == journal_of(output)


@pytest.mark.parametrize("name", ["out.csv", "out.tsv"])
async def test_csv(caption, name):
    """Text and numbers are unchanged, other values are JSON; quotes and line ends are kept."""
    output = await caption(name)
    with output.open(newline="") as file:
        found = list(csv.DictReader(file, delimiter="," if name.endswith("csv") else "\t"))
    journal = journal_of(output)
    assert [row["caption"] for row in found] == [row["caption"] for row in journal]
    assert found[2]["prompt"] == 'a "quote",\nand a line'
    assert (found[0]["tags"], found[0]["more"], found[2]["big"]) == ('["a","b"]', "", str(2**70))


async def test_parquet_of_records(caption):
    output = await caption("out.parquet")
    found = pq.read_table(output).to_pylist()
    journal = journal_of(output)
    assert [row["caption"] for row in found] == [row["caption"] for row in journal]
    assert [row["id"] for row in found] == [7, 3, 9]
    assert [row["score"] for row in found] == [1.0, 0.5, None]
    assert found[0]["tags"] == ["a", "b"]
    assert json.loads(found[1]["image"]) == ["1.jpg"]  # text in one row, a list in another


async def test_parquet_of_a_table_keeps_its_columns(tmp_path, endpoint):
    """Types, images and the metadata of `datasets` stay; the caption is a further column."""
    data = [*IMAGES[:3], b"no image"]
    features = datasets.Features(
        {"image": datasets.Image(), "n": datasets.Value("int16"), "label": datasets.ClassLabel(2)}
    )
    images = [{"bytes": one, "path": None} for one in data]
    table = {"image": images, "n": [1, 2, 3, 4], "label": [0, 1, 0, 1]}
    dataset = datasets.Dataset.from_dict(table, features=features)
    dataset.to_parquet(tmp_path / "in.parquet")
    options = {"base_url": endpoint.base_url, "model": "m"}
    report = await run_batch(tmp_path / "in.parquet", tmp_path / "out.parquet", **options)
    assert (report.captioned, report.failed) == (3, 1)
    before, after = (pq.read_schema(tmp_path / f"{name}.parquet") for name in ("in", "out"))
    assert [after.field(name).type for name in before.names] == before.types
    found = datasets.Dataset.from_parquet(
        str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert found.features["label"] == features["label"]
    assert [row["n"] for row in found] == [1, 2, 3]
    assert [row["image"].size for row in found] == [(40, 30), (41, 30), (42, 30)]
    assert all(isinstance(row["caption"], str) and row["caption"] for row in found)


async def test_webdataset(caption):
    """Images byte for byte, the caption as text, the whole row as JSON."""
    output = await caption("out.tar")
    found = list(webdataset.WebDataset(str(output), shardshuffle=False, empty_check=False))
    journal = journal_of(output)
    assert [sample["txt"].decode() for sample in found] == [row["caption"] for row in journal]
    assert [sample["jpg"] for sample in found] == [IMAGES[0], IMAGES[1], IMAGES[3]]
    assert [orjson.loads(sample["json"]) for sample in found][:2] == journal[:2]
    assert len({sample["__key__"] for sample in found}) == 3


async def test_webdataset_of_tables_and_of_shards(tmp_path, endpoint):
    """Images inside a table are copied as well; keys of shards stay."""
    pq.write_table(pa.table({"image": pa.array(IMAGES[:3], pa.binary())}), tmp_path / "in.parquet")
    options = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(tmp_path / "in.parquet", tmp_path / "one-%03d.tar", **options)
    shard = str(tmp_path / "one-000.tar")
    found = list(webdataset.WebDataset(shard, shardshuffle=False, empty_check=False))
    assert [sample["jpg"] for sample in found] == IMAGES[:3]
    with webdataset.TarWriter(str(tmp_path / "in.tar")) as writer:
        writer.write({"__key__": "a/k1", "jpg": IMAGES[3], "json": {"n": 1}})
    await run_batch(tmp_path / "in.tar", tmp_path / "two.tar", **options)
    (sample,) = webdataset.WebDataset(
        str(tmp_path / "two.tar"), shardshuffle=False, empty_check=False
    )
    assert (sample["__key__"], sample["jpg"]) == ("a/k1", IMAGES[3])


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
async def test_image_folder(caption, source, tmp_path, suffix):
    source.write_text(source.read_text().replace(str(2**70), "70"))  # pandas has 64 bits
    output = await caption(f"metadata{suffix}")
    (output.parent / "4.jpg").unlink()  # images without a row would be rows without a caption
    (output.parent / "2.jpg").unlink()
    for other in output.parent.glob("*.jsonl"):
        if other != output:
            other.rename(tmp_path / other.name)
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(output.parent), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert sorted(row["image"].size for row in found) == [(40, 30), (41, 30), (43, 30)]
    assert all(row["caption"] for row in found)


async def test_image_folder_cannot_name_what_is_elsewhere(caption, tmp_path, endpoint, source):
    from captioner import SettingsError

    (tmp_path / "other").mkdir()
    options = {"base_url": endpoint.base_url, "model": "m"}
    with pytest.raises(SettingsError, match="folder of the images"):
        await run_batch(source, tmp_path / "other" / "metadata.jsonl", **options)


async def test_coco(caption):
    """Sizes of the images, ids of the records, an annotation for each caption."""
    output = await caption("out.json", output_format="coco", samples=2)
    found = json.loads(output.read_bytes())
    assert found["images"] == [
        {"id": 7, "file_name": "0.jpg", "width": 40, "height": 30},
        {"id": 3, "file_name": "1.jpg", "width": 41, "height": 30},
        {"id": 9, "file_name": "3.jpg", "width": 43, "height": 30},
    ]
    assert [note["image_id"] for note in found["annotations"]] == [7, 7, 3, 3, 9, 9]
    texts = [text for row in journal_of(output) for text in row["caption"]]
    assert [note["caption"] for note in found["annotations"]] == texts
    assert len({note["id"] for note in found["annotations"]}) == 6


async def test_llava(caption):
    output = await caption("out.json", output_format="llava")
    found = json.loads(output.read_bytes())
    caption_of_first = journal_of(output)[0]["caption"]
    assert found[0] == {
        "id": "7",
        "image": "0.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nq0"},
            {"from": "gpt", "value": caption_of_first},
        ],
    }
    assert len(found) == 3


async def test_llava_of_several_questions(caption):
    output = await caption("out.json", output_format="llava", ask=("one=What?", "two=Where?"))
    turns = json.loads(output.read_bytes())[0]["conversations"]
    assert [turn["value"] for turn in turns][::2] == ["<image>\nWhat?", "Where?"]
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * 2


async def test_sqlite(caption):
    output = await caption("out.db")
    with sqlite3.connect(output) as database:
        found = database.execute("SELECT id, caption, tags, big FROM captions").fetchall()
    journal = journal_of(output)
    assert [(row[0], row[1]) for row in found] == [(row["id"], row["caption"]) for row in journal]
    assert (found[0][2], found[2][3]) == ('["a","b"]', str(2**70))


@pytest.mark.parametrize("kind", ["txt", "caption"])
async def test_sidecars(caption, endpoint, source, kind, caplog):
    """A line of text beside each image; an existing file is kept without --overwrite."""
    output = source.parent / "out"
    options = {"base_url": endpoint.base_url, "model": "m", "output_format": kind}
    await run_batch(source, output, **options)
    journal = rows(output.with_name("out.jsonl"))
    assert sorted(path.name for path in output.iterdir()) == [f"{n}.{kind}" for n in (0, 1, 3)]
    assert (output / f"0.{kind}").read_text() == journal[0]["caption"] + "\n"
    (output / f"1.{kind}").write_text("mine")
    await run_batch(source, output, **options)
    assert (output / f"1.{kind}").read_text() == "mine"
    assert "1 file with another text" in caplog.text
    await run_batch(source, output, **options, overwrite=True)
    assert (output / f"1.{kind}").read_text() == journal[1]["caption"] + "\n"


async def test_a_caption_of_several_lines_becomes_one(caption, endpoint, source):
    from endpoint import Reply, completion

    endpoint.behave = lambda _: Reply(body=completion("one\n\ntwo  three"))
    options = {"base_url": endpoint.base_url, "model": "m", "output_format": "txt"}
    await run_batch(source, source.parent / "out", **options)
    assert (source.parent / "out" / "0.txt").read_text() == "one two three\n"


async def test_what_is_finished_is_not_asked_again(caption, endpoint):
    """Another run into the same output writes the export again, from the journal."""
    output = await caption("out.csv")
    before, count = output.read_bytes(), endpoint.count
    output.unlink()
    assert (await caption("out.csv")).read_bytes() == before
    assert endpoint.count == count


async def test_export_command(caption, run_command, source):
    """From a finished output into every other format, again and again."""
    output = await caption("out.jsonl")
    folder = output.parent
    targets = ["a.json", "a.csv", "a.parquet", "a.tar", "a.db", "copy.jsonl", "metadata.jsonl"]
    for name in targets:
        assert run_command("export", output, "--to", folder / name).returncode == 0
        assert run_command("export", output, "--to", folder / name).returncode == 2
        ended = run_command("export", output, "--to", folder / name, "--overwrite")
        assert (ended.returncode, ended.stderr) == (0, f"written: {folder / name}\n")
    for kind in ("coco", "llava", "txt"):
        ended = run_command("export", output, "--to", folder / f"a-{kind}", "--to-format", kind)
        assert ended.returncode == 0, ended.stderr
    assert json.loads((folder / "a.json").read_bytes()) == rows(output)
    assert not list(folder.glob("*.partial"))


def test_export_of_nothing(run_command, tmp_path):
    ended = run_command("export", tmp_path / "no.jsonl", "--to", tmp_path / "a.csv")
    assert (ended.returncode, "there is no output" in ended.stderr) == (2, True)


async def test_export_onto_the_journal_itself_is_refused(caption, run_command):
    output = await caption("out.jsonl")
    before = output.read_bytes()
    ended = run_command("export", output, "--to", output)
    assert (ended.returncode, output.read_bytes()) == (2, before)


async def test_what_is_missing_is_told_before_anything_is_paid_for(source, endpoint, monkeypatch):
    from captioner import SettingsError

    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(SettingsError, match=r"pip install pyarrow$"):
        await run_batch(
            source, source.parent / "out.parquet", base_url=endpoint.base_url, model="m"
        )
    assert endpoint.count == 0


async def test_images_without_a_file_are_told(tmp_path, endpoint, caplog):
    """A format that names images by their files says how many captions it cannot hold."""
    data = io.BytesIO()
    Image.new("RGB", (30, 30)).save(data, "PNG")
    pq.write_table(pa.table({"image": pa.array([data.getvalue()])}), tmp_path / "in.parquet")
    await run_batch(
        tmp_path / "in.parquet",
        tmp_path / "out.json",
        base_url=endpoint.base_url,
        model="m",
        output_format="llava",
    )
    assert json.loads((tmp_path / "out.json").read_bytes()) == []
    assert "1 caption is left out" in caplog.text


# -- what a reading with fresh eyes found --------------------------------------------------------


async def test_a_table_that_has_captions_already_keeps_its_rows(tmp_path, endpoint):
    """The column is replaced; it is not part of the key, wherever it stands."""
    table = pa.table({"image": pa.array(IMAGES[:2]), "caption": ["old"] * 2, "n": [1, 2]})
    pq.write_table(table, tmp_path / "in.parquet")
    options = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(
        tmp_path / "in.parquet", tmp_path / "out.parquet", existing="replace", **options
    )
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["n"] for row in found] == [1, 2]
    assert all(row["caption"] not in ("old", None) for row in found)


async def test_captions_whose_rows_are_gone_are_told(tmp_path, endpoint, run_command):
    """A table was changed after the run: captions without a row are counted."""
    pq.write_table(pa.table({"image": pa.array(IMAGES[:3])}), tmp_path / "in.parquet")
    options = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(tmp_path / "in.parquet", tmp_path / "out.jsonl", **options)
    pq.write_table(pa.table({"image": pa.array(IMAGES[:1])}), tmp_path / "in.parquet")
    for name in ("x.parquet", "x.tar"):
        ended = run_command("export", tmp_path / "out.jsonl", "--to", tmp_path / name)
        assert "2 captions are left out" in ended.stderr
    ended = run_command(
        "export", tmp_path / "out.jsonl", "--to", tmp_path / "x.json", "--to-format", "coco"
    )
    assert len(json.loads((tmp_path / "x.json").read_bytes())["annotations"]) == 3


async def test_images_that_share_a_name_share_no_sidecar(tmp_path, endpoint, caplog):
    """Of 0.jpg and 0.png the first gets a file; the other is in a warning."""
    for name, data in (("0.jpg", IMAGES[0]), ("0.png", IMAGES[1])):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "in.jsonl").write_text('{"image": "0.jpg"}\n{"image": "0.png"}\n')
    await run_batch(
        tmp_path / "in.jsonl", tmp_path / "out", base_url=endpoint.base_url, model="m",
        output_format="txt", overwrite=True,
    )  # fmt: skip
    journal = rows(tmp_path / "out.jsonl")
    assert (tmp_path / "out" / "0.txt").read_text().strip() == journal[0]["caption"]
    assert "same name" in caplog.text


async def test_names_that_cannot_be_cost_their_own_sidecar_alone(tmp_path, endpoint):
    long = "x" * 249
    for name in (f"{long}.jpg", "1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(IMAGES[0] + name[:1].encode())
    (tmp_path / "out" / "1.txt").mkdir(parents=True)
    names = [f"{long}.jpg", "1.jpg", "2.jpg"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"image": n}) + "\n" for n in names))
    await run_batch(
        tmp_path / "in.jsonl", tmp_path / "out", base_url=endpoint.base_url, model="m",
        output_format="txt",
    )  # fmt: skip
    assert (tmp_path / "out" / "2.txt").is_file()
    assert (tmp_path / "out" / f"{long}.txt").is_file()


async def test_nothing_that_belongs_to_a_run_is_written_over(caption, source, run_command):
    output = await caption("out.jsonl")
    before = {path: path.read_bytes() for path in output.parent.glob("*.jsonl*")}
    assert len(before) == 4
    for path in before:
        assert run_command("export", output, "--to", path).returncode == 2
    assert {path: path.read_bytes() for path in before} == before


async def test_a_file_that_no_run_has_made_is_not_replaced(source, endpoint):
    from captioner import SettingsError

    target = source.with_name("mine.csv")
    target.write_text("mine")
    options = {"base_url": endpoint.base_url, "model": "m"}
    with pytest.raises(SettingsError, match="captioner has not written it"):
        await run_batch(source, target, **options)
    assert (target.read_text(), endpoint.count) == ("mine", 0)
    await run_batch(source, target, **options, overwrite=True)
    assert target.read_text() != "mine"


async def test_an_export_finds_the_input_from_anywhere(
    tmp_path, endpoint, run_command, monkeypatch
):
    """The checkpoint has the absolute path of the input."""
    pq.write_table(pa.table({"image": pa.array(IMAGES[:2])}), tmp_path / "in.parquet")
    monkeypatch.chdir(tmp_path)
    await run_batch("in.parquet", "out.jsonl", base_url=endpoint.base_url, model="m")
    (tmp_path / "sub").mkdir()
    ended = run_command("export", "../out.jsonl", "--to", "x.tar", cwd=tmp_path / "sub")
    assert ended.stderr == "written: x.tar\n"
    found = webdataset.WebDataset(
        str(tmp_path / "sub" / "x.tar"), shardshuffle=False, empty_check=False
    )
    assert [sample["jpg"] for sample in found] == IMAGES[:2]


async def test_image_folder_under_an_image_root(tmp_path, source, endpoint):
    """Names are relative to the metadata file, wherever the input is."""
    moved = tmp_path / "in.jsonl"
    moved.write_bytes(source.read_bytes())
    target = source.parent / "metadata.jsonl"
    await run_batch(moved, target, base_url=endpoint.base_url, model="m", image_root=source.parent)
    assert [row["file_name"] for row in rows(target)] == ["0.jpg", "1.jpg", "3.jpg"]


async def test_a_torn_journal_is_exported_up_to_where_it_is_whole(caption, run_command):
    output = await caption("out.jsonl")
    whole = output.read_bytes()
    with output.open("ab") as file:
        file.write(b'{"id": 99, "caption": "to')
    for name in ("copy.jsonl", "a.json", "a.csv"):
        assert run_command("export", output, "--to", output.with_name(name)).returncode == 0
    assert output.with_name("copy.jsonl").read_bytes() == whole
    assert len(json.loads(output.with_name("a.json").read_bytes())) == 3
    output.write_bytes(whole.replace(b'"caption"', b'"cap!ion"', 1))
    ended = run_command("export", output, "--to", output.with_name("b.csv"))
    assert (ended.returncode, "Traceback" in ended.stderr) == (5, False)


async def test_values_that_have_no_type_in_common_become_json(tmp_path, endpoint):
    """Empty objects inside objects; a large integer, and far below a fraction."""
    (tmp_path / "0.jpg").write_bytes(IMAGES[0])
    with (tmp_path / "in.jsonl").open("w") as file:
        for number in range(5_001):
            value = 2**53 + 1 if number < 5_000 else 1.5
            record = {"image": "0.jpg", "e": {"a": {}, "b": []}, "x": value, "n": number}
            file.write(json.dumps(record) + "\n")
    options = {"base_url": endpoint.base_url, "model": "m", "concurrency": 64}
    await run_batch(tmp_path / "in.jsonl", tmp_path / "out.parquet", **options)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found["x"].to_pylist()[::5_000] == [str(2**53 + 1), "1.5"]
    assert json.loads(found["e"].to_pylist()[0]) == {"a": {}, "b": []}


async def test_tables_whose_columns_differ(tmp_path, endpoint):
    """One file has a column more, and numbers of another width."""
    place = tmp_path / "in"
    place.mkdir()
    first = {"image": pa.array(IMAGES[:1]), "n": pa.array([1], pa.int32())}
    second = {"image": pa.array(IMAGES[1:2]), "n": pa.array([2], pa.int64()), "more": ["x"]}
    for number, table in enumerate((first, second)):
        pq.write_table(pa.table(table), place / f"{number}.parquet")
    await run_batch(place, tmp_path / "out.parquet", base_url=endpoint.base_url, model="m")
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["n"], row["more"]) for row in found] == [(1, None), (2, "x")]


async def test_sqlite_of_nothing_and_of_names_it_cannot_tell_apart(tmp_path, endpoint):
    (tmp_path / "0.jpg").write_bytes(IMAGES[0])
    (tmp_path / "none.jsonl").write_text('{"image": "no.jpg"}\n')
    many = {"image": "0.jpg", "a": 1, "A": 2, "a\0": 3, **{f"c{n}": n for n in range(2_500)}}
    (tmp_path / "many.jsonl").write_text(json.dumps(many) + "\n")
    options = {"base_url": endpoint.base_url, "model": "m"}
    for name, count in (("none", 0), ("many", 1)):
        await run_batch(tmp_path / f"{name}.jsonl", tmp_path / f"{name}.db", **options)
        with sqlite3.connect(tmp_path / f"{name}.db") as database:
            found = database.execute("SELECT * FROM captions").fetchall()
        database.close()
        assert len(found) == count
    assert found[0][1:4] == (1, 2, 3)


async def test_an_export_that_breaks_off_ends(tmp_path, endpoint, run_command):
    """A full disk is an error that says so, also while images of a table are read."""
    image_files = [jpeg(n, (700, 700), quality=100) for n in range(6)]
    pq.write_table(pa.table({"image": pa.array(image_files)}), tmp_path / "in.parquet")
    options = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(tmp_path / "in.parquet", tmp_path / "out.jsonl", **options)
    limit = len(image_files[0]) * 2

    def less_disk() -> None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ended = run_command(
        "export", tmp_path / "out.jsonl", "--to", tmp_path / "x.tar", preexec_fn=less_disk
    )
    assert ended.returncode == 9, ended.stderr
    assert not (tmp_path / "x.tar").exists()
    odd = run_command("export", tmp_path / "out.jsonl", "--to", tmp_path / "6%_%05d.tar")
    assert odd.returncode == 0, odd.stderr
    assert (tmp_path / "6%_00000.tar").exists()


async def test_numbered_shards_never_replace_what_is_not_theirs(tmp_path, endpoint, run_command):
    """Neither the input nor a file of another program is replaced."""
    for number in range(3):
        with webdataset.TarWriter(str(tmp_path / f"in-{number:05d}.tar")) as writer:
            writer.write({"__key__": f"k{number}", "jpg": IMAGES[number]})
    before = {path: path.read_bytes() for path in tmp_path.glob("*.tar")}
    options = {"base_url": endpoint.base_url, "model": "m"}
    source = tmp_path / "in-{00000..00002}.tar"
    from captioner import SettingsError

    with pytest.raises(SettingsError):
        await run_batch(source, tmp_path / "in-%05d.tar", **options)
    assert endpoint.count == 0
    await run_batch(source, tmp_path / "out.jsonl", **options)
    ended = run_command("export", tmp_path / "out.jsonl", "--to", tmp_path / "in-%05d.tar")
    assert ended.returncode == 2
    ended = run_command(
        "export", tmp_path / "out.jsonl", "--to", tmp_path / "in-%05d.tar", "--overwrite"
    )
    assert (ended.returncode, "are made from" in ended.stderr) == (2, True)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.tar")} == before


async def test_metadata_beside_the_images_is_the_same_a_second_time(tmp_path, endpoint):
    """The folder has changed since the first run; the input format of that run counts."""
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(IMAGES[number])
    options = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(tmp_path, tmp_path / "metadata.jsonl", **options)
    first = (tmp_path / "metadata.jsonl").read_bytes()
    await run_batch(tmp_path, tmp_path / "metadata.jsonl", **options)
    assert (tmp_path / "metadata.jsonl").read_bytes() == first
    assert len(first.splitlines()) == 3
    report = await run_batch(tmp_path, tmp_path / "other.jsonl", **options)
    assert report.captioned == 3


async def test_an_export_of_an_unfinished_run_says_how_much_there_is(source, endpoint, run_command):
    output = source.parent / "out.jsonl"
    await run_batch(source, output, base_url=endpoint.base_url, model="m", limit=1)
    ended = run_command("export", output, "--to", source.parent / "a.csv")
    assert "1 captioned, 0 failed, 3 pending of 4 records" in ended.stderr
    await run_batch(source, output, base_url=endpoint.base_url, model="m")
    ended = run_command("export", output, "--to", source.parent / "b.csv")
    assert "not finished" not in ended.stderr


@pytest.mark.parametrize("kind", FOLDER_FORMATS)
async def test_formats_of_a_folder_may_be_named_with_a_slash(caption, run_command, tmp_path, kind):
    """A slash at the end says that it is a folder, and is refused for files only."""
    output = await caption("out.jsonl")
    ended = run_command("export", output, "--to", f"{tmp_path}/made/", "--to-format", kind)
    assert ended.returncode == 0, ended.stderr
    assert any((tmp_path / "made").iterdir())
    refused = run_command("export", output, "--to", f"{tmp_path}/other/")
    assert refused.returncode == 2
    assert f"--to-format: {', '.join(FOLDER_FORMATS)}" in refused.stderr


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("out.xlsx", "unknown ending .xlsx. Known are .jsonl, .ndjson, .json"),
        ("out/", "is a folder. Name a file in it, such as"),
    ],
)
def test_an_output_of_an_unknown_kind_is_refused_with_the_list(
    source, endpoint, run_command, name, told
):
    words = ["--base-url", endpoint.base_url, "--model", "m"]
    ended = run_command(source, "-o", f"{source.parent}/{name}", *words)
    assert (ended.returncode, endpoint.count) == (2, 0)
    assert told in ended.stderr
    if name[-1] != "/":
        named = run_command(source, "-o", source.parent / name, "--output-format", "csv", *words)
        assert named.returncode == 3


async def test_check_after_an_export_into_the_folder_and_after_a_hand_edit(
    tmp_path, endpoint, run_command
):
    """The folder stays what it was; an edited output is told, and still counted."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, data in enumerate(IMAGES):
        (folder / f"{number}.jpg").write_bytes(data)
    output = tmp_path / "out.jsonl"
    await run_batch(folder, output, base_url=endpoint.base_url, model="m")
    for name, *more in (("metadata.jsonl",), ("x.parquet",), ("", "--to-format", "txt")):
        assert run_command("export", output, "--to", folder / name, *more).returncode == 0
    checked = run_command("check", output)
    assert "5 captioned, 0 failed, 0 pending" in checked.stdout
    output.write_bytes(output.read_bytes().replace(b'"image"', b'"image" ', 1))
    checked = run_command("check", output)
    assert checked.returncode != 0
    assert "5 captioned, 0 failed, " in checked.stdout
    assert "damaged: " in checked.stdout
