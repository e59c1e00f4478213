"""One POST over one of aiohttp's connections, without its session: half of a request's cost.

aiohttp's session merges headers, follows redirects, keeps cookies and calls tracers for each
request. A captioning run needs none of that. It needs aiohttp's connector (TLS, name lookup), its
response parser and its body reader. `Http1Client` uses parts of aiohttp that are not documented;
`open_client` falls back to the session if an aiohttp version has changed them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from inspect import signature
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from captioner.core.errors import EndpointFaultError
from captioner.core.types import Response

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiohttp.connector import Connection
    from yarl import URL

logger = logging.getLogger(__name__)

CONNECT_S = 15.0
MAX_REPLY = 10 << 20
"""Bytes of a response. No caption is longer, and a broken server must not fill the memory."""

MAX_ERROR = 1 << 18
"""Bytes that are read of an error response."""

MAX_INFORMATIONAL = 16
"""Responses of status 1xx that are read before the real one."""

ERROR_BODY_S = 5.0
"""Seconds that the body of an error response may take."""

ALWAYS_READ = 1 << 16
"""Bytes of a request that a server reads before it responds, or that are not worth closing a
connection for."""

KEPT_S = 15.0
"""Seconds that an idle connection is kept, as in aiohttp's pool; many servers keep it no longer."""

CONNECTING = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)

HEADER_LIMITS: dict[str, Any] = {"max_line_size": 1 << 16, "max_field_size": 1 << 16}
"""Size of a header; gateways send some of more than aiohttp's 8 kB."""
if "max_headers" in signature(ResponseHandler.set_response_params).parameters:
    HEADER_LIMITS["max_headers"] = 512

_LENGTH = ("content-length", "transfer-encoding")

TESTED = "aiohttp 3.13 and 3.14"
"""Versions whose undocumented parts `Http1Client` was tested with."""


class Client(Protocol):
    """Sends POST requests to one address."""

    async def post(self, pieces: Sequence[bytes]) -> Response:
        """Send a body and return the response, whatever its status.

        Raises:
            aiohttp.ClientError, OSError: There is none.
            EndpointFaultError: ``reply_too_large``.
        """
        ...

    @property
    def unsent(self) -> int:
        """Requests that are not sent completely yet, as far as that is known."""
        ...

    def close(self) -> None:
        """Close idle connections."""
        ...


def open_client(session: aiohttp.ClientSession, url: URL, proxy: URL | None = None) -> Client:
    """Return a client for one address: the fast one if the installed aiohttp allows it.

    Args:
        session: Its connections and headers are used.
        url: The address.
        proxy: The proxy to use; None connects directly.

    Raises:
        ValueError: A header cannot be sent.
    """
    global _warned  # noqa: PLW0603 - a warning for the whole process
    try:
        return Http1Client(session, url, proxy)
    except (AttributeError, TypeError) as error:
        if not _warned:
            _warned = True
            logger.warning(
                "aiohttp %s does not fit the fast HTTP client (%s), which is tested with %s: "
                "requests use aiohttp's session and cost about half as much CPU again",
                aiohttp.__version__,
                error,
                TESTED,
            )
        return SessionClient(session, url, proxy)


_warned = False


class SessionClient:
    """Sends POST requests through aiohttp's session, on a connection each.

    Args:
        session: The session.
        url: The address.
        proxy: The proxy to use; None connects directly.
    """

    def __init__(self, session: aiohttp.ClientSession, url: URL, proxy: URL | None = None) -> None:
        self._session = session
        self._url = url
        self._proxy = proxy

    async def post(self, pieces: Sequence[bytes]) -> Response:
        """See `Client.post`."""
        async with self._session.post(
            self._url, data=BytesIO(b"".join(pieces)), allow_redirects=False, proxy=self._proxy
        ) as reply:
            return await response_of(reply)

    unsent = 0

    def close(self) -> None:
        """Do nothing: the session closes its connections."""


