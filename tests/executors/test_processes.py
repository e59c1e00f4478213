"""A run in several processes: one output, and whatever dies, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import command, rows
from endpoint import Call, FakeEndpoint, Reply, completion, start_and
from fakes import EchoTransport
from tally import tally
from waiting import LIMIT_S, wait_until

from captioner import Captioner, EndpointRefusedError, SettingsError, run_batch
from captioner.executors.processes.handle import part
from captioner.settings.settings import Settings

IN_FLIGHT = 16


def workers_of(process: int) -> list[int]:
    """Return the workers of a run by their process ids."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == process and b"captioner.executors.processes.worker" in words:
            found.append(int(folder.name))
    return sorted(found)


def start(
    source: Path,
    endpoint: FakeEndpoint,
    processes: int = 2,
    act: Callable[[subprocess.Popen[str]], object] | None = None,
    number: int = 0,
) -> subprocess.Popen[str]:
    """Start a run; act on it when the request of a number comes in."""
    options = ["--base-url", endpoint.base_url, "--model", "m", "--concurrency", IN_FLIGHT]
    words = command(source, *options, "--processes", processes)
    if act is not None:
        return start_and(act, endpoint, number, words, text=True)
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


def kill(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def connected_from(processes: list[int], port: int) -> list[int]:
    """Return the process among these that has a connection from a port."""
    table = Path("/proc/net/tcp").read_text().splitlines()[1:]
    inodes = {line.split()[9] for line in table if int(line.split()[1].split(":")[1], 16) == port}
    found = []
    for process in processes:
        with contextlib.suppress(OSError):
            open_files = [str(fd.readlink()) for fd in Path(f"/proc/{process}/fd").iterdir()]
            if any(f"socket:[{inode}]" in open_files for inode in inodes):
                found.append(process)
    return found


async def test_several_processes_write_what_one_does(tmp_path, make_input, endpoint):
    """The same rows in the same order, the same failures, a request a record; and its report."""
    source = make_input(120)
    with source.open("a") as file:
        file.write('{"id": 120, "image": "no.jpg"}\nno JSON\n')
    options = {"base_url": endpoint.base_url, "model": "m", "concurrency": 8}
    one = await run_batch(source, tmp_path / "one.jsonl", **options)
    calls = endpoint.count
    two = await run_batch(source, tmp_path / "two.jsonl", **options, processes=2)
    assert endpoint.count == 2 * calls == 240
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    failed = [rows(tmp_path / f"{name}.failed.jsonl") for name in ("one", "two")]
    assert sorted(map(str, failed[0])) == sorted(map(str, failed[1]))
    for name in ("captioned", "failed", "calls", "complete", "prompt_tokens", "codes"):
        assert getattr(one, name) == getattr(two, name), name


async def test_what_is_done_is_resumed_by_any_number_of_processes(tmp_path, make_input, endpoint):
    source = make_input(60)
    options = {"base_url": endpoint.base_url, "model": "m", "concurrency": 9}
    await run_batch(source, tmp_path / "out.jsonl", **options, processes=3, limit=25)
    report = await run_batch(source, tmp_path / "out.jsonl", **options, processes=2)
    assert (report.resumed, report.captioned, endpoint.count) == (25, 35, 60)
    again = await run_batch(source, tmp_path / "out.jsonl", **options)
    assert (again.resumed, again.captioned) == (60, 0)
    assert [row["id"] for row in rows(tmp_path / "out.jsonl")] == list(range(60))


def test_a_worker_that_is_killed_costs_what_it_had_on_the_wire(make_input, endpoint):
    """Its records go to the other; the run ends as if nothing had been, and says so."""
    endpoint.latency_s = 0.05
    source = make_input(600)
    process = start(source, endpoint, 2, lambda run: kill(workers_of(run.pid)[:1]), 100)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert "was killed by signal 9" in errors
    assert [row["id"] for row in rows(source.with_name("input.captions.jsonl"))] == [*range(600)]
    assert endpoint.count <= 600 + IN_FLIGHT // 2


def test_workers_that_are_all_killed_are_replaced(make_input, endpoint):
    """The system may kill any process at any time: the run goes on with new ones."""
    endpoint.latency_s = 0.05
    source = make_input(300)
    process = start(source, endpoint, 2, lambda run: kill(workers_of(run.pid)), 50)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert [row["id"] for row in rows(source.with_name("input.captions.jsonl"))] == [*range(300)]
    assert endpoint.count <= 300 + IN_FLIGHT


def test_a_record_that_kills_its_process_fails_alone(make_input, endpoint):
    """Three processes die of it, and no other record is lost."""
    endpoint.latency_s = 0.02
    deaths = 0

    def behave(call: Call) -> Reply | None:
        nonlocal deaths
        if call.texts[0] == "q7":
            deaths += 1
            kill(connected_from(workers_of(process.pid), call.port))
        return None

    endpoint.behave = behave
    source = make_input(200)
    process = start(source, endpoint)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 3, errors
    assert deaths == 3
    captioned = rows(source.with_name("input.captions.jsonl"))
    assert sorted(row["id"] for row in captioned) == [n for n in range(200) if n != 7]
    (failure,) = rows(source.with_name("input.captions.failed.jsonl"))
    assert (failure["code"], failure["record"]["id"]) == ("process_died", 7)


def test_a_worker_that_is_killed_while_it_starts_is_started_again(make_input, endpoint):
    endpoint.latency_s = 0.05
    source = make_input(100)
    process = start(source, endpoint)
    wait_until(lambda: workers_of(process.pid) or endpoint.count, process)
    kill(workers_of(process.pid))
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert [row["id"] for row in rows(source.with_name("input.captions.jsonl"))] == [*range(100)]


def test_a_run_whose_workers_keep_dying_ends_and_can_be_run_again(make_input, endpoint):
    endpoint.behave = lambda _: Reply(fault="hang")
    source = make_input(300)
    process = start(source, endpoint)
    while process.poll() is None:
        kill(workers_of(process.pid))
        time.sleep(0.05)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    endpoint.behave = lambda _: None
    assert "Traceback" not in errors
    process = start(source, endpoint)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert [row["id"] for row in rows(source.with_name("input.captions.jsonl"))] == [*range(300)]


def test_kill_nine_of_the_parent_again_and_again(make_input, endpoint):
    """The workers go with it; every record once, and at most what was in flight paid twice."""
    endpoint.latency_s = 0.02
    endpoint.keep_bodies = False
    records, most = 1_500, 8
    source = make_input(records)
    rng = random.Random(5)
    kills = 0
    workers: list[int] = []

    def kill_parent(run: subprocess.Popen[str]) -> None:
        workers[:] = workers_of(run.pid)
        run.kill()

    while True:
        moment = endpoint.count + rng.randrange(60, 300)
        act = kill_parent if kills < most else None
        process = start(source, endpoint, rng.choice((2, 3)), act, moment)
        _, errors = process.communicate(timeout=LIMIT_S)
        endpoint.on_request.clear()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        kills += 1
        wait_until(lambda: not any(map(is_worker, workers)))
    got = [row["id"] for row in rows(source.with_name("input.captions.jsonl"))]
    repaid = endpoint.given - records
    tally(
        "kill -9 of a run in several processes",
        seed=5,
        runs=kills + 1,
        records=records,
        kills=kills,
        lost=records - len(set(got)),
        doubled=len(got) - len(set(got)),
        repaid=repaid,
    )
    assert got == list(range(records)), errors
    assert repaid <= kills * IN_FLIGHT


def is_worker(process: int) -> bool:
    try:
        return (
            b"captioner.executors.processes.worker" in Path(f"/proc/{process}/cmdline").read_bytes()
        )
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_all_processes(make_input, endpoint, number):
    """What is on the wire is finished and kept: nothing is paid twice."""
    endpoint.latency_s = 0.05
    source = make_input(600)
    process = start(source, endpoint, 2, lambda run: run.send_signal(number), 100)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + number, errors
    assert endpoint.given == len(rows(source.with_name("input.captions.jsonl"))) < 600
    process = start(source, endpoint)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert endpoint.given == 600


def test_twice_a_signal_gives_up_what_is_on_the_wire(make_input, endpoint):
    endpoint.behave = lambda call: Reply(delay_s=30) if call.number > 5 else None
    process = start(make_input(40), endpoint)
    wait_until(lambda: endpoint.count > 5, process)
    process.send_signal(signal.SIGINT)
    assert "stopping" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130


def test_a_wrong_key_ends_the_run_once(make_input, endpoint, run_command):
    endpoint.behave = lambda _: Reply(401, {"error": {"message": "wrong key"}})
    source = make_input(40)
    ended = run_command(source, "--base-url", endpoint.base_url, "--model", "m", "--processes", 2)
    assert ended.returncode == 2
    assert ended.stderr.count("wrong key") == 1
    assert not source.with_name("input.captions.jsonl").read_bytes()


def test_an_endpoint_that_is_not_there_is_told_before_anything_is_written(make_input, run_command):
    source = make_input(2)
    options = ("--base-url", "http://127.0.0.1:9/v1", "--processes", 2, "--max-outage", 0.5)
    ended = run_command(source, *options)
    assert ended.returncode == 7
    assert "cannot connect to 127.0.0.1:9" in ended.stderr
    assert not source.with_name("input.captions.jsonl").exists()


async def test_a_setting_that_fails_after_connecting_is_told(tmp_path, make_input, endpoint):
    cache = tmp_path / "cache"
    cache.write_text("not a folder")
    options = {"base_url": endpoint.base_url, "model": "m", "cache": cache}
    with pytest.raises(SettingsError, match="cache"):
        await run_batch(make_input(3), processes=2, **options)
    assert not endpoint.calls


def test_what_a_model_refuses_is_told_once(make_input, endpoint, run_command):
    """Every worker meets the same endpoint."""

    def behave(call):
        if "max_tokens" in call.body:
            message = "Unsupported parameter: 'max_tokens'"
            return Reply(400, {"error": {"message": message, "param": "max_tokens"}})
        return Reply(body=completion("a caption"))

    endpoint.behave = behave
    options = ["--base-url", endpoint.base_url, "--model", "m", "--max-tokens", 50]
    ended = run_command(make_input(80), *options, "--processes", 2)
    assert ended.returncode == 0
    assert ended.stderr.count("refuses a parameter") == 1


class Quota:
    """Grants 6,000 requests a minute, of which 30 are left at first, and says so."""

    def __init__(self) -> None:
        self.left = 30.0
        self.at = time.monotonic()
        self.rejected = 0

    def __call__(self, call: Call) -> Reply:
        now = time.monotonic()
        self.left = min(6_000.0, self.left + (now - self.at) * 100)
        self.at = now
        if self.left < 1:
            self.rejected += 1
            return Reply(429, {"error": {"message": "slow down"}})
        self.left -= 1
        headers = {
            "x-ratelimit-limit-requests": "6000",
            "x-ratelimit-remaining-requests": str(int(self.left)),
            "x-ratelimit-reset-requests": f"{(6_000 - self.left) / 100:.3f}s",
        }
        return Reply(body=completion(f"c{call.number}"), headers=headers)


async def test_workers_keep_a_quota_together(make_input, endpoint):
    """Each learns the limit of the endpoint and takes its part of it: hardly any is sent away."""
    endpoint.behave = quota = Quota()
    options = {"base_url": endpoint.base_url, "model": "m", "concurrency": 16}
    report = await run_batch(make_input(300), **options, processes=2)
    assert report.captioned == 300
    assert quota.rejected <= 6


def test_what_a_run_may_have_is_dealt_out_whole():
    settings = Settings.create("in.jsonl", concurrency=10, processes=3, memory=100)
    parts = [part(settings, number) for number in range(3)]
    assert [one.run.concurrency for one in parts] == [4, 3, 3]
    assert [one.images.memory for one in parts] == [34, 33, 33]
    few = Settings.create("in.jsonl", concurrency=2, processes=2)
    assert [part(few, number).run.concurrency for number in range(2)] == [1, 1]


async def test_several_processes_are_for_files_and_endpoints(make_input):
    """What cannot go to another process is refused in words."""
    with pytest.raises(SettingsError, match="processes"):
        Settings.create("in.jsonl", concurrency=2, processes=3)
    with pytest.raises(SettingsError, match="processes"):
        await run_batch(make_input(1), processes=2, transport=EchoTransport())
    with pytest.raises(SettingsError, match="processes"):
        Captioner(base_url="http://localhost:1/v1", model="m", processes=2)


def test_importing_the_package_starts_nothing(tmp_path, make_input, endpoint):
    """A script without a guard around its main part works: workers do not run it again."""
    source = make_input(20)
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, captioner\n"
        f"report = asyncio.run(captioner.run_batch({str(source)!r}, processes=2, "
        f"base_url={endpoint.base_url!r}, model='m'))\n"
        "print(report.captioned)\n"
    )
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert ended.stdout == "20\n", ended.stderr


