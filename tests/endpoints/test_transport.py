from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import hashlib
import os
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest
import trustme
from aioresponses import aioresponses
from conftest import StrayResponse, jpeg, rows
from endpoint import FakeEndpoint, Reply
from yarl import URL

from captioner.core import descriptors
from captioner.core.errors import EndpointFaultError, EndpointRefusedError, SettingsError
from captioner.core.proxies import proxy_for
from captioner.core.types import Request
from captioner.endpoints.http1 import MAX_REPLY
from captioner.endpoints.transport import AiohttpTransport

BASE = "http://example.org/v1"
CHAT = URL(f"{BASE}/chat/completions")
PIECES = (b'{"model":"m","messages":', b"[]", b"}")
POST = Request("POST", "/chat/completions", PIECES)
MODELS_URL = URL(f"{BASE}/models")
MODELS = Request("GET", "/models")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(params=["Http1Client", "SessionClient"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send requests by the fast client, and as with an aiohttp whose internals do not fit it."""
    if request.param == "SessionClient":
        monkeypatch.setattr("captioner.endpoints.http1.Http1Client", unfit)


def unfit(*_: Any) -> None:
    raise AttributeError("type object 'ResponseHandler' has no attribute 'read'")


both_clients = pytest.mark.usefixtures("client")


@asynccontextmanager
async def transport_to(base_url: str, **options: Any) -> AsyncIterator[AiohttpTransport]:
    options = {"api_key": None, "timeout_s": 20.0, **options}
    transport = AiohttpTransport(base_url, **options)
    try:
        yield transport
    finally:
        await transport.close()


@asynccontextmanager
async def raw_server(answer: Handler) -> AsyncIterator[str]:
    """Serve one exchange per connection exactly as told, and yield the base URL."""
    tasks: set[asyncio.Task[Any]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        writers.append(writer)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            # asyncio fails to abort a connection that was lost while it was being closed.
            with contextlib.suppress(OSError, AttributeError):
                writer.transport.abort()
                await writer.wait_closed()


def says(*parts: bytes) -> Handler:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return answer


async def fault_of(base_url: str, request: Request = POST, **options: Any) -> EndpointFaultError:
    async with transport_to(base_url, **options) as transport:
        with pytest.raises(EndpointFaultError) as caught:
            await transport.send(request)
    assert caught.value.message.isprintable()  # one line of plain text
    assert "0x" not in caught.value.message  # no addresses of objects
    return caught.value


def body_with(text: str) -> Request:
    messages = [{"role": "user", "content": text}]
    return Request("POST", POST.path, (PIECES[0], orjson.dumps(messages), PIECES[2]))


@pytest.mark.parametrize("status", [200, 301, 400, 404, 429, 500, 503])
@pytest.mark.parametrize("method", ["GET", "POST"])
@both_clients
async def test_any_status_is_a_reply(status, method):
    """What a status means is not decided here: status, headers and body come back as they are."""
    answers = 0

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answers
        answers += 1
        writer.write(
            f"HTTP/1.1 {status} Said\r\nRetry-After: 7\r\nLocation: /else\r\n"
            "Content-Length: 3\r\n\r\n".encode()
        )
        writer.write(b"\xff\0x")
        await writer.drain()

    async with raw_server(answer) as url, transport_to(url) as transport:
        reply = await transport.send(POST if method == "POST" else MODELS)
    assert answers == 1  # a redirect is not followed
    assert (reply.status, reply.body) == (status, b"\xff\0x")
    assert reply.headers["retry-after"] == "7"
    assert reply.headers["RETRY-AFTER"] == "7"  # whatever case it is asked for in


@pytest.mark.parametrize("ending", ["", "/", "//"])
async def test_what_is_sent(ending):
    """A caption request is exactly what it should be, to the last byte, whatever ends the URL."""
    seen: list[bytes] = []

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readexactly(len(b"".join(PIECES))))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        seen.append(await reader.readuntil(b"\r\n\r\n"))  # the second one on this connection
        seen.append(await reader.readexactly(len(b"".join(PIECES))))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()

    async with (
        raw_server(tell) as url,
        transport_to(url + ending, api_key="sk-1") as transport,
    ):
        await transport.send(POST)
        await transport.send(POST)
    body, head, again = seen
    assert body == again == b"".join(PIECES)
    first, *lines = head.decode().split("\r\n")[:-2]
    assert first == "POST /v1/chat/completions HTTP/1.1"
    sent = dict(line.split(": ") for line in lines)
    assert len(sent) == len(lines)
    assert sent.pop("User-Agent").startswith("Python/")
    assert sent == {
        "Host": url.removeprefix("http://").removesuffix("/v1"),
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Authorization": "Bearer sk-1",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }


@pytest.mark.parametrize("base", [BASE, BASE + "/", BASE + "//"])
async def test_what_is_asked(base):
    """Address and key are those asked for, whatever ends the base URL; there is no body."""
    with aioresponses() as mock:
        mock.get(MODELS_URL, body="{}", response_class=StrayResponse)
        async with transport_to(base, api_key="sk-1") as transport:
            await transport.send(MODELS)
        asked = mock.requests[("GET", MODELS_URL)][0].kwargs
    assert asked["headers"]["Authorization"] == "Bearer sk-1"
    assert asked["allow_redirects"] is False


@both_clients
async def test_through_a_proxy(monkeypatch):
    """Where a proxy has to be used, caption requests go through it, whole and with their key."""
    heads: list[bytes] = []
    bodies: list[bytes] = []
    connections: list[asyncio.Task[Any]] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                heads.append(head)
                bodies.append(await reader.readexactly(len(b"".join(PIECES))))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://user:word@127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with server, transport_to(BASE, api_key="sk-1") as transport:
        for _ in range(2):
            assert (await transport.send(POST)).body == b"{}"
    await asyncio.gather(*connections)
    assert bodies == [b"".join(PIECES)] * 2
    for head in heads:
        lines = head.decode().split("\r\n")
        assert lines[0] == f"POST {CHAT} HTTP/1.1"
        assert "Host: example.org" in lines
        assert "Authorization: Bearer sk-1" in lines
        assert "Proxy-Authorization: Basic dXNlcjp3b3Jk" in lines
        assert "Content-Type: application/json" in lines


@pytest.mark.parametrize(("name", "scheme"), [("http_proxy", "http"), ("https_proxy", "https")])
async def test_proxy_of_the_environment(monkeypatch, name, scheme):
    """A proxy that the environment names is used for hosts elsewhere, unless they are exempt."""
    monkeypatch.setenv(name, "http://proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    used = []
    for exempt in ("", "example.org"):
        monkeypatch.setenv("no_proxy", exempt)
        with aioresponses() as mock:
            url = f"{scheme}://example.org/v1"
            mock.get(f"{url}/models", body="{}", response_class=StrayResponse)
            async with transport_to(url) as transport:
                await transport.send(Request("GET", "/models"))
            used.append(mock.requests[("GET", URL(f"{url}/models"))][0].kwargs["proxy"])
    assert used == ["http://proxy.example:3128", None]


@pytest.mark.parametrize("status", [407, 502])
@both_clients
async def test_what_a_proxy_says_to_connect_is_a_reply(monkeypatch, status):
    """It is judged as any other, and the proxy's password is nowhere in it."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with raw_server(says(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)) as url:
        port = urlsplit(url).port
        monkeypatch.setenv("https_proxy", f"http://user:hunter4@127.0.0.1:{port}")
        for request in (POST, MODELS):
            async with transport_to("https://example.invalid/v1") as transport:
                reply = await transport.send(request)
            assert reply.status == status
            assert b"hunter4" not in reply.body


async def test_a_proxy_is_written_as_people_write_it(monkeypatch):
    """Without a scheme it is HTTP's; one of another kind is refused before anything is sent."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "proxy.example:3128")
    assert proxy_for("http://example.org") == "http://proxy.example:3128"
    monkeypatch.setenv("http_proxy", "HTTP://proxy.example:3128")
    assert proxy_for("http://example.org") == "HTTP://proxy.example:3128"
    for wrong in (
        "socks5://user:hunter4@proxy.example:1080",
        "http://user:hun/ter4@proxy.example:1",
    ):
        monkeypatch.setenv("http_proxy", wrong)
        with pytest.raises(SettingsError, match=r"proxy\.example") as caught:
            AiohttpTransport("http://example.org", api_key=None, timeout_s=1)
        assert "ter4" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_proxy_is_ignored_on_loopback(monkeypatch, endpoint, host):
    """A server on this machine is reached directly though the environment names a proxy."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    url = endpoint.base_url.replace("127.0.0.1", host)
    async with transport_to(url) as transport:
        assert (await transport.send(Request("GET", "/models"))).status == 200


KEY = SimpleNamespace(host="example.org", port=443, ssl=True, is_ssl=True)
INFO = aiohttp.RequestInfo(CHAT, "POST", {}, CHAT)
REFUSED = ConnectionRefusedError(111, "Connection refused")
NO_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
FAULTS = [
    (aiohttp.ClientConnectorError(KEY, REFUSED), "connection"),
    (aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "Name or service not known")), "connection"),
    (aiohttp.ClientConnectorDNSError(KEY, NO_NAME), "connection"),
    (aiohttp.ClientProxyConnectionError(KEY, REFUSED), "connection"),
    (aiohttp.ConnectionTimeoutError("Connection timeout to host"), "connection"),
    (aiohttp.ServerDisconnectedError(), "disconnected"),
    (aiohttp.ServerFingerprintMismatch(b"a", b"b", "example.org", 443), "disconnected"),
    (aiohttp.ClientOSError(104, "Connection reset by peer"), "disconnected"),
    (aiohttp.ClientConnectionResetError("Cannot write to closing transport"), "disconnected"),
    (aiohttp.ClientConnectionError("Connection lost"), "disconnected"),
    (aiohttp.ClientPayloadError("Response payload is not completed"), "disconnected"),
    (aiohttp.ClientResponseError(INFO, (), status=400, message="bad"), "disconnected"),
    (aiohttp.InvalidURL("http://"), "disconnected"),
    (aiohttp.NonHttpUrlClientError("ftp://x"), "disconnected"),
    (aiohttp.ClientError(), "disconnected"),
    (aiohttp.SocketTimeoutError("read"), "timeout"),
    (aiohttp.ServerTimeoutError("read"), "timeout"),
    (TimeoutError(), "timeout"),
    (ConnectionResetError(104, "Connection reset by peer"), "disconnected"),
    (BrokenPipeError(32, "Broken pipe"), "disconnected"),
    (OSError(24, "Too many open files"), "disconnected"),
    (ValueError("Newline in header"), "disconnected"),
]


