"""A worker process: captions the records that its parent sends, and ends with its parent.

It writes no file of the run. A record counts as in flight until the parent has written its outcome,
so a kill loses only records in flight, however many processes there are.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import warnings
from collections import deque
from typing import TYPE_CHECKING

import uvloop

from captioner.core.cancellation import CancelToken, StoppedError
from captioner.core.errors import CaptionerError
from captioner.core.log import forward_warnings
from captioner.core.progress import Progress, RequestCounters
from captioner.core.shortage import shortage
from captioner.core.subprocesses import ease_garbage_collection, keep_freed_memory
from captioner.engine.engine import Engine
from captioner.executors.processes.messages import (
    Done,
    EndOfInput,
    Exited,
    Ready,
    Stop,
    Warned,
    Wire,
    Work,
    WorkerStats,
)
from captioner.settings.context import RunContext

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from captioner.core.progress import Spent
    from captioner.core.types import InputRecord, Outcome
    from captioner.settings.settings import Settings

COLLECT_S = 0.002
"""Seconds in which outcomes are collected before they are sent: each message costs CPU time."""

MAX_UNWRITTEN = 2
"""Messages with outcomes that are not written yet: the next one is sent while one is written."""

STATS_S = 0.25
"""Seconds between statistics that are sent without outcomes."""


class Worker:
    """Captions the records that arrive on a wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self._progress = Progress()
        self._cancel = CancelToken()
        self._records: asyncio.Queue[list[InputRecord] | None] = asyncio.Queue()
        self._outcomes: list[tuple[int, Outcome]] = []
        self._written = asyncio.Event()  # for the outcomes being collected
        self._sent: deque[asyncio.Event] = deque()  # for those sent, oldest first
        self._collecting = False

    async def run(self) -> None:
        """Caption until there are no more records, then report how it ended."""
        begun: tuple[Settings, Spent] | None = await self._wire.receive()
        if begun is None:
            return
        settings, self._progress.spent_before = begun
        listening = asyncio.create_task(self._listen())
        ended = await self._caption(settings)
        self._wire.send(ended)
        await listening  # the parent closes

    async def _caption(self, settings: Settings) -> Exited:
        try:
            context = RunContext(settings, self._progress, self._cancel)
            with forward_warnings(self._warn):
                async with Engine.open(context) as engine:
                    self._wire.send(Ready(engine.model))
                    reporting = asyncio.create_task(self._report_regularly())
                    try:
                        await engine.pipeline(context, self, hold=False).run(self._batches())
                    finally:
                        reporting.cancel()
                        self._wire.send(Done([], self._stats()))
        except StoppedError:
            return Exited()
        except CaptionerError as error:
            return Exited(type(error).__name__, str(error))
        except Exception as error:  # noqa: BLE001 - the parent shows it to the user
            if said := shortage(error):
                return Exited("RunError", said)
            return Exited("Exception", f"{type(error).__name__}: {error}")
        return Exited()

    async def put(self, outcomes: Sequence[Outcome]) -> None:
        """Return when the parent has written the outcomes; this is the pipeline's sink."""
        self._outcomes += [
            (outcome.record.number, outcome._replace(record=None))  # type: ignore[arg-type]
            for outcome in outcomes
        ]
        written = self._written
        self._send_soon()
        await written.wait()

    def _send_soon(self) -> None:
        if len(self._sent) < MAX_UNWRITTEN and not self._collecting:
            self._collecting = True
            self._loop.call_later(COLLECT_S, self._send)

    def _send(self) -> None:
        self._collecting = False
        self._sent.append(self._written)
        self._written = asyncio.Event()
        outcomes, self._outcomes = self._outcomes, []
        self._wire.send(Done(outcomes, self._stats()))

    async def _listen(self) -> None:
        while (message := await self._wire.receive()) is not None:
            if isinstance(message, Work):
                self._records.put_nowait(message.records)
            elif isinstance(message, EndOfInput):
                self._records.put_nowait(None)
            elif isinstance(message, Stop):
                if message.forced:
                    self._cancel.force()
                else:
                    self._cancel.request()
            elif self._sent:  # `Written`
                self._sent.popleft().set()
                if self._outcomes:
                    self._send_soon()
        os._exit(0)  # the parent is gone, and unsent messages with it

    async def _batches(self) -> AsyncIterator[list[InputRecord]]:
        while (records := await self._records.get()) is not None:
            yield records

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(STATS_S)
            self._wire.send(Done([], self._stats()))

    def _stats(self) -> WorkerStats:
        now = self._progress
        return WorkerStats(
            RequestCounters.of(now),
            now.in_flight,
            now.waiting,
            now.oldest_s,
            tuple(now.states()),
            now.supply(),
        )

    def _warn(self, text: str) -> None:
        self._loop.call_soon_threadsafe(self._wire.send, Warned(text))


async def _run() -> None:
    await Worker(await Wire.over(socket.socket(fileno=int(sys.argv[1])))).run()


def main() -> None:
    """Work for the parent; the argument is the descriptor of the socket to it."""
    warnings.filterwarnings("ignore", module="PIL")
    ease_garbage_collection()
    keep_freed_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run())


if __name__ == "__main__":
    main()