class Http1Client:
    """Sends POST requests to one address over kept connections. Everything undocumented is here.

    Args:
        session: Its connector and headers are used.
        url: The address.
        proxy: The proxy to use; None connects directly.

    Raises:
        ValueError: A header cannot be sent.
        AttributeError, TypeError: This version of aiohttp has other internals.
    """

    def __init__(self, session: aiohttp.ClientSession, url: URL, proxy: URL | None = None) -> None:
        connector = session.connector
        if connector is None:
            raise ValueError("the session is closed")
        for name in ("set_response_params", "is_connected", "should_close", "read"):
            getattr(ResponseHandler, name)
        self._connector = connector
        # Names the connection in the connector; it is never sent itself.
        self._request = aiohttp.ClientRequest(
            "POST",
            url,
            headers=session.headers,
            skip_auto_headers=session.skip_auto_headers,
            loop=asyncio.get_running_loop(),
            session=session,
            proxy=proxy,
        )
        self._head = self._written()
        self._idle: list[_Wire] = []
        self._busy: set[asyncio.Transport] = set()
        self._reuses = True  # until a server sends a surplus response

    def _written(self) -> bytes:
        """Return the bytes before a body, up to its length."""
        request = self._request
        absolute = request.proxy is not None and not request.is_ssl()  # RFC 9112, section 3.2.2
        target = str(request.url.with_user(None)) if absolute else request.url.raw_path_qs
        lines = [f"POST {target} HTTP/1.1"]
        for name, value in request.headers.items():
            if not f"{name}{value}".isprintable():
                raise ValueError(f"the header {name} cannot be sent")
            if name.lower() not in _LENGTH:
                lines.append(f"{name}: {value}")
        return "\r\n".join([*lines, "Content-Length: "]).encode()

    async def post(self, pieces: Sequence[bytes]) -> Response:
        """See `Client.post`."""
        wire = await self._connect()
        connection, protocol, transport = wire.connection, wire.protocol, wire.transport
        self._busy.add(transport)
        try:
            protocol.set_response_params(read_until_eof=True, **HEADER_LIMITS)
            size = sum(map(len, pieces))
            # Joining the pieces first would cost 10 % more.
            transport.writelines((b"%b%d\r\n\r\n" % (self._head, size), *pieces))
            message, content = await _first_real(protocol)
            headers = message.headers
            whole = True
            if message.code < 400:
                body = await read(headers, content)
            else:
                body = await read_error(content)
                whole = content.is_eof() and content.exception() is None
            reply = Response(message.code, headers, body)
            # A server may refuse a request before it has read all of it, and take the rest for
            # another request.
            early = reply.status >= 300 and size > ALWAYS_READ
            if early or not whole or transport.get_write_buffer_size():
                _abort(connection)
            elif message.should_close:
                connection.close()
            else:
                self._keep(wire)
        except HttpProcessingError as error:
            _abort(connection)
            raise aiohttp.ClientPayloadError(error.message) from None
        except BaseException:
            _abort(connection)
            raise
        finally:
            self._busy.discard(transport)
        return reply

    @property
    def unsent(self) -> int:
        """See `Client.unsent`."""
        return sum(1 for transport in self._busy if transport.get_write_buffer_size())

    def _keep(self, wire: _Wire) -> None:
        """Keep a connection for the next request, and close those idle for too long."""
        if not self._reuses:
            wire.connection.close()
            return
        now = time.monotonic()
        while self._idle and now - self._idle[0].since > KEPT_S:
            self._idle.pop(0).connection.close()
        wire.since = now
        self._idle.append(wire)

    def close(self) -> None:
        """Close idle connections."""
        while self._idle:
            self._idle.pop().connection.close()

    async def _connect(self) -> _Wire:
        """Return a connection on which no data has arrived since the last response.

        A late or repeated response would be taken for the response to the next request.
        """
        while self._idle:
            wire = self._idle.pop()
            fresh = time.monotonic() - wire.since <= KEPT_S
            connected = wire.protocol.is_connected()
            if fresh and connected and not wire.protocol.should_close:
                return wire
            if connected and wire.protocol.should_close and not _is_goodbye(wire.protocol):
                # This server repeats its responses: one that comes a little later would be taken
                # for the response to the next request.
                self._reuses = False
                self.close()
            wire.connection.close()
        try:
            connection = await self._connector.connect(self._request, [], CONNECTING)
        except TimeoutError:
            raise aiohttp.ConnectionTimeoutError from None
        if self._request.proxy is not None:
            self._head = self._written()  # now it has the proxy's password
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None or not protocol.is_connected():
            connection.close()
            raise aiohttp.ServerDisconnectedError
        return _Wire(connection, protocol, transport)


@dataclass(slots=True)
class _Wire:
    """A connection, and the time since which it is idle."""

    connection: Connection
    protocol: ResponseHandler
    transport: asyncio.Transport
    since: float = 0.0


def _is_goodbye(protocol: ResponseHandler) -> bool:
    """Return whether a server only said that a connection was idle for too long."""
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        return [message.code for (message, _), _ in getattr(protocol, "_buffer", ())] == [408]
    return False


async def _first_real(protocol: ResponseHandler) -> tuple[Any, aiohttp.StreamReader]:
    """Return the head and the content of a response; informational ones may come before it.

    Raises:
        aiohttp.ClientPayloadError: There is no end of them.
    """
    for _ in range(MAX_INFORMATIONAL):
        message, content = await protocol.read()
        if not 100 <= message.code < 200 or message.code == 101:
            return message, content
    raise aiohttp.ClientPayloadError("it sends informational responses without end")


def _abort(connection: Connection) -> None:
    """Close a connection at once; a plain close would wait for unsent data."""
    if connection.transport is not None:
        connection.transport.abort()
    connection.close()


async def response_of(reply: aiohttp.ClientResponse) -> Response:
    """Return a response of aiohttp's session, with its body.

    Raises:
        EndpointFaultError: The body of a success is too large.
    """
    if reply.status >= 400:
        body = await read_error(reply.content)
    else:
        body = await read(reply.headers, reply.content)
    return Response(reply.status, reply.headers, body)


async def read_error(content: aiohttp.StreamReader) -> bytes:
    """Return the body of an error response, or the beginning of it.

    Its status says enough: a body that is long, slow or broken does not take its place.
    """
    collected = bytearray()
    try:
        async with asyncio.timeout(ERROR_BODY_S):
            while len(collected) < MAX_ERROR and (chunk := await content.readany()):
                collected += chunk
    except (TimeoutError, aiohttp.ClientError, HttpProcessingError):
        pass
    return bytes(collected[:MAX_ERROR])


async def read(headers: Mapping[str, str], content: aiohttp.StreamReader) -> bytes:
    """Return the body of a response.

    Raises:
        EndpointFaultError: It is too large.
    """
    length = headers.get("Content-Length")
    if length is not None and int(length) > MAX_REPLY:
        raise _too_large()
    if content.is_eof():  # all of it is here
        data = content.read_nowait()
    else:
        if length is not None and "Content-Encoding" not in headers:
            return await content.read()
        collected = bytearray()
        async for chunk in content.iter_any():
            collected += chunk
            if len(collected) > MAX_REPLY:
                break
        data = bytes(collected)
    if len(data) > MAX_REPLY:
        raise _too_large()
    return data


def _too_large() -> EndpointFaultError:
    return EndpointFaultError("reply_too_large", f"the response is longer than {MAX_REPLY} bytes")
