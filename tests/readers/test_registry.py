"""Every input format, in files that the format's own library wrote: each image is sent, each row is
written once, a bad row is a failure, and a second run resumes."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import zstandard
from conftest import command, jpeg, rows
from hub import serving
from pyarrow import feather

import captioner
from captioner import SettingsError, run_batch
from captioner.core.types import InputRecord
from captioner.readers.registry import open_input
from captioner.readers.rows import batches_from_thread
from captioner.settings.options import InputFormat

IMAGES = [jpeg(number) for number in range(4)]
MORE = [jpeg(number) for number in range(4, 6)]


def save(folder: Path) -> list[str]:
    """Save the images; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(IMAGES):
        (folder / f"{number}.jpg").write_bytes(data)
    return [f"{number}.jpg" for number in range(len(IMAGES))]


def records(folder: Path, field: str = "image") -> list[dict[str, Any]]:
    """Return records of the images, and one of an image that is not there."""
    names = [*save(folder), "missing.jpg"]
    return [{"id": f"00{n}", field: name, "n": n} for n, name in enumerate(names)]


def lines_of(found: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in found)


# -- one maker for each format: all have four good rows and a bad one ---------------------------


def jsonl(folder: Path) -> Path:
    path = folder / "in.ndjson"
    path.write_bytes(lines_of(records(folder)))
    return path


def jsonl_gz(folder: Path) -> Path:
    path = folder / "in.jsonl.gz"
    path.write_bytes(gzip.compress(lines_of(records(folder))))
    return path


def jsonl_zst(folder: Path) -> Path:
    path = folder / "in.jsonl.zst"
    path.write_bytes(zstandard.compress(lines_of(records(folder))))
    return path


def json_array_gz(folder: Path) -> Path:
    path = folder / "in.json.gz"
    path.write_bytes(gzip.compress(json.dumps(records(folder), indent=1).encode()))
    return path


def comma(folder: Path, delimiter: str = ",", name: str = "in.csv") -> Path:
    with (folder / name).open("w", newline="") as file:
        table = csv.DictWriter(file, ["id", "image", "n", "prompt"], delimiter=delimiter)
        table.writeheader()
        for record in records(folder)[:4]:
            table.writerow({**record, "prompt": f'what is\n"{record["n"]}", then?'})
        file.write(delimiter.join(["one", "two"]) + "\n")
    return folder / name


def tabs(folder: Path) -> Path:
    return comma(folder, "\t", "in.tsv")


def comma_gz(folder: Path) -> Path:
    path = folder / "in.csv.gz"
    path.write_bytes(gzip.compress(comma(folder).read_bytes()))
    return path


def parquet_paths(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(records(folder)), folder / "in.parquet")
    return folder / "in.parquet"


def dataset(folder: Path) -> datasets.Dataset:
    """Images inside a table, as Hugging Face keeps them, one of them no image."""
    features = datasets.Features({"image": datasets.Image(), "n": datasets.Value("int64")})
    data = [*IMAGES, b"no image"]
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": one, "path": None} for one in data], "n": list(range(5))},
        features=features,
    )


def parquet_structs(folder: Path) -> Path:
    dataset(folder).to_parquet(folder / "in.parquet")
    return folder / "in.parquet"


def parquet_folder(folder: Path) -> Path:
    """Several files, and images in a binary column under a name of its own."""
    place = folder / "tables"
    place.mkdir()
    for number in range(2):
        found = IMAGES[2 * number : 2 * number + 2] + [b""] * number
        table = pa.table({"jpg": pa.array(found, pa.binary()), "n": list(range(len(found)))})
        pq.write_table(table, place / f"{number}.parquet")
    return place


