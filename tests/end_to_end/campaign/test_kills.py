"""Cases 5, 7 and 10: real processes, killed and interrupted at random moments, and locks."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import orjson
import pytest
from conftest import command, rows
from endpoint import Call, FakeEndpoint, Reply, start_and
from tally import LONG, tally
from waiting import LIMIT_S, wait_until

SEED = random.SystemRandom().randrange(1 << 30) if LONG else 11
KILLS = 1_000 if LONG else 12
RECORDS = 60_000 if LONG else 2_000
STEP = 2 * RECORDS // KILLS
"""Requests from one kill to the next: at most so many, half of it on average."""
IN_FLIGHT = 32

FAULTS = (
    Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.05"}),
    Reply(429, {"error": {"message": "slow down"}}),
    Reply(500, b"oops"),
    Reply(503, b""),
    Reply(fault="reset"),
    Reply(fault="truncate"),
    Reply(200, b"<html>hello</html>"),
    Reply(200, b'{"choices":[{"message":{"content":"\xff\xfe"}}]}'),
)


class Faulty:
    """Answers a share of the requests with a fault and counts them."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.rng = random.Random(SEED)
        self.happened = 0

    def __call__(self, _: Call) -> Reply | None:
        if self.rng.random() >= self.share:
            return None
        self.happened += 1
        return self.rng.choice(FAULTS)


class Prefix:
    """The beginning of the output that checkpoints have vouched for; it may only grow."""

    def __init__(self, output: Path, records: int) -> None:
        self.output = output
        self.records = records
        self.data = b""

    def check(self) -> None:
        path = self.output.with_name(self.output.name + ".ckpt")
        if not path.exists():
            return
        durable = orjson.loads(path.read_bytes())
        data = self.output.read_bytes()[: durable["length"]]
        assert len(data) == durable["length"], "the checkpoint vouches for what is not there"
        assert zlib.crc32(data) == durable["crc32"]
        assert not data or data.endswith(b"\n")
        if not data.startswith(self.data):
            # Only at the very end may it change: then it is the same lines in input order.
            assert sorted(data.splitlines()) == sorted(self.output.read_bytes().splitlines())
            assert set(self.data.splitlines()) <= set(data.splitlines()), "what was safe is gone"
            assert data.count(b"\n") == self.records, "what was safe has changed"
        self.data = data


@pytest.mark.timeout(7_200 if LONG else 900)
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_kill_nine_again_and_again_loses_and_doubles_nothing(
    make_input, endpoint: FakeEndpoint, share
) -> None:
    """Killed at random moments and started again until it ends: every record once, no byte that
    was safe changed, and at most what was in flight paid twice per kill."""
    endpoint.latency_s = 0.02
    endpoint.keep_bodies = False
    endpoint.behave = faults = Faulty(share)
    source = make_input(RECORDS)
    output = source.with_name("input.captions.jsonl")
    options = ["--base-url", endpoint.base_url, "--model", "m", "--concurrency", IN_FLIGHT]
    arguments = command(source, *options, "--max-attempts", 20)
    rng = random.Random(SEED)

    def kill_soon(process: subprocess.Popen[bytes]) -> None:
        """Kill between the arrivals of two requests, whatever the run does then."""
        asyncio.get_running_loop().call_later(rng.random() * 0.02, process.kill)

    prefix = Prefix(output, RECORDS)
    kills = runs = 0
    while True:
        runs += 1
        if runs <= KILLS:
            moment = endpoint.count + rng.randrange(1, STEP)
            process = start_and(kill_soon, endpoint, moment, arguments)
        else:
            process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=LIMIT_S)
        endpoint.on_request.clear()
        if process.returncode == 0:
            break
        kills += 1
        prefix.check()
        assert process.returncode == -signal.SIGKILL, errors
    got = [row["id"] for row in rows(output)]
    lost, doubled = RECORDS - len(set(got)), len(got) - len(set(got))
    repaid = endpoint.given - RECORDS
    tally(
        f"kill -9, {share:.0%} of replies faulty",
        seed=SEED,
        runs=runs,
        records=RECORDS,
        kills=kills,
        faults=faults.happened,
        lost=lost,
        doubled=doubled,
        repaid=repaid,
    )
    assert (lost, doubled) == (0, 0), f"seed {SEED}"
    assert got == list(range(RECORDS))
    assert kills >= KILLS * 0.6, "the runs ended before they could be killed"
    assert bool(faults.happened) == bool(share)
    assert repaid <= kills * IN_FLIGHT
    assert not source.with_name("input.captions.failed.jsonl").exists()


