"""What a model server says of its load, and what a run does with it."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from captioner.endpoints import server_load
from captioner.endpoints.limiter import Limiter
from captioner.endpoints.server_load import LONGEST, ServerLoad, ServerWatch, read_load, values_of
from captioner.endpoints.transport import AiohttpTransport

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="org/m, \\"a b\\""} 31.0
vllm:num_requests_running{engine="1",model_name="org/m"} 29.0
vllm:num_requests_waiting{engine="0",model_name="org/m"} 4.0
vllm:num_requests_waiting{engine="1",model_name="org/m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="org/m"} 0.97
vllm:kv_cache_usage_perc{engine="1",model_name="org/m"} 0.41
vllm:num_preemptions_total{engine="0",model_name="org/m"} 7.0
vllm:num_preemptions_created{engine="0",model_name="org/m"} 1.7644e+09
"""
SGLANG = """sglang:num_running_reqs{model_name="org/m",tp_rank="0"} 162.0
sglang:token_usage{model_name="org/m",tp_rank="0"} 0.28
sglang:num_queue_reqs{model_name="org/m",tp_rank="0"} 2826.0
"""
LLAMA = """# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
llamacpp:requests_deferred 12
"""


@pytest.mark.parametrize(
    ("text", "load"),
    [
        (VLLM, ServerLoad(60.0, 4.0, 0.97, 7.0)),
        (VLLM.replace("kv_cache", "gpu_cache"), ServerLoad(60.0, 4.0, 0.97, 7.0)),
        (SGLANG, ServerLoad(162.0, 2826.0, 0.28)),
        (LLAMA, ServerLoad(4.0, 12.0)),
        ("litellm_requests_metric_total 5.0\n", None),
        ("vllm:num_requests_running NaN\n", None),
        ("vllm:num_requests_running{", None),
        ("<html>welcome</html>", None),
        ("", None),
    ],
)
def test_the_load_of_each_kind_of_server(text: str, load: ServerLoad | None) -> None:
    """Engines are added up; what is no number is as if it were not there."""
    assert read_load(text) == load


def test_a_metric_is_told_from_those_with_longer_names() -> None:
    text = 'a:b 1\na:b_total 9\na:b{x="a:b 7"} 2 1764400000000\na:b twelve\n# a:b 5\n'
    assert values_of(text, "a:b") == [1.0, 2.0]


# -- asking ------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    """Answers each GET with what it is told, the last one again and again."""

    daemon_threads = True

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.answers = list(answers)
        self.paths: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        answers = self.server.answers
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., _Server]]:
    monkeypatch.setattr(server_load, "POLL_S", 0.01)
    running: list[_Server] = []

    def start(*answers: tuple[int, bytes]) -> _Server:
        server = _Server(*answers)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def watch_of(server: _Server, limiter: Limiter) -> ServerWatch:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    return ServerWatch(AiohttpTransport(url, api_key=None, timeout_s=60), limiter, lambda: 0)


@pytest.mark.parametrize(
    "answer",
    [
        (404, b"Not Found"),
        (401, b"no"),
        (200, b"<html>"),
        (200, LLAMA.encode() + b"#" * LONGEST),
        (200, b"x" * (11 << 20)),
    ],
    ids=["missing", "forbidden", "another", "long", "longer"],
)
async def test_one_that_cannot_tell_is_asked_once(serve, answer) -> None:
    server = serve(answer)
    watch = watch_of(server, Limiter(9))
    async with asyncio.timeout(30):
        while not watch.is_over:
            await asyncio.sleep(0.01)
    await watch.close()
    assert server.paths == ["/metrics"]
    assert watch.held_by == ""


async def test_one_that_starts_again_is_asked_again(serve) -> None:
    server = serve((200, LLAMA.encode()), (503, b"loading"), (200, LLAMA.encode()))
    limiter = Limiter(9)
    watch = watch_of(server, limiter)
    async with asyncio.timeout(30):
        while len(server.paths) < 5:
            await asyncio.sleep(0.01)
    assert watch.held_by == "gpu"
    await watch.close()


async def test_one_that_does_not_answer_is_given_up_and_asked_again(monkeypatch) -> None:
    monkeypatch.setattr(server_load, "ANSWER_S", 0.05)
    monkeypatch.setattr(server_load, "POLL_S", 0.01)
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        transport = AiohttpTransport(url, api_key=None, timeout_s=60)
        watch = ServerWatch(transport, Limiter(9), lambda: 0)
        for _ in range(2):
            connection, _ = await loop.sock_accept(silent)
            asked = await loop.sock_recv(connection, 9_999)
            assert asked.startswith(b"GET /metrics")
            while await loop.sock_recv(connection, 9_999):  # until it is given up
                pass
            connection.close()
        await watch.close()


# -- what follows ------------------------------------------------------------------------------


def ticking() -> Callable[[], float]:
    """Return a clock that goes on by 10 ms whenever it is read."""
    ticks = itertools.count()
    return lambda: next(ticks) / 100


async def work(limiter: Limiter, seconds: int) -> int:
    """Send as many requests as there are permits, again and again; return the most in flight."""
    most = 0
    for _ in range(seconds):
        epochs = []
        while limiter.in_flight < limiter.limit:
            epochs.append(await limiter.acquire())
        most = max(most, limiter.in_flight)
        waiting = asyncio.ensure_future(limiter.acquire())
        await asyncio.sleep(0)
        for epoch in epochs:
            limiter.succeeded(epoch, 1.0)
            limiter.release()
        await waiting
        limiter.release()
    return most


async def test_no_more_is_sent_to_a_full_server_and_more_again_when_it_is_not(serve) -> None:
    server = serve((404, b""))
    limiter = Limiter(64, start=8, clock=ticking())
    watch = watch_of(server, limiter)
    watch.note(ServerLoad(4, 4))
    watch.note(ServerLoad(4, 4))
    assert await work(limiter, 30) == 8
    watch.note(ServerLoad(4, 0))
    assert await work(limiter, 30) == 64
    await watch.close()


async def test_a_server_that_still_takes_more_is_not_full(serve) -> None:
    """Requests wait for a moment at any server."""
    server = serve((404, b""))
    limiter = Limiter(64, start=8, clock=ticking())
    watch = watch_of(server, limiter)
    for running in (4, 8, 16):
        watch.note(ServerLoad(running, 4))
    assert await work(limiter, 30) == 64
    await watch.close()


@pytest.mark.parametrize(
    ("loads", "in_flight", "held_by"),
    [
        ([ServerLoad(8, 4, 0.5)], 12, "gpu"),
        ([ServerLoad(8, 4, 0.97)], 12, "cache"),
        ([ServerLoad(8, 4, 0.5, 2), ServerLoad(8, 4, 0.5, 3)], 12, "cache"),
        ([ServerLoad(3, 0)], 12, "front_end"),
        ([ServerLoad(11, 0)], 12, ""),
        ([ServerLoad(0, 0)], 3, ""),
        ([ServerLoad(8, 4), None], 12, ""),
    ],
)
async def test_what_holds_requests_back(serve, loads, in_flight, held_by) -> None:
    limiter = Limiter(64)
    limiter.in_flight = in_flight
    watch = watch_of(serve((404, b"")), limiter)
    for load in loads:
        watch.note(load)
    assert watch.held_by == held_by
    await watch.close()