@pytest.mark.parametrize(("error", "code"), FAULTS, ids=lambda value: type(value).__name__)
async def test_every_error_of_the_client_is_a_fault(error, code):
    """Whatever goes wrong on the way is the endpoint's trouble, in words, and not a crash."""
    with aioresponses() as mock:
        mock.get(MODELS_URL, exception=error)
        assert (await fault_of(BASE, MODELS)).code == code


@pytest.mark.parametrize(("why", "unknown"), [(NO_NAME, True), (AGAIN, False), (REFUSED, False)])
async def test_a_host_that_does_not_exist_is_told_from_one_that_is_not_found_now(why, unknown):
    """A name service in trouble is waited for; a wrong name is not."""
    with aioresponses() as mock:
        mock.get(MODELS_URL, exception=aiohttp.ClientConnectorDNSError(KEY, why))
        assert (await fault_of(BASE, MODELS)).is_unknown_host is unknown


@pytest.mark.parametrize(("error", "code"), FAULTS, ids=lambda value: type(value).__name__)
@both_clients
async def test_every_error_of_a_connection_is_a_fault(monkeypatch, error, code):
    """So it is for caption requests, whose connections are used without aiohttp's session."""

    async def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", fail)
    fault = await fault_of(BASE)
    # Before there is a connection, being too late means that there was none.
    assert fault.code == ("connection" if isinstance(error, TimeoutError) else code)


