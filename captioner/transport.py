"""HTTP to an endpoint through aiohttp, tuned to cost little per request."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import payload
from yarl import URL

from captioner.errors import EndpointFaultError
from captioner.proxies import proxy_for
from captioner.records import Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from aiohttp.abc import AbstractStreamWriter

    from captioner.records import Request

CONNECT_S = 15.0
MAX_REPLY = 10 << 20
"""Bytes of a reply; no caption is longer, and a server gone mad must not fill the memory."""

SECRET_LENGTH = 8
"""A header's value may be a key from so many characters on; it is masked where it comes back."""

_JOINED = 1 << 18
"""Bytes up to which pieces are joined: cheaper than another system call."""


class AiohttpTransport:
    """Sends requests to one base URL over kept-alive connections.

    Args:
        base_url: For example ``http://localhost:8000/v1``.
        api_key: Sent as a bearer token; None sends none.
        timeout_s: Seconds for one whole exchange, however slowly bytes drip.
        connections: Most connections at once.
        headers: Further headers; they go before ours.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        timeout_s: float,
        connections: int,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._connections = connections
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        said = [value for _, value in headers if len(value) >= SECRET_LENGTH]
        self._secrets = [secret.encode() for secret in (api_key, *said) if secret]
        if api_key and _is_azure(base_url):
            self._headers["api-key"] = api_key
        elif api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        ours = {name.lower(): name for name in self._headers}
        for name, value in headers:
            self._headers.pop(ours.get(name.lower(), ""), None)
            self._headers[name] = value
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}
        self._deadlines = _Deadlines(timeout_s)
        self._proxy = proxy_for(base_url)

    async def send(self, request: Request) -> Response:
        """Return the reply, whatever its status.

        Raises:
            EndpointFaultError: ``connection``, ``disconnected``, ``timeout``
                or ``reply_too_large``.
        """
        session = self._session or self._open()
        url = self._urls.get(request.path)
        if url is None:
            base, mark, query = self._base_url.partition("?")  # Azure's api-version, say
            address = f"{base.rstrip('/')}{request.path}{mark}{query}"
            url = self._urls[request.path] = URL(address)
        body: Any = None
        if request.pieces:
            size = sum(map(len, request.pieces))
            body = b"".join(request.pieces) if size <= _JOINED else _Pieces(request.pieces, size)
        deadline = self._deadlines.begin()
        try:
            async with session.request(
                request.method,
                url,
                data=body,
                allow_redirects=False,
                proxy=self._proxy,
            ) as reply:
                data = await _read(reply)
                if reply.status >= 400:
                    data = self.masked(data)
                return Response(reply.status, reply.headers, data)
        except asyncio.CancelledError:
            if not deadline.passed():
                raise
            raise self._too_late() from None
        except aiohttp.ConnectionTimeoutError:
            raise EndpointFaultError(
                "connection", f"cannot connect to {url.host} within {CONNECT_S:g} s"
            ) from None
        except TimeoutError:
            raise self._too_late() from None
        except aiohttp.ClientConnectorError as error:
            raise EndpointFaultError(
                "connection", f"cannot connect to {error.host}:{error.port}: {_reason(error)}"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EndpointFaultError(
                "disconnected", f"the connection broke: {_reason(error)}"
            ) from None
        finally:
            deadline.end()

    def masked(self, data: bytes) -> bytes:
        """Return a reply without our key: some endpoints repeat it, and it is for nobody's eyes."""
        for secret in self._secrets:
            data = data.replace(secret, b"***")
        return data

    async def upload(self, path: str, file: Path, fields: Mapping[str, str]) -> Response:
        """Send a file as a form's, streamed, however long that takes; return the reply.

        Raises:
            EndpointFaultError: As `send` does.
        """
        with file.open("rb") as opened:
            form = aiohttp.FormData(dict(fields))
            form.add_field("file", opened, filename=file.name, content_type="application/jsonl")
            body = form()
            async with self._whole("POST", path, body, body.headers) as reply:
                return Response(reply.status, reply.headers, self.masked(await _read(reply)))

    async def download(self, path: str, target: Path) -> Response:
        """Write a reply's body to a file if it is a good one; return the reply without it.

        Raises:
            EndpointFaultError: As `send` does; the file is as it was.
        """
        async with self._whole("GET", path) as reply:
            if reply.status >= 300:
                return Response(reply.status, reply.headers, self.masked(await _read(reply)))
            partial = target.with_name(target.name + ".partial")
            with partial.open("wb") as file:
                async for chunk in reply.content.iter_any():
                    file.write(chunk)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            partial.replace(target)
            return Response(reply.status, reply.headers, b"")

    @contextlib.asynccontextmanager
    async def _whole(
        self, method: str, path: str, body: Any = None, headers: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Exchange what may take long as a whole, but not between two bytes."""
        base, mark, query = self._base_url.partition("?")
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_S, sock_read=self._timeout_s
        )
        session = self._session or self._open()
        try:
            async with session.request(
                method,
                URL(f"{base.rstrip('/')}{path}{mark}{query}"),
                data=body,
                headers=headers,
                allow_redirects=False,
                proxy=self._proxy,
                timeout=timeout,
            ) as reply:
                yield reply
        except TimeoutError:
            raise self._too_late() from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise EndpointFaultError(
                "disconnected", f"the connection broke: {_reason(error)}"
            ) from None

    def _too_late(self) -> EndpointFaultError:
        return EndpointFaultError(
            "timeout", f"no whole reply within {self._timeout_s:g} s (--timeout)"
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            # The deadline of an exchange covers it all; connecting has a shorter one of its own.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            # Whatever is accepted might come compressed; replies are too short for that.
            skip_auto_headers=("Accept-Encoding",),
        )
        return self._session


class _Deadlines:
    """Ends exchanges that take too long, with one timer for all: they are all allowed as much.

    What `asyncio.timeout` does, for a tenth of the price.

    Args:
        seconds: Allowed for each.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.running: dict[_Deadline, None] = {}  # in the order they began
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> _Deadline:
        loop = asyncio.get_running_loop()
        deadline = _Deadline(self, loop.time() + self._seconds)
        self.running[deadline] = None
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._sweep)
        return deadline

    def _sweep(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        for deadline in list(self.running):
            if deadline.when > loop.time():
                self._timer = loop.call_at(deadline.when, self._sweep)
                return
            deadline.expire()


class _Deadline:
    """When one exchange has to be over."""

    __slots__ = ("_deadlines", "_expired", "_task", "_wishes", "when")

    def __init__(self, deadlines: _Deadlines, when: float) -> None:
        self._deadlines = deadlines
        self._task = asyncio.current_task()
        self._wishes = self._task.cancelling() if self._task else 0
        self._expired = False
        self.when = when

    def expire(self) -> None:
        """Cancel the exchange."""
        self.end()
        if self._task is not None:
            self._expired = True
            self._task.cancel()

    def passed(self) -> bool:
        """Tell whether a cancellation was this deadline's alone."""
        return self._expired and self._task is not None and self._task.uncancel() <= self._wishes

    def end(self) -> None:
        """Note that the exchange is over."""
        self._deadlines.running.pop(self, None)


class _Pieces(payload.Payload):
    """A large body sent as it lies in memory, its pieces one after the other."""

    def __init__(self, pieces: tuple[bytes, ...], size: int) -> None:
        super().__init__(pieces, content_type="application/json")
        self._size = size

    async def write(self, writer: AbstractStreamWriter) -> None:
        for piece in self._value:
            await writer.write(piece)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._value).decode(encoding, errors)


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    length = reply.content_length
    if length is not None and length <= MAX_REPLY and "Content-Encoding" not in reply.headers:
        return await reply.read()
    data = bytearray()
    async for chunk in reply.content.iter_any():
        data += chunk
        if len(data) > MAX_REPLY:
            reply.close()
            raise EndpointFaultError(
                "reply_too_large", f"the reply is longer than {MAX_REPLY:,} bytes"
            )
    return bytes(data)


def _is_azure(url: str) -> bool:
    """Tell whether keys go into a header of their own there; Bearer is for its tokens."""
    host = urlsplit(url).hostname or ""
    return host.endswith((".openai.azure.com", ".cognitiveservices.azure.com"))


def _reason(error: BaseException) -> str:
    """Return what went wrong in words, without addresses of objects or stack traces."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
