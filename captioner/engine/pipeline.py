"""The path of every record: read, prepare, send, write. Memory is bounded; order is not kept.

::

    source ─ records ─▶ prefetcher ─ prepared ─▶ workers ─ outcomes ─▶ sink
                          a short queue         `concurrency` of them

`captioner.engine.prefetch` prepares records ahead of the workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from captioner.core.cancellation import StoppedError
from captioner.core.errors import (
    DiskError,
    EndpointGaveOutError,
    EndpointRefusedError,
    RunError,
)
from captioner.core.progress import Supply
from captioner.core.types import Caption, Failure, PreparedRecord
from captioner.engine.most_doubtful import PostponedError
from captioner.engine.prefetch import HandoffQueue, Prefetcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from captioner.core.progress import Progress
    from captioner.core.protocols import Sink
    from captioner.core.types import InputRecord, Outcome
    from captioner.engine.engine import Engine
    from captioner.settings.context import RunContext


MAX_HELD = 1_000
"""Refusals that are held back at most."""

_DOOMED = EndpointRefusedError | EndpointGaveOutError


def _is_refusal(outcome: Outcome) -> bool:
    """Return whether the endpoint refused a record, as it refuses all when the run is doomed."""
    if not isinstance(outcome, Failure) or not outcome.attempts:
        return False
    return outcome.code.startswith("http_") or outcome.code == "bad_reply"


def count(
    outcomes: Sequence[Outcome], progress: Progress, settled: Callable[[Outcome], None] | None
) -> None:
    """Count outcomes that are written, and call ``settled`` with each."""
    for outcome in outcomes:
        if isinstance(outcome, Caption) and outcome.existing:
            progress.existing += 1
        elif isinstance(outcome, Caption):
            progress.captioned += 1
        else:
            progress.failed += 1
            progress.codes[outcome.code] += 1
            progress.examples.setdefault(outcome.code, outcome)
        if settled is not None:
            settled(outcome)


def error_to_report(earlier: BaseException | None, error: BaseException) -> BaseException:
    """Return which of two errors of a run to report: the earlier one, but a bug comes first."""
    if earlier is None or (isinstance(earlier, RunError) and not isinstance(error, RunError)):
        return error
    return earlier


class HeldRefusals:
    """Holds refusals back until a caption shows that the endpoint works.

    If the endpoint refuses every record, the run stops and those records stay pending.
    """

    def __init__(self) -> None:
        self._held: list[Outcome] = []

    def to_write(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Return which of these outcomes, and of those that are held, are to be written now."""
        refusals = [one for one in outcomes if _is_refusal(one)]
        if not (refusals or self._held):
            return outcomes
        if any(isinstance(one, Caption) for one in outcomes):
            return [*self.rest(None), *outcomes]
        self._held += refusals
        others = [one for one in outcomes if not _is_refusal(one)]
        return others if len(self._held) < MAX_HELD else [*self.rest(None), *others]

    def rest(self, error: BaseException | None) -> list[Outcome]:
        """Return the refusals that are held, or none if they show that the run is doomed."""
        held, self._held = self._held, []
        return [] if isinstance(error, _DOOMED | DiskError) else held


class Pipeline:
    """Carries records from a source to a sink.

    Args:
        engine: Prepares and captions records; its memory is released when a record is settled.
        context: The run. Cancelling it ends intake; requests in flight still finish.
        sink: Takes the outcomes.
        settled: Called with every outcome after it is written.
        probe: Called with the number of the first records, before they are prepared.
        held: Holds refusals back; None if the sink does.
    """

    def __init__(
        self,
        engine: Engine,
        context: RunContext,
        sink: Sink,
        settled: Callable[[Outcome], None] | None = None,
        probe: Callable[[int], Awaitable[None]] | None = None,
        held: HeldRefusals | None = None,
    ) -> None:
        self._deduplicator = engine.deduplicator
        self._memory = engine.memory
        self._settings = context.settings
        self._progress = context.progress
        self._cancel = context.cancel
        self._sink = sink
        self._settled = settled
        self._probe = probe
        self._ready = HandoffQueue()
        self._prefetcher = Prefetcher(engine, context, self._ready, fail=self._fail)
        self._held = held
        self._progress.supply = self._supply
        self._error: BaseException | None = None

    def _supply(self) -> Supply:
        return Supply(self._ready.idle, self._prefetcher.fetching)

    async def run(self, records: AsyncIterator[list[InputRecord]]) -> None:
        """Carry all records, or those that were started before the run was cancelled.

        Raises:
            RunError: The reason why the run stopped. Finished records are in the sink.
        """
        concurrency = self._settings.run.concurrency
        workers = [asyncio.create_task(self._work()) for _ in range(concurrency)]
        feeder = asyncio.create_task(self._feed(records))
        drain = asyncio.create_task(self._drain(feeder, workers))
        tasks = (feeder, *workers)
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in (drain, *tasks):
                task.cancel()
            await asyncio.gather(drain, *tasks, return_exceptions=True)
            if self._held is not None and (rest := self._held.rest(self._error)):
                await self._sink.put(rest)
                count(rest, self._progress, self._settled)
        if self._error is not None:
            raise self._error

    async def _feed(self, records: AsyncIterator[list[InputRecord]]) -> None:
        """Prepare records until there are no more or the run is cancelled."""
        try:
            async for batch in records:
                if self._probe is not None:
                    await self._probe(len(batch))
                    self._probe = None
                await self._prefetcher.admit(batch)
                if self._cancel:
                    return
            self._progress.complete = True
            await self._prefetcher.all_taken()
        except Exception as error:  # noqa: BLE001 - any error stops the run cleanly
            self._fail(error)
        finally:
            if isinstance(records, AsyncGenerator):
                await records.aclose()
            try:
                await self._prefetcher.close()
            finally:
                self._ready.put(None)

    async def _work(self) -> None:
        """Settle one record after the other until there are no more."""
        ready, prefetcher = self._ready, self._prefetcher
        try:
            while (item := await ready.get(prefetcher.wake_if_room)) is not None:
                prefetcher.taken(item.record)
                if self._cancel:
                    continue
                outcomes: list[Outcome]
                if isinstance(item, PreparedRecord):
                    try:
                        outcomes = await self._deduplicator.outcomes(item)
                    except PostponedError:
                        outcomes = []
                    finally:
                        self._memory.release(item.reserved)
                else:
                    outcomes = [item]
                del item
                if outcomes:
                    await self._settle(outcomes)
        except StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - any error stops the run cleanly
            self._fail(error)
        finally:
            ready.put(None)

    async def _settle(self, outcomes: list[Outcome]) -> None:
        if self._held is not None:
            outcomes = self._held.to_write(outcomes)
            if not outcomes:
                return
        await self._sink.put(outcomes)
        count(outcomes, self._progress, self._settled)

    def _fail(self, error: BaseException) -> None:
        """Stop the run."""
        self._error = error_to_report(self._error, error)
        self._cancel.request()

    async def _drain(self, feeder: asyncio.Task[None], workers: list[asyncio.Task[None]]) -> None:
        """After cancellation: end intake, let workers finish for a while, then cancel them."""
        await self._cancel.wait()
        self._progress.stage = "draining"
        self._memory.close()
        feeder.cancel()
        self._ready.put(None)  # wakes workers that wait for a record
        forced = asyncio.create_task(self._cancel.wait_forced())
        finished = asyncio.gather(*workers, return_exceptions=True)
        try:
            await asyncio.wait(
                (forced, finished),
                timeout=self._settings.run.drain,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            forced.cancel()
            for worker in workers:
                worker.cancel()
