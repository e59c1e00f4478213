"""Images from the web against a real server on loopback; names are resolved by a stand-in."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from conftest import jpeg

from captioner.core.errors import BadImageError
from captioner.images.fetch import http
from captioner.images.fetch.http import HttpFetcher
from captioner.settings.options import ImageSettings

IMAGE = jpeg(1)


FULL_WIDTH = "127.0.0.1".translate({ord(c): ord(c) + 0xFEE0 for c in "0127"})


class Names(AbstractResolver):
    """Resolves the given names; all others lead to the test's own server."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {name.replace("_", "."): list(found) for name, found in names.items()}
        self.asked: Counter[str] = Counter()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked[host] += 1
        found = self.names.get(host, ["127.0.0.1"])
        address = found.pop(0) if len(found) > 1 else found[0]
        result: Any = {
            "hostname": host,
            "host": address,
            "port": port,
            "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
            "proto": 0,
            "flags": 0,
        }
        return [result]

    async def close(self) -> None:
        pass


class Server:
    def __init__(self) -> None:
        self.hits: list[str] = []
        self.behave: Callable[[web.Request], Any] = lambda _: web.Response(body=IMAGE)
        self.port = 0

    def url(self, path: str = "/a.jpg", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.hits.append(request.raw_path)
        answer = self.behave(request)
        return await answer if asyncio.iscoroutine(answer) else answer


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    started = Server()
    app = web.Application()
    app.router.add_get("/{path:.*}", started.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    started.port = runner.addresses[0][1]
    yield started
    await runner.cleanup()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits() -> Any:
        while True:
            yield 0.0

    monkeypatch.setattr(http, "waits", waits)


def made(
    *,
    timeout_s: float = 10.0,
    max_bytes: int = 1 << 20,
    private: bool = True,
    resolver: AbstractResolver | None = None,
) -> HttpFetcher:
    images = ImageSettings(
        fetch_timeout=timeout_s, max_image_bytes=max_bytes, allow_private_urls=private
    )
    return HttpFetcher(images, resolver)


async def fetch(url: str, **options: Any) -> bytes:
    async with made(**{"resolver": Names(), **options}) as fetcher:
        with await fetcher.fetch(url) as file:
            file.seek(0)
            return file.read()


async def refused(url: str, **options: Any) -> BadImageError:
    with pytest.raises(BadImageError) as caught:
        await fetch(url, **options)
    return caught.value


async def test_an_image_is_fetched(server: Server) -> None:
    """The bytes come as the server has them, query and all."""
    assert await fetch(server.url("/a%20b.jpg?x=1&y=%2F")) == IMAGE
    assert server.hits == ["/a%20b.jpg?x=1&y=%2F"]


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "image_missing"), (410, "image_missing"), (401, "image_unreadable"),
     (403, "image_unreadable"), (400, "image_unreadable"), (204, "image_unreadable")],
)  # fmt: skip
async def test_an_answer_that_will_stay_is_not_asked_again(server: Server, status, code) -> None:
    """A missing or forbidden image fails at once, with the status in the message."""
    server.behave = lambda _: web.Response(status=status)
    error = await refused(server.url("/x.jpg?token=sk-secret"))
    assert (error.code, len(server.hits)) == (code, 1)
    assert str(status) in error.message
    assert "sk-secret" not in error.message


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520])
async def test_passing_trouble_is_tried_again(server: Server, status) -> None:
    """A server that is busy twice still gives the image."""
    server.behave = lambda _: (
        web.Response(body=IMAGE) if len(server.hits) > 2 else web.Response(status=status)
    )
    assert await fetch(server.url()) == IMAGE
    assert len(server.hits) == 3


async def test_lasting_trouble_fails_the_image(server: Server) -> None:
    """After four attempts the record fails, saying why."""
    server.behave = lambda _: web.Response(status=503)
    error = await refused(server.url())
    assert (error.code, len(server.hits)) == ("image_fetch_failed", http.ATTEMPTS)
    assert "HTTP 503" in error.message


async def test_an_image_cut_short_on_the_way_is_fetched_again(server: Server) -> None:
    """A connection that breaks in the middle is no whole image."""

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(IMAGE))})
        await response.prepare(request)
        await response.write(IMAGE[:100])
        assert request.transport is not None
        request.transport.abort()
        return response

    server.behave = lambda request: (
        web.Response(body=IMAGE) if len(server.hits) > 1 else half(request)
    )
    assert await fetch(server.url()) == IMAGE


