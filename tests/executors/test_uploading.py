"""Outputs whose address is in an object store: written here, uploaded when they are complete."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import rows
from fsspec.implementations.memory import MemoryFileSystem

from captioner import SettingsError, run_batch
from captioner.core.cancellation import CancelToken
from captioner.core.errors import LimitReachedError, UploadError
from captioner.outputs.check import check_output
from captioner.outputs.export import check_format, export

URL = "memory://bucket/to/out.jsonl"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    """An empty store; the current folder is an empty one beside the input."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def held(system: MemoryFileSystem, name: str = "/bucket/to/out.jsonl") -> list[Any]:
    return [json.loads(line) for line in system.cat_file(name).splitlines()]


async def test_the_rows_are_here_and_there(store, make_input, endpoint) -> None:
    """The files beside the output stay in the current folder; a second run replaces the object."""
    options: dict[str, Any] = {"base_url": endpoint.base_url, "model": "m", "probe": False}
    source = make_input(4)
    with pytest.raises(LimitReachedError):
        await run_batch(source, URL, **options, budget_tokens=1, concurrency=1)
    assert store.find("/") == []
    assert 0 < len(rows(Path("out.jsonl"))) < 4
    sent = len(endpoint.calls)
    report = await run_batch(source, URL, **options)
    assert (report.output, report.complete, len(endpoint.calls)) == ("out.jsonl", True, 4)
    assert sent < 4
    assert store.find("/") == ["/bucket/to/out.jsonl"]
    assert held(store) == rows(Path("out.jsonl"))
    assert Path("out.jsonl.ckpt").is_file()
    await run_batch(make_input(6), URL, **options)
    assert [row["id"] for row in held(store)] == [*range(6)]
    checked = await check_output(URL)
    assert (checked.output, checked.captioned) == (URL, 6)


@pytest.mark.parametrize("name", ["out.csv", "out.parquet", "out-%05d.tar"])
async def test_other_formats(store, make_input, endpoint, name) -> None:
    """The exported file is uploaded, and each shard of a numbered one; the journal is not."""
    options: dict[str, Any] = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(make_input(3), f"memory://bucket/{name}", **options)
    (there,) = store.find("/")
    assert there == f"/bucket/{name}".replace("%05d", "00000")
    local = Path(there.rpartition("/")[2])
    assert store.cat_file(there) == local.read_bytes()
    assert len(rows(Path(f"{name}.jsonl"))) == 3
    assert (await check_output(Path(name))).captioned == 3
    with pytest.raises(SettingsError, match=f"is not JSON Lines, .* name {name} in the folder"):
        await check_output(f"memory://bucket/{name}")


async def test_what_is_there_is_not_replaced(store, make_input, endpoint) -> None:
    """An object that no journal here was written for costs no request; the message says why."""
    options: dict[str, Any] = {"base_url": endpoint.base_url, "model": "m"}
    store.pipe_file("/bucket/to/out.jsonl", b'{"a": 1}\n')
    store.pipe_file("/bucket/out-00000.tar", b"x")
    source = make_input(2)
    with pytest.raises(SettingsError, match=r"exists, but out\.jsonl.* is not here: download it"):
        await run_batch(source, URL, **options)
    with pytest.raises(SettingsError, match=r"exists, but .* choose another name"):
        await run_batch(source, "memory://bucket/out-%05d.tar", **options)
    assert [*Path().iterdir()] == []
    await run_batch(source, "out.jsonl", **options)
    with pytest.raises(SettingsError, match=r"exists, but out\.jsonl.* was not written to it"):
        await run_batch(source, URL, **options)
    assert held(store) == [{"a": 1}]
    assert len(endpoint.calls) == 2
    await run_batch(source, URL, **options, overwrite=True)
    assert [row["id"] for row in held(store)] == [0, 1]


async def test_an_object_that_was_downloaded_is_continued(store, make_input, endpoint) -> None:
    """What the message of a missing journal proposes works."""
    options: dict[str, Any] = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(make_input(2), URL, **options)
    for path in Path().iterdir():
        path.unlink()
    store.get_file("/bucket/to/out.jsonl", "out.jsonl")
    await run_batch(make_input(3), URL, **options)
    assert len(endpoint.calls) == 3
    assert [row["id"] for row in held(store)] == [0, 1, 2]


