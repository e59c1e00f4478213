"""Finds the record that kills a server of one's own, and waits while the server starts again.

When a server dies, every record in flight may be the cause. One that was in flight at `SUSPECT`
deaths is sent alone: the others wait at the door until it has an answer. If the server dies with it
alone, it is a failure. This works across the processes of a run, and of several runs, by locks on
two files: a request holds the room; one that must be alone first shuts the door.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from captioner.core.errors import EndpointFaultError, RefusedError, ServerDiedError
from captioner.core.keys import digest
from captioner.endpoints.serving.running import folder_of, read_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from captioner.core.cancellation import CancelToken
    from captioner.core.progress import Progress
    from captioner.core.protocols import Transport
    from captioner.core.types import Request, Response
    from captioner.endpoints.serving.running import ServerState

SUSPECT = 2
"""Deaths of the server with a record in flight, after which the record is sent alone."""

NOTICE_S = 5.0
"""Seconds in which the death of a server is noticed by the process that watches it."""

POLL_S = 0.2
"""Seconds between two looks at a lock, or at the state of a server that starts."""


class Quarantine:
    """The transport to a server of one's own.

    Args:
        transport: Sends the requests.
        port: The server's port.
        cancel: Ends waits.
        progress: Says why the run waits.
    """

    def __init__(
        self, transport: Transport, port: int, cancel: CancelToken, progress: Progress
    ) -> None:
        self._transport = transport
        self._folder = folder_of(port)
        self._cancel = cancel
        self._progress = progress
        self._suspects: dict[bytes, int] = {}  # deaths by request that has no response yet

    async def send(self, request: Request) -> Response:
        """Return the response.

        Raises:
            EndpointFaultError: There was none.
            RefusedError: The server died with this request alone, as it did with it before.
            ServerDiedError: The server cannot be started again.
        """
        key = _key(request) if self._suspects else b""
        alone = self._suspects.get(key, 0) >= SUSPECT
        starts = (await self._ready()).starts
        try:
            async with self._in_room(alone=alone):
                response = await self._transport.send(request)
        except EndpointFaultError as fault:
            if fault.code not in ("connection", "disconnected"):
                raise
            state = await self._after_death(starts)
            if state is None:
                raise
            fault.is_loading = True
            if fault.code == "connection":  # this request never reached it
                raise
            key = key or _key(request)
            self._suspects[key] = self._suspects.get(key, 0) + 1
            if alone:
                del self._suspects[key]
                raise RefusedError(
                    "server_died",
                    f"the server died while it had only this record, as it had before: {state.why}",
                ) from None
            raise
        self._suspects.pop(key, None)
        return response

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def _ready(self) -> ServerState:
        """Return the server's state when it takes requests.

        Raises:
            ServerDiedError: It never will.
            StoppedError: The run was cancelled.
        """
        while (state := read_state(self._folder)) is not None:
            if state.state == "ready":
                return state
            if state.state == "failed":
                raise ServerDiedError(state.why)
            self._progress.waiting = f"the server starts again: {state.why}"
            await self._cancel.sleep(POLL_S)
        raise ServerDiedError(
            "The server was stopped. What was finished is saved; run the same command again."
        )

    async def _after_death(self, starts: int) -> ServerState | None:
        """Return the server's state if it died since it was started; None if it works on."""
        loop = asyncio.get_running_loop()
        until = loop.time() + NOTICE_S
        while (state := read_state(self._folder)) is not None:
            if state.starts != starts or state.state != "ready":
                return state
            if loop.time() > until:
                break
            await self._cancel.sleep(POLL_S)
        return None

    @contextlib.asynccontextmanager
    async def _in_room(self, *, alone: bool) -> AsyncIterator[None]:
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        with contextlib.ExitStack() as stack:
            with contextlib.ExitStack() as at_door:
                await self._locked("door", kind, stack if alone else at_door)
                await self._locked("room", kind, stack)
            yield

    async def _locked(self, name: str, kind: int, stack: contextlib.ExitStack) -> None:
        descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                await self._cancel.sleep(POLL_S)
            else:
                return


def _key(request: Request) -> bytes:
    return digest(b"".join(request.pieces))