async def test_a_host_without_a_server(unused_tcp_port) -> None:
    """A host that does not answer fails the image with a reason."""
    error = await refused(f"http://127.0.0.1:{unused_tcp_port}/a.jpg")
    assert error.code == "image_fetch_failed"
    assert "cannot connect" in error.message


async def test_the_deadline_covers_everything(server: Server) -> None:
    """A server that sends bytes slowly is cut off after the timeout."""

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(10_000):
            if request.transport is None or request.transport.is_closing():
                break
            await response.write(b"x")
            await asyncio.sleep(0.01)
        return response

    server.behave = drip
    error = await refused(server.url(), timeout_s=0.3)
    assert error.code == "image_fetch_failed"
    assert "--fetch-timeout" in error.message


@pytest.mark.parametrize("told", [True, False])
async def test_an_image_that_is_too_large_is_not_read_to_its_end(server: Server, told) -> None:
    """The download stops at the limit, with or without a Content-Length."""
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        headers = {"Content-Length": str(1 << 40)} if told else {}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        while request.transport is not None and not request.transport.is_closing():
            await response.write(bytes(65_536))
            sent += 65_536
        return response

    server.behave = endless
    error = await refused(server.url(), max_bytes=3_000_000)
    assert error.code == "image_too_large"
    assert sent < 50_000_000


async def test_a_bomb_in_the_transfer_encoding_is_bounded(server: Server) -> None:
    """A server that compresses unasked cannot unfold more than may be read."""
    bomb = gzip.compress(bytes(50_000_000))
    server.behave = lambda _: web.Response(body=bomb, headers={"Content-Encoding": "gzip"})
    error = await refused(server.url(), max_bytes=3_000_000)
    assert error.code in ("image_too_large", "image_fetch_failed")


async def test_retry_after_holds_for_the_whole_host(server: Server, monkeypatch) -> None:
    """Retry-After delays the other images of that host, too."""
    refused = asyncio.Event()

    def waits() -> Iterator[float]:
        refused.set()
        yield 0.0

    monkeypatch.setattr(http, "waits", waits)
    server.behave = lambda _: (
        web.Response(body=IMAGE)
        if len(server.hits) > 1
        else web.Response(status=429, headers={"Retry-After": "0.2"})
    )
    loop = asyncio.get_running_loop()
    async with made() as fetcher:
        begin = loop.time()
        first = asyncio.create_task(fetcher.fetch(server.url("/1")))
        await refused.wait()
        (await fetcher.fetch(server.url("/2"))).close()
        assert loop.time() >= begin + 0.2
        (await first).close()


# -- case 28: where a URL may lead -----------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::]", "0.0.0.0", "169.254.169.254",
        "10.1.2.3", "192.168.0.1", "[fd00:ec2::254]", "[64:ff9b::7f00:1]", FULL_WIDTH,
    ],
)  # fmt: skip
async def test_private_addresses_are_refused(server: Server, host) -> None:
    """No connection is made to a private address in any spelling."""
    error = await refused(server.url(host=host), private=False)
    assert error.code == "image_url_refused", error.message
    assert "private" in error.message
    assert not server.hits


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "017700000001", "127.1", "0"])
async def test_odd_numbers_are_refused_as_the_system_reads_them(server: Server, host) -> None:
    """Decimal, octal, hexadecimal and short forms of loopback, resolved as they really are."""
    error = await refused(server.url(host=host), private=False, resolver=None)
    assert error.code == "image_url_refused", error.message
    assert not server.hits


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1"])
async def test_names_of_private_addresses_are_refused(server: Server, address) -> None:
    """A public name with a private address behind it is no way in."""
    names = Names(images_example=[address])
    error = await refused(server.url(host="images.example"), private=False, resolver=names)
    assert error.code == "image_url_refused"
    assert not server.hits


async def test_the_address_that_was_checked_is_the_one_connected_to(
    server: Server, monkeypatch
) -> None:
    """A name that is public when asked first and loopback later never reaches loopback."""
    outside = web.Server(lambda _: _later(web.Response(body=IMAGE)))
    runner = web.ServerRunner(outside)
    await runner.setup()
    # The same port of another address, which counts as public here.
    await web.TCPSite(runner, "127.0.0.2", server.port).start()
    public = http.is_public
    monkeypatch.setattr(http, "is_public", lambda one: one == "127.0.0.2" or public(one))
    names = Names(rebind_example=["127.0.0.2", "127.0.0.1"])
    url = server.url(host="rebind.example")
    async with made(private=False, resolver=names) as fetcher:
        (await fetcher.fetch(url)).close()
        assert names.asked["rebind.example"] == 1  # the connection used the checked address
    async with made(private=False, resolver=names) as fetcher:
        with pytest.raises(BadImageError) as caught:
            await fetcher.fetch(url)
    await runner.cleanup()
    assert caught.value.code == "image_url_refused"
    assert names.asked["rebind.example"] == 2
    assert not server.hits


