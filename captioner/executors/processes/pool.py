"""The parent's side: starts the workers, deals out records, takes back what became of them.

::

    source ─ lines ─▶ dealer ─ Work ─▶ workers, each an engine of its own
                                          │
    sink ◀─ outcomes ─ one task each ◀─ Done

A worker that dies costs what it had on the wire: its records go to the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from captioner.core import errors
from captioner.core.cancellation import StoppedError
from captioner.core.errors import RunError, SettingsError, WorkersDiedError
from captioner.core.subprocesses import environment, python
from captioner.core.types import EndpointState
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

    from captioner.core.cancellation import CancelToken
    from captioner.core.protocols import Sink
    from captioner.core.types import InputRecord, Outcome, Progress
    from captioner.settings.settings import Settings

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
    """The workers of a run, in the place of an `Engine`.

    Attributes:
        model: See `Engine`.
    """

    def __init__(self, workers: list[_Worker]) -> None:
        self.model = workers[0].model
        self._workers = workers

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        cancel: CancelToken,
        *,
        warn: Callable[[str], None],
    ) -> AsyncIterator[Self]:
        """Start the workers, each with its part of what the settings allow.

        Raises:
            SettingsError: See `Engine.open`.
            WorkersDiedError: One could not be started.
        """
        once = _once(warn)
        workers: list[_Worker] = []
        async with contextlib.AsyncExitStack() as stack:
            for number in range(settings.run.processes):
                worker = _Worker(once)
                stack.push_async_callback(worker.close)
                await worker.start(part(settings, number))
                workers.append(worker)
            stopped = asyncio.create_task(cancel.wait())
            stack.callback(stopped.cancel)
            ready = asyncio.gather(*(worker.wait_until_ready() for worker in workers))
            await asyncio.wait((ready, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                ready.cancel()
                await asyncio.gather(ready, return_exceptions=True)
                raise StoppedError
            await ready
            yield cls(workers)

    def pipeline(
        self,
        settings: Settings,
        sink: Sink,
        progress: Progress,
        cancel: CancelToken,
        settled: Callable[[Outcome], None] | None = None,
    ) -> Dispatcher:
        """Return a pipeline from the workers into a sink."""
        return Dispatcher(self._workers, sink, progress, cancel, settings.run.drain, settled)


class Dispatcher:
    """Carries records from a source through the workers to a sink, as `Pipeline` does in one.

    Args:
        workers: The workers, ready.
        sink: Takes the outcomes.
        progress: Counts.
        cancel: Ends intake when set.
        drain_s: Seconds to let workers finish what is on the wire.
        settled: Called with every outcome after it is written.
    """

    def __init__(
        self,
        workers: list[_Worker],
        sink: Sink,
        progress: Progress,
        cancel: CancelToken,
        drain_s: float,
        settled: Callable[[Outcome], None] | None,
    ) -> None:
        self._workers = workers
        self._sink = sink
        self._progress = progress
        progress.states = self._states
        self._cancel = cancel
        self._drain_s = drain_s
        self._settled = settled
        self._again: deque[InputRecord] = deque()  # records of workers that died
        self._changed = asyncio.Event()
        self._error: BaseException | None = None

    async def run(self, lines: AsyncIterator[list[InputRecord]]) -> None:
        """Carry all records, or those begun before the run was stopped.

        Raises:
            RunError: What stopped the run; everything finished before is in the sink.
        """
        listening = [asyncio.create_task(self._listen(worker)) for worker in self._workers]
        dealing = asyncio.create_task(self._deal(lines))
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

    async def _deal(self, lines: AsyncIterator[list[InputRecord]]) -> None:
        try:
            async for batch in lines:
                for at in range(0, len(batch), CHUNK):
                    await self._give(batch[at : at + CHUNK])
            self._progress.complete = True
            while any(worker.lines for worker in self._left) or self._again:
                await self._change()
            for worker in self._left:
                worker.send(EndOfInput())
        except Exception as error:  # noqa: BLE001 - whatever it is ends the run, in order
            self._fail(error)
        finally:
            if isinstance(lines, AsyncGenerator):
                await lines.aclose()

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
        self._count(worker, done.counts)
        if not done.outcomes:
            return
        outcomes = [
            outcome._replace(record=worker.take(number)) for number, outcome in done.outcomes
        ]
        self._changed.set()
        await self._sink.put(outcomes)
        worker.send(Written())
        count(outcomes, self._progress, self._settled)

    def _count(self, worker: _Worker, counts: WorkerStats) -> None:
        progress, before = self._progress, worker.counts
        progress.in_flight += counts.in_flight - before.in_flight
        progress.calls += counts.calls - before.calls
        progress.retries += counts.retries - before.retries
        progress.shared += counts.shared - before.shared
        progress.cached += counts.cached - before.cached
        progress.cost += counts.cost - before.cost
        progress.answers += counts.answers - before.answers
        progress.answered_s += counts.answered_s - before.answered_s
        worker.counts = counts
        progress.began.pop(worker, None)
        if counts.in_flight:
            progress.began[worker] = time.monotonic() - counts.oldest_s
        progress.waiting = next((one.counts.waiting for one in self._left), "")

    def _states(self) -> list[EndpointState]:
        """Return how each endpoint stands for all workers together."""
        found: dict[str, EndpointState] = {}
        for worker in self._left:
            for state in worker.counts.states:
                other = found.get(state.name)
                found[state.name] = state if other is None else _both(other, state)
        return list(found.values())

    def _lose(self, worker: _Worker) -> None:
        """Give the records of a worker that died to the others."""
        worker.gone = True
        self._count(worker, worker.counts._replace(in_flight=0, waiting=""))
        how = worker.how_it_ended()
        if self._cancel or (self._progress.complete and not (worker.lines or self._again)):
            return
        if not self._left:
            self._fail(
                WorkersDiedError(
                    f"the last process of the run {how}. What was finished is saved; run the same "
                    "command again."
                )
            )
            return
        worker.warn(
            f"a process of the run {how}; {len(worker.lines):,} records go to the "
            f"{len(self._left)} that are left"
        )
        self._again += worker.lines.values()
        worker.lines.clear()
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
        lines: Records sent to it whose outcome has not come back, by number.
        counts: The last it told.
        gone: It takes nothing any more.
        warn: Called with its warnings.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.model = ""
        self.lines: dict[int, InputRecord] = {}
        self.counts = WorkerStats()
        self.gone = False
        self.warn = warn
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
            self.warn(message.text)
        return message  # type: ignore[no-any-return]

    def send(self, message: Settings | Work | Written | Stop | EndOfInput) -> None:
        """Send a message."""
        if self._wire is not None and not self.gone:
            self._wire.send(message)

    @property
    def has_room(self) -> bool:
        """It may be given more."""
        return len(self.lines) < self._most and self._bytes < AHEAD_BYTES

    @property
    def fullness(self) -> float:
        """Records it has of those it may have."""
        return len(self.lines) / self._most

    def give(self, lines: list[InputRecord]) -> None:
        """Send records."""
        for line in lines:
            self.lines[line.number] = line
            self._bytes += _size(line)
        self.send(Work(lines))

    def take(self, number: int) -> InputRecord:
        """Return a record that it is done with."""
        line = self.lines.pop(number)
        self._bytes -= _size(line)
        return line

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


def _size(line: InputRecord) -> int:
    """Return the bytes that a record takes, its images too where they come along."""
    return len(line.raw) + sum(len(data) for _, data in line.images)


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
        one.resting and other.resting,
    )


def _error(ended: Exited) -> BaseException:
    """Return the error that ended a worker."""
    kind = getattr(errors, ended.error, None)
    if isinstance(kind, type) and issubclass(kind, RunError | SettingsError):
        return kind(ended.message)
    return RuntimeError(ended.message)


def _once(warn: Callable[[str], None]) -> Callable[[str], None]:
    """Return what passes each warning on once: all workers meet the same endpoint."""
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            warn(text)

    return say
