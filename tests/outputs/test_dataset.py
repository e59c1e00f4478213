"""Data sets for Hugging Face: Parquet with the images, a card, and their upload.

They are read back by `datasets`, and uploaded by the real huggingface_hub to a hub on loopback.
"""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import command, jpeg
from hub import WritableHub, taking
from waiting import LIMIT_S

from captioner import SettingsError, run_batch
from captioner.outputs.export import dataset

TOKEN = "hf_secretsecretsecret1234"
IMAGES = [jpeg(number, (40 + number, 30)) for number in range(5)]

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def source(tmp_path) -> Path:
    for number, data in enumerate(IMAGES):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    records: list[dict[str, Any]] = [
        {"image": "0.jpg", "tags": ["a"], "more": {"x": 1, "y": ["z"]}, "big": 2**53 + 1},
        {"image": "1.jpg", "tags": [], "big": 0.5},
        {"image": "missing.jpg"},
        {"image": "2.jpg"},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def output(source, endpoint):
    """Caption the source with some options; returns the output."""

    async def output(**options: Any) -> Path:
        path = source.parent / "out.jsonl"
        await run_batch(source, path, **{"base_url": endpoint.base_url, "model": "m", **options})
        return path

    return output


@pytest.fixture
def hub(monkeypatch):
    """A hub on loopback, for the command; returns the files of user/name and what made it."""
    files: dict[str, bytes] = {}
    made: list[dict[str, object]] = []
    with taking("user/name", files, TOKEN, made) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield files, made


def loaded(folder: Path) -> datasets.Dataset:
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(folder / "cache"))


async def test_a_folder_is_loaded_with_its_images(output, tmp_path, run_command):
    """Every field has a type that `datasets` knows, images are byte for byte those of the input."""
    path = await output(prompt="Describe it ```exactly```.", temperature=0)
    ended = run_command("export", path, "--to", f"{tmp_path}/made/", "--to-format", "dataset")
    assert ended.returncode == 0, ended.stderr
    found = loaded(tmp_path / "made")
    assert isinstance(found.features["image"], datasets.Image)
    assert [row["image"].size for row in found] == [(40, 30), (41, 30), (42, 30)]
    raw = found.cast_column("image", datasets.Image(decode=False))
    assert [row["image"] for row in raw] == [
        {"bytes": IMAGES[number], "path": f"{number}.jpg"} for number in range(3)
    ]
    assert all(row["caption"] for row in found)
    assert [row["tags"] for row in found] == [["a"], [], None]
    assert found[0]["more"] == {"x": 1, "y": ["z"]}
    assert found[0]["big"] == str(2**53 + 1)  # no type holds it and 0.5
    card = (tmp_path / "made" / "README.md").read_text()
    assert "````text\nDescribe it ```exactly```.\n````" in card
    assert "## 3 captions by `m`" in card
    assert "1 image_missing" in card
    assert "| captions that repeat another | " in card


async def test_rows_that_several_settings_made_are_told_apart(output, tmp_path, run_command):
    await output(prompt="First?", limit=1)
    path = await output(prompt="Second?", model="n", accept_changes=True)
    assert run_command("export", path, "--to", tmp_path / "a", "--to-format", "dataset")
    card = (tmp_path / "a" / "README.md").read_text()
    first, second = card.partition("## 2 captions by `n`\n")[2].split("## 1 caption by `m`\n")
    assert "```text\nSecond?\n```" in first
    assert "```text\nFirst?\n```" in second


async def test_shards_are_bounded_and_old_ones_go(output, tmp_path, run_command, monkeypatch):
    """Each shard has as much as it may; an export with fewer leaves none of the earlier ones."""
    from captioner.outputs.export import export

    path = await output()
    monkeypatch.setattr(dataset, "GROUP_ROWS", 1)
    monkeypatch.setattr(dataset, "SHARD_BYTES", 1)
    export(path, tmp_path / "a", "dataset")
    assert len(list((tmp_path / "a" / "data").iterdir())) == 3
    assert len(loaded(tmp_path / "a")) == 3
    again = "export", path, "--to", tmp_path / "a", "--to-format", "dataset"
    refused = run_command(*again)
    assert refused.returncode == 2
    assert "replace the data set with --overwrite" in refused.stderr
    assert run_command(*again, "--overwrite").returncode == 0
    assert [one.name for one in (tmp_path / "a" / "data").iterdir()] == ["train-00000.parquet"]


async def test_a_run_can_write_a_data_set_and_continue_it(source, endpoint):
    """The folder is written when the run is complete, and again when it goes on."""
    target = source.parent / "made"
    options = {"base_url": endpoint.base_url, "model": "m", "output_format": "dataset"}
    await run_batch(source, target, **options, limit=2)
    shard = target / "data" / "train-00000.parquet"
    assert pq.read_table(shard).num_rows == 2
    await run_batch(source, target, **options)
    assert pq.read_table(shard).num_rows == 3
    (target / "README.md").write_text("# Mine\n")
    (source.parent / "in.jsonl").write_text('{"image": "3.jpg"}\n')
    with pytest.raises(SettingsError, match=r"README.md exists; replace the data set with --over"):
        await run_batch(source, target, **options)
    assert (target / "README.md").read_text() == "# Mine\n"


