"""A chat-completions endpoint on loopback for tests: records what it gets, fails as it is told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import signal
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web
from waiting import LIMIT_S


@dataclass
class Call:
    """One request as it came in. `number` counts from 1; `port` is the client's."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]
    port: int = 0

    @property
    def images(self) -> list[bytes]:
        """The images of all turns, decoded, in order."""
        return [base64.b64decode(url.partition(",")[2]) for url in self.urls if url[:5] == "data:"]

    @property
    def urls(self) -> list[str]:
        return [
            part["image_url"]["url"]
            for message in self.body["messages"]
            if isinstance(message["content"], list)
            for part in message["content"]
            if part["type"] == "image_url"
        ]

    @property
    def texts(self) -> list[str]:
        """All texts but the system prompt, in order."""
        found = []
        for message in self.body["messages"]:
            if message["role"] == "system":
                continue
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            found += [part["text"] for part in parts if part["type"] == "text"]
        return found

    @property
    def identity(self) -> str:
        """What is asked about what: equal for every attempt of one record."""
        asked = "\n".join(self.texts).encode() + b"".join(url.encode() for url in self.urls)
        return hashlib.blake2b(asked, digest_size=8).hexdigest()


@dataclass
class Reply:
    """What the endpoint does with one request.

    `fault`: "reset" before the reply, "truncate" in the middle of it, "hang" until it is closed,
    "stall" after half of it, "drip" a byte at a time, "endless" without an end.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    fault: str = ""


def completion(text: Any, **more: Any) -> dict[str, Any]:
    """Return a chat completion; `more` replaces members of its only choice."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}
    choice["message"]["content"] = text
    choice.update(more)
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {
        "id": "x",
        "object": "chat.completion",
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def caption_of(call: Call) -> str:
    """Return the caption the endpoint gives by itself: it names question and images."""
    image_files = " ".join(hashlib.blake2b(i, digest_size=4).hexdigest() for i in call.images)
    return f"{' '.join(call.texts)} [{image_files}]"


def kill_in_mid_run(endpoint: FakeEndpoint, words: list[str], times: int, after: int) -> None:
    """Start a command again and again, and kill it each time after a number of requests."""
    for _ in range(times):
        process = start_and(
            lambda process: process.send_signal(signal.SIGKILL),
            endpoint,
            endpoint.count + after,
            words,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        assert process.wait() == -signal.SIGKILL  # it was at work


def start_and(
    act: Callable[[subprocess.Popen[Any]], object],
    endpoint: FakeEndpoint,
    number: int,
    words: list[str],
    **options: Any,
) -> subprocess.Popen[Any]:
    """Start a process; act on it, in the endpoint's thread, when a request of a number comes in."""
    endpoint.on_request[number] = lambda: act(process)
    process = subprocess.Popen(words, **{"stderr": subprocess.PIPE, **options})
    return process


class FakeEndpoint:
    """Serves in a separate thread, so that both this process and others can use it."""

    def __init__(self) -> None:
        self.behave: Callable[[Call], Reply | None] = lambda _: None
        self.on_request: dict[int, Callable[[], None]] = {}  # by its number
        self.calls: list[Call] = []
        self.answered: Counter[str] = Counter()  # captions given, by the identity of the request
        self.models = ["m"]
        self.models_reply: Reply | None = None  # instead of the list
        self.unknown_paths: list[str] = []  # asked for, and there is nothing
        self.latency_s = 0.0
        self.hold = False  # while true, no reply is sent
        self.in_flight = 0
        self.max_in_flight = 0
        self.keep_bodies = True
        self.tls: ssl.SSLContext | None = None
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._port = 0
        self._thread: threading.Thread | None = None
        self._number = 0
        self._replying: set[asyncio.Task[Any]] = set()

    @property
    def base_url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self._port}/v1"

    @property
    def count(self) -> int:
        """Requests for captions so far."""
        return self._number

    @property
    def given(self) -> int:
        """Captions given so far."""
        return sum(self.answered.values())

    def start(self) -> None:
        self._started.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(LIMIT_S)

    def stop(self) -> None:
        if self._loop is not None and self._stop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(LIMIT_S)
            self._loop = None

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_route("*", "/{path:.*}", self._not_found)
        # aiohttp takes 0 for no limit: a request that came in late would be waited for.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        site = web.TCPSite(
            runner,
            "127.0.0.1",
            self._port,
            ssl_context=self.tls,
            reuse_address=True,
            backlog=2048,
        )
        await site.start()
        self._port = runner.addresses[0][1]
        self._started.set()
        await self._stop.wait()
        await site.stop()  # connections that are being accepted are accepted still, or leak
        for task in self._replying:
            task.cancel()
        await runner.cleanup()

    async def _slowly(self, request: web.Request, fault: str, data: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if fault == "stall":
            await response.write(data[: len(data) // 2])
            await asyncio.sleep(3_600)
        for number in range(100_000):
            if request.transport is None or request.transport.is_closing():
                break
            await response.write(b" " * 65_536 if fault == "endless" else data[:1] or b" ")
            if fault == "drip":
                await asyncio.sleep(0.02)
            elif number % 16 == 0:
                await asyncio.sleep(0)
        return response

    async def _not_found(self, request: web.Request) -> web.Response:
        self.unknown_paths.append(request.path)
        return web.Response(status=404, text="404 page not found\n")

    async def _list_models(self, _: web.Request) -> web.Response:
        if reply := self.models_reply:
            body = reply.body if isinstance(reply.body, bytes) else orjson.dumps(reply.body)
            return web.Response(status=reply.status, body=body, headers=reply.headers)
        return web.json_response({"object": "list", "data": [{"id": m} for m in self.models]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self._number += 1
        assert request.transport is not None
        port = request.transport.get_extra_info("peername")[1]
        call = Call(self._number, body, {k.lower(): v for k, v in request.headers.items()}, port)
        if self.keep_bodies:
            self.calls.append(call)
        if action := self.on_request.pop(call.number, None):
            action()
        task = asyncio.current_task()
        assert task is not None
        self._replying.add(task)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            return await self._reply(request, call)
        finally:
            self.in_flight -= 1
            self._replying.discard(task)

    async def _reply(self, request: web.Request, call: Call) -> web.StreamResponse:
        reply = self.behave(call) or Reply()
        if delay := reply.delay_s or self.latency_s:
            await asyncio.sleep(delay)
        while self.hold and request.transport is not None:
            await asyncio.sleep(0.005)
        if request.transport is None:  # the client went away meanwhile
            return web.Response()
        if reply.fault == "hang":
            await asyncio.sleep(3_600)
        if reply.fault == "reset":
            request.transport.abort()
            return web.Response()
        good = reply.status == 200 and reply.body is None
        payload = completion(caption_of(call)) if good else reply.body
        data = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        if reply.fault in ("stall", "drip", "endless"):
            return await self._slowly(request, reply.fault, data)
        if reply.fault == "truncate":
            response = web.StreamResponse(headers={"Content-Length": str(len(data))})
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            request.transport.close()
            return response
        if good:
            self.answered[call.identity] += 1
        headers = {"Content-Type": "application/json", **reply.headers}
        return web.Response(status=reply.status, body=data, headers=headers)
