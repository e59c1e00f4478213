"""Folders as people have them: what counts as data, and what is told."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import jpeg, rows
from inputs import captioned, mark, write_tar

from captioner import SettingsError, run_batch
from captioner.core.exports import mark_export
from captioner.readers.registry import open_input


def data_set(numbers: list[int]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "n": datasets.Value("int64")})
    pictures = [{"bytes": jpeg(number), "path": None} for number in numbers]
    return datasets.Dataset.from_dict({"image": pictures, "n": numbers}, features=features)


def pictures(folder: Path, *names: str, first: int = 0) -> Path:
    for number, name in enumerate(names, first):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number))
    return folder


def table(path: Path, numbers: list[int], **columns: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pa.array([jpeg(number) for number in numbers])
    pq.write_table(pa.table({"image": data, "n": numbers, **columns}), path)
    return path


# -- save_to_disk ---------------------------------------------------------------------------------


async def test_caches_of_a_saved_data_set_are_no_rows(tmp_path, endpoint):
    """`map` and `filter` leave theirs beside the tables."""
    source = tmp_path / "saved"
    data_set([0, 1, 2, 3]).save_to_disk(source, num_shards=2)
    loaded = datasets.load_from_disk(source)
    loaded.map(lambda row: {"m": row["n"] + 1}, load_from_cache_file=False)
    loaded.filter(lambda row: row["n"] > 1, load_from_cache_file=False)
    assert list(source.glob("cache-*.arrow"))
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert [row["n"] for row in found.rows] == [0, 1, 2, 3]
    assert (found.failures, found.warnings) == ([], [])


async def test_splits_of_a_saved_data_set(tmp_path, endpoint):
    """All, one after the other, which is told; or the one that is chosen."""
    source = tmp_path / "saved"
    splits = {"train": data_set([0, 1]), "test": data_set([2]), "a": data_set([3])}
    datasets.DatasetDict(splits).save_to_disk(source)
    found = await captioned(source, endpoint, tmp_path / "all.jsonl")
    assert [row["n"] for row in found.rows] == [0, 1, 2, 3]
    assert "the splits train, test, a are read" in found.warnings[0]
    found = await captioned(source, endpoint, tmp_path / "one.jsonl", split="test")
    assert [row["n"] for row in found.rows] == [2]
    with pytest.raises(SettingsError, match=r"no split 'val'; the input has train, test, a"):
        open_input(source, split="val")


async def test_saved_data_sets_below_a_folder(tmp_path, endpoint):
    source = tmp_path / "several"
    for number in range(2):
        data_set([number]).save_to_disk(source / f"part{number}")
        datasets.load_from_disk(source / f"part{number}").map(lambda row: {"m": row["n"]})
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert [row["n"] for row in found.rows] == [0, 1]


def test_a_saved_data_set_that_is_not_whole_is_refused(tmp_path):
    data_set([0, 1]).save_to_disk(tmp_path / "saved", num_shards=2)
    next((tmp_path / "saved").glob("data-00001*.arrow")).unlink()
    with pytest.raises(SettingsError, match=r"data-00001-of-00002\.arrow, which it names"):
        open_input(tmp_path / "saved")


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet", "in.tar"])
def test_an_input_without_splits_refuses_to_read_one(tmp_path, name):
    table(tmp_path / "in.parquet", [0])
    write_tar(tmp_path / "in.tar", [("a.jpg", jpeg(0))])
    (tmp_path / "in.jsonl").write_text("{}\n")
    with pytest.raises(SettingsError, match="the input has no splits"):
        open_input(tmp_path / name, split="train")


def test_the_split_of_a_hub_is_named_once(tmp_path):
    open_input(Path("hf:org/name"), split="test")
    with pytest.raises(SettingsError, match="names the split train already"):
        open_input(Path("hf:org/name:train"), split="test")


async def test_the_split_of_a_hub_can_be_an_option(tmp_path, endpoint, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data_set([0, 1]).to_parquet(tmp_path / "data" / "train.parquet")
    data_set([2]).to_parquet(tmp_path / "data" / "test.parquet")
    source = Path(f"hf:{tmp_path / 'data'}")
    found = await captioned(source, endpoint, tmp_path / "out.jsonl", split="test")
    assert [row["n"] for row in found.rows] == [2]
    with pytest.raises(SettingsError, match="val"):
        await run_batch(
            source, tmp_path / "no.jsonl", base_url=endpoint.base_url, model="m", split="val"
        )


# -- tables and images ----------------------------------------------------------------------------


async def test_what_systems_write_among_tables_is_no_data(tmp_path, endpoint):
    """As for Spark and pyarrow, at any depth."""
    source = tmp_path / "tables"
    table(source / "year=2024" / "a.parquet", [0])
    table(source / "b.parquet", [1])
    table(source / "_temporary" / "0" / "b.parquet", [1])
    table(source / "_delta_log" / "00.checkpoint.parquet", [2])
    table(source / ".ipynb_checkpoints" / "b-checkpoint.parquet", [1])
    table(source / "x" / "_metadata.parquet", [1])
    (source / "._b.parquet").write_bytes(b"\0\5\x16\7")
    (source / "_SUCCESS").touch()
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert [row["n"] for row in found.rows] == [1, 0]
    assert found.failures == []


async def test_what_systems_write_among_shards_is_no_data(tmp_path, endpoint):
    source = tmp_path / "shards"
    source.mkdir()
    write_tar(source / "a.tar", [("a.jpg", jpeg(0))])
    (source / "._a.tar").write_bytes(b"\0\5\x16\7")
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert found.pictures() == {"a.tar#a.jpg": mark(jpeg(0))}


async def test_what_systems_write_among_images_is_no_image(tmp_path, endpoint):
    """An underscore begins the names of many photographs."""
    source = pictures(tmp_path / "photos", "_a.jpg", "_b/c.jpg")
    pictures(source, "._a.jpg", ".cache/x.jpg", "__MACOSX/_a.jpg", first=5)
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert found.pictures() == {"_a.jpg": mark(jpeg(0)), "_b/c.jpg": mark(jpeg(1))}


async def test_tables_win_over_images(tmp_path, endpoint):
    """A repository of a hub with a thumbnail; what is left aside is counted."""
    source = pictures(tmp_path / "repo", "thumbnail.png", "docs/b.jpg", first=7)
    table(source / "data" / "train-00000-of-00001.parquet", [0, 1])
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert [row["n"] for row in found.rows] == [0, 1]
    assert any(
        "skipped, unless a record names them: 2 images or videos" in one for one in found.warnings
    )


async def test_tables_of_different_columns(tmp_path, endpoint):
    """Rows without an image are failures, and the difference is told."""
    source = tmp_path / "tables"
    table(source / "a.parquet", [0])
    pq.write_table(pa.table({"url": ["http://x/y"], "n": [1]}), source / "b.parquet")
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["n", "n"])
    pq.write_table(twice, source / "c.parquet")
    table(source / "d.parquet", [3])
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert [row["n"] for row in found.rows] == [0, 3]
    assert sorted(found.codes) == ["bad_table", "no_image"]
    assert "c.parquet has two columns of the name 'n'" in found.messages
    assert "b.parquet lacks image; a.parquet lacks url" in "".join(found.warnings)


async def test_a_row_of_a_table_is_limited(tmp_path, endpoint):
    """The image is not part of the limit."""
    source = table(tmp_path / "in.parquet", [0, 1], t=["x" * 500, "y"])
    found = await captioned(source, endpoint, tmp_path / "out.jsonl", max_line=200)
    assert [row["n"] for row in found.rows] == [1]
    assert found.codes == ["record_too_long"]


# -- imagefolder ----------------------------------------------------------------------------------


def metadata(path: Path, found: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in found))
    else:
        frame = pd.DataFrame(found)
        frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
async def test_metadata_in_subfolders(tmp_path, endpoint, suffix):
    """Names are relative to each table; a row keeps its other fields."""
    source = pictures(tmp_path / "ds", "test/a.jpg", "train/a.jpg", "train/deep/b.jpg")
    metadata(source / "test" / f"metadata{suffix}", [{"file_name": "a.jpg", "t": "0.10"}])
    names = ["./a.jpg", "deep/b.jpg", "gone.jpg"]
    found = [{"file_name": name, "t": str(number)} for number, name in enumerate(names, 1)]
    metadata(source / "train" / f"metadata{suffix}", found)
    done = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert done.pictures("file_name") == {
        "test/a.jpg": mark(jpeg(0)),
        "train/a.jpg": mark(jpeg(1)),
        "train/deep/b.jpg": mark(jpeg(2)),
    }
    assert [row["t"] for row in done.rows] == ["0.10", "1", "2"]
    assert done.codes == ["image_missing"]
    assert "train/gone.jpg" in done.messages
    one = await captioned(source, endpoint, tmp_path / "one.jsonl", split="test")
    assert list(one.pictures("file_name")) == ["test/a.jpg"]


async def test_a_broken_row_of_a_subfolder_names_its_table(tmp_path, endpoint):
    source = pictures(tmp_path / "ds", "test/a.jpg", "train/a.jpg")
    for split in ("test", "train"):
        metadata(source / split / "metadata.jsonl", [{"file_name": "a.jpg"}])
    with (source / "train" / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "a.jpg", "x": NaN}\n')
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert len(found.rows) == 2
    assert found.codes == ["bad_json"]
    assert found.messages.startswith("train/metadata.jsonl, line 2: JSON has no NaN")


def test_an_export_does_not_change_what_a_folder_is(tmp_path, endpoint, run_command):
    """The images are captioned again only in a run of their own, and as images."""
    source = pictures(tmp_path / "photos", "a.jpg", "b/c.jpg")
    options = ("--base-url", endpoint.base_url, "--model", "m")
    assert run_command(source, "-o", tmp_path / "out.jsonl", *options).returncode == 0
    target = source / "metadata.jsonl"
    assert run_command("export", tmp_path / "out.jsonl", "--to", target).returncode == 0
    assert [row["file_name"] for row in rows(target)] == ["a.jpg", "b/c.jpg"]
    ended = run_command(source, "-o", tmp_path / "two.jsonl", *options)
    assert (ended.returncode, open_input(source).format) == (0, "images")
    assert "is an export of captions and not read" in ended.stderr
    assert [row["image"] for row in rows(tmp_path / "two.jsonl")] == ["a.jpg", "b/c.jpg"]
    assert open_input(target).format == "imagefolder"
    target.write_text('{"file_name": "a.jpg", "mine": 1}\n')
    assert open_input(source).format == "imagefolder"


def test_the_mark_of_an_export_is_not_written_through_a_link(tmp_path):
    """A stranger's data set may have a link with its name, or a pipe, which is not waited for."""
    source = pictures(tmp_path / "photos", "a.jpg")
    exported, victim = source / "metadata.jsonl", tmp_path / "victim"
    metadata(exported, [{"file_name": "a.jpg"}])
    victim.write_text("precious")
    strange = source / ".metadata.jsonl.captioner"
    strange.symlink_to(victim)
    mark_export(exported)
    assert victim.read_text() == "precious"
    assert open_input(source).format == "images"
    strange.unlink()
    os.mkfifo(strange)
    assert open_input(source).format == "imagefolder"