async def test_images_of_tables_and_several_of_a_record(tmp_path, endpoint, run_command):
    """Images inside the input are copied; records with several make a column of lists."""
    pq.write_table(pa.table({"image": pa.array(IMAGES[:2], pa.binary())}), tmp_path / "in.parquet")
    options = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(tmp_path / "in.parquet", tmp_path / "a.jsonl", **options)
    made = run_command(
        "export", tmp_path / "a.jsonl", "--to", tmp_path / "a", "--to-format=dataset"
    )
    assert made.returncode == 0, made.stderr
    assert [row["image"].size for row in loaded(tmp_path / "a")] == [(40, 30), (41, 30)]
    for number in (3, 4):
        (tmp_path / f"{number}.jpg").write_bytes(IMAGES[number])
    (tmp_path / "in.jsonl").write_text('{"image": ["3.jpg", "4.jpg"]}\n{"image": "4.jpg"}\n')
    await run_batch(tmp_path / "in.jsonl", tmp_path / "b.jsonl", **options)
    made = run_command(
        "export", tmp_path / "b.jsonl", "--to", tmp_path / "b", "--to-format=dataset"
    )
    assert made.returncode == 0, made.stderr
    sizes = [[one.size for one in row["images"]] for row in loaded(tmp_path / "b")]
    assert sizes == [[(43, 30), (44, 30)], [(44, 30)]]


async def test_a_data_set_is_uploaded(output, hub, tmp_path, run_command):
    """It is private, loads from the hub, and a second export replaces it as a whole."""
    files, made = hub
    path = await output(limit=2)
    ended = run_command("export", path, "--to", "hf:user/name")
    assert ended.returncode == 0, ended.stderr
    assert "2 captioned, 0 failed, 2 pending of 4 records" in ended.stderr
    assert TOKEN not in ended.stderr + ended.stdout
    assert made[0]["visibility"] == "private"
    assert set(files) == {"README.md", "data/train-00000.parquet"}
    assert b'load_dataset("user/name", split="train")' in files["README.md"]
    for name, data in files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    assert [row["image"].size for row in loaded(tmp_path / "copy")] == [(40, 30), (41, 30)]

    path = await output()
    before = dict(files)
    refused = run_command("export", path, "--to", "hf:user/name")
    assert (refused.returncode, files) == (2, before)
    assert "replace it with --overwrite" in refused.stderr
    files["data/train-00007.parquet"] = b"of an earlier export"
    files["notes.txt"] = b"the owner's"
    assert run_command("export", path, "--to", "hf:user/name", "--overwrite").returncode == 0
    assert set(files) == {"README.md", "data/train-00000.parquet", "notes.txt"}
    assert files["data/train-00000.parquet"] != before["data/train-00000.parquet"]


@pytest.mark.parametrize(
    ("name", "token", "told"),
    [
        ("user/name", "hf_wrong_wrong_wrong_9876", "Set HF_TOKEN to a token that may write"),
        ("other/name", TOKEN, "the token may not write to the data set other/name"),
        ("not a name", TOKEN, "the hub refuses the data set not a name"),
    ],
)
async def test_a_hub_that_refuses_is_told(output, hub, run_command, monkeypatch, name, token, told):
    """The run ends with one sentence, in which there is no token, and nothing is uploaded."""
    monkeypatch.setenv("HF_TOKEN", token)
    ended = run_command("export", await output(), "--to", f"hf:{name}")
    assert ended.returncode == 2
    assert told in ended.stderr
    assert token not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not hub[0]


async def test_a_hub_that_cannot_be_reached_is_told(output, run_command, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ended = run_command("export", await output(), "--to", "hf:user/name")
    assert ended.returncode == 2
    assert "the hub cannot be reached. Check the network, or HF_ENDPOINT" in ended.stderr


async def test_a_signal_ends_an_upload_that_hangs(output, hub, monkeypatch, tmp_path):
    """Xet, by which the library uploads, asks for its token for minutes, and heeds no signal."""
    pytest.importorskip("hf_xet")
    asked = threading.Event()
    answer = WritableHub.do_GET

    def noting(self: WritableHub) -> None:
        answer(self)
        if "xet-write-token" in self.path:
            asked.set()

    monkeypatch.setattr(WritableHub, "do_GET", noting)
    monkeypatch.delenv("HF_HUB_DISABLE_XET")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    words = command("export", await output(), "--to", "hf:user/name")
    # The hub answers in a thread.
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:  # noqa: ASYNC220
        assert asked.wait(LIMIT_S)
        process.terminate()
        assert process.wait(LIMIT_S) == 143
    assert not hub[0]
    assert not list((tmp_path / "temporary").glob("captioner-hub-*"))


async def test_a_run_does_not_write_to_the_hub(source, endpoint, run_command):
    words = "--base-url", endpoint.base_url, "--model", "m"
    ended = run_command(source, "-o", "hf:user/name", *words)
    assert (ended.returncode, endpoint.count) == (2, 0)
    assert "captioner export FILE --to hf:user/name" in ended.stderr