def arrow_file(folder: Path) -> Path:
    table = pa.Table.from_pylist(records(folder))
    with (
        pa.OSFile(str(folder / "in.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as w,
    ):
        w.write_table(table)
    return folder / "in.arrow"


def arrow_stream(folder: Path) -> Path:
    """As `datasets` saves to disk."""
    dataset(folder).save_to_disk(folder / "saved")
    return next((folder / "saved").glob("*.arrow"))


def image_files(folder: Path) -> Path:
    place = folder / "photos"
    save(place)
    (place / "a" / "b").mkdir(parents=True)
    (place / "2.jpg").rename(place / "a" / "b" / "x.JPEG")
    (place / "broken.png").write_bytes(b"no image")
    (place / "notes.txt").write_text("not an image")
    return place


def pattern(folder: Path) -> Path:
    return image_files(folder) / "**" / "*.[jJp]*"


def tar(folder: Path) -> Path:
    with webdataset.TarWriter(str(folder / "in.tar")) as shard:
        for number, data in enumerate(IMAGES):
            sample = {"__key__": f"sample{number}", "jpg": data, "txt": f"text {number}"}
            shard.write({**sample, "json": {"n": number}})
        shard.write({"__key__": "sample4", "jpg": b"no image", "json": {"n": 4}})
    return folder / "in.tar"


def tars(folder: Path) -> Path:
    place = folder / "shards"
    place.mkdir()
    with webdataset.ShardWriter(str(place / "s-%03d.tar"), maxcount=3, verbose=0) as shards:
        for number, data in enumerate([*IMAGES, b"no image"]):
            shards.write({"__key__": f"sample{number}", "jpg": data})
    return place / "s-{000..001}.tar"


def downloads(folder: Path, *, as_tars: bool = False) -> Path:
    """The layout of img2dataset, with one row that it could not download."""
    place = folder / "downloaded"
    place.mkdir()
    table = [
        {"url": f"http://x/{n}", "key": f"00000{n:04}", "status": "success", "error_message": None}
        for n in range(4)
    ]
    lost = {"url": "http://x/4", "key": "000000004", "status": "failed_to_download"}
    table.append({**lost, "error_message": "HTTP Error 404"})
    pq.write_table(pa.Table.from_pylist(table), place / "00000.parquet")
    (place / "00000_stats.json").write_text('{"count": 5, "successes": 4}')
    if as_tars:
        with webdataset.TarWriter(str(place / "00000.tar")) as shard:
            for row, data in zip(table, IMAGES, strict=False):
                shard.write({"__key__": row["key"], "jpg": data, "json": row, "txt": "alt"})
        return place
    (place / "00000").mkdir()
    for row, data in zip(table, IMAGES, strict=False):
        (place / "00000" / f"{row['key']}.jpg").write_bytes(data)
        (place / "00000" / f"{row['key']}.json").write_text(json.dumps(row))
        (place / "00000" / f"{row['key']}.txt").write_text("alt")
    return place


def downloaded_tars(folder: Path) -> Path:
    return downloads(folder, as_tars=True)


def image_folder(folder: Path, suffix: str = ".jsonl") -> Path:
    found = records(folder / "photos", "file_name")
    path = folder / "photos" / f"metadata{suffix}"
    if suffix == ".jsonl":
        path.write_bytes(lines_of(found))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(found), path)
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(found[0]))
            table.writeheader()
            table.writerows(found)
    return folder / "photos"


def image_folder_csv(folder: Path) -> Path:
    return image_folder(folder, ".csv")


def image_folder_parquet(folder: Path) -> Path:
    return image_folder(folder, ".parquet")


def llava(folder: Path) -> Path:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "?"}]
    found = [{**record, "conversations": turns} for record in records(folder)]
    (folder / "in.json").write_text(json.dumps(found))
    return folder / "in.json"


def coco(folder: Path) -> Path:
    images = records(folder, "file_name")
    notes = [{"id": n, "image_id": n, "caption": "x"} for n in range(4)]
    (folder / "in.json").write_text(json.dumps({"images": images, "annotations": notes}))
    return folder / "in.json"


def hugging_face(folder: Path) -> Path:
    dataset(folder).to_parquet(folder / "data" / "train.parquet")
    return Path(f"hf:{folder / 'data'}:train")