def test_records_of_a_dead_worker_do_not_wait_for_more_input(tmp_path, make_input, endpoint):
    """Standard input stays open: the others take them at once."""
    lines = make_input(20).read_bytes()
    endpoint.latency_s = 0.3
    options = ["--base-url", endpoint.base_url, "--model", "m", "--concurrency", 8]
    process = subprocess.Popen(
        command("-", "-o", "out.jsonl", *options, "--processes", 2), cwd=tmp_path,
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdin.write(lines)
    process.stdin.flush()
    wait_until(lambda: endpoint.count >= 4, process)
    kill(workers_of(process.pid)[:1])
    wait_until(lambda: len(endpoint.answered) == 20, process)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("count", [4, 40])
async def test_refusals_of_all_records_end_the_run(make_input, endpoint, count) -> None:
    """Few refused records fail, and many stop the run and stay pending, as in one process."""
    endpoint.behave = lambda _: Reply(400, {"error": {"message": "no"}})
    options = {"base_url": endpoint.base_url, "model": "m", "processes": 2}
    async with asyncio.timeout(LIMIT_S):
        if count == 4:
            report = await run_batch(make_input(count), **options)
            assert report.codes == {"http_400": 4}
            return
        with pytest.raises(EndpointRefusedError) as caught:
            await run_batch(make_input(count), **options)
    assert caught.value.report.failed == 0
