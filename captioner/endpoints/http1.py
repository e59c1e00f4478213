"""One POST over one of aiohttp's connections, without its session: half of a request's price.

aiohttp's session merges headers, follows redirects, keeps cookies and calls tracers, for each
request anew. Of all that a captioning run wants nothing. What it does want is aiohttp's as before:
connections with TLS and name lookup (its connector), the parser, the reader of bodies.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from captioner.core.errors import EndpointFaultError
from captioner.core.types import Response

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection
    from yarl import URL

CONNECT_S = 15.0
MAX_REPLY = 10 << 20
"""Bytes of a reply; no caption is longer, and a server gone mad must not fill the memory."""

HEARD_OUT = 1 << 16
"""Bytes of a body that a server has always read before it answers, or that are not worth closing
a connection for."""

KEPT_S = 15.0
"""Seconds an idle connection is kept, as in aiohttp's own pool; many servers keep it no longer."""

CONNECTING = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)

_LENGTH = ("content-length", "transfer-encoding")


class Http1Client:
    """POSTs bodies to one address.

    Args:
        session: Whose connections and headers are used.
        url: Where to.
        proxy: What is between, if anything is.

    Raises:
        ValueError: A header cannot be sent.
    """

    def __init__(self, session: aiohttp.ClientSession, url: URL, proxy: URL | None = None) -> None:
        connector = session.connector
        if connector is None:
            raise ValueError("the session is closed")
        self._connector = connector
        # What names the connection in the pool; it is never sent itself.
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

    def _written(self) -> bytes:
        """Return what stands before a body, up to its length."""
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
        """Send a body and return the reply, whatever its status.

        Raises:
            aiohttp.ClientError, OSError: There is none.
            EndpointFaultError: ``reply_too_large``.
        """
        wire = await self._connect()
        connection, protocol, transport = wire.connection, wire.protocol, wire.transport
        try:
            protocol.set_response_params(read_until_eof=True)
            size = sum(map(len, pieces))
            # Joining the pieces first would cost a tenth more.
            transport.writelines((b"%b%d\r\n\r\n" % (self._head, size), *pieces))
            while True:
                message, content = await protocol.read()
                # Until then it only says: go on.
                if not 100 <= message.code < 200 or message.code == 101:
                    break
            reply = Response(message.code, message.headers, await read(message.headers, content))
            # One that refuses may do so before it has heard us out, and what it then takes the
            # rest for is answered, too.
            early = reply.status >= 300 and size > HEARD_OUT
            if early or transport.get_write_buffer_size():
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
        return reply

    def _keep(self, wire: _Wire) -> None:
        """Keep a connection for the next request, and give those up that nobody has needed."""
        now = time.monotonic()
        while self._idle and now - self._idle[0].since > KEPT_S:
            self._idle.pop(0).connection.close()
        wire.since = now
        self._idle.append(wire)

    def close(self) -> None:
        """Close the connections that are kept."""
        while self._idle:
            self._idle.pop().connection.close()

    async def _connect(self) -> _Wire:
        """Return a connection on which nothing has come that nobody asked for.

        A reply that came late, or twice, would be taken for that to the next request.
        """
        while self._idle:
            wire = self._idle.pop()
            fresh = time.monotonic() - wire.since <= KEPT_S
            if fresh and wire.protocol.is_connected() and not wire.protocol.should_close:
                return wire
            wire.connection.close()
        try:
            connection = await self._connector.connect(self._request, [], CONNECTING)
        except TimeoutError:
            raise aiohttp.ConnectionTimeoutError from None
        if self._request.proxy is not None:
            self._head = self._written()  # only now it has the proxy's password
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None or not protocol.is_connected():
            connection.close()
            raise aiohttp.ServerDisconnectedError
        return _Wire(connection, protocol, transport)


@dataclass(slots=True)
class _Wire:
    """A connection, and since when it has been idle."""

    connection: Connection
    protocol: ResponseHandler
    transport: asyncio.Transport
    since: float = 0.0


def _abort(connection: Connection) -> None:
    """Give a connection up with what is still to be sent; closing it would wait for that."""
    if connection.transport is not None:
        connection.transport.abort()
    connection.close()


async def read(headers: Mapping[str, str], content: aiohttp.StreamReader) -> bytes:
    """Return a reply's body.

    Raises:
        EndpointFaultError: It is too large to be a reply.
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
    return EndpointFaultError("reply_too_large", f"the reply is longer than {MAX_REPLY:,} bytes")