@pytest.mark.timeout(3_600 if LONG else 600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_drains_and_nothing_is_paid_twice(
    make_input, endpoint: FakeEndpoint, number
) -> None:
    """Interrupted again and again: each time what is on the wire is finished and kept."""
    endpoint.latency_s = 0.03
    endpoint.keep_bodies = False
    times = 100 if LONG else 4
    records = 400 * times
    source = make_input(records)
    output = source.with_name("input.captions.jsonl")
    options = ["--base-url", endpoint.base_url, "--model", "m", "--concurrency", IN_FLIGHT]
    arguments = command(source, *options)
    rng = random.Random(SEED + number)

    def interrupt(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(number)

    prefix = Prefix(output, records)
    signals = 0
    expected = 128 + (signal.SIGTERM if number == signal.SIGHUP else number)
    while True:
        if signals < times:
            moment = endpoint.count + rng.randrange(50, 350)
            process = start_and(interrupt, endpoint, moment, arguments)
        else:
            process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=LIMIT_S)
        if process.returncode == 0:
            break
        signals += 1
        prefix.check()
        assert process.returncode == expected, errors
        assert b"continue: " in errors
        assert endpoint.given == len(rows(output)), "a caption that was paid for is missing"
    got = [row["id"] for row in rows(output)]
    tally(
        f"{signal.Signals(number).name}, drained",
        seed=SEED + number,
        runs=signals + 1,
        records=records,
        kills=signals,
        lost=records - len(set(got)),
        doubled=len(got) - len(set(got)),
        repaid=endpoint.given - records,
    )
    assert got == list(range(records))
    assert signals == times
    assert endpoint.given == records


def test_a_second_signal_gives_up_what_is_on_the_wire(make_input, endpoint) -> None:
    """Twice Ctrl-C ends at once, however slow the endpoint; what was written stays."""
    endpoint.behave = lambda call: Reply(delay_s=30) if call.number > 5 else None
    source = make_input(40)
    options = ["--base-url", endpoint.base_url, "--model", "m", "--concurrency", 4]
    process = subprocess.Popen(
        command(source, *options), stderr=subprocess.PIPE, text=True, bufsize=1
    )
    output = source.with_name("input.captions.jsonl")
    wait_until(lambda: endpoint.in_flight == 4 and len(rows(output)) == 5, process)
    process.send_signal(signal.SIGINT)
    assert "repeat the signal" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert len(rows(output)) == 5


def test_a_signal_ends_a_run_that_waits_for_its_endpoint(make_input, endpoint) -> None:
    """While the endpoint asks for an hour's pause, Ctrl-C does not wait for it."""
    endpoint.behave = lambda _: Reply(429, b"", {"Retry-After": "3600"})
    source = make_input(40)
    options = ["--base-url", endpoint.base_url, "--model", "m", "--concurrency", 4]
    process = subprocess.Popen(command(source, *options), stderr=subprocess.PIPE)
    wait_until(lambda: endpoint.count >= 4 and not endpoint.in_flight, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143
    assert not source.with_name("input.captions.failed.jsonl").exists()


TERMINATED_WHILE_IMPORTING = """
import os, signal, sys
import captioner.__main__ as command

class Finder:
    def find_spec(self, name, *_):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGTERM)

wanted = sys.argv.pop(1)
sys.meta_path.insert(0, Finder())
command.main()
"""


@pytest.mark.parametrize(
    "module", ["captioner.cli.main", "click", "orjson", "captioner.engine.engine", "uvloop", "PIL"]
)
def test_a_signal_before_anything_has_begun_is_a_clean_end(make_input, endpoint, module) -> None:
    """The handlers stand before the slow imports: no stack trace, the status a shell expects."""
    source = make_input(3)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            TERMINATED_WHILE_IMPORTING,
            module,
            str(source),
            f"--base-url={endpoint.base_url}",
            "--model=m",
        ],
        stderr=subprocess.PIPE,
    )
    _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, errors) == (143, b"")
    assert endpoint.count == 0


def test_two_runs_on_one_output_do_not_mix(make_input, endpoint, run_command) -> None:
    """The second exits 4 and names the first; after kill -9 of the first the lock is free."""
    endpoint.behave = lambda _: Reply(delay_s=30)
    source = make_input(4)
    options = ["--base-url", endpoint.base_url, "--model", "m"]
    first = subprocess.Popen(command(source, *options), stderr=subprocess.DEVNULL)
    wait_until(lambda: endpoint.count > 0, first)
    second = run_command(source, *options)
    assert second.returncode == 4
    assert f"process {first.pid} on {os.uname().nodename}" in second.stderr
    check = run_command("check", source.with_name("input.captions.jsonl"))
    assert f"being written by {os.uname().nodename} {first.pid}" in check.stdout
    assert first.poll() is None
    first.kill()
    first.wait()
    endpoint.behave = lambda _: None
    assert run_command(source, *options).returncode == 0
    assert {path.name for path in source.parent.iterdir()} == {
        "images",
        "input.jsonl",
        "input.captions.jsonl",
        "input.captions.jsonl.ckpt",
    }