@pytest.mark.parametrize(
    "error",
    [
        aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "wrong version number")),
        aiohttp.ClientConnectorCertificateError(KEY, ssl.CertificateError("self-signed")),
    ],
)
@both_clients
async def test_no_tls_is_told_at_once(monkeypatch, error):
    """A wrong scheme or an unknown certificate does not mend itself while we wait."""

    async def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", fail)
    with pytest.raises(EndpointRefusedError, match="SSL_CERT_FILE"):
        await fault_of(BASE)


async def test_cancelling_is_no_fault():
    """A request given up by the run ends as cancelled."""
    with aioresponses() as mock:
        mock.get(MODELS_URL, exception=asyncio.CancelledError())
        async with transport_to(BASE) as transport:
            with pytest.raises(asyncio.CancelledError):
                await transport.send(MODELS)


@both_clients
async def test_several_exchanges_in_order(endpoint: FakeEndpoint):
    """A transport is used over and over, whatever the exchange before has come to."""
    faults = {1: Reply(fault="reset"), 2: Reply(status=500)}
    endpoint.behave = lambda call: faults.get(call.number)
    async with transport_to(endpoint.base_url) as transport:
        with pytest.raises(EndpointFaultError):
            await transport.send(body_with("x"))
        assert (await transport.send(body_with("x"))).status == 500
        assert (await transport.send(body_with("x"))).status == 200


@both_clients
async def test_a_server_that_asks_to_go_on():
    """Replies that only say that there will be one are no replies."""
    parts = b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n", HEAD
    async with (
        raw_server(says(*parts, b"Content-Length: 2\r\n\r\n{}")) as url,
        transport_to(url) as transport,
    ):
        reply = await transport.send(POST)
    assert (reply.status, reply.body) == (200, b"{}")


