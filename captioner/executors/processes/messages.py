"""What parent and worker say to each other: whole messages over a socket pair, never a stream.

::

    parent: Settings                        once
    worker: Ready or Ended                  when it has connected to the endpoints
    parent: Work                            records, some at a time
    worker: Done                            what became of some of them
    parent: Written                         they are in their files: their places are free
    worker: Warned
    parent: Stop                            drain, or give up what is on the wire
    parent: NoMore                          all records have been sent
    worker: Ended                           nothing is left to do, or something ends the run

Both are the same program in two processes of one user, so messages are pickled.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    import socket

    from captioner.core.types import EndpointState, InputRecord, Outcome

_LENGTH = 8


class WorkerStats(NamedTuple):
    """The part of `Progress` that only a worker knows; see there."""

    in_flight: int = 0
    calls: int = 0
    retries: int = 0
    shared: int = 0
    cached: int = 0
    waiting: str = ""
    cost: float = 0.0
    answers: int = 0
    answered_s: float = 0.0
    oldest_s: float = 0.0
    states: tuple[EndpointState, ...] = ()


class Ready(NamedTuple):
    """The worker has connected; ``model`` as in `Engine`."""

    model: str


class Work(NamedTuple):
    """Records to be captioned."""

    lines: list[InputRecord]


class Done(NamedTuple):
    """Outcomes, each with the number of its record in place of the record; and counts."""

    outcomes: list[tuple[int, Outcome]]
    counts: WorkerStats


class Written(NamedTuple):
    """The outcomes of the oldest `Done` that had any are in their files."""


class Warned(NamedTuple):
    """Something is worth knowing but no error."""

    text: str


class Stop(NamedTuple):
    """Begin nothing new; hurried, give up what is on the wire, too."""

    forced: bool


class EndOfInput(NamedTuple):
    """All records have been sent."""


class Exited(NamedTuple):
    """The worker has nothing left to do.

    Attributes:
        error: Name of the error in `captioner.core.errors` that ended it; empty if none did.
        message: What it says.
    """

    error: str = ""
    message: str = ""


class Wire:
    """One end of the socket pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        """Return a wire over one socket of a pair, which it closes in the end."""
        return cls(*await asyncio.open_connection(sock=end, limit=1 << 20))

    def send(self, message: Any) -> None:
        """Send a message; it is lost where nobody listens any more, which `receive` tells."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._writer.writelines((len(data).to_bytes(_LENGTH, "big"), data))

    async def receive(self) -> Any:
        """Return the next message, None when the other end is gone."""
        try:
            size = await self._reader.readexactly(_LENGTH)
            data = await self._reader.readexactly(int.from_bytes(size, "big"))
        except (asyncio.IncompleteReadError, OSError):
            return None
        return pickle.loads(data)  # noqa: S301 - from our own process, over a private socket

    def close(self) -> None:
        """Close this end."""
        self._writer.close()
