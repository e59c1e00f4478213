"""What other users of the machine can do to the page and the metrics without the token."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from captioner.cli.prometheus import ADDRESS, Metrics
from captioner.core.progress import Progress
from captioner.outputs import visitors
from captioner.outputs.viewer import Viewer, ViewerThread


@pytest.fixture(params=["page", "metrics"])
def address(request, tmp_path):
    """Serve the page of an output, or the metrics of a run."""
    if request.param == "page":
        server = ViewerThread(Viewer(tmp_path / "out.jsonl"))
        yield server.url
    else:
        server = Metrics(Progress(), 0)
        yield f"http://{ADDRESS}:{server.port}/metrics"
    server.close()


def connect(address: str) -> socket.socket:
    found = socket.create_connection((ADDRESS, urlsplit(address).port), timeout=60)
    found.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
    return found


def opened() -> int:
    return sum(
        str(path.readlink()).startswith("socket:")
        for path in Path("/proc/self/fd").iterdir()
        if path.is_symlink()
    )


def test_half_open_connections_take_few_descriptors_and_lock_nobody_out(address) -> None:
    """However many connections never finish their request, few are kept, and others get in."""
    before = opened()
    several = [connect(address) for _ in range(4 * visitors.MOST)]
    with urllib.request.urlopen(address, timeout=60) as reply:
        assert reply.status == 200
    assert opened() - before <= len(several) + visitors.MOST
    for one in several:
        one.close()


def test_a_slow_head_is_not_waited_for(address, monkeypatch) -> None:
    """A connection whose request does not become complete is closed by the server."""
    monkeypatch.setattr(visitors, "IDLE_S", 0.05)
    with connect(address) as slow:
        assert slow.recv(100) == b""


def test_an_idle_connection_is_closed(address, monkeypatch) -> None:
    """A connection that asks for nothing more is closed by the server."""
    monkeypatch.setattr(visitors, "IDLE_S", 0.05)
    with connect(address) as idle:
        idle.sendall(b"x\r\nHost: x\r\n\r\n")
        while idle.recv(1_000):
            pass


def test_a_body_is_neither_waited_for_nor_kept(tmp_path, monkeypatch) -> None:
    """A review that is cut short, or larger than a review can be, is refused."""
    page = ViewerThread(Viewer(tmp_path / "out.jsonl"))
    path = urlsplit(page.url).path
    monkeypatch.setattr(visitors, "IDLE_S", 0.5)
    for length, status in ((20, b" 400 "), (1 << 30, b" 413 ")):
        with socket.create_connection((ADDRESS, urlsplit(page.url).port), timeout=60) as slow:
            head = f"POST {path}api/review HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
            slow.sendall(head.encode() + b'{"a":')
            if length > 20:
                slow.sendall(b" " * (1 << 21))
            assert status in slow.recv(1_000).partition(b"\r\n")[0]
    page.close()