async def _later(response: web.Response) -> web.Response:
    return response


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/in", "//[::1]:{port}/in", "http://inside.example:{port}/in",
        "file:///etc/passwd", "ftp://example.org/a.jpg", "gopher://127.0.0.1/",
        "data:image/png;base64,AAAA", "http://user:pw@169.254.169.254/latest", "",
    ],
)  # fmt: skip
async def test_each_hop_of_a_redirect_is_checked(server: Server, monkeypatch, location) -> None:
    """A public server cannot redirect to a private address."""
    target = location.format(port=server.port)
    server.behave = lambda _: web.Response(
        status=302, headers={"Location": target} if target else {}
    )
    names = Names(outside_example=["127.0.0.1"], inside_example=["10.0.0.1"])
    public = http.is_public
    # The test's own server counts as public where it is named outside.example, and only there.
    monkeypatch.setattr(
        http,
        "is_address",
        lambda host: (host != "outside.example" and ":" in host) or host[:1].isdigit(),
    )
    monkeypatch.setattr(
        http.PublicResolver,
        "resolve",
        _outside_is_public(http.PublicResolver.resolve, names),
    )
    assert not public("127.0.0.1")
    error = await refused(server.url(host="outside.example"), private=False, resolver=names)
    assert error.code == "image_url_refused", error.message
    assert server.hits == ["/a.jpg"]
    assert "pw" not in error.message


def _outside_is_public(resolve: Any, names: Names) -> Any:
    async def resolved(self: Any, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
        if host == "outside.example":
            return await names.resolve(host, port, family)
        return await resolve(self, host, port, family)

    return resolved


async def test_redirects_are_followed_so_far(server: Server) -> None:
    """Relative and absolute ones are followed; a circle ends."""

    def move(request: web.Request) -> web.Response:
        number = int(request.path[1:])
        if number == 0:
            return web.Response(body=IMAGE)
        to = f"/{number - 1}" if number % 2 else server.url(f"/{number - 1}")
        return web.Response(status=(301, 302, 303, 307, 308)[number % 5], headers={"Location": to})

    server.behave = move
    assert await fetch(server.url("/5")) == IMAGE
    error = await refused(server.url("/6"))
    assert error.code == "image_url_refused"
    assert "redirects more than" in error.message


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "http://a b/", "http:///x", "https://:80/"]
)
async def test_what_is_no_url(url) -> None:
    """A URL that cannot be is a clear failure."""
    error = await refused(url)
    assert error.code in ("image_url_refused", "image_fetch_failed")


async def test_credentials_are_used_but_never_told(server: Server) -> None:
    """User and password of a URL are sent to its server and appear in no message."""
    seen: list[str] = []

    def deny(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization", ""))
        return web.Response(status=403)

    server.behave = deny
    error = await refused(f"http://me:hush@127.0.0.1:{server.port}/a.jpg?sig=hush")
    assert seen[0].startswith("Basic ")
    assert "hush" not in error.message
    assert "me" not in error.message.split("//")[1].split("/")[0]


async def test_no_message_holds_a_query(unused_tcp_port_factory) -> None:
    """The error about an invalid HTTP response does not contain the query of the URL."""

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nBad Header\r\n\r\n")
        writer.close()

    port = unused_tcp_port_factory()
    async with await asyncio.start_server(nonsense, "127.0.0.1", port):
        error = await refused(f"http://127.0.0.1:{port}/x?s=hush")
    assert error.code == "image_fetch_failed"
    assert "hush" not in error.message


async def test_a_proxy_may_be_private(server: Server, monkeypatch) -> None:
    """The proxy resolves names; only addresses known to be private are refused."""

    class NoNames(Names):
        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
            if host == "proxy.internal":
                return await super().resolve(host, port, family)
            raise OSError("no such name here")

    proxy = f"http://proxy.internal:{server.port}"
    monkeypatch.setattr(http, "proxy_for", lambda _: proxy)
    assert await fetch("http://images.example/a.jpg", private=False, resolver=NoNames()) == IMAGE
    error = await refused("http://169.254.169.254/", private=False, resolver=NoNames())
    assert error.code == "image_url_refused"
    names = Names(inside_example=["10.0.0.1"])
    error = await refused("http://inside.example/", private=False, resolver=names)
    assert error.code == "image_url_refused"
    assert len(server.hits) == 1