def test_a_table_without_file_names_does_not_make_an_imagefolder(tmp_path):
    source = pictures(tmp_path / "photos", "a.jpg")
    (source / "metadata.csv").write_text("id,title\n1,x\n")
    assert open_input(source).format == "images"


# -- links and names ------------------------------------------------------------------------------


async def test_links_to_folders_are_followed_but_in_no_circle(tmp_path, endpoint):
    source = pictures(tmp_path / "photos", "a.jpg", "below/b.jpg")
    pictures(tmp_path / "elsewhere", "c.jpg", first=2)
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "below" / "up").symlink_to(source)
    (tmp_path / "elsewhere" / "self").symlink_to(".")
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert found.pictures() == {
        "a.jpg": mark(jpeg(0)), "below/b.jpg": mark(jpeg(1)), "linked/c.jpg": mark(jpeg(2)),
    }  # fmt: skip
    assert "links to folders that were followed: 1" in found.warnings
    assert "links to a folder that contains them, skipped: 2" in found.warnings


async def test_a_pattern_goes_in_no_circle(tmp_path, endpoint):
    source = pictures(tmp_path / "photos", "a.jpg", "below/b.jpg")
    (source / "below" / "up").symlink_to(source)
    found = await captioned(source / "**" / "*.jpg", endpoint, tmp_path / "out.jsonl")
    assert sorted(Path(name).name for name in found.pictures()) == ["a.jpg", "b.jpg"]


