"""Finds the record that kills a local server, and waits while the server starts again.

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
import re
from typing import TYPE_CHECKING

from captioner.core import descriptors
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
"""Seconds in which a server whose connection broke ends, and this is noticed."""

DYING_S = 60.0
"""The same for one that says that its engine has died: a clean shutdown takes longer."""

POLL_S = 0.2
"""Seconds between two looks at a lock, or at the state of a server that starts."""


class Quarantine:
    """The transport to a local server.

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
        # The room is held until it is known whether the server died: who comes next must not be
        # there when it does.
        async with self._in_room(alone=alone):
            starts = (await self._ready()).starts
            notice_s = NOTICE_S
            try:
                response = await self._transport.send(request)
                if response.status < 500 or not _DYING.search(response.body):
                    self._suspects.pop(key, None)
                    return response
                fault = EndpointFaultError("disconnected", "the server's engine has died")
                notice_s = DYING_S
            except EndpointFaultError as error:
                fault = error
            if fault.code not in ("connection", "disconnected"):
                raise fault
            state = await self._after_death(starts, notice_s)
        if state is None:
            raise fault
        fault.is_loading = True
        if fault.code == "connection":  # this request never reached it
            raise fault
        key = key or _key(request)
        self._suspects[key] = self._suspects.get(key, 0) + 1
        if not alone:
            raise fault
        del self._suspects[key]
        raise RefusedError(
            "server_died",
            f"the server died while it had only this record, as it had before: {state.why}",
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def _ready(self) -> ServerState:
        """Return the server's state when it takes requests.

        Raises:
            ServerDiedError: It never will.
            StoppedError: The run was cancelled.
        """
        while (state := await self._state()).state != "ready":
            if state.state == "failed":
                raise ServerDiedError(state.why)
            self._progress.waiting = f"the server starts again: {state.why}"
            await self._cancel.sleep(POLL_S)
        return state

    async def _after_death(self, starts: int, notice_s: float) -> ServerState | None:
        """Return the server's state if it died since it was started; None if it works on."""
        loop = asyncio.get_running_loop()
        until = loop.time() + notice_s
        while loop.time() < until:
            state = await self._state()
            if state.starts != starts or state.state != "ready":
                return state
            await self._cancel.sleep(POLL_S)
        return None

    async def _state(self) -> ServerState:
        """Return the server's state.

        Raises:
            ServerDiedError: The process that watched it has ended.
            StoppedError: The run was cancelled.
        """
        while True:
            try:
                state = read_state(self._folder)
            except OSError as error:
                if not descriptors.are_used_up(error):
                    raise ServerDiedError(f"{self._folder}: {error.strerror}") from None
                descriptors.warn_used_up()
                await self._cancel.sleep(descriptors.PAUSE_S)
            else:
                if state is None:
                    raise ServerDiedError(_STOPPED)
                return state

    @contextlib.asynccontextmanager
    async def _in_room(self, *, alone: bool) -> AsyncIterator[None]:
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        with contextlib.ExitStack() as stack:
            with contextlib.ExitStack() as at_door:
                await self._locked("door", kind, stack if alone else at_door)
                await self._locked("room", kind, stack)
            yield

    async def _locked(self, name: str, kind: int, stack: contextlib.ExitStack) -> None:
        try:
            descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ServerDiedError(_STOPPED) from None
        except OSError as error:
            raise EndpointFaultError("connection", f"no lock: {error.strerror}") from None
        stack.callback(os.close, descriptor)
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                await self._cancel.sleep(POLL_S)
            else:
                return


_STOPPED = "The server was stopped. What was finished is saved; run the same command again."

_DYING = re.compile(rb"EngineCore|EngineDeadError|Background loop has errored")
"""Words of vLLM in a response with which it ends: its engine has died."""


def _key(request: Request) -> bytes:
    return digest(b"".join(request.pieces))
