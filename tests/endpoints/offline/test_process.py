from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import aiohttp
import pytest
import uvloop

from captioner.endpoints.offline import process as child
from captioner.endpoints.offline.process import OfflineEndpoint


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def listens(base_url):
    try:
        socket.create_connection(("127.0.0.1", urlsplit(base_url).port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


async def models(base_url):
    async with aiohttp.ClientSession() as session, session.get(base_url + "/models") as response:
        return [model["id"] for model in (await response.json())["data"]]


async def use_once():
    async with OfflineEndpoint() as endpoint:
        assert endpoint.base_url.startswith("http://127.0.0.1:")
        assert await models(endpoint.base_url) == ["captioner-offline"]
        assert os.getsid(endpoint.pid) != os.getsid(0)
        return endpoint.pid


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_endpoint_answers_and_is_gone_after_its_context(loop_factory):
    """Under either event loop it serves in a session of its own and leaves nothing behind."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert not exists(runner.run(use_once()))


async def test_it_starts_from_a_folder_of_hostile_names(tmp_path, monkeypatch):
    """The user's data folder may hold files called like Python's own modules."""
    for name in ("queue.py", "json.py", "aiohttp.py"):
        (tmp_path / name).write_text("raise SystemExit('wrong module')\n")
    monkeypatch.chdir(tmp_path)
    await use_once()


def test_the_child_dies_with_a_parent_that_is_killed():
    """After kill -9 of the engine no endpoint process is left over."""
    script = """
import asyncio, sys
from captioner.endpoints.offline.process import OfflineEndpoint

async def main():
    async with OfflineEndpoint() as endpoint:
        print(endpoint.base_url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        try:
            base_url = parent.stdout.readline().decode()
            assert listens(base_url)
        finally:
            parent.kill()
    deadline = time.monotonic() + 20
    while listens(base_url):
        assert time.monotonic() < deadline, "the endpoint outlived its parent"
        time.sleep(0.02)


def test_run_by_hand_it_says_where_it_listens_and_ends_with_its_input():
    """The child's contract: one line of JSON, then service until standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "captioner.endpoints.offline.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            base_url = json.loads(process.stdout.readline())["base_url"]
            assert asyncio.run(models(base_url)) == ["captioner-offline"]
            process.stdin.close()
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


def instead(monkeypatch, script):
    """Run a script in the child's place, and collect the processes started."""
    started = []
    popen = subprocess.Popen

    def start(*args, **options):
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(child, "python", lambda _: [sys.executable, "-c", script])
    monkeypatch.setattr(child.subprocess, "Popen", start)
    return started


async def test_a_child_that_fails_is_reported_in_its_own_words(monkeypatch):
    """The error of a broken installation shows, instead of a refused connection later."""
    started = instead(monkeypatch, "raise SystemExit('no module named example')")
    with pytest.raises(RuntimeError, match=r"ended before it listened.*no module named example"):
        await OfflineEndpoint().__aenter__()
    assert started[0].returncode == 1


@pytest.mark.parametrize("line", ["[]", "{}", "nonsense"])
async def test_a_child_that_talks_nonsense_is_an_error(monkeypatch, line):
    """Whatever else is printed is not taken for an address."""
    started = instead(monkeypatch, f"print({line!r}, flush=True); input()")
    with pytest.raises(RuntimeError, match="ended before it listened"):
        await OfflineEndpoint().__aenter__()
    assert started[0].returncode is not None


async def test_a_child_that_is_silent_is_given_up(monkeypatch):
    """Start-up never hangs for ever, and the silent child is ended."""
    started = instead(monkeypatch, "input()")
    with pytest.raises(RuntimeError, match=r"did not start within 0\.5 seconds"):
        await OfflineEndpoint(start_timeout=0.5).__aenter__()
    assert started[0].returncode is not None


async def test_cancelled_while_starting_no_child_stays(monkeypatch):
    """Ctrl-C during start-up leaves no process behind."""
    started = instead(monkeypatch, "input()")
    task = asyncio.create_task(OfflineEndpoint().__aenter__())
    while not started:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started[0].returncode is not None


async def test_cancelled_while_stopping_a_stubborn_child_is_killed(monkeypatch):
    """A second Ctrl-C during shutdown kills the child rather than leaving it."""
    line = json.dumps({"base_url": "http://127.0.0.1:9/v1"})
    script = f"import threading; print({line!r}, flush=True); threading.Event().wait()"
    started = instead(monkeypatch, script)
    endpoint = await OfflineEndpoint().__aenter__()
    closing = asyncio.create_task(endpoint.__aexit__(None, None, None))
    while not started[0].stdin.closed:
        await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert started[0].returncode == -signal.SIGKILL


async def test_a_child_that_ignores_its_end_is_killed_in_time(monkeypatch):
    """Leaving the context takes a bounded time even if the child hangs."""
    line = json.dumps({"base_url": "http://127.0.0.1:9/v1"})
    script = f"import threading; print({line!r}, flush=True); threading.Event().wait()"
    started = instead(monkeypatch, script)
    monkeypatch.setattr(child, "_STOP_SECONDS", 0.2)
    async with OfflineEndpoint():
        pass
    assert started[0].returncode == -signal.SIGKILL
