"""The parent process: sends the workers records and writes the outcomes.

::

    source ─ records ─▶ dispatcher ─ Work ─▶ workers, each with an engine
                                               │
    sink ◀─ outcomes ── one task each ◀── Done

If a worker dies, its records go back to the queue and another one is started. A record that was in
`SUSPECT` workers that died is tried alone, and is a failure if that worker dies, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from captioner.core.cancellation import StoppedError
from captioner.core.errors import RunError, WorkersDiedError
from captioner.core.humanize import counted
from captioner.core.progress import EndpointState, Supply
from captioner.core.types import Failure
from captioner.engine.pipeline import HeldRefusals, count, error_to_report
from captioner.executors.processes.handle import END_S, WorkerHandle
from captioner.executors.processes.messages import Done, EndOfInput, Exited, Stop, Written

if TYPE_CHECKING:
    from captioner.core.progress import Spent
    from captioner.core.protocols import Sink
    from captioner.core.types import InputRecord, Outcome
    from captioner.executors.processes.messages import WorkerStats
    from captioner.settings.context import RunContext

logger = logging.getLogger(__name__)

CHUNK = 16
"""Records sent at once."""

MOST_DEATHS = 5
"""Workers that die while they start, or in a row without an outcome, after which no more are
started."""

SUSPECT = 2
"""Workers that died with a record, after which the record is tried alone."""

ReplaceWorker = Callable[[int, "Spent"], Awaitable[WorkerHandle]]
"""Starts a worker with the share of one that died, by its number and what it has spent."""


class Dispatcher:
    """Carries records from a source through the workers to a sink, as `Pipeline` does."""

    def __init__(
        self,
        workers: list[WorkerHandle],
        context: RunContext,
        sink: Sink,
        settled: Callable[[Outcome], None] | None,
        replace_worker: ReplaceWorker,
    ) -> None:
        self._workers = workers
        self._replace_worker = replace_worker
        self._deaths = 0  # since the last outcome
        self._died_with: Counter[int] = Counter()  # workers, by the record that they had
        self._starting = 0  # workers that take the place of others
        self._ended = False  # the workers know that there are no more records
        self._sink = sink
        self._progress = context.progress
        self._progress.states = self._states
        self._progress.supply = self._supply
        self._cancel = context.cancel
        self._drain_s = context.settings.run.drain
        self._settled = settled
        self._held = HeldRefusals()  # the workers hold none back: each sees a part of the records
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
        await self._put(self._held.rest(self._error))
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
            self._ended = True
            for worker in self._live:
                worker.send(EndOfInput())
        except Exception as error:  # noqa: BLE001 - any error stops the run cleanly
            self._fail(error)
        finally:
            if isinstance(records, AsyncGenerator):
                await records.aclose()

    async def _send_returned(self) -> None:
        """Send the records of workers that died to other workers."""
        while True:
            while not self._returned:
                await self._change()
            record = self._returned[0]
            if self._died_with[record.number] < SUSPECT:
                await self._give([record])
                self._returned.popleft()
            else:
                await self._try_alone()

    async def _try_alone(self) -> None:
        """Send the first of the returned records to a worker that has no other, until it ends."""
        while not (free := [worker for worker in self._live if worker.has_room]):
            await self._change()
        worker = min(free, key=lambda worker: worker.fullness)
        worker.is_reserved = True
        while worker.records and not worker.gone:
            await self._change()
        if not worker.gone:
            worker.give([self._returned.popleft()])
        while worker.records and not worker.gone:
            await self._change()
        worker.is_reserved = False
        self._changed.set()

    @property
    def _live(self) -> list[WorkerHandle]:
        return [worker for worker in self._workers if not worker.gone]

    async def _give(self, chunk: list[InputRecord]) -> None:
        """Send records to the worker with the most room, as soon as there is one."""
        while not (free := [worker for worker in self._live if worker.has_room]):
            await self._change()
        min(free, key=lambda worker: worker.fullness).give(chunk)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _listen(self, worker: WorkerHandle) -> None:
        """Process the messages of a worker, and of those that take its place, until it ends."""
        try:
            while not isinstance(message := await worker.receive(), Exited):
                if message is None:
                    number = self._workers.index(worker)
                    await self._put(self._to_blame(worker))
                    self._redistribute(worker)
                    if not await self._replaced(number):
                        return
                    worker = self._workers[number]
                elif isinstance(message, Done):
                    self._update(worker, message.stats)
                    if message.outcomes:
                        await self._write(worker, message.outcomes)
            if message.error:
                self._fail(message.as_error())
        except Exception as error:  # noqa: BLE001 - any error stops the run cleanly
            self._fail(error)
        finally:
            worker.gone = True
            self._changed.set()

    async def _write(self, worker: WorkerHandle, numbered: list[tuple[int, Outcome]]) -> None:
        outcomes = [outcome._replace(record=worker.take(number)) for number, outcome in numbered]
        for number, _ in numbered:
            self._died_with.pop(number, None)
        self._deaths = 0
        self._changed.set()
        await self._put(self._held.to_write(outcomes))
        worker.send(Written())

    async def _put(self, outcomes: list[Outcome]) -> None:
        if not outcomes:
            return
        try:
            await self._sink.put(outcomes)
        except RunError as error:  # the sink keeps them; the worker may finish what is in flight
            self._fail(error)
        else:
            count(outcomes, self._progress, self._settled)

    def _update(self, worker: WorkerHandle, stats: WorkerStats) -> None:
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
                    one.held_by,
                )
        return list(total.values())

    def _supply(self) -> Supply:
        """Return how well the workers of all processes are supplied."""
        each = [worker.stats.supply for worker in self._live]
        return Supply(sum(one.idle for one in each), sum(one.fetching for one in each))

    def _to_blame(self, worker: WorkerHandle) -> list[Outcome]:
        """Return the failure of a record that was alone in a worker that died."""
        numbers = list(worker.records)
        if self._cancel or len(numbers) != 1 or self._died_with[numbers[0]] < SUSPECT:
            return []
        self._deaths = 0
        how = worker.how_it_ended()
        message = f"a process {how} while it had only this record, as others did before"
        return [Failure(worker.take(numbers[0]), "process_died", message, 0)]

    def _redistribute(self, worker: WorkerHandle) -> None:
        """Put the records of a worker that died back into the queue."""
        self._deaths += 1
        worker.gone = True
        self._update(worker, worker.stats._replace(in_flight=0, waiting=""))
        how = worker.how_it_ended()
        if self._is_over(worker):
            return
        if not self._live and not self._starting and self._deaths >= MOST_DEATHS:
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
        self._died_with.update(worker.records.keys())
        self._returned += worker.records.values()
        worker.records.clear()
        self._changed.set()

    def _is_over(self, worker: WorkerHandle) -> bool:
        """Return whether nothing is left for a worker that died, or for another one."""
        pending = worker.records or self._returned
        return bool(self._cancel) or (self._progress.complete and not pending)

    async def _replaced(self, number: int) -> bool:
        """Start a worker in the place of one that died; return whether there is work for it.

        Raises:
            WorkersDiedError: None can be started, and there is no other.
        """
        if self._cancel or self._ended or self._deaths >= MOST_DEATHS:
            return False
        self._starting += 1
        try:
            worker = await self._replace_worker(number, self._workers[number].spent)
        except StoppedError:
            return False
        except WorkersDiedError as error:
            if not self._live and self._starting == 1:
                raise
            logger.warning("%s; the others continue", error)
            return False
        finally:
            self._starting -= 1
        self._workers[number] = worker
        if self._cancel or self._ended:
            worker.send(Stop(forced=True))
        self._changed.set()
        return True

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
