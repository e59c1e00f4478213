"""S3 through the real s3fs, on moto's server."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import jpeg, rows
from endpoint import FakeEndpoint
from real_servers import RealServer

from captioner import SettingsError, run_batch
from captioner.errors import StoreGaveOutError, UploadError
from captioner.outputs.check import check_output

s3fs = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def server(started: Callable[..., RealServer]) -> str:
    return started("moto").url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket ``photos``."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    if system.exists("photos"):
        system.rm("photos", recursive=True)
    system.mkdir("photos")
    return system


def lines(*images: str) -> str:
    return "".join(json.dumps({"image": image, "prompt": image}) + "\n" for image in images)


async def test_images_in_a_bucket(bucket, tmp_path: Path, endpoint: FakeEndpoint) -> None:
    """Small and large objects are sent whole; what is missing fails its own record."""
    large = jpeg(2, (2_400, 1_200), quality=100) + bytes(1 << 20)
    bucket.pipe_file("photos/in/small.jpg", jpeg(1))
    bucket.pipe_file("photos/in/large.jpg", large)
    source = tmp_path / "in.jsonl"
    names = (
        "photos/in/small.jpg",
        "photos/in/large.jpg",
        "photos/none.jpg",
        "nobucket/a.jpg",
        "photos/in/",
        "photos",
    )
    source.write_text(lines(*(f"s3://{name}" for name in names)))
    report = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert {row["image"] for row in rows(Path(report.output))} == {
        "s3://photos/in/small.jpg",
        "s3://photos/in/large.jpg",
    }
    failed = {row["record"]["image"]: row["code"] for row in rows(Path(report.failures))}
    assert failed["s3://photos/none.jpg"] == failed["s3://nobucket/a.jpg"] == "image_missing"
    assert len(failed) == 4
    sent = {call.texts[-1]: call.images[0] for call in endpoint.calls}
    assert sent["s3://photos/in/small.jpg"] == jpeg(1)


@pytest.mark.parametrize("ending", ["", ".gz"])
async def test_input_in_a_bucket(bucket, tmp_path, endpoint, run_command, ending) -> None:
    """It is read and continued; its URL is shown as it was typed."""
    bucket.pipe_file("photos/a.jpg", jpeg(1))
    url = f"s3://photos/in.jsonl{ending}"
    text = lines(*["s3://photos/a.jpg"] * 3)
    bucket.pipe_file(url, gzip.compress(text.encode()) if ending else text.encode())
    output = tmp_path / "out.jsonl"
    common = (url, "-o", output, "--base-url", endpoint.base_url, "--model", "m", "--no-probe")
    stopped = run_command(
        *common, "--budget-tokens", 1, "--concurrency", 1, "--no-dedup", env=os.environ
    )
    assert stopped.returncode == 8, stopped.stderr
    assert f"captioner {url} -o {output}" in stopped.stderr
    finished = run_command(*common, "--budget-tokens", 10_000, env=os.environ)
    assert finished.returncode == 0, finished.stderr
    assert len(rows(output)) == 3
    assert (await check_output(output)).pending is None
    checked = await check_output(output, url)
    assert (checked.input, checked.pending, checked.orphans) == (url, 0, 0)


async def test_input_that_cannot_be_read(bucket, tmp_path, monkeypatch) -> None:
    """It is wrong use, and said in one sentence."""
    options = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "output": tmp_path / "out.jsonl"}
    for url in ("s3://photos/none.jsonl", "s3://nobucket/in.jsonl"):
        with pytest.raises(SettingsError, match=f"^cannot read the input {url}: there is no such"):
            await run_batch(url, **options)
    bucket.pipe_file("photos/in.csv", b"image\na.jpg\n")
    with pytest.raises(SettingsError, match=r"cannot read s3://photos/in.csv as csv"):
        await run_batch("s3://photos/in.csv", **options)
    _take_down(monkeypatch)
    with pytest.raises(
        SettingsError, match=r"^cannot read the input s3://photos/in.jsonl: Could not"
    ):
        await run_batch("s3://photos/in.jsonl", **options)
    assert [*tmp_path.iterdir()] == []


async def test_a_store_that_is_down_leaves_all_records_pending(
    bucket, tmp_path, endpoint, monkeypatch
) -> None:
    """The run stops within the first round of reads."""
    source = tmp_path / "in.jsonl"
    source.write_text(lines(*(f"s3://photos/{number}.jpg" for number in range(60))))
    _take_down(monkeypatch)
    with pytest.raises(StoreGaveOutError, match="Could not connect") as raised:
        await run_batch(source, base_url=endpoint.base_url, model="m")
    report = raised.value.report
    assert report is not None
    assert (report.captioned, report.failed, endpoint.calls) == (0, 0, [])


def _take_down(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    s3fs.S3FileSystem.clear_instance_cache()


def test_output_in_a_bucket(bucket, tmp_path, endpoint, run_command) -> None:
    """It is made here, continued from here, and uploaded; the address is read like a path."""
    bucket.pipe_file("photos/a.jpg", jpeg(1))
    bucket.pipe_file("photos/in.jsonl", lines(*["s3://photos/a.jpg"] * 3).encode())
    url = "s3://photos/to/out.jsonl"
    common = ("s3://photos/in.jsonl", "-o", url, "--base-url", endpoint.base_url, "--model", "m")
    common = (*common, "--no-probe")
    where: dict[str, Any] = {"env": os.environ, "cwd": tmp_path}
    stopped = run_command(*common, "--budget-tokens", 1, "--concurrency", 1, "--no-dedup", **where)
    assert stopped.returncode == 8, stopped.stderr
    assert f"captioner s3://photos/in.jsonl -o {url}" in stopped.stderr
    assert not bucket.exists("photos/to")
    finished = run_command(*common, "--budget-tokens", 10_000, **where)
    assert finished.returncode == 0, finished.stderr
    assert f"uploaded: {url}" in finished.stderr
    assert bucket.cat_file(url) == (tmp_path / "out.jsonl").read_bytes()
    for word in ("check", "report"):
        told = run_command(word, url, **where)
        assert told.stdout.startswith(f"{url}: 3 caption"), told.stderr
    (tmp_path / "out.jsonl").rename(tmp_path / "moved.jsonl")
    refused = run_command(*common, **where)
    assert refused.returncode == 2
    assert f"{url} exists, but out.jsonl" in refused.stderr
    exported = run_command("export", "moved.jsonl", "--to", "s3://photos/out.csv", **where)
    assert exported.returncode == 0, exported.stderr
    assert len(bucket.cat_file("photos/out.csv").splitlines()) == 4


def test_an_upload_that_fails(bucket, tmp_path, endpoint, run_command, make_input) -> None:
    """A bucket that is missing is told at once; a store that is gone at the end leaves the rows."""
    common = (make_input(2), "--base-url", endpoint.base_url, "--model", "m")
    where: dict[str, Any] = {"env": os.environ, "cwd": tmp_path}
    refused = run_command(*common, "-o", "s3://nobucket/out.jsonl", **where)
    assert refused.returncode == 2
    assert "there is no bucket nobucket" in refused.stderr
    assert not endpoint.calls
    url = "s3://nobucket/out.jsonl"
    failed = run_command(*common, "-o", url, "--overwrite", **where)
    assert failed.returncode == 9, failed.stderr
    assert "the captions are safe in out.jsonl" in failed.stderr.replace("The", "the")
    bucket.mkdir("nobucket")
    again = failed.stderr.rpartition("captioner export ")[2].split()
    assert again == ["out.jsonl", "--to", url, "--overwrite"]
    done = run_command("export", *again, **where)
    assert done.returncode == 0, done.stderr
    assert bucket.cat_file(url) == (tmp_path / "out.jsonl").read_bytes()
    bucket.rm("nobucket", recursive=True)


async def test_a_large_upload_that_breaks_leaves_nothing(bucket, tmp_path, monkeypatch) -> None:
    """An object of several parts appears whole or not at all."""
    from captioner.outputs.export.store import start_upload

    path = tmp_path / "large.jsonl"
    path.write_bytes(bytes(120_000_000))
    sent = s3fs.S3FileSystem._call_s3
    parts = []

    async def failing(self: Any, method: Any, *arguments: Any, **options: Any) -> Any:
        if method == "upload_part":
            parts.append(options["PartNumber"])
            if len(parts) == 2:
                raise OSError("the line is cut")
        return await sent(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", failing)
    with pytest.raises(UploadError, match="the line is cut"):
        start_upload([path], "s3://photos/large.jsonl").result()
    assert parts
    assert not bucket.exists("photos/large.jsonl")


def test_all_in_a_bucket_on_ray(bucket, tmp_path, endpoint, run_command) -> None:
    """Input, images and output; the output is checked, continued and exported by its URL."""
    for number in range(6):
        bucket.pipe_file(f"photos/{number}.jpg", jpeg(number))
    records = [
        {"id": number, "image": f"s3://photos/{number}.jpg", "prompt": "q"} for number in range(7)
    ]
    bucket.pipe_file("photos/in.jsonl", "\n".join(map(json.dumps, records)).encode())
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    source, output = "s3://photos/in.jsonl", "s3://photos/to/out.jsonl"
    line = (source, "-o", output, "--engine", "ray", "--workers", 1, "--no-probe")
    line = (*line, "--base-url", endpoint.base_url, "--model", "m")
    ran = run_command(*line, env=environment, cwd=tmp_path, timeout=280)
    assert ran.returncode == 3, ran.stderr
    assert f"captions: {output}\n" in ran.stderr
    assert "1 failed: s3://photos/to/out.failed.jsonl\n" in ran.stderr
    assert {Path(name).name for name in bucket.find("photos/to")} == {
        "out.jsonl",
        "out.failed.jsonl",
        "out.jsonl.ckpt",
    }
    written = [json.loads(line) for line in bucket.cat_file("photos/to/out.jsonl").splitlines()]
    assert [row["id"] for row in written] == [*range(6)]

    checked = run_command("check", output, "--input", source, env=environment, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith(f"{output}: 6 captioned, 1 failed, 0 pending of {source}")

    told = run_command("report", output, env=environment, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"{output}: 6 captions, 1 failed")

    shown = run_command("view", output, env=environment, cwd=tmp_path)
    assert shown.returncode == 2
    assert f"copy {output} and the files whose names begin alike" in shown.stderr

    exported = run_command("export", output, "--to", "out.csv", env=environment, cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


async def test_outputs_that_cannot_be_read(bucket, tmp_path, run_command, monkeypatch) -> None:
    """The message has the URL, and nothing is written beside it or to a folder of its name."""
    with pytest.raises(
        SettingsError, match=r"^cannot read the output s3://photos/out\.jsonl: there is no such"
    ):
        await check_output("s3://photos/out.jsonl")
    source = tmp_path / "captions.jsonl"
    source.write_text('{"image": "a.jpg", "caption": "c"}\n')
    for url in ("s3://photos", "s3://photos/"):
        refused = run_command("export", source, "--to", url, "--to-format", "csv", cwd=tmp_path)
        assert refused.returncode == 2, refused.stderr
        assert "names no object" in refused.stderr or "is a folder" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["captions.jsonl"]
    _take_down(monkeypatch)
    with pytest.raises(SettingsError, match=r"s3://photos/out\.jsonl: Could not connect"):
        await check_output("s3://photos/out.jsonl")
