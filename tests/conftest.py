from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from endpoint import FakeEndpoint
from PIL import Image
from tally import told
from viewer_browser import CHROMIUM
from waiting import LIMIT_S

# A shell starts what it puts into the background with SIGINT ignored, and so would be all that the
# tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
SERVERS = Path(__file__).parent / "servers"
# The datasets package counts its uses at a server; it reads this when it is imported.
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"


@pytest.fixture(autouse=True)
def _clean_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No test depends on, or sends, what the environment of the person running it holds."""
    for name in list(os.environ):
        if name.startswith(("CAPTIONER_", "OPENAI_")) or name == "DF_API_KEY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
    # Tests count requests; those of the probe switch it on.
    monkeypatch.setenv("CAPTIONER_PROBE", "false")
    monkeypatch.setattr("captioner.engine.vision_probe.RECORDS", 1 << 30)


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fail a test whose process connects to another machine, or asks for the address of a name.

    The list has what was tried; each try is refused as by a machine without a network.
    """
    tried: list[str] = []
    lookup = socket.getaddrinfo

    def refuse(place: str) -> None:
        tried.append(place)
        raise OSError(errno.ENETUNREACH, f"tests stay on this machine: {place}")

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name and name != "localhost" and not _is_numeric(name):
            refuse(name)
        return lookup(host, *args, **kwargs)

    def guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
        def call(sock: socket.socket, address: Any) -> Any:
            if sock.family != socket.AF_UNIX and not _is_loopback(address[0]):
                refuse(address[0])
            return connect(sock, address)

        return call

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
    yield tried
    assert not tried, f"the test reached for {', '.join(tried)}"


def _is_numeric(host: str) -> bool:
    """Return whether a host is an address in any form that the system reads without a lookup."""
    try:
        socket.inet_aton(host)
    except OSError:
        return ":" in host
    return True


def _is_loopback(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries and probes follow each other quickly, and a second of refusals is long."""
    monkeypatch.setattr("captioner.engine.attempts.LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr("captioner.endpoints.circuit_breaker.SHORTEST_PAUSE_S", 0.02)
    monkeypatch.setattr("captioner.endpoints.blame.STOP_S", 0.2)


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    server = FakeEndpoint()
    server.start()
    yield server
    server.stop()


def jpeg(number: int = 0, size: tuple[int, int] = (32, 32), **options: Any) -> bytes:
    """Return a small JPEG that differs for every number."""
    out = io.BytesIO()
    colour = (number % 256, number // 256 % 256, 128)
    image = Image.new("RGB", size, colour)
    for bit in range(16):  # a block for each: what JPEG makes of near colours may be the same
        if number >> bit & 1:
            image.paste(
                (255, 255, 255),
                (8 * (bit % 4), 8 * (bit // 4), 8 * (bit % 4) + 8, 8 * (bit // 4) + 8),
            )
    image.save(out, "JPEG", **{"quality": 95, **options})
    return out.getvalue()


@pytest.fixture
def make_input(tmp_path: Path) -> Callable[..., Path]:
    """Write an input of records, each with an image of its own, and return its path."""

    def make(count: int, name: str = "input.jsonl") -> Path:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            (folder / f"{number}.jpg").write_bytes(jpeg(number))
        lines = (
            json.dumps({"id": number, "image": f"images/{number}.jpg", "prompt": f"q{number}"})
            for number in range(count)
        )
        path = tmp_path / name
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return make


@pytest.fixture
def make_photos(tmp_path: Path) -> Callable[[int], Path]:
    """Make a folder of photographs ``0.jpg``, ``1.jpg`` and so on, and return its path."""

    def make(count: int) -> Path:
        folder = tmp_path / "photos"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.jpg").write_bytes(jpeg(number))
        return folder

    return make


@pytest.fixture
async def skip(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Move the loop's clock ahead without waiting."""
    loop = asyncio.get_running_loop()
    time, ahead = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: time() + ahead)

    def skip(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    return skip


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def command(*arguments: object) -> list[str]:
    """Return the command line of the command under test."""
    return [sys.executable, "-m", "captioner", *map(str, arguments)]


@pytest.fixture
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command to its end."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"timeout": LIMIT_S, "capture_output": True, "text": True, **options}
        return subprocess.run(command(*arguments), check=False, **options)

    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--servers", default="", help="real servers to run tests on, such as moto,nginx"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the tests on real servers if none was asked for."""
    left_out = not config.getoption("--servers") and collection_path == SERVERS
    return True if left_out else None


def not_run(config: pytest.Config) -> list[str]:
    """Return a line for each group of tests that did not run here."""
    missing = []
    if not config.getoption("--servers"):
        missing.append("tests on real servers did not run: scripts/test --servers")
    if CHROMIUM is None:
        missing.append("browser tests did not run: Chromium is not installed")
    if shutil.which("tmux") is None:
        missing.append("tests in a terminal did not run: tmux is not installed")
    return missing


def pytest_sessionfinish(session: Any) -> None:
    """In a worker of pytest-xdist: send the lines of the campaign to the controller."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["told"] = told


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """In the controller of pytest-xdist: take the lines of a worker that has finished."""
    # A worker that crashed has no output.
    told.extend(getattr(node, "workeroutput", {}).get("told", ()))


HEAVY = ("/test_ray.py::", "/test_page.py::", "::test_in_tmux", "::test_64_", "::test_a_million_")
"""Parts of the ids of tests marked `xdist_group("heavy")`."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Keep heavy tests in one worker: pytest 9.2 hides the mark from pytest-xdist 3.8."""
    from xdist.scheduler import LoadGroupScheduling

    class Scheduler(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if any(part in nodeid for part in HEAVY):
                return "heavy"
            if "tests/servers/" in nodeid:  # each worker would start the server again
                return nodeid.partition("::")[0]
            return super()._split_scope(nodeid)

    return Scheduler(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what the fault campaign did, with its seeds, and what did not run."""
    for line in not_run(config):
        terminalreporter.write_line(line)
    for line in sorted(told):
        terminalreporter.write_line(f"campaign: {line}")


class StrayResponse(aiohttp.ClientResponse):
    """aioresponses 0.7.9 builds responses as aiohttp did before 3.14 asked for a writer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from unittest.mock import Mock

        kwargs.setdefault("stream_writer", Mock(output_size=0))
        super().__init__(*args, **kwargs)