async def test_a_store_that_refuses(store, make_input, endpoint, monkeypatch) -> None:
    """The rows stay here; the command of the message uploads them."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no")

    options: dict[str, Any] = {"base_url": endpoint.base_url, "model": "m"}
    source = make_input(2)
    with monkeypatch.context() as broken:
        broken.setattr(MemoryFileSystem, "put_file", refuse)
        with pytest.raises(UploadError) as raised:
            await run_batch(source, URL, **options)
        assert str(raised.value).startswith(f"cannot upload {URL}: it is forbidden")
        command = f"export out.jsonl --to {URL} --overwrite"
        assert "captions are safe in out.jsonl" in str(raised.value)
        assert str(raised.value).endswith(command)
        assert raised.value.exit_code == 9
        assert raised.value.report is not None
        assert raised.value.report.captioned == 2
        with pytest.raises(UploadError):
            export(Path("out.jsonl"), Path(URL), "jsonl")
    assert store.find("/") == []
    export(Path("out.jsonl"), Path(URL), check_format(Path(URL)), overwrite=True)
    assert held(store) == rows(Path("out.jsonl"))


async def test_a_stop_ends_the_wait_for_a_store(store, make_input, endpoint, monkeypatch) -> None:
    """A store that hangs does not hold the run."""
    cancel, over = CancelToken(), threading.Event()
    loop = asyncio.get_running_loop()

    def hang(*_: object, **__: object) -> None:
        loop.call_soon_threadsafe(cancel.request)
        over.wait()

    monkeypatch.setattr(MemoryFileSystem, "put_file", hang)
    options: dict[str, Any] = {"base_url": endpoint.base_url, "model": "m", "cancel": cancel}
    report = await run_batch(make_input(2), URL, **options)
    over.set()
    assert (report.stopped, report.captioned) == ("interrupted", 2)
    assert len(rows(Path("out.jsonl"))) == 2


def test_an_export_does_not_replace_an_object(store) -> None:
    """It needs --overwrite, as for a file."""
    Path("out.jsonl").write_text('{"image": "a.jpg", "caption": "c"}\n')
    export(Path("out.jsonl"), Path("memory://bucket/out.csv"), "csv")
    assert store.cat_file("/bucket/out.csv").split() == [b"image,caption", b"a.jpg,c"]
    with pytest.raises(SettingsError, match=r"memory://bucket/out\.csv exists"):
        export(Path("out.jsonl"), Path("memory://bucket/out.csv"), "csv")


async def test_addresses_that_cannot_be_outputs(store, make_input, endpoint) -> None:
    """They are refused before anything is sent or written."""
    options: dict[str, Any] = {"base_url": endpoint.base_url, "model": "m"}
    for url, reason in {
        "s3://bucket": "names no object",
        "s3://bucket/..": "names no object",
        "s3://bucket/-": "names no object",
        "s3://bucket/folder/": r"is a folder\..* and \.sqlite$",  # no format of several files
        "file:///tmp/out.jsonl": "write its path without file:",
        "memory://bucket/out.xyz": "unknown ending",
    }.items():
        with pytest.raises(SettingsError, match=reason):
            await run_batch(make_input(1), url, **options)
    with pytest.raises(SettingsError, match="txt is written into a folder"):
        await run_batch(make_input(1), "memory://b/x", **options, output_format="txt")
    store.pipe_file("/bucket/in.jsonl", b'{"image": "a.jpg"}\n')
    with pytest.raises(SettingsError, match="would overwrite the input memory:"):
        await run_batch("memory://bucket/in.jsonl", "memory://bucket/in.jsonl", **options)
    assert ([*Path().iterdir()], endpoint.calls) == ([], [])


async def test_a_folder_as_the_input_is_no_empty_file(store, endpoint) -> None:
    """S3 reads one as an empty file, and nothing was to be done."""
    store.pipe_file("/photos/set/a.jpg", b"x")
    options: dict[str, Any] = {"base_url": endpoint.base_url, "model": "m"}
    with pytest.raises(SettingsError, match=r"memory://photos/set is a folder, and from an object"):
        await run_batch("memory://photos/set", URL, **options)
    assert store.find("/") == ["/photos/set/a.jpg"]