async def test_images_behind_a_link_stay_outside_of_an_image_root(tmp_path, endpoint):
    source = pictures(tmp_path / "photos", "a.jpg")
    pictures(tmp_path / "elsewhere", "c.jpg", first=2)
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    found = await captioned(source, endpoint, tmp_path / "out.jsonl", image_root=source)
    assert (list(found.pictures()), found.codes) == (["a.jpg"], ["image_outside_root"])


async def test_names_of_files_that_are_not_utf8(tmp_path, endpoint):
    """They are captioned; a name that is the escaped form of another one is no mixture."""
    source = tmp_path / "photos"
    source.mkdir()
    for number, name in enumerate(["caf\udce9.jpg", "caf\\xe9.jpg", "\udcffz.jpg", "ü.jpg"]):
        Path(f"{source}/{name}").write_bytes(jpeg(number))
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert found.pictures() == {
        "caf\\xe9.jpg": mark(jpeg(1)), "\\xffz.jpg": mark(jpeg(2)), "ü.jpg": mark(jpeg(3)),
    }  # fmt: skip
    assert found.codes == ["image_ambiguous"]


async def test_paths_of_other_systems_and_of_the_web(tmp_path, endpoint):
    """Only if there is no file as it is written."""
    pictures(tmp_path, "d/a b.jpg", "d/c.jpg", "d%20e.jpg", "d e.jpg")
    names = [" d/c.jpg ", '"d/c.jpg"']
    names += ["d\\c.jpg", "d/a%20b.jpg", "d%5Cc.jpg", "d%20e.jpg", f"file://{tmp_path}/d/a%20b.jpg"]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"image": name}) + "\n" for name in names))
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    shown = [mark(jpeg(number)) for number in (1, 1, 1, 0, 1, 2, 0)]
    assert found.pictures() == dict(zip(names, shown, strict=True))


