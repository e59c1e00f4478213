"""The path of every record: read, prepare, send, write. Memory is bounded, order is not kept.

::

    source ─ lines ─▶ feeder ─ prepared ─▶ workers ─ outcomes ─▶ sink
                        a short queue       `concurrency` of them

How the feeder does it, `captioner.engine.prefetch` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from captioner.core.cancellation import StoppedError
from captioner.core.errors import RunError
from captioner.core.types import Caption, PreparedRecord
from captioner.engine.prefetch import HandoffQueue, Item, Prefetcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from captioner.core.cancellation import CancelToken
    from captioner.core.memory import MemoryBudget
    from captioner.core.protocols import Sink
    from captioner.core.types import InputRecord, NeedsFetch, Outcome, Progress
    from captioner.engine.dedup import RequestDeduplicator
    from captioner.engine.prepare import Preparer


def count(
    outcomes: Sequence[Outcome], progress: Progress, settled: Callable[[Outcome], None] | None
) -> None:
    """Count outcomes that are written, and tell of each."""
    for outcome in outcomes:
        if isinstance(outcome, Caption):
            progress.captioned += 1
            progress.prompt_tokens += outcome.usage.prompt_tokens
            progress.completion_tokens += outcome.usage.completion_tokens
        else:
            progress.failed += 1
            progress.codes[outcome.code] += 1
            progress.examples.setdefault(outcome.code, outcome)
        if settled is not None:
            settled(outcome)


class Pipeline:
    """Carries records from a source to a sink.

    Args:
        preparer: Makes lines ready.
        fetch: Makes those ready whose images have to be fetched.
        deduplicator: Captions them.
        sink: Takes the outcomes.
        budget: Bytes held by prepared records; released here when a record is settled.
        progress: Counts.
        cancel: Ends intake when set; what is on the wire still finishes.
        concurrency: Workers.
        fetches: Records whose images are fetched at once.
        drain_s: Seconds to let them finish once stopping.
        settled: Called with every outcome after it is written.
    """

    def __init__(
        self,
        preparer: Preparer,
        fetch: Callable[[NeedsFetch], Awaitable[Item]],
        deduplicator: RequestDeduplicator,
        sink: Sink,
        budget: MemoryBudget,
        progress: Progress,
        cancel: CancelToken,
        *,
        concurrency: int,
        fetches: int,
        drain_s: float,
        settled: Callable[[Outcome], None] | None = None,
    ) -> None:
        self._deduplicator = deduplicator
        self._sink = sink
        self._budget = budget
        self._progress = progress
        self._cancel = cancel
        self._concurrency = concurrency
        self._drain_s = drain_s
        self._settled = settled
        self._ready = HandoffQueue()
        self._prefetcher = Prefetcher(
            preparer, fetch, self._ready, budget, cancel, fetches=fetches, fail=self._fail
        )
        self._error: BaseException | None = None

    async def run(self, lines: AsyncIterator[list[InputRecord]]) -> None:
        """Carry all records, or those begun before the run was stopped.

        Raises:
            RunError: What stopped the run; everything finished before is in the sink.
        """
        workers = [asyncio.create_task(self._work()) for _ in range(self._concurrency)]
        prefetcher = asyncio.create_task(self._feed(lines))
        drain = asyncio.create_task(self._drain(prefetcher, workers))
        tasks = (prefetcher, *workers)
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in (drain, *tasks):
                task.cancel()
            await asyncio.gather(drain, *tasks, return_exceptions=True)
            self._deduplicator.close()  # nobody asks any more, and putting in order takes memory
        if self._error is not None:
            raise self._error

    async def _feed(self, lines: AsyncIterator[list[InputRecord]]) -> None:
        """Have all lines prepared that there are before the run is stopped."""
        try:
            async for batch in lines:
                await self._prefetcher.admit(batch)
                if self._cancel:
                    return
            self._progress.complete = True
            await self._prefetcher.all_taken()
        except Exception as error:  # noqa: BLE001 - whatever it is ends the run, in order
            self._fail(error)
        finally:
            if isinstance(lines, AsyncGenerator):
                await lines.aclose()
            try:
                await self._prefetcher.close()
            finally:
                self._ready.put(None)

    async def _work(self) -> None:
        """Settle one record after the other until there are no more."""
        ready, prefetcher = self._ready, self._prefetcher
        try:
            while (item := await ready.get(prefetcher.tell_of_room)) is not None:
                prefetcher.taken(item.record)
                if self._cancel:
                    continue
                outcomes: list[Outcome]
                if isinstance(item, PreparedRecord):
                    try:
                        outcomes = await self._deduplicator.outcomes(item)
                    finally:
                        self._budget.release(item.reserved)
                else:
                    outcomes = [item]
                del item
                if not outcomes:
                    continue
                await self._sink.put(outcomes)
                count(outcomes, self._progress, self._settled)
        except StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is ends the run, in order
            self._fail(error)
        finally:
            ready.put(None)

    def _fail(self, error: BaseException | None) -> None:
        """Stop the run; the first reason is the one that is told, a bug before all others."""
        if self._error is None or (
            isinstance(self._error, RunError) and not isinstance(error, RunError)
        ):
            self._error = error
        self._cancel.request()

    async def _drain(
        self, prefetcher: asyncio.Task[None], workers: list[asyncio.Task[None]]
    ) -> None:
        """Once stopping, end intake, give the workers their time and then cancel them."""
        await self._cancel.wait()
        self._progress.stage = "draining"
        self._budget.close()
        prefetcher.cancel()
        self._ready.put(None)  # for workers that wait for a record
        forced = asyncio.create_task(self._cancel.wait_forced())
        finished = asyncio.gather(*workers, return_exceptions=True)
        try:
            await asyncio.wait(
                (forced, finished), timeout=self._drain_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            forced.cancel()
            for worker in workers:
                worker.cancel()
