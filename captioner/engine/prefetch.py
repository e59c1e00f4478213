"""Prepare records just ahead of the workers: the first half of the path of a record.

::

    records ─▶ prefetcher ─ prepared ─▶ workers
                  │  ▲
                  ▼  │
             threads, fetches

A record is prepared in the event loop if that needs no waiting: its file is in memory and its image
is sent unchanged. A hop into a thread would cost as much as the work. In that mode the prefetcher
stays just ahead of the workers, which then send data that is still in the processor's cache.
Records that would block go to threads; remote images are fetched first. When many records in a row
block, the next ones go straight to the threads, in chunks, for a while.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from captioner.core.cancellation import StoppedError
from captioner.core.types import NeedsFetch, Outcome, PreparedRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from captioner.core.types import InputRecord
    from captioner.engine.engine import Engine
    from captioner.settings.context import RunContext

CHUNK = 16
"""Records that a thread takes at once. More is no faster; fewer costs more hops."""

FLUSH_S = 0.02
"""Seconds after which a thread hands over finished records of a chunk that takes long."""

MISSES = 16
"""Records in a row that blocked, after which the next `DIRECT` go straight to the threads."""

DIRECT = 1_000

TURN_S = 0.005
"""Seconds of preparing in the event loop after which other tasks run."""

TURN_BYTES = 4 << 20
"""Bytes prepared in the event loop after which other tasks run: about a processor's cache."""

TOO_LONG_S = 0.01
"""Seconds for one record in the event loop after which the next ones go straight to the threads: a
chunk first, because a busy machine causes single delays, then twice as many each time."""

BY_CHANCE = 64
"""Records in time between two delays that show that the delays came from a busy machine."""

AHEAD = 32
"""Prepared records that may wait for a worker while none blocks; at least `CHUNK`. With fewer, the
prefetcher and the workers alternate for each record, which costs more than a cold cache."""

Item = PreparedRecord | Outcome


def slots_of(record: InputRecord) -> int:
    """Return the slots that a record takes: one, and one more for each MB of its own images."""
    if not record.images:
        return 1
    return min(CHUNK, 1 + (sum(len(data) for _, data in record.images) >> 20))


def _chunks(batch: list[InputRecord]) -> Iterator[list[InputRecord]]:
    """Yield the records in chunks that take no more than `CHUNK` slots."""
    chunk: list[InputRecord] = []
    slots = 0
    for record in batch:
        more = slots_of(record)
        if chunk and slots + more > CHUNK:
            yield chunk
            chunk, slots = [], 0
        chunk.append(record)
        slots += more
    if chunk:
        yield chunk


class HandoffQueue:
    """Prepared records for the workers, first come first served: unbounded and without locks."""

    def __init__(self) -> None:
        self._items: deque[Item | None] = deque()
        self._takers: deque[asyncio.Future[Item | None]] = deque()

    @property
    def unclaimed(self) -> int:
        """Waiting items minus waiting workers."""
        return len(self._items) - len(self._takers)

    @property
    def idle(self) -> int:
        """Waiting workers."""
        return len(self._takers)

    def put(self, item: Item | None) -> None:
        """Give an item to the worker that has waited longest; None ends the work."""
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(item)
                return
        self._items.append(item)

    async def get(self, before_waiting: Callable[[], None]) -> Item | None:
        """Return the oldest item; None ends the work."""
        if self._items:
            return self._items.popleft()
        taker: asyncio.Future[Item | None] = asyncio.get_running_loop().create_future()
        self._takers.append(taker)
        before_waiting()
        return await taker


