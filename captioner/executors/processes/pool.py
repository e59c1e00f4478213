"""The parent's side: starts the workers, deals out records, takes back what became of them.

::

    source ─ records ─▶ dealer ─ Work ─▶ workers, each an engine of its own
                                          │
    sink ◀─ outcomes ─ one task each ◀─ Done

A worker that dies costs what it had on the wire: its records go to the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from captioner.core import errors
from captioner.core.errors import RunError, SettingsError, WorkersDiedError
from captioner.core.progress import EndpointState
from captioner.core.subprocesses import environment, python
from captioner.engine.pipeline import count
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
    Written,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from captioner.core.protocols import Sink
    from captioner.core.types import InputRecord, Outcome
    from captioner.settings.context import RunContext
    from captioner.settings.settings import Settings

logger = logging.getLogger(__name__)

_MODULE = "captioner.executors.processes.worker"
CHUNK = 16
"""Records dealt at once."""

AHEAD = 64
"""Records that a worker holds beyond those it may have in flight."""

AHEAD_BYTES = 16 << 20
"""Bytes of records that a worker holds, or one record."""

START_S = 120.0
"""Seconds a worker may take to connect: it waits for the endpoint as a run does."""

END_S = 5.0
"""Seconds for a worker to end by itself when all is over."""


class WorkerPool:
    """The workers of a run, in place of an `Engine`.

    Attributes:
        model: See `Engine`.
    """

    def __init__(self, workers: list[_Worker]) -> None:
        self.model = workers[0].model
        self._workers = workers

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, context: RunContext) -> AsyncIterator[Self]:
        """Start the workers, each with its part of the run's limits.

        Raises:
            SettingsError: See `Engine.open`.
            WorkersDiedError: A worker could not be started.
            StoppedError: The run was cancelled first.
        """
        settings = context.settings
        warned: set[str] = set()
        workers: list[_Worker] = []
        async with contextlib.AsyncExitStack() as stack:
            for number in range(settings.run.processes):
                worker = _Worker(warned)
                stack.push_async_callback(worker.close)
                await worker.start(part(settings, number))
                workers.append(worker)
            await context.cancel.race(_all_ready(workers))
            yield cls(workers)

    def pipeline(
        self,
        context: RunContext,
        sink: Sink,
        settled: Callable[[Outcome], None] | None = None,
    ) -> Dispatcher:
        """Return a pipeline from the workers into a sink."""
        return Dispatcher(self._workers, context, sink, settled)


async def _all_ready(workers: list[_Worker]) -> None:
    await asyncio.gather(*(worker.wait_until_ready() for worker in workers))


class Dispatcher:
    """Carries records from a source through the workers to a sink, as `Pipeline` does.

    Args:
        workers: The workers, ready.
        context: The run. Cancelling it ends intake.
        sink: Takes the outcomes.
        settled: Called with every outcome after it is written.
    """

    def __init__(
        self,
        workers: list[_Worker],
        context: RunContext,
        sink: Sink,
        settled: Callable[[Outcome], None] | None,
    ) -> None:
        self._workers = workers
        self._sink = sink
        self._progress = context.progress
        self._progress.states = self._states
        self._cancel = context.cancel
        self._drain_s = context.settings.run.drain
        self._settled = settled
        self._again: deque[InputRecord] = deque()  # records of workers that died
        self._changed = asyncio.Event()
        self._error: BaseException | None = None

    async def run(self, records: AsyncIterator[list[InputRecord]]) -> None:
        """Carry all records, or those begun before the run was stopped.

        Raises:
            RunError: What stopped the run; everything finished before is in the sink.
        """
        listening = [asyncio.create_task(self._listen(worker)) for worker in self._workers]
        dealing = asyncio.create_task(self._deal(records))
        again = asyncio.create_task(self._deal_again())
        draining = asyncio.create_task(self._drain(dealing, again))
        try:
            await asyncio.gather(dealing, return_exceptions=True)
            await asyncio.gather(*listening, return_exceptions=True)
        finally:
            tasks = (draining, again, dealing, *listening)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._error is not None:
            raise self._error

    async def _deal(self, records: AsyncIterator[list[InputRecord]]) -> None:
        try:
            async for batch in records:
                for at in range(0, len(batch), CHUNK):
                    await self._give(batch[at : at + CHUNK])
            self._progress.complete = True
            while any(worker.records for worker in self._left) or self._again:
                await self._change()
            for worker in self._left:
                worker.send(EndOfInput())
        except Exception as error:  # noqa: BLE001 - whatever it is ends the run, in order
            self._fail(error)
        finally:
            if isinstance(records, AsyncGenerator):
                await records.aclose()

    async def _deal_again(self) -> None:
        """Give the records of workers that died to others, whether more input comes or not."""
        while True:
            while not self._again:
                await self._change()
            await self._give([self._again[0]])
            self._again.popleft()

    @property
    def _left(self) -> list[_Worker]:
        return [worker for worker in self._workers if not worker.gone]

    async def _give(self, chunk: list[InputRecord]) -> None:
        """Send records to the worker with the most room, as soon as there is one."""
        while not (free := [worker for worker in self._left if worker.has_room]):
            await self._change()
        min(free, key=lambda worker: worker.fullness).give(chunk)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _listen(self, worker: _Worker) -> None:
        """Take what a worker says until it has nothing left to do."""
        try:
            while isinstance(message := await worker.receive(), Done):
                await self._take(worker, message)
            if not isinstance(message, Exited):
                self._lose(worker)
            elif message.error:
                self._fail(_error(message))
        except Exception as error:  # noqa: BLE001 - whatever it is ends the run, in order
            self._fail(error)
        finally:
            worker.gone = True
            self._changed.set()

    async def _take(self, worker: _Worker, done: Done) -> None:
        self._update(worker, done.stats)
        if not done.outcomes:
            return
        outcomes = [
            outcome._replace(record=worker.take(number)) for number, outcome in done.outcomes
        ]
        self._changed.set()
        await self._sink.put(outcomes)
        worker.send(Written())
        count(outcomes, self._progress, self._settled)

    def _update(self, worker: _Worker, stats: WorkerStats) -> None:
        progress, before = self._progress, worker.stats
        progress.add(stats.counters)
        progress.add(before.counters, -1)
        progress.in_flight += stats.in_flight - before.in_flight
        worker.stats = stats
        progress.began.pop(worker, None)
        if stats.in_flight:
            progress.began[worker] = time.monotonic() - stats.oldest_s
        progress.waiting = next((one.stats.waiting for one in self._left), "")

    def _states(self) -> list[EndpointState]:
        """Return how each endpoint stands for all workers together."""
        found: dict[str, EndpointState] = {}
        for worker in self._left:
            for state in worker.stats.states:
                other = found.get(state.name)
                found[state.name] = state if other is None else _both(other, state)
        return list(found.values())

    def _lose(self, worker: _Worker) -> None:
        """Give the records of a worker that died to the others."""
        worker.gone = True
        self._update(worker, worker.stats._replace(in_flight=0, waiting=""))
        how = worker.how_it_ended()
        if self._cancel or (self._progress.complete and not (worker.records or self._again)):
            return
        if not self._left:
            self._fail(
                WorkersDiedError(
                    f"the last process of the run {how}. What was finished is saved; run the same "
                    "command again."
                )
            )
            return
        logger.warning(
            "a process of the run %s; its %d records go to the other %d",
            how,
            len(worker.records),
            len(self._left),
        )
        self._again += worker.records.values()
        worker.records.clear()
        self._changed.set()

    def _fail(self, error: BaseException) -> None:
        """Stop the run; the first reason is the one that is told, a bug before all others."""
        if self._error is None or (
            isinstance(self._error, RunError) and not isinstance(error, RunError)
        ):
            self._error = error
        self._cancel.request()

    async def _drain(self, dealing: asyncio.Task[None], again: asyncio.Task[None]) -> None:
        """Once stopping, end intake, and the workers after their time."""
        await self._cancel.wait()
        self._progress.stage = "draining"
        dealing.cancel()
        again.cancel()
        for worker in self._workers:
            worker.send(Stop(forced=False))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                await self._cancel.wait_forced()
        for worker in self._workers:
            worker.send(Stop(forced=True))
        await asyncio.sleep(END_S)
        for worker in self._workers:
            worker.kill()


class _Worker:
    """One worker process, its wire, and the records it has.

    Attributes:
        model: The model it asks for.
        records: Records sent to it whose outcome has not come back, by number.
        stats: Its latest statistics.
        gone: It takes nothing any more.
    """

    def __init__(self, warned: set[str]) -> None:
        self.model = ""
        self.records: dict[int, InputRecord] = {}
        self.stats = WorkerStats()
        self.gone = False
        self._warned = warned  # shared: all workers use the same endpoints
        self._bytes = 0
        self._most = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: Wire | None = None

    async def start(self, settings: Settings) -> None:
        """Start the process.

        Raises:
            WorkersDiedError: It cannot be.
        """
        self._most = settings.run.concurrency + AHEAD
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - milliseconds; ours
                    python(_MODULE, str(theirs.fileno())),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment(),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the parent to hear
                )
        except OSError as error:
            ours.close()
            raise WorkersDiedError(f"cannot start a process: {error.strerror}") from None
        self._wire = await Wire.over(ours)
        self.send(settings)

    async def wait_until_ready(self) -> None:
        """Return when it has connected to the endpoints.

        Raises:
            SettingsError: See `Engine.open`.
            WorkersDiedError: It ended, or takes too long.
        """
        try:
            async with asyncio.timeout(START_S):
                message = await self.receive()
        except TimeoutError:
            raise WorkersDiedError(f"a process was not ready within {START_S:g} s") from None
        if isinstance(message, Exited):
            raise _error(message)
        if not isinstance(message, Ready):
            raise WorkersDiedError(f"a process {self.how_it_ended()} before it was ready")
        self.model = message.model

    async def receive(self) -> Ready | Done | Exited | None:
        """Return the next message but warnings, None if the process has died."""
        if self._wire is None:
            return None
        while isinstance(message := await self._wire.receive(), Warned):
            if message.text not in self._warned:
                self._warned.add(message.text)
                logger.warning("%s", message.text)
        return message  # type: ignore[no-any-return]

    def send(self, message: Settings | Work | Written | Stop | EndOfInput) -> None:
        """Send a message."""
        if self._wire is not None and not self.gone:
            self._wire.send(message)

    @property
    def has_room(self) -> bool:
        """It may be given more."""
        return len(self.records) < self._most and self._bytes < AHEAD_BYTES

    @property
    def fullness(self) -> float:
        """Records it has of those it may have."""
        return len(self.records) / self._most

    def give(self, records: list[InputRecord]) -> None:
        """Send records."""
        for record in records:
            self.records[record.number] = record
            self._bytes += _size(record)
        self.send(Work(records))

    def take(self, number: int) -> InputRecord:
        """Return a record that it is done with."""
        record = self.records.pop(number)
        self._bytes -= _size(record)
        return record

    def how_it_ended(self) -> str:
        """Return in words how the process ended."""
        if self._process is None:
            return "was never there"
        try:
            status = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "fell silent"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        """Let it end, and see to it that it does."""
        if self._wire is not None:
            self._wire.close()
        if self._process is not None:
            try:
                await asyncio.to_thread(self._process.wait, END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _size(record: InputRecord) -> int:
    """Return the bytes that a record takes, its images too where they come along."""
    return len(record.raw) + sum(len(data) for _, data in record.images)


def part(settings: Settings, number: int) -> Settings:
    """Return the settings of one worker: its part of what a run may have at once."""
    run, images = settings.run, settings.images
    count = run.processes

    def share(whole: int) -> int:
        return max(1, whole // count + (number < whole % count))

    return replace(
        settings,
        run=replace(run, concurrency=share(run.concurrency)),
        images=replace(
            images,
            memory=share(images.memory),
            fetch_concurrency=share(images.fetch_concurrency),
        ),
    )


def _both(one: EndpointState, other: EndpointState) -> EndpointState:
    """Return how an endpoint stands for two workers together."""
    return EndpointState(
        one.name,
        one.in_flight + other.in_flight,
        one.limit + other.limit,
        one.per_minute + other.per_minute,
        max(one.paused_s, other.paused_s),
        one.circuit_open and other.circuit_open,
    )


def _error(ended: Exited) -> BaseException:
    """Return the error that ended a worker."""
    kind = getattr(errors, ended.error, None)
    if isinstance(kind, type) and issubclass(kind, RunError | SettingsError):
        return kind(ended.message)
    return RuntimeError(ended.message)