async def test_a_server_that_asks_to_go_on_without_end():
    """It is an error of the endpoint at once: the parts would come faster than they are read."""
    go_on = says(*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 100)
    async with raw_server(go_on) as url:
        fault = await fault_of(url)
    assert (fault.code, "informational responses without end" in fault.message) == (
        "disconnected",
        True,
    )


async def test_a_server_that_sends_garbage_is_quoted_in_short():
    async with raw_server(says(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5_000)) as url:
        fault = await fault_of(url)
    assert len(fault.message) < 400


@both_clients
async def test_a_reply_before_the_request_has_been_heard():
    """A server that refuses a large body while it comes is understood; the next is not mixed up."""
    connections = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        await reader.read()  # until the other end closes

    async with raw_server(refuse) as url, transport_to(url) as transport:
        large = Request("POST", POST.path, (b"x" * (64 << 20),))
        for _ in range(2):
            assert (await transport.send(large)).status == 413
    assert connections == 2


@pytest.mark.parametrize("status", [308, 413])
@both_clients
async def test_a_connection_on_which_the_body_may_not_have_been_read(status):
    """What has left for the network is not what was heard: the next request takes another one."""
    connections = 0

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\n{}" % status)
        await writer.drain()
        await reader.read()  # until the other end closes

    async with raw_server(redirect) as url, transport_to(url) as transport:
        for _ in range(2):
            reply = await transport.send(Request("POST", POST.path, (b"x" * 100_000,)))
            assert reply.status == status
    assert connections == 2


