"""The path of every record: read, prepare, send, write. Memory is bounded, order is not kept.

::

    source ─ lines ─▶ feeder ─ prepared ─▶ workers ─ outcomes ─▶ sink
                       │ ▲ a short queue    `concurrency` of them
                       ▼ │
                     threads, fetches

The feeder prepares a record itself where that takes no waiting: the file is in memory, and the
picture passes as it is. A hop into a thread, and two threads that want the interpreter, cost as
much as the work. While all goes so it keeps just ahead of the workers: they send what the
processor's own memory still holds. What would keep the event loop waiting goes to threads and comes
back prepared; so does, after its pictures are here, what has to be fetched. When records keep going
to the threads they are sent there straight away and in chunks, for a while.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from captioner.errors import RunError
from captioner.records import Caption, Failure, Prepared, Remote
from captioner.stopping import StoppedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from captioner.budget import ByteBudget
    from captioner.interfaces import Sink
    from captioner.prepare import Preparer
    from captioner.records import Line, Outcome, Progress
    from captioner.sharing import Sharing
    from captioner.stopping import Stopping

CHUNK = 16
"""Lines a thread takes at once; more is no faster, fewer costs more hops."""

FLUSH_S = 0.02
"""Seconds after which a thread hands over what it has, if its chunk takes long."""

IN_A_ROW = 16
"""Records that could not be prepared at once, one after the other, before the next ones go ..."""

STRAIGHT = 1_000
"""... straight to the threads, so many of them."""

AT_ONCE_S = 0.005
"""Seconds of preparing in the event loop after which others have their turn ..."""

AT_ONCE_BYTES = 4 << 20
"""... or so many bytes: a processor keeps about as many near until they are sent."""

TOO_LONG_S = 0.01
"""Seconds for one record in the event loop after which the next ones go straight to the threads:
a chunk of them at first, for it may have been chance, and twice as many each time it happens again.
"""

BY_CHANCE = 64
"""Records that went well in between show that it was: a machine that is shared stands still now and
then."""

AHEAD = 32
"""Prepared records that may wait for a worker while all can be prepared at once. With fewer, the
feeder and workers take turns for each record, which is dearer than memory that went cold. At least
`CHUNK`: one line may take so many places."""

_Item = Prepared | Failure


def weight(line: Line) -> int:
    """Return the places that a record takes: one, and one more for each MB that comes along."""
    if not line.pictures:
        return 1
    return min(CHUNK, 1 + (sum(len(data) for _, data in line.pictures) >> 20))


def _chunks(batch: list[Line]) -> Iterator[list[Line]]:
    """Yield the lines in pieces that take no more places than a chunk has."""
    chunk: list[Line] = []
    places = 0
    for line in batch:
        more = weight(line)
        if chunk and places + more > CHUNK:
            yield chunk
            chunk, places = [], 0
        chunk.append(line)
        places += more
    if chunk:
        yield chunk


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


class _Ready:
    """What is ready for the workers, first come first served: a queue without bounds or locks."""

    def __init__(self) -> None:
        self._items: deque[_Item | None] = deque()
        self._hungry: deque[asyncio.Future[_Item | None]] = deque()

    @property
    def unclaimed(self) -> int:
        """Items that wait, less the workers who do."""
        return len(self._items) - len(self._hungry)

    def put(self, item: _Item | None) -> None:
        """Give an item to whoever has waited longest."""
        while self._hungry:
            taker = self._hungry.popleft()
            if not taker.done():
                taker.set_result(item)
                return
        self._items.append(item)

    async def get(self, before_waiting: Callable[[], None]) -> _Item | None:
        """Return the oldest item; None ends the work."""
        if self._items:
            return self._items.popleft()
        taker: asyncio.Future[_Item | None] = asyncio.get_running_loop().create_future()
        self._hungry.append(taker)
        before_waiting()
        return await taker


class Pipeline:
    """Carries records from a source to a sink.

    Args:
        preparer: Makes lines ready.
        fetch: Makes those ready whose pictures have to be fetched.
        sharing: Captions them.
        sink: Takes the outcomes.
        budget: Bytes held by prepared records; released here when a record is settled.
        progress: Counts.
        stopping: Ends intake when set; what is on the wire still finishes.
        concurrency: Workers.
        fetches: Records whose pictures are fetched at once.
        drain_s: Seconds to let them finish once stopping.
        settled: Called with every outcome after it is written.
    """

    def __init__(
        self,
        preparer: Preparer,
        fetch: Callable[[Remote], Awaitable[_Item]],
        sharing: Sharing,
        sink: Sink,
        budget: ByteBudget,
        progress: Progress,
        stopping: Stopping,
        *,
        concurrency: int,
        fetches: int,
        drain_s: float,
        settled: Callable[[Outcome], None] | None = None,
    ) -> None:
        self._preparer = preparer
        self._fetch = fetch
        self._sharing = sharing
        self._sink = sink
        self._budget = budget
        self._progress = progress
        self._stopping = stopping
        self._concurrency = concurrency
        self._drain_s = drain_s
        self._settled = settled
        self._ready = _Ready()
        threads = min(8, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="captioner-prepare")
        self._chunks: set[asyncio.Future[None]] = set()
        self._smooth = 0  # records in a row that could be prepared at once
        self._turn = 0.0  # when others last had theirs while the feeder prepared
        self._turn_bytes = 0  # prepared since
        self._misses = 0  # records in a row that could not be prepared at once
        self._straight = 0  # records that still go to the threads unasked
        self._stretch = CHUNK  # how many that will be when the next one takes too long
        self._in_time = 0  # records that did not, since the last one that did
        # Records being prepared or waiting in the queue; a worker that takes a record makes room.
        self._places = CHUNK * (threads + 2) + fetches
        self._room = self._places
        self._ahead = self._places  # as many of them may wait for a worker
        self._wanted = 0  # places that are waited for
        self._enough = asyncio.Event()
        self._fetching: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None

    async def run(self, lines: AsyncIterator[list[Line]]) -> None:
        """Carry all records, or those begun before the run was stopped.

        Raises:
            RunError: What stopped the run; everything finished before is in the sink.
        """
        workers = [asyncio.create_task(self._work()) for _ in range(self._concurrency)]
        feeder = asyncio.create_task(self._feed(lines))
        drain = asyncio.create_task(self._drain(feeder, workers))
        tasks = (feeder, *workers)
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in (drain, *tasks):
                task.cancel()
            await asyncio.gather(drain, *tasks, return_exceptions=True)
            self._sharing.close()  # nobody asks any more, and putting in order takes memory
        if self._error is not None:
            raise self._error

    async def _feed(self, lines: AsyncIterator[list[Line]]) -> None:
        """Put lines into the queue or before the threads, never more than there is room for."""
        idle = False
        try:
            async for batch in lines:
                for chunk in _chunks(batch):
                    await self._admit(chunk)
                if self._stopping:
                    return
            self._progress.complete = True
            self._ahead = self._places
            await self._wait_for_room(self._places)  # until all have been taken
        except Exception as error:  # noqa: BLE001 - whatever it is ends the run, in order
            self._fail(error)
        finally:
            if isinstance(lines, AsyncGenerator):
                await lines.aclose()
            self._end_fetching()
            try:
                await asyncio.gather(*self._chunks, *self._fetching, return_exceptions=True)
                idle = True
            finally:
                self._pool.shutdown(wait=idle)
                self._ready.put(None)

    def _free(self) -> int:
        """Return the places that may be taken now."""
        return min(self._room, self._ahead - self._ready.unclaimed)

    async def _wait_for_room(self, places: int) -> None:
        """Return when so many places may be taken."""
        while self._free() < places:
            self._wanted = places
            self._enough.clear()
            await self._enough.wait()
        self._wanted = 0

    def _tell_of_room(self) -> None:
        """Tell the feeder if there is the room it waits for."""
        if self._free() >= self._wanted > 0:
            self._enough.set()

    async def _admit(self, chunk: list[Line]) -> None:
        """Wait for room, and send lines on their way."""
        free = 0
        begin = time.monotonic()
        for at, line in enumerate(chunk):
            if self._straight > 0:
                await self._admit_to_threads(chunk[at:])
                return
            places = weight(line)
            if free < places:
                if self._free() < places:
                    await self._wait_for_room(places)
                    begin = self._turn = time.monotonic()
                    self._turn_bytes = 0
                if self._stopping:
                    return
                free = self._free()
            free -= places
            self._room -= places
            self._turn_bytes += self._at_once(line)
            now = time.monotonic()
            if now - begin > TOO_LONG_S:
                self._take_too_long()
            else:
                self._in_time += 1
            begin = now
            if self._turn_bytes > AT_ONCE_BYTES or now - self._turn > AT_ONCE_S:
                await asyncio.sleep(0)
                begin = self._turn = time.monotonic()
                self._turn_bytes = 0

    async def _admit_to_threads(self, chunk: list[Line]) -> None:
        places = sum(map(weight, chunk))
        await self._wait_for_room(places)
        if not self._stopping:
            self._straight -= len(chunk)
            self._room -= places
            self._to_threads(chunk)

    def _look_ahead(self) -> None:
        """Have threads and fetches begin early from now on."""
        self._smooth = 0
        self._ahead = self._places

    def _take_too_long(self) -> None:
        self._look_ahead()
        if self._in_time > BY_CHANCE:
            self._stretch = CHUNK
        self._in_time = 0
        self._straight = self._stretch
        self._stretch = min(2 * self._stretch, STRAIGHT)

    def _to_threads(self, chunk: list[Line]) -> None:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, self._prepare, chunk, loop)
        self._chunks.add(future)
        future.add_done_callback(self._chunks.discard)
        future.add_done_callback(self._prepared)

    def _at_once(self, line: Line) -> int:
        """Prepare a record here and now, if that takes no waiting; else have it done elsewhere.

        Returns:
            Bytes that were prepared.
        """
        item = self._preparer.prepare_at_once(line)
        if item is None:
            self._look_ahead()
            self._misses += 1
            if self._misses >= IN_A_ROW:
                self._misses, self._straight = 0, STRAIGHT
            self._to_threads([line])
            return 0
        self._misses = 0
        if isinstance(item, Remote):
            self._look_ahead()
            self._take([item])
            return 0
        self._smooth += 1
        if self._smooth == CHUNK:
            self._ahead = AHEAD
        self._ready.put(item)
        return item.reserved if isinstance(item, Prepared) else 0

    def _prepare(self, chunk: list[Line], loop: asyncio.AbstractEventLoop) -> None:
        """Prepare some lines in a thread, handing over early when they take long."""
        done: list[_Item | Remote] = []

        def hand_over() -> None:
            if done:
                loop.call_soon_threadsafe(self._take, done.copy())
                done.clear()

        self._budget.before_waiting(hand_over)
        handed = time.monotonic()
        for line in chunk:
            if self._stopping:
                break
            done.append(self._preparer.prepare(line))
            if (now := time.monotonic()) - handed > FLUSH_S:
                handed = now
                hand_over()
        hand_over()

    def _prepared(self, chunk: asyncio.Future[None]) -> None:
        if not chunk.cancelled() and (error := chunk.exception()) is not None:
            self._fail(error)

    def _take(self, items: list[_Item | Remote]) -> None:
        for item in items:
            if isinstance(item, Remote):
                task = asyncio.create_task(self._fetch_one(item))
                self._fetching.add(task)
                task.add_done_callback(self._fetching.discard)
            else:
                self._ready.put(item)

    async def _fetch_one(self, remote: Remote) -> None:
        try:
            self._ready.put(await self._fetch(remote))
        except StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is ends the run, in order
            self._fail(error)

    def _end_fetching(self) -> None:
        for task in self._fetching:
            task.cancel()

    async def _work(self) -> None:
        """Settle one record after the other until there are no more."""
        ready = self._ready
        try:
            while (item := await ready.get(self._tell_of_room)) is not None:
                self._room += weight(item.line)
                if self._wanted:
                    self._tell_of_room()
                if self._stopping:
                    continue
                outcomes: list[Outcome]
                if isinstance(item, Prepared):
                    try:
                        outcomes = await self._sharing.outcomes(item)
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
        self._stopping.set()

    async def _drain(self, feeder: asyncio.Task[None], workers: list[asyncio.Task[None]]) -> None:
        """Once stopping, end intake, give the workers their time and then cancel them."""
        await self._stopping.wait()
        self._progress.stage = "draining"
        self._budget.close()
        feeder.cancel()
        self._ready.put(None)  # for workers that wait for a record
        hurried = asyncio.create_task(self._stopping.wait_hurried())
        finished = asyncio.gather(*workers, return_exceptions=True)
        try:
            await asyncio.wait(
                (hurried, finished), timeout=self._drain_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            hurried.cancel()
            for worker in workers:
                worker.cancel()