async def test_an_image_that_is_a_pointer_says_so(tmp_path, endpoint):
    """As in a clone without Git LFS."""
    source = pictures(tmp_path / "photos", "a.jpg")
    (source / "b.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert (list(found.pictures()), found.codes) == (["a.jpg"], ["image_unknown_type"])
    assert "b.jpg is a Git LFS pointer" in found.messages


async def test_other_spellings_do_not_leave_the_image_root(tmp_path, endpoint):
    pictures(tmp_path, "secret.jpg", "root/a.jpg")
    source = tmp_path / "root" / "in.jsonl"
    names = ["..\\secret.jpg", "%2e%2e/secret.jpg", "..%5csecret.jpg", "a.jpg"]
    source.write_text("".join(json.dumps({"image": name}) + "\n" for name in names))
    options = {"image_root": tmp_path / "root"}
    found = await captioned(source, endpoint, tmp_path / "out.jsonl", **options)
    assert list(found.pictures()) == ["a.jpg"]
    assert found.codes == ["image_outside_root"] * 3


async def test_a_folder_that_cannot_be_read_is_told(tmp_path, endpoint, monkeypatch):
    source = pictures(tmp_path / "photos", "a.jpg", "closed/b.jpg")
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert list(found.pictures()) == ["a.jpg"]
    assert any("closed (Permission denied) cannot be read" in told for told in found.warnings)


# -- other kinds of files -------------------------------------------------------------------------


async def test_files_of_other_kinds_are_counted_and_told(tmp_path, endpoint):
    """What belongs to an image or to an output of this program is not."""
    source = pictures(tmp_path / "photos", "a.jpg", "below/b.jpg")
    for name in ("a.svg", "below/b.jxl", "below/c.jxl", "notes", "data.jsonl", "a.txt", "b.txt"):
        (source / name).write_text("x")
    output = source / "out.jsonl"
    found = await captioned(source, endpoint, output)
    assert len(found.rows) == 2
    told = [one for one in found.warnings if "skipped" in one]
    assert told[1:] == []
    for part in ("2 .jxl", "1 .svg", "1 .jsonl", "1 without a suffix", "1 .txt", "below/b.jxl"):
        assert part in told[0]
    assert "out.jsonl" not in told[0]


async def test_tables_of_other_kinds_beside_tables_are_told(tmp_path, endpoint):
    source = tmp_path / "tables"
    table(source / "a.parquet", [0])
    pd.DataFrame({"image": ["x.jpg"]}).to_csv(source / "b.csv")
    (source / "c.jsonl").write_text('{"image": "x.jpg"}\n')
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert len(found.rows) == 1
    assert any("1 .csv files, 1 .jsonl files" in told for told in found.warnings)


def test_a_folder_without_images_says_what_it_has(tmp_path):
    (tmp_path / "a.csv").write_text("image\nx.jpg\n")
    with pytest.raises(SettingsError, match=r"but there are 1 \.csv \(such as a\.csv\): name one"):
        open_input(tmp_path)


# -- splits by names ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "data"])
async def test_splits_of_tables_by_their_names(tmp_path, endpoint, place):
    """As push_to_hub names them in the repository of a data set, and people name single files."""
    source = tmp_path / "clone"
    (source / place).mkdir(parents=True)
    data_set([0, 1]).to_parquet(source / place / "train-00000-of-00002.parquet")
    data_set([2]).to_parquet(source / place / "train-00001-of-00002.parquet")
    data_set([3]).to_parquet(source / place / "test-00000-of-00001.parquet")
    data_set([4]).to_parquet(source / place / "val.parquet")
    for split, numbers in (("train", [0, 1, 2]), ("test", [3]), ("validation", [4])):
        found = await captioned(source, endpoint, tmp_path / f"{split}.jsonl", split=split)
        assert sorted(row["n"] for row in found.rows) == numbers
    found = await captioned(source, endpoint, tmp_path / "all.jsonl")
    assert len(found.rows) == 5
    assert "the splits test, train, val are read one after the other" in found.warnings[0]
    with pytest.raises(SettingsError, match="no split 'dev2'; the input has test, train, val"):
        open_input(source, split="dev2")


async def test_splits_of_shards(tmp_path, endpoint):
    source = tmp_path / "shards"
    source.mkdir()
    write_tar(source / "train-000000.tar", [("a.jpg", jpeg(0))])
    write_tar(source / "test-000000.tar", [("b.jpg", jpeg(1))])
    found = await captioned(source, endpoint, tmp_path / "out.jsonl", split="test")
    assert found.pictures() == {"test-000000.tar#b.jpg": mark(jpeg(1))}


async def test_splits_of_folders_of_classes(tmp_path, endpoint):
    source = pictures(tmp_path / "ds", "train/cat/x.jpg", "test/dog/y.jpg", "night/z.jpg")
    for split, name in (("train", "train/cat/x.jpg"), ("night", "night/z.jpg")):
        found = await captioned(source, endpoint, tmp_path / f"{split}.jsonl", split=split)
        assert list(found.pictures()) == [name]
    with pytest.raises(SettingsError, match="no split 'val'; the input has test, train"):
        open_input(source, split="val")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("column", ["image_file_name", "left_file_name"])
async def test_columns_of_file_names_as_datasets_has_them(tmp_path, endpoint, suffix, column):
    source = pictures(tmp_path / "ds", "train/a.jpg", "test/b.jpg")
    for name in ("train/a.jpg", "test/b.jpg"):
        split, _, file = name.partition("/")
        metadata(source / split / f"metadata{suffix}", [{"n": 1, column: file}])
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert found.pictures(column) == {"test/b.jpg": mark(jpeg(1)), "train/a.jpg": mark(jpeg(0))}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
async def test_lists_of_file_names(tmp_path, endpoint, suffix):
    source = pictures(tmp_path / "ds", "train/a.jpg", "train/b.jpg")
    names = [{"file_names": ["a.jpg", "b.jpg"], "t": 1}]
    metadata(source / "train" / f"metadata{suffix}", names)
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert found.rows[0]["file_names"] == ["train/a.jpg", "train/b.jpg"]
    assert endpoint.calls[0].images == [jpeg(0), jpeg(1)]


def test_tables_that_name_files_in_different_columns(tmp_path):
    """One of the columns would be taken for all tables, and the others' images be missing."""
    source = pictures(tmp_path / "ds", "train/a.jpg", "test/b.jpg")
    metadata(source / "train" / "metadata.jsonl", [{"n": 1, "file_name": "a.jpg"}])
    metadata(source / "test" / "metadata.jsonl", [{"n": 1, "left_file_name": "b.jpg"}])
    with pytest.raises(SettingsError, match=r"name files in different columns.*left_file_name"):
        open_input(source)


# -- messages -------------------------------------------------------------------------------------


async def test_an_image_that_cannot_be_read_is_named(tmp_path, endpoint):
    """A saved web page, a cut picture, a file that no decoder knows."""
    source = pictures(tmp_path / "photos", "ok.jpg")
    (source / "page.jpg").write_text("<!doctype html><html></html>")
    (source / "cut.jpg").write_bytes(jpeg(1)[:-200])
    (source / "other.png").write_bytes(b"something else")
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert len(found.rows) == 1
    told = sorted(found.messages.splitlines())
    assert [one.partition(": ")[0] for one in told] == ["cut.jpg", "other.png", "page.jpg"]
    assert told[2] == "page.jpg: the file is not an image but a web page"


async def test_links_to_nothing_hide_no_other_file(tmp_path, endpoint):
    """They fail one by one, in a folder and in a pattern."""
    source = pictures(tmp_path / "photos", "a.jpg", "z.jpg")
    (source / "self.jpg").symlink_to(source / "self.jpg")
    (source / "gone.jpg").symlink_to("nothing")
    for number, place in enumerate((source, source / "*.jpg")):
        found = await captioned(place, endpoint, tmp_path / f"{number}.jsonl")
        assert len(found.rows) == 2
        assert sorted(found.codes) == ["image_missing", "image_unreadable"]


@pytest.mark.parametrize("several", [False, True])
async def test_images_of_datasets_under_a_name_of_their_own(tmp_path, endpoint, several):
    """A column of images or of lists of images, as in the clone of a repository."""
    one = {"bytes": jpeg(0), "path": None}
    kind = datasets.List(datasets.Image()) if several else datasets.Image()
    features = datasets.Features({"t": datasets.Value("string"), "picture": kind})
    rows_of_set = {"t": ["x"], "picture": [[one, one] if several else one]}
    made = datasets.Dataset.from_dict(rows_of_set, features=features)
    made.to_parquet(tmp_path / "clone" / "train-00000-of-00001.parquet")
    found = await captioned(tmp_path / "clone", endpoint, tmp_path / "out.jsonl")
    assert len(found.rows) == 1
    assert endpoint.calls[0].images == [jpeg(0)] * (1 + several)


async def test_a_delta_table_is_told(tmp_path, endpoint):
    """Its folder holds files of earlier versions."""
    source = tmp_path / "delta"
    table(source / "part-0.parquet", [0])
    (source / "_delta_log").mkdir()
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert "is a Delta table, and files of its earlier versions are read" in found.warnings[0]