@pytest.mark.parametrize(
    ("how", "expected"),
    [("kept", 1), ("says close", 3), ("closes", 3), ("kept too long", 3)],
)
async def test_connections_are_used_again(monkeypatch, how, expected):
    """An idle connection takes the next request, unless the server or its age speak against it."""
    connections = 0
    if how == "kept too long":
        monkeypatch.setattr("captioner.endpoints.http1.KEPT_S", 0.0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.read(1):  # the body; the head has been read
            more = b"Connection: close\r\n" if how == "says close" else b""
            writer.write(HEAD + more + b"Content-Length: 2\r\n\r\n{}")
            await writer.drain()
            if how == "closes":
                writer.close()
                return
            await reader.readuntil(b"\r\n\r\n")

    async with raw_server(answer) as url, transport_to(url) as transport:
        for _ in range(3):
            reply = await transport.send(Request("POST", POST.path, (b"x",)))
            assert (reply.status, reply.body) == (200, b"{}")
            await asyncio.sleep(0.02)  # until the end of the connection is here
    assert connections == expected


@both_clients
async def test_a_reply_that_nobody_asked_for():
    """A reply that comes twice is never taken for that to the next request."""
    asked = 0

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while True:
            body = await reader.readexactly(1)
            asked += 1
            reply = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + body
            writer.write(reply)
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.write(reply)
            await writer.drain()
            sent.set()
            await reader.readuntil(b"\r\n\r\n")

    async with raw_server(twice) as url, transport_to(url) as transport:
        for number in range(4):
            sent = asyncio.Event()
            reply = await transport.send(Request("POST", POST.path, (b"%d" % number,)))
            assert reply.body == b"%d" % number
            await sent.wait()
            await asyncio.sleep(0.02)  # until it is here
    assert asked == 4


async def test_a_late_reply_to_another_question():
    """What comes again to a question about models is never taken for a reply to a caption."""
    sent = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET"):
                for _ in range(2):
                    writer.write(HEAD + b"Content-Length: 5\r\n\r\nstale")
                    await writer.drain()
                    await asyncio.sleep(0.02)
            else:
                writer.write(HEAD + b"Content-Length: 4\r\n\r\ngood")
            await reader.read()
        except OSError:
            pass
        finally:
            sent.set()
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server, transport_to(url) as transport:
        assert (await transport.send(MODELS)).body == b"stale"
        await sent.wait()
        assert (await transport.send(POST)).body == b"good"


async def test_connections_that_nobody_needs_are_closed(monkeypatch):
    """After a burst of requests, what is idle for long is given up while others go on."""
    monkeypatch.setattr("captioner.endpoints.http1.KEPT_S", 0.05)
    open_now: set[asyncio.StreamWriter] = set()
    together = asyncio.Barrier(5)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_now.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                burst = await reader.readexactly(1) == b"b"
                if burst:
                    await together.wait()
                writer.write(HEAD + b"Content-Length: 0\r\n\r\n")
                await writer.drain()
        open_now.discard(writer)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server, transport_to(url) as transport:
        burst, single = (Request("POST", POST.path, (body,)) for body in (b"b", b"s"))
        await asyncio.gather(*(transport.send(burst) for _ in range(5)))
        assert len(open_now) == 5
        while len(open_now) > 1:
            await transport.send(single)
            await asyncio.sleep(0.02)


@both_clients
async def test_a_refusal_ends_its_connection():
    """A server that refuses a large body unheard may take the rest of it for requests."""
    connections = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(b"HTTP/1.1 429 Slow Down\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.read()

    async with raw_server(refuse) as url, transport_to(url) as transport:
        for _ in range(2):
            assert (
                await transport.send(Request("POST", POST.path, (b"x" * 200_000,)))
            ).status == 429
    assert connections == 2


async def test_a_server_that_does_not_read_keeps_nothing_of_ours():
    """When its time is over, a request is given up with what was still to be sent."""
    closed = asyncio.Event()
    heard = 0

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        writer.transport.pause_reading()
        await given_up.wait()
        writer.transport.resume_reading()
        with contextlib.suppress(ConnectionError):
            while some := await reader.read(1 << 20):
                heard += len(some)
        closed.set()

    given_up = asyncio.Event()
    async with raw_server(deaf) as url, transport_to(url, timeout_s=0.2) as transport:
        with pytest.raises(EndpointFaultError):
            await transport.send(Request("POST", POST.path, (b"x" * (64 << 20),)))
        given_up.set()
        async with asyncio.timeout(10):
            await closed.wait()
    assert heard < 32 << 20


@pytest.mark.parametrize("given", [{"api_key": "k"}, {"headers": [("authorization", "Bearer k")]}])
@both_clients
async def test_a_key_and_a_name_in_the_address(endpoint: FakeEndpoint, given):
    """Which of them is meant is for the user to say; neither is sent."""
    url = endpoint.base_url.replace("://", "://me:secret@")
    with pytest.raises(SettingsError, match="address has a user name"):
        await fault_of(url, **given)
    assert endpoint.count == 0


@both_clients
async def test_what_a_broken_server_repeats_is_masked():
    """The key is not in the message although the server sent it back in what is no HTTP."""
    answer = says(b"HTTP/1.1 200 OK\r\nAuthorization: Bearer sk-secret-key\0\r\n\r\n")
    async with raw_server(answer) as url:
        assert "sk-secret" not in (await fault_of(url, api_key="sk-secret-key")).message


@pytest.mark.parametrize("headers", [[("X-Odd", "a\r\nHost: else")], [("X\n", "value")]])
@both_clients
async def test_a_header_that_would_be_two(endpoint: FakeEndpoint, headers):
    """Whatever a header's value is taken from, it cannot smuggle in another one."""
    fault = await fault_of(endpoint.base_url, headers=headers)
    assert fault.code == "disconnected"
    assert endpoint.count == 0


@both_clients
async def test_a_name_and_a_password_in_the_address(endpoint: FakeEndpoint):
    """They are sent as HTTP's basic authentication, and not in the address."""
    url = endpoint.base_url.replace("://", "://me:secret@")
    async with transport_to(url) as transport:
        await transport.send(body_with("x"))
        await transport.send(MODELS)
    assert {call.headers["authorization"] for call in endpoint.calls} == {"Basic bWU6c2VjcmV0"}


@both_clients
async def test_real_exchange(endpoint: FakeEndpoint):
    """Over a real connection the request arrives with its key and the reply comes back."""
    async with transport_to(endpoint.base_url, api_key="sk-1") as transport:
        reply = await transport.send(body_with("what?"))
    assert reply.status == 200
    assert orjson.loads(reply.body)["choices"][0]["message"]["content"] == "what? []"
    headers = endpoint.calls[0].headers
    assert headers["authorization"] == "Bearer sk-1"
    assert headers["content-type"] == "application/json"
    assert headers["accept-encoding"] == "identity"


@both_clients
async def test_no_key_is_sent_without_one(endpoint: FakeEndpoint):
    """Without a key there is no key header, not an empty one."""
    for nothing in (None, ""):
        async with transport_to(endpoint.base_url, api_key=nothing) as transport:
            await transport.send(body_with("what?"))
    assert all("authorization" not in call.headers for call in endpoint.calls)


@pytest.mark.parametrize("size", [(1 << 18) - 200, 1 << 18, 5 << 20])
@both_clients
async def test_large_bodies_arrive_intact(endpoint: FakeEndpoint, size):
    """A request with large images, sent in pieces, arrives whole and with its length."""
    pieces = tuple(bytes([65 + n % 26]) * (size // 40) for n in range(40))
    whole = (PIECES[0], b'[{"role":"user","content":"', *pieces, b'"}]', PIECES[2])
    async with transport_to(endpoint.base_url) as transport:
        for _ in range(2):
            reply = await transport.send(Request("POST", POST.path, whole))
            assert reply.status == 200
    for call in endpoint.calls:
        text = call.body["messages"][0]["content"].encode()
        assert hashlib.sha256(text).digest() == hashlib.sha256(b"".join(pieces)).digest()
        assert call.headers["content-length"] == str(sum(map(len, whole)))
        assert call.headers["content-type"] == "application/json"


@both_clients
async def test_hanging_server(endpoint: FakeEndpoint):
    """A server that never answers costs the deadline and no more."""
    endpoint.behave = lambda _: Reply(fault="hang")
    fault = await fault_of(endpoint.base_url, body_with("x"), timeout_s=0.2)
    assert fault.code == "timeout"
    assert "0.2 s (--timeout)" in fault.message


@both_clients
async def test_the_deadline_covers_slow_drips():
    """A server that sends a byte now and then does not hold a worker beyond the deadline."""

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with raw_server(drip) as url:
        assert (await fault_of(url, timeout_s=0.3)).code == "timeout"


@pytest.mark.parametrize("fault", ["reset", "truncate"])
@both_clients
async def test_broken_connections(endpoint: FakeEndpoint, fault):
    """A reply that never comes or ends in the middle is no reply; the next one works."""
    endpoint.behave = lambda call: (
        Reply(fault=fault, body=b'{"a":' + b"1" * 5000 + b"}") if call.number == 1 else None
    )
    async with transport_to(endpoint.base_url) as transport:
        with pytest.raises(EndpointFaultError) as caught:
            await transport.send(body_with("x"))
        assert caught.value.code == "disconnected"
        assert (await transport.send(body_with("x"))).status == 200
    assert endpoint.count == 2  # nothing was sent a second time behind our back


@both_clients
async def test_nobody_listens(endpoint: FakeEndpoint):
    """A server that is not there is told with its host, port and the system's reason."""
    url = endpoint.base_url
    endpoint.stop()
    fault = await fault_of(url)
    assert fault.code == "connection"
    assert str(URL(url).port) in fault.message


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"\0\1\2 nonsense\r\n\r\n",),
        (b"SSH-2.0-OpenSSH_9.6\r\n",),
        (b"HTTP/1.1 banana OK\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: banana\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nbanana\r\n",),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 6\r\n\r\nbanana",),
        (HEAD + b"Content-Encoding: deflate\r\nContent-Length: 6\r\n\r\nbanana",),
        (HEAD + b"Content-Length: 100\r\n\r\nshort",),
        (HEAD + b"Content-Length: 100\r\n",),
    ],
    ids=range(13),
)
@both_clients
async def test_servers_that_speak_no_http(parts):
    """Whatever listens there and whatever it says, it is a fault and not a crash."""
    async with raw_server(says(*parts)) as url:
        assert (await fault_of(url)).code == "disconnected"


@pytest.mark.parametrize("how", ["length", "chunked", "until closed", "gzip"])
@both_clients
async def test_huge_replies_are_cut_off(how):
    """A server gone mad does not fill the memory, however it announces what it sends."""
    block = b"x" * (1 << 16)
    count = MAX_REPLY // len(block) + 20

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, piece = HEAD, block
        if how == "length":
            head += b"Content-Length: %d\r\n" % (len(block) * count)
        elif how == "chunked":
            head += b"Transfer-Encoding: chunked\r\n"
            piece = b"%x\r\n%b\r\n" % (len(block), block)
        elif how == "gzip":
            packed = gzip.compress(block * count)
            writer.write(
                HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
            )
            writer.write(packed)
            await writer.drain()
            return
        else:
            head += b"Connection: close\r\n"
        writer.write(head + b"\r\n")
        for _ in range(count):
            writer.write(piece)
            await writer.drain()

    async with raw_server(flood) as url:
        fault = await fault_of(url)
    assert fault.code == "reply_too_large"


@pytest.mark.parametrize("length", [True, False])
@both_clients
async def test_replies_up_to_the_largest_are_read(length):
    """A long reply within bounds arrives whole."""
    body = bytes(range(256)) * 20_000
    head = HEAD + (b"Content-Length: %d\r\n\r\n" % len(body) if length else b"\r\n")
    async with raw_server(says(head, body)) as url, transport_to(url) as transport:
        assert (await transport.send(POST)).body == body


@both_clients
async def test_compressed_replies_are_understood():
    """A server that compresses though nobody asked it to is understood."""
    packed = gzip.compress(b'{"a":1}')
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with raw_server(says(head, packed)) as url, transport_to(url) as transport:
        assert (await transport.send(POST)).body == b'{"a":1}'


@both_clients
async def test_redirects_are_not_followed():
    """A key is never carried to another address: a redirect is handed back as it is."""
    head = b"HTTP/1.1 307 Moved\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    async with raw_server(says(head)) as url, transport_to(url, api_key="k") as transport:
        reply = await transport.send(POST)
    assert (reply.status, reply.headers["location"], reply.body) == (307, "/elsewhere", b"")


async def test_cookies_are_not_kept():
    """What one reply sets is not sent with the next request."""
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")
        await reader.readexactly(len(b"".join(PIECES)))
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with raw_server(answer) as url, transport_to(url) as transport:
        await transport.send(POST)
        await transport.send(POST)
    assert len(seen) == 1  # the same connection was used again
    assert b"cookie" not in seen[0].lower()


@both_clients
async def test_cancelling_a_real_request(endpoint: FakeEndpoint):
    """A request on the wire can be given up at once, and the transport closed after it."""
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(_: Any) -> Reply:
        loop.call_soon_threadsafe(arrived.set)
        return Reply(fault="hang")

    endpoint.behave = hang
    async with transport_to(endpoint.base_url) as transport:
        task = asyncio.create_task(transport.send(body_with("x")))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_an_aiohttp_with_other_internals_is_told_once(monkeypatch, caplog, endpoint):
    """Requests go through aiohttp's session then, whatever the address; a warning says so."""
    monkeypatch.setattr("captioner.endpoints.http1.Http1Client", unfit)
    monkeypatch.setattr("captioner.endpoints.http1._warned", False)
    for _ in range(2):
        async with transport_to(endpoint.base_url) as transport:
            assert (await transport.send(body_with("x"))).status == 200
    assert endpoint.count == 2
    warning = f"aiohttp {aiohttp.__version__} does not fit the fast HTTP client"
    assert [record.getMessage().startswith(warning) for record in caplog.records] == [True]


async def test_closing_twice_and_unused():
    """Closing a transport that was never used, or is closed, is no fault."""
    transport = AiohttpTransport(BASE, api_key=None, timeout_s=1)
    await transport.close()
    await transport.close()


@pytest.mark.parametrize("trusted", [True, False])
def test_captions_over_tls(endpoint, make_input, run_command, tmp_path, trusted):
    """A server with a certificate is talked to if the certificate can be trusted, else not."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(tmp_path / "ca.pem")
    endpoint.stop()
    endpoint.tls = context
    endpoint.start()
    source = make_input(3)
    large = jpeg(7, (2_000, 1_500), quality=100)
    large += b"\0" * (3_000_000 - len(large))  # what is behind an image's end is sent, too
    (tmp_path / "images/2.jpg").write_bytes(large)
    run = run_command(
        source, "-o", tmp_path / "out.jsonl", "--base-url", endpoint.base_url, "--model", "m",
        "--max-side", 2048, "--max-outage", 0.2,
        env={**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem")},
    )  # fmt: skip
    if trusted:
        assert run.returncode == 0, run.stderr
        assert len(rows(tmp_path / "out.jsonl")) == endpoint.count == 3
    else:
        assert run.returncode == 2
        assert "certificate" in run.stderr.lower()
        assert endpoint.count == 0


async def test_captions_over_tls_through_a_proxy(endpoint, make_input, run_command, tmp_path):
    """A proxy that is asked for a tunnel sees neither keys nor images; it keeps one for each."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("vlm.example").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    endpoint.stop()
    endpoint.tls = context
    endpoint.start()
    port = URL(endpoint.base_url).port
    asked: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        there = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    server = await asyncio.start_server(tunnel, "127.0.0.1", 0)
    async with server:
        run = await asyncio.to_thread(
            run_command, make_input(9), "-o", tmp_path / "out.jsonl", "--concurrency", 1,
            "--base-url", f"https://vlm.example:{port}/v1", "--model", "m",
            env={
                **os.environ,
                "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
                "CAPTIONER_API_KEY": "sk-1",
                "https_proxy": f"http://user:word@127.0.0.1:{server.sockets[0].getsockname()[1]}",
                "no_proxy": "",
            },
        )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert len(rows(tmp_path / "out.jsonl")) == endpoint.count == 9
    assert len(asked) == 1
    assert asked[0].startswith(f"CONNECT vlm.example:{port} HTTP/1.1\r\n".encode())
    assert b"Proxy-Authorization: Basic dXNlcjp3b3Jk" in asked[0]
    assert b"sk-1" not in asked[0]


ECHOED = "sk-Echo5d1234567890"


@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", {"api_key": ECHOED}),
        ("", {"headers": [("X-Goog-Api-Key", ECHOED)]}),
        ("", {"headers": [("Authorization", f"Bearer {ECHOED}")]}),
        (f"?key={ECHOED}", {}),
        ("", {"secrets": [ECHOED]}),
    ],
)
@pytest.mark.parametrize(
    "sent", [ECHOED, "".join(f"\\u{ord(char):04x}" for char in ECHOED)], ids=["plain", "escaped"]
)
async def test_a_key_that_comes_back_is_masked(endpoint, status, query, options, sent):
    """Whatever the status of a response, wherever the key was given, and however it is spelled."""
    body = f'{{"message": "bad {sent}", "x": "{"y" * 2_000}"}}'.encode()
    endpoint.behave = lambda _: Reply(status, body)
    async with transport_to(endpoint.base_url + query, **options) as transport:
        reply = await transport.send(body_with("x"))
    assert b"bad ***" in reply.body