class MsDataset:
    """As ModelScope's: its data sets are Hugging Face's, in a wrapper."""

    def __init__(self, ds_instance: datasets.IterableDataset) -> None:
        self.ds_instance = ds_instance

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.ds_instance)

    @staticmethod
    def load(name: str, *, split: str, use_streaming: bool) -> MsDataset:
        return MsDataset(datasets.load_dataset(name, split=split, streaming=use_streaming))


def saved_to_disk(folder: Path) -> Path:
    dataset(folder).save_to_disk(folder / "saved")
    return folder / "saved"


def model_scope(folder: Path) -> Path:
    dataset(folder).to_parquet(folder / "data" / "train.parquet")
    return Path(f"ms:{folder / 'data'}:train")


MAKERS: dict[str, list[Callable[[Path], Path]]] = {
    "`.jsonl`, `.ndjson`, `-` for standard input (with `-o`)": [jsonl],
    "`.json` (`json`, `llava`)": [llava],
    "`.csv`, `.tsv`": [comma, tabs],
    "any of these with `.gz` or `.zst`": [jsonl_gz, jsonl_zst, json_array_gz],
    "`.parquet`, `.arrow`, `.feather`, a folder or pattern of them": [
        parquet_paths, parquet_structs, parquet_folder, arrow_file, arrow_stream,
    ],
    "a folder of images and videos, or a pattern such as `'photos/**/*.jpg'` (`images`)": [
        image_files, pattern,
    ],
    "`.tar`, `shard-{000..099}.tar`, a folder of them (`webdataset`)": [tar, tars],
    "a folder written by img2dataset (`img2dataset`)": [downloads, downloaded_tars],
    "a folder with `metadata.jsonl`, `.csv` or `.parquet`, also in its subfolders (`imagefolder`)":
        [image_folder, image_folder_csv, image_folder_parquet],
    "a folder that Hugging Face's `save_to_disk` wrote (`arrow`)": [saved_to_disk],
    "COCO captions or annotations, `.json` (`coco`)": [coco],
    "`hf:NAME`, `hf:NAME:SPLIT`, `hf:NAME:CONFIG:SPLIT` (with `-o`)": [hugging_face],
    "`ms:NAME`, `ms:NAME:SPLIT` (with `-o`)": [model_scope],
}  # fmt: skip
"""The inputs of the documentation's table, with functions that make one."""


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name in ("modelscope", "modelscope.msdatasets"):
        module = ModuleType(name)
        module.MsDataset = MsDataset
        monkeypatch.setitem(sys.modules, name, module)


def test_the_table_of_inputs_has_those_that_are_tested() -> None:
    page = (Path(captioner.__file__).parent / "docs" / "inputs.md").read_text()
    table = page.partition("| input | one record is |")[2].partition("\n\n")[0]
    rows_of_table = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]
    assert rows_of_table == list(MAKERS)


@pytest.mark.parametrize(
    "make", [*itertools.chain(*MAKERS.values())], ids=lambda make: make.__name__
)
async def test_every_format(tmp_path, endpoint, make: Callable[[Path], Path]):
    """Four images reach the endpoint, once; a second run resumes."""
    source = make(tmp_path)
    output = tmp_path / "out.jsonl"
    options = {"base_url": endpoint.base_url, "model": "m", "output": output}
    report = await run_batch(source, **options)
    assert (report.captioned, report.failed) == (4, 1), report.examples
    sent = [image for call in endpoint.calls for image in call.images]
    assert sorted(sent) == sorted(IMAGES)
    found = rows(output)
    assert len({json.dumps(row) for row in found}) == 4
    assert all(row["caption"] for row in found)
    assert b"base64" not in output.read_bytes()
    again = await run_batch(source, **options)
    assert (again.resumed, again.captioned, again.failed) == (4, 0, 1)
    assert endpoint.count == 4
    assert rows(output) == found


