"""The parent process: starts the workers, sends them records and writes the outcomes.

::

    source ─ records ─▶ dispatcher ─ Work ─▶ workers, each with an engine
                                               │
    sink ◀─ outcomes ── one task each ◀── Done

If a worker dies, the other workers get its records.
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

from captioner.core.errors import WorkersDiedError, revive
from captioner.core.humanize import counted
from captioner.core.log import warn_once
from captioner.core.progress import EndpointState
from captioner.core.subprocesses import environment, python
from captioner.endpoints.connect import variables_of
from captioner.engine.pipeline import count, error_to_report
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

CHUNK = 16
"""Records sent at once."""

AHEAD = 64
"""Records that a worker holds beyond those that it may have in flight."""

AHEAD_BYTES = 16 << 20
"""Bytes of records that a worker holds; one record may be larger."""

START_S = 120.0
"""Seconds in which a worker must connect to the endpoints."""

END_S = 5.0
"""Seconds in which a worker must end after its work."""


class WorkerPool:
    """The workers of a run, in place of an `Engine`.

    Attributes:
        model: See `Engine`.
    """

    def __init__(self, workers: list[_Worker], model: str) -> None:
        self.model = model
        self._workers = workers

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, context: RunContext) -> AsyncIterator[Self]:
        """Start the workers, each with its share of the run's limits.

        Raises:
            SettingsError: See `Engine.open`.
            WorkersDiedError: A worker cannot be started.
            StoppedError: The run was cancelled first.
        """
        warned: set[str] = set()
        async with contextlib.AsyncExitStack() as stack:
            workers = []
            for number in range(context.settings.run.processes):
                worker = await _Worker.start(part(context.settings, number), warned)
                stack.push_async_callback(worker.close)
                workers.append(worker)
            models = await context.cancel.race(_models(workers))
            yield cls(workers, models[0])

    def pipeline(
        self,
        context: RunContext,
        sink: Sink,
        settled: Callable[[Outcome], None] | None = None,
    ) -> Dispatcher:
        """Return a pipeline from the workers into a sink."""
        return Dispatcher(self._workers, context, sink, settled)


async def _models(workers: list[_Worker]) -> list[str]:
    return await asyncio.gather(*(worker.wait_until_ready() for worker in workers))


class Dispatcher:
    """Carries records from a source through the workers to a sink, as `Pipeline` does."""

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
        self._returned: deque[InputRecord] = deque()  # records of workers that died
        self._changed = asyncio.Event()
        self._error: BaseException | None = None

    async def run(self, records: AsyncIterator[list[InputRecord]]) -> None:
        """Carry all records, or those that were started before the run was cancelled.

        Raises:
            RunError: The reason why the run stopped. Finished records are in the sink.
        """
        listening = [asyncio.create_task(self._listen(worker)) for worker in self._workers]
        sending = asyncio.create_task(self._send(records))
        resending = asyncio.create_task(self._send_returned())
        draining = asyncio.create_task(self._drain(sending, resending))
        tasks = (draining, resending, sending, *listening)
        try:
            await asyncio.gather(sending, return_exceptions=True)
            await asyncio.gather(*listening, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._error is not None:
            raise self._error

    async def _send(self, records: AsyncIterator[list[InputRecord]]) -> None:
        """Send the records of the source to the workers."""
        try:
            async for batch in records:
                for at in range(0, len(batch), CHUNK):
                    await self._give(batch[at : at + CHUNK])
            self._progress.complete = True
            while any(worker.records for worker in self._live) or self._returned:
                await self._change()
            for worker in self._live:
                worker.send(EndOfInput())
        except Exception as error:  # noqa: BLE001 - any error stops the run in order
            self._fail(error)
        finally:
            if isinstance(records, AsyncGenerator):
                await records.aclose()

    async def _send_returned(self) -> None:
        """Send the records of workers that died to other workers."""
        while True:
            while not self._returned:
                await self._change()
            await self._give([self._returned[0]])
            self._returned.popleft()

    @property
    def _live(self) -> list[_Worker]:
        return [worker for worker in self._workers if not worker.gone]

    async def _give(self, chunk: list[InputRecord]) -> None:
        """Send records to the worker with the most room, as soon as there is one."""
        while not (free := [worker for worker in self._live if worker.has_room]):
            await self._change()
        min(free, key=lambda worker: worker.fullness).give(chunk)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _listen(self, worker: _Worker) -> None:
        """Process a worker's messages until it ends."""
        try:
            while isinstance(message := await worker.receive(), Done):
                self._update(worker, message.stats)
                if message.outcomes:
                    await self._write(worker, message.outcomes)
            if not isinstance(message, Exited):
                self._redistribute(worker)
            elif message.error:
                self._fail(_error(message))
        except Exception as error:  # noqa: BLE001 - any error stops the run in order
            self._fail(error)
        finally:
            worker.gone = True
            self._changed.set()

    async def _write(self, worker: _Worker, numbered: list[tuple[int, Outcome]]) -> None:
        outcomes = [outcome._replace(record=worker.take(number)) for number, outcome in numbered]
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
        progress.waiting = next((one.stats.waiting for one in self._live), "")

    def _states(self) -> list[EndpointState]:
        """Return the state of each endpoint, all workers together."""
        total: dict[str, EndpointState] = {}
        for worker in self._live:
            for one in worker.stats.states:
                other = total.get(one.name, one._replace(in_flight=0, limit=0, per_minute=0.0))
                total[one.name] = EndpointState(
                    one.name,
                    one.in_flight + other.in_flight,
                    one.limit + other.limit,
                    one.per_minute + other.per_minute,
                    max(one.paused_s, other.paused_s),
                    one.circuit_open and other.circuit_open,
                )
        return list(total.values())

    def _redistribute(self, worker: _Worker) -> None:
        """Give the records of a worker that died to the others."""
        worker.gone = True
        self._update(worker, worker.stats._replace(in_flight=0, waiting=""))
        how = worker.how_it_ended()
        if self._cancel or (self._progress.complete and not (worker.records or self._returned)):
            return
        if not self._live:
            self._fail(
                WorkersDiedError(
                    f"the last process of the run {how}. What was finished is saved; run the same "
                    "command again."
                )
            )
            return
        logger.warning(
            "a process of the run %s: %s back to the queue, %s left",
            how,
            counted(len(worker.records), "record goes", "records go"),
            counted(len(self._live), "process is", "processes are"),
        )
        self._returned += worker.records.values()
        worker.records.clear()
        self._changed.set()

    def _fail(self, error: BaseException) -> None:
        """Stop the run."""
        self._error = error_to_report(self._error, error)
        self._cancel.request()

    async def _drain(self, *sending: asyncio.Task[None]) -> None:
        """After cancellation: end intake, let the workers finish for a while, then kill them."""
        await self._cancel.wait()
        self._progress.stage = "draining"
        for task in sending:
            task.cancel()
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
    """One worker process.

    Attributes:
        records: Records sent to it that have no outcome yet, by number.
        stats: Its latest statistics.
        gone: It has ended, or is about to.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        wire: Wire,
        max_records: int,
        warned: set[str],
    ) -> None:
        self.records: dict[int, InputRecord] = {}
        self.stats = WorkerStats()
        self.gone = False
        self._process = process
        self._wire = wire
        self._max_records = max_records
        self._warned = warned
        self._bytes = 0

    @classmethod
    async def start(cls, settings: Settings, warned: set[str]) -> Self:
        """Start a process.

        Args:
            settings: The settings of the worker.
            warned: Warnings that were logged, shared by all workers of a run.

        Raises:
            WorkersDiedError: It cannot be started.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = subprocess.Popen(  # noqa: ASYNC220, S603 - milliseconds; our own program
                    python("captioner.executors.processes.worker", str(theirs.fileno())),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment(fetching=True, more=variables_of(settings.each_endpoint)),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # only the parent handles Ctrl-C
                )
        except OSError as error:
            ours.close()
            raise WorkersDiedError(f"cannot start a process: {error.strerror}") from None
        wire = await Wire.over(ours)
        wire.send(settings)
        return cls(process, wire, settings.run.concurrency + AHEAD, warned)

    async def wait_until_ready(self) -> str:
        """Return the model that it requests when it has connected to the endpoints.

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
        return message.model

    async def receive(self) -> Ready | Done | Exited | None:
        """Return the next message and log warnings; None if the process has died."""
        while isinstance(message := await self._wire.receive(), Warned):
            warn_once(message.text, self._warned)
        return message  # type: ignore[no-any-return]

    def send(self, message: Work | Written | Stop | EndOfInput) -> None:
        """Send a message."""
        if not self.gone:
            self._wire.send(message)

    @property
    def has_room(self) -> bool:
        """Whether it may get more records."""
        return len(self.records) < self._max_records and self._bytes < AHEAD_BYTES

    @property
    def fullness(self) -> float:
        """Its records as a part of those that it may have."""
        return len(self.records) / self._max_records

    def give(self, records: list[InputRecord]) -> None:
        """Send records."""
        for record in records:
            self.records[record.number] = record
            self._bytes += _size(record)
        self.send(Work(records))

    def take(self, number: int) -> InputRecord:
        """Return a record that has an outcome."""
        record = self.records.pop(number)
        self._bytes -= _size(record)
        return record

    def how_it_ended(self) -> str:
        """Return in words how the process ended."""
        try:
            status = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    async def close(self) -> None:
        """Wait until the process ends; kill it if that takes too long."""
        self._wire.close()
        try:
            await asyncio.to_thread(self._process.wait, END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _size(record: InputRecord) -> int:
    """Return the bytes of a record, with the images that it carries."""
    return len(record.raw) + sum(len(data) for _, data in record.images)


def part(settings: Settings, number: int) -> Settings:
    """Return the settings of one worker, with its share of the run's limits."""
    run, images = settings.run, settings.images

    def share(whole: int) -> int:
        return max(1, whole // run.processes + (number < whole % run.processes))

    return replace(
        settings,
        run=replace(run, concurrency=share(run.concurrency)),
        images=replace(
            images,
            memory=share(images.memory),
            fetch_concurrency=share(images.fetch_concurrency),
        ),
    )


def _error(message: Exited) -> BaseException:
    return revive(message.error, message.message) or RuntimeError(message.message)