class Prefetcher:
    """Prepares records ahead of the workers, as many as there is room for.

    Args:
        engine: Prepares records.
        context: The run. Cancelling it ends intake.
        ready: Takes the prepared records.
        fail: Called with an error that stops the run.
    """

    def __init__(
        self,
        engine: Engine,
        context: RunContext,
        ready: HandoffQueue,
        *,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._preparer = engine.preparer
        self._fetch = engine.async_preparer.fetch
        self._memory = engine.memory
        self._ready = ready
        self._cancel = context.cancel
        self._fail = fail
        threads = min(8, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="captioner-prepare")
        self._chunks: set[asyncio.Future[None]] = set()
        self._fetching: set[asyncio.Task[None]] = set()
        self._hits = 0  # records in a row that were prepared in the event loop
        self._misses = 0  # records in a row that were not
        self._turn = 0.0  # when other tasks last ran
        self._turn_bytes = 0  # prepared since
        self._direct = 0  # records that still go straight to the threads
        self._next_direct = CHUNK  # how many will, the next time a record takes too long
        self._in_time = 0  # records since the last one that took too long
        # Records that are being prepared or wait in the queue; taking one frees its slots.
        self._slots = CHUNK * (threads + 2) + context.settings.images.fetch_concurrency
        self._free_slots = self._slots
        self._ahead = self._slots  # slots of records that may wait for a worker
        self._wanted = 0  # slots that `_wait_for_room` waits for
        self._room = asyncio.Event()

    @property
    def fetching(self) -> int:
        """Records whose images are being fetched."""
        return len(self._fetching)

    async def admit(self, records: list[InputRecord]) -> None:
        """Wait for room and start preparing records."""
        for chunk in _chunks(records):
            await self._admit(chunk)

    async def all_taken(self) -> None:
        """Return when the workers have taken all records."""
        self._ahead = self._slots
        await self._wait_for_room(self._slots)

    def taken(self, record: InputRecord) -> None:
        """Note that a worker has taken a record."""
        self._free_slots += slots_of(record)
        if self._wanted:
            self.wake_if_room()

    def wake_if_room(self) -> None:
        """Continue if there is enough room; called before a worker waits as well."""
        if self._free() >= self._wanted > 0:
            self._room.set()

    async def close(self) -> None:
        """Cancel fetches and wait for the threads."""
        for task in self._fetching:
            task.cancel()
        idle = False
        try:
            await asyncio.gather(*self._chunks, *self._fetching, return_exceptions=True)
            idle = True
        finally:
            self._pool.shutdown(wait=idle)

    def _free(self) -> int:
        return min(self._free_slots, self._ahead - self._ready.unclaimed)

    async def _wait_for_room(self, slots: int) -> None:
        while self._free() < slots:
            self._wanted = slots
            self._room.clear()
            await self._room.wait()
        self._wanted = 0

    async def _admit(self, chunk: list[InputRecord]) -> None:
        free = 0
        begin = time.monotonic()
        for at, record in enumerate(chunk):
            if self._direct > 0:
                await self._admit_to_threads(chunk[at:])
                return
            slots = slots_of(record)
            if free < slots:
                if self._free() < slots:
                    await self._wait_for_room(slots)
                    begin = self._turn = time.monotonic()
                    self._turn_bytes = 0
                if self._cancel:
                    return
                free = self._free()
            free -= slots
            self._free_slots -= slots
            self._turn_bytes += self._prepare_in_loop(record)
            now = time.monotonic()
            if now - begin > TOO_LONG_S:
                self._use_threads_for_a_while()
            else:
                self._in_time += 1
            begin = now
            if self._turn_bytes > TURN_BYTES or now - self._turn > TURN_S:
                await asyncio.sleep(0)
                begin = self._turn = time.monotonic()
                self._turn_bytes = 0

    async def _admit_to_threads(self, chunk: list[InputRecord]) -> None:
        slots = sum(map(slots_of, chunk))
        await self._wait_for_room(slots)
        if not self._cancel:
            self._direct -= len(chunk)
            self._free_slots -= slots
            self._to_threads(chunk)

    def _look_far_ahead(self) -> None:
        """Let threads and fetches start early."""
        self._hits = 0
        self._ahead = self._slots

    def _use_threads_for_a_while(self) -> None:
        self._look_far_ahead()
        if self._in_time > BY_CHANCE:
            self._next_direct = CHUNK
        self._in_time = 0
        self._direct = self._next_direct
        self._next_direct = min(2 * self._next_direct, DIRECT)

    def _to_threads(self, chunk: list[InputRecord]) -> None:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, self._prepare, chunk, loop)
        self._chunks.add(future)
        future.add_done_callback(self._chunks.discard)
        future.add_done_callback(self._raise)

    def _prepare_in_loop(self, record: InputRecord) -> int:
        """Prepare a record now if that needs no waiting, else in a thread or after a fetch.

        Returns:
            The bytes that were prepared.
        """
        item = self._preparer.prepare_at_once(record)
        if item is None:
            self._look_far_ahead()
            self._misses += 1
            if self._misses >= MISSES:
                self._misses, self._direct = 0, DIRECT
            self._to_threads([record])
            return 0
        self._misses = 0
        if isinstance(item, NeedsFetch):
            self._look_far_ahead()
            self._hand_over([item])
            return 0
        self._hits += 1
        if self._hits == CHUNK:
            self._ahead = AHEAD
        self._ready.put(item)
        return item.reserved if isinstance(item, PreparedRecord) else 0

    def _prepare(self, chunk: list[InputRecord], loop: asyncio.AbstractEventLoop) -> None:
        """Prepare some records in a thread, and hand over early if they take long."""
        done: list[Item | NeedsFetch] = []

        def hand_over() -> None:
            if done:
                loop.call_soon_threadsafe(self._hand_over, done.copy())
                done.clear()

        self._memory.before_waiting(hand_over)
        handed = time.monotonic()
        for record in chunk:
            if self._cancel:
                break
            done.append(self._preparer.prepare(record))
            if (now := time.monotonic()) - handed > FLUSH_S:
                handed = now
                hand_over()
        hand_over()

    def _raise(self, chunk: asyncio.Future[None]) -> None:
        error = None if chunk.cancelled() else chunk.exception()
        if error is not None and not isinstance(error, StoppedError):
            self._fail(error)

    def _hand_over(self, items: list[Item | NeedsFetch]) -> None:
        for item in items:
            if isinstance(item, NeedsFetch):
                task = asyncio.create_task(self._fetch_one(item))
                self._fetching.add(task)
                task.add_done_callback(self._fetching.discard)
            else:
                self._ready.put(item)

    async def _fetch_one(self, remote: NeedsFetch) -> None:
        try:
            self._ready.put(await self._fetch(remote))
        except StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - any error stops the run cleanly
            self._fail(error)