async def test_a_folder_has_files_of_both_suffixes_of_arrow(tmp_path, endpoint):
    """However they are spelt: none of them is left out."""
    for name in ("a.feather", "b.arrow", "c.FEATHER"):
        feather.write_feather(pa.table({"image": IMAGES[:1], "n": [name]}), tmp_path / name)
    options = {"base_url": endpoint.base_url, "model": "m", "output": tmp_path / "out.jsonl"}
    report = await run_batch(tmp_path, **options)
    assert (report.captioned, report.failed) == (3, 0), report.examples


async def test_rows_keep_their_fields(tmp_path, endpoint):
    """Texts of a CSV file as they are, leading zeros and all; numbers of a table as numbers."""
    options = {"base_url": endpoint.base_url, "model": "m", "output": tmp_path / "out.jsonl"}
    await run_batch(comma(tmp_path), **options)
    first = rows(tmp_path / "out.jsonl")[0]
    assert {name: first[name] for name in ("id", "n")} == {"id": "000", "n": "0"}
    assert endpoint.calls[0].texts[0].startswith('what is\n"')
    options["output"] = tmp_path / "two.jsonl"
    await run_batch(parquet_paths(tmp_path), **options)
    assert {name: rows(tmp_path / "two.jsonl")[3][name] for name in ("id", "n")} == {
        "id": "003",
        "n": 3,
    }


async def test_members_of_a_sample_become_fields_of_the_record(tmp_path, endpoint):
    options = {"base_url": endpoint.base_url, "model": "m", "output": tmp_path / "out.jsonl"}
    await run_batch(tar(tmp_path), **options)
    first = rows(tmp_path / "out.jsonl")[0]
    assert first.pop("caption")
    assert first == {
        "__key__": "sample0", "n": 0, "txt": "text 0", "image": "in.tar#sample0.jpg",
    }  # fmt: skip


async def test_rows_with_other_images_are_other_records(tmp_path, endpoint):
    """A table whose rows move, or whose images are swapped, gets no caption of another row."""

    def table(found: list[bytes]) -> Path:
        structs = [{"bytes": one, "path": None} for one in found]
        pq.write_table(pa.table({"image": structs}), tmp_path / "in.parquet")
        return tmp_path / "in.parquet"

    options = {"base_url": endpoint.base_url, "model": "m", "output": tmp_path / "out.jsonl"}
    await run_batch(table(IMAGES), **options)
    before = {json.dumps(row["image"]): row["caption"] for row in rows(tmp_path / "out.jsonl")}
    report = await run_batch(table([MORE[0], *IMAGES[1:], MORE[1]][::-1]), **options)
    assert (report.resumed, report.captioned, report.orphans) == (3, 2, 1)
    after = {json.dumps(row["image"]): row["caption"] for row in rows(tmp_path / "out.jsonl")}
    assert before.items() <= after.items()


async def test_several_processes_get_the_images_of_a_table(tmp_path, endpoint):
    options = {"base_url": endpoint.base_url, "model": "m", "output": tmp_path / "out.jsonl"}
    report = await run_batch(parquet_structs(tmp_path), processes=2, **options)
    assert (report.captioned, report.failed) == (4, 1)
    assert sorted(call.images[0] for call in endpoint.calls) == sorted(IMAGES)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
