from __future__ import annotations

import asyncio
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

from captioner.core import ocr
from captioner.core.errors import SettingsError
from captioner.core.ocr import ocr_available
from captioner.endpoints.connect import OCR_MISSING
from captioner.endpoints.offline import process as child
from captioner.endpoints.offline.process import offline_endpoint
from captioner.engine.stream import Captioner


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


def watch_starts(monkeypatch):
    """Collect the processes that are started."""
    started = []
    popen = subprocess.Popen

    def start(*args, **options):
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(child.subprocess, "Popen", start)
    return started


async def use_once(started):
    async with offline_endpoint() as base_url:
        assert base_url.startswith("http://127.0.0.1:")
        assert await models(base_url) == ["captioner-offline"]
        assert os.getsid(started[0].pid) != os.getsid(0)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_endpoint_answers_and_is_gone_after_its_context(loop_factory, monkeypatch):
    """Under either event loop it serves in a session of its own and leaves nothing behind."""
    started = watch_starts(monkeypatch)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(use_once(started))
        assert not exists(started[0].pid)


async def test_it_starts_from_a_folder_of_hostile_names(tmp_path, monkeypatch):
    """The user's data folder may hold files called like Python's own modules."""
    for name in ("queue.py", "json.py", "aiohttp.py"):
        (tmp_path / name).write_text("raise SystemExit('wrong module')\n")
    monkeypatch.chdir(tmp_path)
    await use_once(watch_starts(monkeypatch))


def test_the_child_dies_with_a_parent_that_is_killed():
    """After kill -9 of the engine no endpoint process is left over."""
    script = """
import asyncio, sys
from captioner.endpoints.offline.process import offline_endpoint

async def main():
    async with offline_endpoint() as base_url:
        print(base_url, flush=True)
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
    """The child's contract: one line with its base URL, then service until standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "captioner.endpoints.offline.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            base_url = process.stdout.readline().decode().strip()
            assert asyncio.run(models(base_url)) == ["captioner-offline"]
            process.stdin.close()
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


async def test_a_run_without_ocr_says_so_at_its_start(monkeypatch, caplog):
    """A user learns before the first caption why no text is read, and what to install."""
    assert ocr_available()
    async with Captioner(offline=True):
        assert OCR_MISSING not in caplog.messages
    monkeypatch.setattr(ocr, "find_spec", lambda _: None)
    async with Captioner(offline=True):
        assert caplog.messages.count(OCR_MISSING) == 1
    assert "pip install" in OCR_MISSING


def replace_child(monkeypatch, script):
    """Run a script in the child's place, and collect the processes started."""
    monkeypatch.setattr(child, "python", lambda _: [sys.executable, "-c", script])
    return watch_starts(monkeypatch)


async def test_a_child_that_fails_is_reported_in_its_own_words(monkeypatch):
    """The error of a broken installation shows, instead of a refused connection later."""
    started = replace_child(monkeypatch, "raise SystemExit('no module named example')")
    with pytest.raises(SettingsError, match=r"ended before it listened.*no module named example"):
        await offline_endpoint().__aenter__()
    assert started[0].returncode is not None


async def test_other_output_is_not_taken_for_an_address(monkeypatch):
    """A child that prints something else is an error, and is ended."""
    started = replace_child(monkeypatch, "print('nonsense', flush=True); input()")
    with pytest.raises(SettingsError, match="did not start"):
        await offline_endpoint().__aenter__()
    assert started[0].returncode is not None


async def test_a_silent_child_is_given_up(monkeypatch):
    """Start-up is bounded in time, and the silent child is ended."""
    started = replace_child(monkeypatch, "input()")
    with pytest.raises(SettingsError, match=r"did not listen within 0\.5 seconds"):
        await offline_endpoint(start_timeout=0.5).__aenter__()
    assert started[0].returncode is not None


async def test_cancelled_while_starting_no_child_stays(monkeypatch):
    """Ctrl-C during start-up leaves no process behind."""
    started = replace_child(monkeypatch, "input()")
    task = asyncio.create_task(offline_endpoint().__aenter__())
    while not started:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started[0].returncode is not None


async def test_a_child_that_ignores_its_end_is_killed(monkeypatch):
    """Leaving the context ends the child even if it hangs."""
    script = (
        "import threading; print('http://127.0.0.1:9/v1', flush=True); threading.Event().wait()"
    )
    started = replace_child(monkeypatch, script)
    async with offline_endpoint() as base_url:
        assert base_url == "http://127.0.0.1:9/v1"
    assert started[0].returncode == -signal.SIGKILL