@pytest.mark.parametrize("key", ["EMPTY", "lm-studio", "k"])
async def test_a_word_that_is_the_key_stays_in_captions(endpoint, key):
    """Local servers take any key; what the caption says is not touched."""
    endpoint.behave = lambda _: Reply(200, {"caption": f"An {key} street"})
    async with transport_to(endpoint.base_url, api_key=key) as transport:
        assert key.encode() in (await transport.send(body_with("x"))).body


@pytest.mark.parametrize(
    ("surplus", "connections"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", 5),
        (b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", 2),
    ],
)
async def test_a_server_that_repeats_itself_gets_no_connection_twice(surplus, connections):
    """Its next repeated response might come a little later, as that to another request."""
    opened = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        first = opened == 1
        while True:
            await reader.readexactly(1)
            writer.write(HEAD + b"Content-Length: 1\r\n\r\ny" + (surplus if first else b""))
            await writer.drain()
            await reader.readuntil(b"\r\n\r\n")

    async with raw_server(answer) as url, transport_to(url) as transport:
        for _ in range(5):
            assert (await transport.send(Request("POST", POST.path, (b"q",)))).body == b"y"
    assert opened == connections


@pytest.mark.parametrize("request_", [POST, MODELS], ids=["POST", "GET"])
@pytest.mark.parametrize("how", ["long", "slow", "not gzip", "broken off", "gzip"])
async def test_the_status_of_an_error_is_not_lost_with_its_body(monkeypatch, request_, how):
    """A wrong key is one, however unusable the page is that says so."""
    monkeypatch.setattr("captioner.endpoints.http1.ERROR_BODY_S", 0.2)
    words = b'{"error":{"message":"bad key"}}'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, body = b"HTTP/1.1 401 Unauthorized\r\n", words
        if how == "gzip":
            body = gzip.compress(words)
        if "gzip" in how:
            head += b"Content-Encoding: gzip\r\n"
        if how == "long":
            body += b" " * (MAX_REPLY + 1)
        more = 9 if how in ("slow", "broken off") else 0
        writer.write(head + b"Content-Length: %d\r\n\r\n" % (len(body) + more) + body)
        if how == "slow":
            await reader.read()

    async with raw_server(answer) as url, transport_to(url) as transport:
        reply = await transport.send(request_)
    assert reply.status == 401
    assert reply.body.startswith(b"" if how == "not gzip" else words)
    assert len(reply.body) < MAX_REPLY


async def test_a_response_that_came_while_the_process_was_stopped_is_read() -> None:
    """A stop longer than the time limit does not throw away what lies in the socket."""
    sent = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(1 << 16)
                peer.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")
                sent.set()
                peer.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        base_url = f"http://127.0.0.1:{server.getsockname()[1]}"
        async with transport_to(base_url, timeout_s=0.5) as transport:
            sending = asyncio.create_task(transport.send(POST))
            while not sending.done() and not sent.is_set():
                await asyncio.sleep(0)
                if sent.wait(0.001):
                    time.sleep(1.5)  # noqa: ASYNC251 - as SIGSTOP does
            assert (await sending).body == b"{}"
        thread.join()


async def test_a_request_waits_for_a_file_descriptor(monkeypatch, caplog) -> None:
    """Too many open files are no fault of the endpoint, and are told once."""
    monkeypatch.setattr(descriptors, "PAUSE_S", 0.001)
    monkeypatch.setattr(descriptors, "_warned", False)
    refused = iter([errno.EMFILE, errno.ENFILE, errno.EMFILE])
    connect = aiohttp.TCPConnector.connect

    async def scarce(self: Any, request: Any, *more: Any) -> Any:
        if number := next(refused, None):
            key = request.connection_key
            raise aiohttp.ClientConnectorError(key, OSError(number, os.strerror(number)))
        return await connect(self, request, *more)

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", scarce)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"Content-Length: 2\r\n\r\n{}")
        await writer.drain()

    async with raw_server(answer) as base_url, transport_to(base_url) as transport:
        assert (await transport.send(POST)).body == b"{}"
    assert len(caplog.messages) == 1
    assert "ulimit -n" in caplog.messages[0]