@pytest.mark.parametrize(
    "make",
    [jsonl_gz, jsonl_zst, json_array_gz, comma_gz, parquet_paths, tars, coco, arrow_file],
)
async def test_a_damaged_file_fails_where_it_is_damaged(tmp_path, endpoint, make, damage):
    """What can be read is captioned, the rest is one clear failure; never a crash."""
    source = make(tmp_path)
    file = Path(str(source).replace("{000..001}", "001"))
    data = bytearray(file.read_bytes())
    if damage == "cut":
        del data[len(data) * 2 // 3 :]
    else:
        data[len(data) // 2 : len(data) // 2 + 8] = b"\xff" * 8
    file.write_bytes(data)
    options = {"base_url": endpoint.base_url, "model": "m", "output": tmp_path / "out.jsonl"}
    report = await run_batch(source, **options)
    assert report.complete
    assert report.failed >= 1
    assert "Traceback" not in (tmp_path / "out.failed.jsonl").read_text()


def test_standard_input_is_read_as_it_comes(tmp_path, endpoint):
    """A second run with the same input resumes."""
    data = lines_of(records(tmp_path))
    words = command("-", "-o", "out.jsonl", "--base-url", endpoint.base_url, "--model", "m")
    options = {"cwd": tmp_path, "input": data, "capture_output": True}
    ended = subprocess.run(words, check=False, **options)
    assert ended.returncode == 3, ended.stderr
    assert [row["n"] for row in rows(tmp_path / "out.jsonl")] == [0, 1, 2, 3]
    assert subprocess.run(words, check=False, **options).returncode == 3
    assert endpoint.count == 4


def test_a_run_that_waits_for_standard_input_can_be_stopped(tmp_path, endpoint):
    words = command("-", "-o", "out.jsonl", "--base-url", endpoint.base_url, "--model", "m")
    with subprocess.Popen(
        words, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdin.write(lines_of(records(tmp_path)[:1]))
        process.stdin.flush()
        while not endpoint.count:
            assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 143
    assert len(rows(tmp_path / "out.jsonl")) == 1


def test_a_data_set_is_streamed_from_the_hub(tmp_path, endpoint):
    """Rows and images come over HTTP, and nothing is kept but captions."""
    dataset(tmp_path).to_parquet(tmp_path / "part.parquet")
    files = {"README.md": b"# d", "data/train-0.parquet": (tmp_path / "part.parquet").read_bytes()}
    options = ["--base-url", endpoint.base_url, "--model", "m", "-o", tmp_path / "out.jsonl"]
    with serving("org/name", files) as url:
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf")}
        ended = subprocess.run(
            command("hf:org/name", *options), env=environment, check=False, text=True,
            capture_output=True, timeout=50,
        )  # fmt: skip
    assert ended.returncode == 3, ended.stderr
    assert sorted(call.images[0] for call in endpoint.calls) == sorted(IMAGES)
    assert [row["n"] for row in rows(tmp_path / "out.jsonl")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("a.data", "jsonl"),
        ("a.json.gz", "json"),
        ("a.TSV", "tsv"),
        ("photo.PNG", "images"),
        ("-", "jsonl"),
        ("hf:org/name", "hf"),
    ],
)
def test_a_name_tells_what_an_input_is(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"") if ":" not in name else None
    assert open_input(Path(name)).format == kind


def test_a_given_format_goes_before_the_name(tmp_path):
    (tmp_path / "a.txt").write_text("image\nx.jpg\n")
    assert open_input(tmp_path / "a.txt", "csv").format == "csv"


@pytest.mark.parametrize(
    "text", ["no.jsonl", "no-folder/*.tar", "no-{0..2}.tar", "hf:", "ms:a:b:c"]
)
def test_a_missing_input_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError):
        open_input(Path(text))


@pytest.mark.parametrize(
    ("module", "kind", "hint"),
    [
        ("pyarrow", "parquet", "pyarrow"),
        ("datasets", "hf", "datasets"),
        ("modelscope", "ms", "'modelscope[datasets]' 'fsspec<=2026.2.0'"),
    ],
)
def test_a_missing_package_is_named_as_pip_installs_it(tmp_path, monkeypatch, module, kind, hint):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    (tmp_path / "x").write_bytes(b"")
    address = {"hf": "hf:a", "ms": "ms:a"}.get(kind, str(tmp_path / "x"))
    with pytest.raises(SettingsError) as error:
        open_input(Path(address), kind)
    assert str(error.value).endswith(f"pip install {hint}")


@pytest.mark.parametrize("kind", get_args(InputFormat))
def test_every_format_of_the_options_has_a_reader(tmp_path, kind):
    path = tmp_path / "nothing"
    path.write_bytes(b"")
    try:
        assert open_input(path, kind).format == kind
    except SettingsError as error:
        assert str(path) in str(error)


async def test_members_of_a_sample_are_read_without_holding_the_shard(tmp_path):
    """A member that is neither an image nor short text is skipped."""
    with tarfile.open(tmp_path / "in.tar", "w") as shard:
        for name, data in (
            ("a.jpg", IMAGES[0]),
            ("a.npy", b"\x93NUMPY\xff\xfe"),
            ("a.txt", b"t"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    found: list[InputRecord] = []
    async for batch in open_input(tmp_path / "in.tar").source.batches():
        found += batch
    assert json.loads(found[0].raw) == {"__key__": "a", "txt": "t", "image": "in.tar#a.jpg"}


# -- special cases --------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut at a header", "cut in a header", "broken header"])
async def test_a_shard_that_ends_too_early_says_so(tmp_path, endpoint, damage):
    """tarfile takes a broken header for the end of the shard."""
    source = tar(tmp_path)
    with tarfile.open(source) as shard:
        at = next(member.offset for member in shard if member.name.startswith("sample2"))
    data = bytearray(source.read_bytes())
    if damage == "broken header":
        data[at + 150] ^= 0xFF
    else:
        del data[at + (100 if damage == "cut in a header" else 0) :]
    source.write_bytes(data)
    options = {"base_url": endpoint.base_url, "model": "m", "output": tmp_path / "out.jsonl"}
    report = await run_batch(source, **options)
    assert (report.captioned, report.codes) == (2, {"bad_shard": 1})


async def test_two_samples_of_one_name_are_not_mixed_up(tmp_path, endpoint):
    """Both fail, because their images cannot be told from each other."""
    with tarfile.open(tmp_path / "in.tar", "w") as shard:
        for name, data in (("a.jpg", IMAGES[0]), ("b.jpg", IMAGES[1]), ("a.jpg", IMAGES[2])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    options = {"base_url": endpoint.base_url, "model": "m", "output": tmp_path / "out.jsonl"}
    report = await run_batch(tmp_path / "in.tar", **options)
    assert (report.captioned, report.codes) == (1, {"bad_shard": 1, "image_ambiguous": 1})
    assert endpoint.calls[0].images == [IMAGES[1]]


async def test_a_broken_row_costs_no_other_row(tmp_path, endpoint):
    save(tmp_path)
    (tmp_path / "in.csv").write_text('image,n\n0.jpg,1\n1.jpg,"a"b\n2.jpg,3\n3.jpg,4\n')
    options = {"base_url": endpoint.base_url, "model": "m", "output": tmp_path / "out.jsonl"}
    report = await run_batch(tmp_path / "in.csv", **options)
    assert (report.captioned, report.codes) == (3, {"bad_row": 1})
    assert [row["n"] for row in rows(tmp_path / "out.jsonl")] == ["1", "3", "4"]


@pytest.mark.parametrize("make", [comma, coco])
async def test_zstandard_of_every_kind(tmp_path, endpoint, make):
    source = make(tmp_path)
    packed = source.with_name(source.name + ".zst")
    packed.write_bytes(zstandard.compress(source.read_bytes()))
    options = {"base_url": endpoint.base_url, "model": "m", "output": tmp_path / "out.jsonl"}
    report = await run_batch(packed, **options)
    assert (report.captioned, report.failed) == (4, 1)


async def test_values_that_python_cannot_hold_fail_their_row_alone(tmp_path, endpoint):
    """Text that is not UTF-8, and a date beyond the year 9999."""
    names = save(tmp_path)
    text = pa.array([b"fine", b"\xff\xfe", b"fine", b"fine"], pa.binary()).view(pa.string())
    days = pa.array([1, 2, 3_000_000, 4], pa.int32()).view(pa.date32())
    table = pa.table({"image": names, "text": text, "day": days})
    pq.write_table(table, tmp_path / "in.parquet")
    options = {"base_url": endpoint.base_url, "model": "m", "output": tmp_path / "out.jsonl"}
    report = await run_batch(tmp_path / "in.parquet", **options)
    assert (report.captioned, report.codes) == (2, {"bad_row": 2})


async def test_a_table_of_downloads_that_is_damaged_is_one_failure(tmp_path, endpoint):
    source = downloads(tmp_path, as_tars=True)
    (source / "00000.parquet").write_bytes(b"junk")
    options = {"base_url": endpoint.base_url, "model": "m", "output": tmp_path / "out.jsonl"}
    report = await run_batch(source, **options)
    assert (report.captioned, report.codes) == (4, {"bad_table": 1})


async def test_a_single_image_is_that_image(tmp_path, endpoint, monkeypatch):
    """A subfolder of the same name does not matter."""
    (tmp_path / "d" / "d").mkdir(parents=True)
    (tmp_path / "d" / "p.jpg").write_bytes(IMAGES[0])
    (tmp_path / "d" / "d" / "p.jpg").write_bytes(IMAGES[1])
    monkeypatch.chdir(tmp_path)
    options = {"base_url": endpoint.base_url, "model": "m", "output": tmp_path / "out.jsonl"}
    await run_batch("d/p.jpg", **options)
    assert endpoint.calls[0].images == [IMAGES[0]]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
async def test_an_output_in_the_folder_of_the_images_is_no_input(tmp_path, endpoint, name):
    """The output does not change the format of the folder for later runs."""
    source = tmp_path / "photos"
    save(source)
    options = {"base_url": endpoint.base_url, "model": "m", "output": source / name}
    for _ in range(2):
        report = await run_batch(source, **options)
        assert (report.captioned + report.resumed, report.orphans) == (4, 0)
    assert endpoint.count == 4


@pytest.mark.parametrize(("make", "name"), [(parquet_folder, "x.parquet"), (tars, "x.tar")])
async def test_an_output_among_the_inputs_is_refused(tmp_path, endpoint, make, name):
    source = make(tmp_path)
    source = source if source.is_dir() else source.parent
    with pytest.raises(SettingsError, match="inside the input folder"):
        await run_batch(source, source / name, base_url=endpoint.base_url, model="m")
    assert endpoint.count == 0


async def test_large_images_in_rows_come_in_small_batches(tmp_path):
    """The size of a batch is limited in bytes, too."""
    data = [bytes([number]) * 3_000_000 for number in range(12)]
    pq.write_table(pa.table({"image": pa.array(data)}), tmp_path / "in.parquet", compression=None)
    sizes = [
        sum(len(image_file) for line in batch for _, image_file in line.images)
        async for batch in open_input(tmp_path / "in.parquet").source.batches()
    ]
    assert sum(sizes) == 36_000_000
    assert max(sizes) <= 12_000_000


async def test_being_stopped_while_a_batch_is_read_is_no_error(tmp_path):
    """The generator is closed when its thread returns, not before."""
    reading, go_on = threading.Event(), threading.Event()
    closed = threading.Event()

    def slow():
        try:
            reading.set()
            go_on.wait(10)
            while True:
                yield InputRecord(1, b"{}")
        finally:
            closed.set()

    async def consume() -> None:
        async for _ in batches_from_thread(slow()):
            pass

    task = asyncio.create_task(consume())
    await asyncio.to_thread(reading.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert await asyncio.to_thread(closed.wait, 10)


def test_a_pattern_of_texts_is_refused(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"image": "a.jpg"}\n')
    with pytest.raises(SettingsError, match=r"\*\.jsonl matches 2 files.*join the files"):
        open_input(tmp_path / "*.jsonl")
    with pytest.raises(SettingsError, match=r"no file matches .*\*\.csv"):
        open_input(tmp_path / "*.csv")
