"""Messages between the parent process and its workers, over a socket pair.

::

    parent: Settings and Spent              once
    worker: Ready or Exited                 when it has connected to the endpoints
    parent: Work                            some records
    worker: Done                            outcomes of some of them
    parent: Written                         those outcomes are in their files
    worker: Warned                          a warning
    parent: Stop                            finish requests in flight, or give them up
    parent: EndOfInput                      all records have been sent
    worker: Exited                          all is done, or an error stopped it

Both ends are the same program of the same user, so messages are pickled.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from captioner.core.errors import revive
from captioner.core.progress import EndpointState, RequestCounters, Supply

if TYPE_CHECKING:
    import socket

    from captioner.core.types import InputRecord, Outcome

_LENGTH = 8


class WorkerStats(NamedTuple):
    """What a worker reports about its requests; see `Progress`."""

    counters: RequestCounters = RequestCounters()
    in_flight: int = 0
    waiting: str = ""
    oldest_s: float = 0.0
    states: tuple[EndpointState, ...] = ()
    supply: Supply = Supply()


class Ready(NamedTuple):
    """The worker has connected to the endpoints; ``model`` as in `Engine`."""

    model: str


class Work(NamedTuple):
    """Records to be captioned."""

    records: list[InputRecord]


class Done(NamedTuple):
    """Outcomes, each with its record's number instead of the record, and statistics."""

    outcomes: list[tuple[int, Outcome]]
    stats: WorkerStats


class Written(NamedTuple):
    """The outcomes of the oldest `Done` that had any are in their files."""


class Warned(NamedTuple):
    """A warning."""

    text: str


class Stop(NamedTuple):
    """Start nothing new; if ``forced``, give up requests in flight as well."""

    forced: bool


class EndOfInput(NamedTuple):
    """All records have been sent."""


class Exited(NamedTuple):
    """The worker has ended.

    Attributes:
        error: Name of the error in `captioner.core.errors` that ended it; empty without one.
        message: The error's message.
    """

    error: str = ""
    message: str = ""

    def as_error(self) -> BaseException:
        """Return the error that ended the worker."""
        return revive(self.error, self.message) or RuntimeError(self.message)


class Wire:
    """One end of the socket pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        """Return a wire over one socket of a pair; closing the wire closes the socket."""
        return cls(*await asyncio.open_connection(sock=end, limit=1 << 20))

    def send(self, message: Any) -> None:
        """Send a message. It is lost if the other end is gone; then `receive` returns None."""
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
