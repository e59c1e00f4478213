"""A run on a small Ray here: the same output, whatever dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import command, jpeg, rows
from endpoint import Call, FakeEndpoint, Reply, completion, start_and
from waiting import LIMIT_S

import captioner
from captioner import CancelToken, CaptionBatch, SettingsError, run_batch, run_on_ray
from captioner.settings.settings import Settings

pytestmark = [
    pytest.mark.xdist_group("heavy"),  # Ray starts processes for every core
    # What Ray leaves open is Ray's to close.
    pytest.mark.filterwarnings("ignore"),
]
IN_FLIGHT = 16


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Workers import this same package, and what tests have in them is not theirs.
    root = str(Path(captioner.__file__).parent.parent)
    ray.init(
        num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False,
        configure_logging=False, runtime_env={"env_vars": {"PYTHONPATH": root}},
    )  # fmt: skip
    yield ray
    ray.shutdown()


def settings(source: Path, output: Path, endpoint: FakeEndpoint, **more: Any) -> Settings:
    options = {
        "base_url": endpoint.base_url, "model": "m", "concurrency": IN_FLIGHT, "engine": "ray",
        "workers": 2, "shards": 5, **more,
    }  # fmt: skip
    return Settings.create(source, output, **options)


async def test_five_thousand_records_come_out_as_from_one_process(ray, tmp_path, endpoint):
    """Byte for byte, failures too; and nothing but the output is left."""
    endpoint.keep_bodies = False
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    lines = [json.dumps({"id": n, "image": "a.jpg", "prompt": f"q{n}"}) for n in range(5_000)]
    lines[17] = "no JSON"
    lines[40] = '{"id": 40, "image": "no.jpg"}'
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines) + "\n")
    one = await run_batch(
        source, tmp_path / "one.jsonl", base_url=endpoint.base_url, model="m", concurrency=IN_FLIGHT
    )
    count = endpoint.count
    two = await run_on_ray(settings(source, tmp_path / "two.jsonl", endpoint, concurrency=64))
    assert endpoint.count == 2 * count
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    failed = [rows(tmp_path / f"{name}.failed.jsonl") for name in ("one", "two")]
    assert sorted(map(str, failed[0])) == sorted(map(str, failed[1]))
    for name in ("captioned", "failed", "calls", "resumed", "complete", "prompt_tokens", "codes"):
        assert getattr(one, name) == getattr(two, name), name
    assert not (tmp_path / "two.jsonl.shards").exists()


def children_of(process: int, name: str) -> list[int]:
    """Return the children of a process whose command line contains a name, by their ids."""
    words = ["pgrep", "-f", "-P", str(process), name]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    return [int(one) for one in found.stdout.split()]


async def test_an_actor_that_is_killed_costs_what_was_in_flight(ray, make_input, endpoint):
    endpoint.latency_s = 0.05
    source = make_input(300)
    output = source.with_name("out.jsonl")

    def kill() -> None:
        raylets = children_of(os.getpid(), "raylet")
        actors = [found for one in raylets for found in children_of(one, "ray::ShardRunner")]
        os.kill(actors[0], signal.SIGKILL)

    endpoint.on_request[100] = kill
    warnings: list[str] = []
    report = await run_on_ray(settings(source, output, endpoint), warn=warnings.append)
    assert report.complete
    assert [row["id"] for row in rows(output)] == list(range(300))
    assert any("died" in text for text in warnings)
    assert endpoint.count <= 300 + IN_FLIGHT


async def test_a_run_that_was_stopped_goes_on_with_other_workers(ray, make_input, endpoint):
    """And a run that began on one machine goes on upon many, and back."""
    endpoint.latency_s = 0.03
    source = make_input(200)
    output = source.with_name("out.jsonl")
    local = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(source, output, **local, limit=30)
    cancel, loop = CancelToken(), asyncio.get_running_loop()
    endpoint.on_request[90] = lambda: loop.call_soon_threadsafe(cancel.request)
    report = await run_on_ray(settings(source, output, endpoint), cancel=cancel)
    assert not report.complete
    assert report.resumed <= 30
    with pytest.raises(SettingsError, match="--ray"):
        await run_batch(source, output, **local)
    report = await run_on_ray(settings(source, output, endpoint, workers=1, shards=None))
    assert report.complete
    assert endpoint.given == 200
    assert [row["id"] for row in rows(output)] == list(range(200))
    report = await run_batch(source, output, **local)
    assert (report.resumed, report.captioned) == (200, 0)


class Quota:
    """Grants 600 requests a minute, of which 20 are left at first."""

    def __init__(self) -> None:
        self.left, self.at, self.rejected = 20.0, time.monotonic(), 0

    def __call__(self, call: Call) -> Reply:
        now = time.monotonic()
        self.left, self.at = min(600.0, self.left + (now - self.at) * 10), now
        if self.left < 1:
            self.rejected += 1
            return Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"})
        self.left -= 1
        return Reply(body=completion(f"c{call.number}"))


async def test_a_quota_is_kept_by_two_workers_together(ray, make_input, endpoint):
    endpoint.behave = quota = Quota()
    source = make_input(80)
    output = source.with_name("out.jsonl")
    report = await run_on_ray(settings(source, output, endpoint, rpm=600, shards=2))
    assert report.captioned == 80
    # The buckets of the run begin full, the server's does not: what is in flight then is refused,
    # and some of it again when a pause is over; who ignores pauses is refused hundreds of times.
    assert quota.rejected <= 3 * IN_FLIGHT


async def test_rows_with_images_in_them(ray, tmp_path, endpoint):
    images = [jpeg(number) for number in range(20)]
    pq.write_table(pa.table({"image": pa.array(images), "n": range(20)}), tmp_path / "in.parquet")
    output = tmp_path / "out.parquet"
    report = await run_on_ray(settings(tmp_path / "in.parquet", output, endpoint))
    assert report.captioned == 20
    assert sorted(call.images[0] for call in endpoint.calls) == sorted(images)
    found = pq.read_table(output)
    assert found["n"].to_pylist() == list(range(20))
    assert found["image"].to_pylist() == images


async def test_input_and_output_in_an_object_store(ray, tmp_path, make_input, endpoint):
    """Through fsspec, here with a file system that stands for one; continued, too."""
    source = make_input(40)
    place = tmp_path / "store"
    place.mkdir()
    (place / "in.jsonl").write_bytes(source.read_bytes())
    (place / "images").symlink_to(tmp_path / "images")
    stored = settings(
        Path(f"file:/{place}/in.jsonl"), Path(f"file:/{place}/out.jsonl"), endpoint,
        image_root=tmp_path,
    )  # fmt: skip
    report = await run_on_ray(stored)
    assert (report.captioned, report.complete) == (40, True)
    assert [row["id"] for row in rows(place / "out.jsonl")] == list(range(40))
    with (place / "in.jsonl").open("a") as file:
        file.write('{"id": 40, "image": "images/1.jpg", "prompt": "more"}\n')
    report = await run_on_ray(stored)
    assert (report.resumed, report.captioned) == (40, 1)
    assert len(rows(place / "out.jsonl")) == 41
    assert not (place / "out.jsonl.shards").exists()


async def test_a_wrong_key_ends_the_run(ray, make_input, endpoint):
    endpoint.behave = lambda _: Reply(401, {"error": {"message": "wrong key"}})
    source = make_input(10)
    with pytest.raises(captioner.EndpointRefusedError, match="wrong key"):
        await run_on_ray(settings(source, source.with_name("out.jsonl"), endpoint))


def test_a_callable_for_pipelines_of_ones_own(ray, tmp_path, endpoint):
    """It never raises: a bad row has an error, and the others their captions."""
    import ray.data

    found = [{"image": str(tmp_path / f"{n}.jpg"), "prompt": f"q{n}"} for n in range(6)]
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.from_items(found).map_batches(
        CaptionBatch,
        fn_constructor_kwargs={"base_url": endpoint.base_url, "model": "m"},
        compute=ray.data.ActorPoolStrategy(size=1),
        batch_size=3,
    )
    captioned = {row["prompt"]: row for row in data.take_all()}
    assert [bool(captioned[f"q{n}"]["caption"]) for n in range(6)] == [True] * 5 + [False]
    assert captioned["q5"]["caption_error"].startswith("image_missing")


def test_kill_nine_of_the_driver(make_input, endpoint):
    """The command, killed in the middle and typed again with another number of workers."""
    endpoint.latency_s = 0.03
    source = make_input(300)
    options = ["--base-url", endpoint.base_url, "--model", "m", "--concurrency", IN_FLIGHT]
    words = command(source, *options, "--engine", "ray", "--shards", 6, "--workers")
    process = start_and(subprocess.Popen.kill, endpoint, 80, [*words, "2"])
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == -signal.SIGKILL, errors
    ended = subprocess.run([*words, "1"], capture_output=True, check=False, timeout=LIMIT_S)
    assert ended.returncode == 0, ended.stderr
    got = [row["id"] for row in rows(source.with_name("input.captions.jsonl"))]
    assert got == list(range(300))
    assert endpoint.given <= 300 + IN_FLIGHT
    assert b"Traceback" not in ended.stderr


async def test_failures_are_tried_again_once(ray, make_input, endpoint):
    endpoint.behave = lambda _: Reply(400, {"error": {"message": "no"}})
    source = make_input(6)
    output = source.with_name("out.jsonl")
    await run_on_ray(settings(source, output, endpoint))
    assert endpoint.count == 6
    report = await run_on_ray(settings(source, output, endpoint, retry_failed="all"))
    assert (endpoint.count, report.calls, report.failed) == (12, 6, 6)
    assert len(rows(source.with_name("out.failed.jsonl"))) == 6


async def test_warnings_of_workers_reach_the_driver(ray, make_input, endpoint):
    """Several shards may warn of the same; it is said once."""
    endpoint.behave = lambda _: Reply(400, {"error": {"message": "no"}})
    source = make_input(12)
    output = source.with_name("out.jsonl")
    warnings: list[str] = []
    await run_on_ray(settings(source, output, endpoint))
    again = settings(source, output, endpoint, retry_failed="other")
    await run_on_ray(again, warn=warnings.append)
    assert warnings == ["--retry: no failure has the code 'other'; there are http_400"]


async def test_what_is_not_ours_is_refused_before_anything_is_paid(ray, make_input, endpoint):
    source = make_input(3)
    (source.parent / "mine.csv").write_text("precious")
    (source.parent / "mine.jsonl").write_text("precious\n")
    for name in ("mine.csv", "mine.jsonl"):
        with pytest.raises((SettingsError, captioner.OutputDamagedError)):
            await run_on_ray(settings(source, source.parent / name, endpoint))
        assert (source.parent / name).read_text().strip() == "precious"
    assert endpoint.count == 0


async def test_other_settings_are_refused_before_anything_is_paid(ray, make_input, endpoint):
    source = make_input(20)
    output = source.with_name("out.jsonl")
    await run_batch(source, output, base_url=endpoint.base_url, model="m", limit=5)
    with pytest.raises(SettingsError, match="other settings"):
        await run_on_ray(settings(source, output, endpoint, model="other"))
    assert endpoint.count == 5
    report = await run_on_ray(settings(source, output, endpoint))
    assert (report.resumed, report.captioned) == (5, 15)


async def test_two_runs_at_once_are_one_too_many(ray, make_input, endpoint):
    endpoint.latency_s = 0.2
    source = make_input(40)
    output = source.with_name("out.jsonl")
    first = asyncio.create_task(run_on_ray(settings(source, output, endpoint)))
    while endpoint.count < 5:
        await asyncio.sleep(0.05)
    with pytest.raises(captioner.OutputBusyError):
        await run_on_ray(settings(source, output, endpoint))
    assert (await first).complete
    assert endpoint.count == 40


async def test_an_upload_that_fails_loses_nothing(ray, tmp_path, make_input, endpoint):
    """The shards stay until the output is where it belongs."""
    source = make_input(10)
    place = tmp_path / "store"
    place.mkdir()
    (place / "in.jsonl").write_bytes(source.read_bytes())
    stored = settings(
        Path(f"file:/{place}/in.jsonl"), Path(f"file:/{place}/out.jsonl"), endpoint,
        image_root=tmp_path,
    )  # fmt: skip
    endpoint.on_request[5] = (place / "out.jsonl").mkdir  # no file can get that name
    with pytest.raises(IsADirectoryError):
        await run_on_ray(stored)
    (place / "out.jsonl").rmdir()
    report = await run_on_ray(stored)
    assert report.complete
    assert endpoint.count == 10
    assert len(rows(place / "out.jsonl")) == 10


async def test_a_folder_of_images_here_and_there(ray, tmp_path, endpoint):
    """Begun on one machine, gone on upon many, and looked at again on one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    output = tmp_path / "out.jsonl"
    local = {"base_url": endpoint.base_url, "model": "m"}
    await run_batch(folder, output, **local, limit=4)
    report = await run_on_ray(settings(folder, output, endpoint))
    assert (report.resumed, report.captioned, report.complete) == (4, 8, True)
    assert (await run_batch(folder, output, **local)).resumed == 12
    assert endpoint.count == 12
