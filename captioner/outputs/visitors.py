"""Connections to a small web server: few at once, and none that is held without a request."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Self

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

MOST = 64
"""Connections at once."""

IDLE_S = 5.0
"""Seconds that a connection may be open without a complete request or a response."""

SENDING_S = 60.0
"""Seconds in which a response must be taken."""

_SWEEP_S = 0.5


class Visitors:
    """Serves an application to a bounded number of connections. An async context manager.

    When there are too many, the one that has been idle for longest makes room. Other users of the
    machine can connect without the token: they must not take descriptors from a run.

    Args:
        app: The application.
        host: The address to listen on.
        port: The port; 0 takes a free one.

    Attributes:
        port: The port that it listens on.
    """

    def __init__(self, app: web.Application, host: str, port: int) -> None:
        silent = logging.getLogger(f"{__name__}.requests")  # invalid requests are not logged
        silent.addHandler(logging.NullHandler())
        silent.propagate = False
        self._runner = web.AppRunner(app, access_log=None, logger=silent, shutdown_timeout=1)
        self._host = host
        self.port = port
        self._since: dict[asyncio.Transport, float] = {}  # when each became idle
        self._busy: set[asyncio.BaseTransport | None] = set()
        app.middlewares.insert(0, self._watch)

    async def __aenter__(self) -> Self:
        """Start to serve.

        Raises:
            OSError: The address cannot be listened on.
        """
        await self._runner.setup()
        handlers = self._runner.server
        if handlers is None:
            raise AssertionError
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Visit(handlers(), self), self._host, self.port, backlog=MOST
            )
        except BaseException:
            await self._runner.cleanup()
            raise
        self.port = self._server.sockets[0].getsockname()[1]
        self._sweeping = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Accept no more connections, and close those that are open."""
        self._server.close()
        self._sweeping.cancel()
        await asyncio.sleep(0)  # those that are being accepted are closed with the others
        await self._runner.cleanup()
        for transport in list(self._since):
            transport.abort()

    def came(self, transport: asyncio.Transport) -> bool:
        """Note a connection; return whether there is room for it."""
        if len(self._since) >= MOST:
            oldest = next((one for one in self._since if one not in self._busy), None)
            if oldest is None:
                return False
            self._drop(oldest)
        self._since[transport] = asyncio.get_running_loop().time()
        return True

    def left(self, transport: asyncio.Transport) -> None:
        """Note that a connection is closed."""
        self._since.pop(transport, None)

    def _drop(self, transport: asyncio.Transport) -> None:
        self.left(transport)
        transport.abort()

    @web.middleware
    async def _watch(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Note which connections have a complete head of a request."""
        transport = request.transport
        self._busy.add(transport)
        try:
            return await handler(request)
        finally:
            self._busy.discard(transport)
            if transport in self._since:
                del self._since[transport]  # the idle ones stay in order of time
                self._since[transport] = asyncio.get_running_loop().time()

    async def _sweep(self) -> None:
        """Close connections that are idle, or do not take their response."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = loop.time()
            for transport, since in list(self._since.items()):
                sending = transport.get_write_buffer_size() > 0
                longest = SENDING_S if sending else IDLE_S
                if transport not in self._busy and now - since > longest:
                    self._drop(transport)


async def body_of(request: web.Request) -> bytes:
    """Return a request's body.

    Raises:
        ValueError: It does not arrive in time.
    """
    try:
        async with asyncio.timeout(IDLE_S):
            return await request.read()
    except TimeoutError:
        raise ValueError("the body did not arrive in time") from None


class _Visit(asyncio.Protocol):
    """A connection: what arrives goes to aiohttp, unless there are too many connections."""

    def __init__(self, handler: asyncio.Protocol, visitors: Visitors) -> None:
        self._handler = handler
        self._visitors = visitors
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport) or not self._visitors.came(transport):
            transport.close()
            return
        self._transport = transport
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        return self._handler.eof_received() if self._transport is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._visitors.left(self._transport)
            self._handler.connection_lost(exc)

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()


class ServerThread:
    """Runs a server in a separate thread, so that it cannot delay a run.

    Args:
        server: Serves while it is open.
        name: The name of the thread.

    Raises:
        SettingsError: The server cannot be started.
    """

    def __init__(self, server: AbstractAsyncContextManager[object], name: str) -> None:
        self._server = server
        self._stop = asyncio.Event()
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name=name, daemon=True
        )
        self._thread.start()
        self._loop = self._started.result()

    async def _serve(self) -> None:
        try:
            async with self._server:
                self._started.set_result(asyncio.get_running_loop())
                await self._stop.wait()
        except Exception as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    def close(self) -> None:
        """Stop the server."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
