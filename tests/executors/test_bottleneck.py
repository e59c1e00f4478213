"""A run reports what held it back."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest
from conftest import jpeg
from endpoint import Call, Reply
from web import http_server

from captioner import run_batch
from captioner.core.types import Request
from captioner.endpoints.transport import AiohttpTransport

pytestmark = pytest.mark.usefixtures("quick_looks")
RECORDS = 600


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.executors.local.LOOK_S", 0.02)


@pytest.mark.parametrize("processes", [1, 2])
async def test_all_that_concurrency_allows_is_in_flight(processes, make_input, endpoint) -> None:
    """The looks of the parent see the requests of all processes."""
    endpoint.latency_s = 0.5  # long against the work between two requests, on a busy machine too
    options = {"base_url": endpoint.base_url, "model": "m", "concurrency": 8, "dedup": False}
    report = await run_batch(make_input(300), **options, processes=processes)
    assert report.captioned == 300
    assert report.held_by == "concurrency"
    assert 0.5 < report.held_share <= 1


async def test_the_endpoint_asks_to_wait(make_input, endpoint) -> None:
    def behave(call: Call) -> Reply | None:
        wait = {"retry-after": "2"}
        return Reply(429, {"error": {"message": "slow down"}}, wait) if call.number == 9 else None

    endpoint.behave = behave
    options = {"base_url": endpoint.base_url, "model": "m", "dedup": False}
    report = await run_batch(make_input(RECORDS), **options)
    assert report.captioned == RECORDS
    assert report.held_by == "quota"


class _SlowImages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(0.05)
        body = jpeg(int(self.path.strip("/")))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def slow_images() -> Iterator[str]:
    with http_server(_SlowImages) as address:
        yield address


async def test_images_come_slowly(slow_images, tmp_path, endpoint) -> None:
    source = tmp_path / "in.jsonl"
    lines = [json.dumps({"image": f"{slow_images}/{number}"}) + "\n" for number in range(150)]
    source.write_text("".join(lines))
    report = await run_batch(
        source,
        base_url=endpoint.base_url,
        model="m",
        allow_private_urls=True,
        fetch_concurrency=2,
        concurrency=8,
    )
    assert report.captioned == 150
    assert report.held_by == "fetching"


async def test_a_request_that_is_not_sent_completely_is_counted() -> None:
    """A server that reads nothing keeps the rest of a large request in this process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        transport = AiohttpTransport(url, api_key=None, timeout_s=60)
        request = Request("POST", "/chat/completions", (bytes(64 << 20),))
        sending = asyncio.create_task(transport.send(request))
        async with asyncio.timeout(30):
            while not transport.unsent():
                await asyncio.sleep(0.01)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert transport.unsent() == 0
        await transport.close()
