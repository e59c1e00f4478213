"""Lines to prepared records, just ahead of the workers: the first half of the path of a record.

::

    lines ─▶ feeder ─ prepared ─▶ workers
              │ ▲
              ▼ │
            threads, fetches

The feeder prepares a record itself where that takes no waiting: the file is in memory, and the
image passes as it is. A hop into a thread, and two threads that want the interpreter, cost as
much as the work. While all goes so it keeps just ahead of the workers: they send what the
processor's own memory still holds. What would keep the event loop waiting goes to threads and comes
back prepared; so does, after its images are here, what has to be fetched. When records keep going
to the threads they are sent there straight away and in chunks, for a while.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from captioner.core.cancellation import StoppedError
from captioner.core.types import Failure, NeedsFetch, PreparedRecord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from captioner.core.cancellation import CancelToken
    from captioner.core.memory import MemoryBudget
    from captioner.core.types import InputRecord
    from captioner.engine.prepare import Preparer

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

Item = PreparedRecord | Failure


def weight(line: InputRecord) -> int:
    """Return the places that a record takes: one, and one more for each MB that comes along."""
    if not line.images:
        return 1
    return min(CHUNK, 1 + (sum(len(data) for _, data in line.images) >> 20))


def _chunks(batch: list[InputRecord]) -> Iterator[list[InputRecord]]:
    """Yield the lines in pieces that take no more places than a chunk has."""
    chunk: list[InputRecord] = []
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


class HandoffQueue:
    """What is ready for the workers, first come first served: a queue without bounds or locks."""

    def __init__(self) -> None:
        self._items: deque[Item | None] = deque()
        self._hungry: deque[asyncio.Future[Item | None]] = deque()

    @property
    def unclaimed(self) -> int:
        """Items that wait, less the workers who do."""
        return len(self._items) - len(self._hungry)

    def put(self, item: Item | None) -> None:
        """Give an item to whoever has waited longest."""
        while self._hungry:
            taker = self._hungry.popleft()
            if not taker.done():
                taker.set_result(item)
                return
        self._items.append(item)

    async def get(self, before_waiting: Callable[[], None]) -> Item | None:
        """Return the oldest item; None ends the work."""
        if self._items:
            return self._items.popleft()
        taker: asyncio.Future[Item | None] = asyncio.get_running_loop().create_future()
        self._hungry.append(taker)
        before_waiting()
        return await taker


class Prefetcher:
    """Has lines prepared, never more than there is room for.

    Args:
        preparer: Makes lines ready.
        fetch: Makes those ready whose images have to be fetched.
        ready: Takes what is ready.
        budget: Bytes held by prepared records.
        cancel: Ends intake when set.
        fetches: Records whose images are fetched at once.
        fail: Called with what ends the run.
    """

    def __init__(
        self,
        preparer: Preparer,
        fetch: Callable[[NeedsFetch], Awaitable[Item]],
        ready: HandoffQueue,
        budget: MemoryBudget,
        cancel: CancelToken,
        *,
        fetches: int,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._preparer = preparer
        self._fetch = fetch
        self._ready = ready
        self._budget = budget
        self._cancel = cancel
        self._fail = fail
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

    async def admit(self, lines: list[InputRecord]) -> None:
        """Wait for room, and send lines on their way."""
        for chunk in _chunks(lines):
            await self._admit(chunk)

    async def all_taken(self) -> None:
        """Return when the workers have taken everything."""
        self._ahead = self._places
        await self._wait_for_room(self._places)

    def taken(self, line: InputRecord) -> None:
        """Note that a worker has taken a record."""
        self._room += weight(line)
        if self._wanted:
            self.tell_of_room()

    def tell_of_room(self) -> None:
        """Go on if there is the room that is waited for: a worker has nothing to do."""
        if self._free() >= self._wanted > 0:
            self._enough.set()

    async def close(self) -> None:
        """Give up what is being fetched, and wait for the threads."""
        for task in self._fetching:
            task.cancel()
        idle = False
        try:
            await asyncio.gather(*self._chunks, *self._fetching, return_exceptions=True)
            idle = True
        finally:
            self._pool.shutdown(wait=idle)

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

    async def _admit(self, chunk: list[InputRecord]) -> None:
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
                if self._cancel:
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

    async def _admit_to_threads(self, chunk: list[InputRecord]) -> None:
        places = sum(map(weight, chunk))
        await self._wait_for_room(places)
        if not self._cancel:
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

    def _to_threads(self, chunk: list[InputRecord]) -> None:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, self._prepare, chunk, loop)
        self._chunks.add(future)
        future.add_done_callback(self._chunks.discard)
        future.add_done_callback(self._prepared)

    def _at_once(self, line: InputRecord) -> int:
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
        if isinstance(item, NeedsFetch):
            self._look_ahead()
            self._take([item])
            return 0
        self._smooth += 1
        if self._smooth == CHUNK:
            self._ahead = AHEAD
        self._ready.put(item)
        return item.reserved if isinstance(item, PreparedRecord) else 0

    def _prepare(self, chunk: list[InputRecord], loop: asyncio.AbstractEventLoop) -> None:
        """Prepare some lines in a thread, handing over early when they take long."""
        done: list[Item | NeedsFetch] = []

        def hand_over() -> None:
            if done:
                loop.call_soon_threadsafe(self._take, done.copy())
                done.clear()

        self._budget.before_waiting(hand_over)
        handed = time.monotonic()
        for line in chunk:
            if self._cancel:
                break
            done.append(self._preparer.prepare(line))
            if (now := time.monotonic()) - handed > FLUSH_S:
                handed = now
                hand_over()
        hand_over()

    def _prepared(self, chunk: asyncio.Future[None]) -> None:
        if not chunk.cancelled() and (error := chunk.exception()) is not None:
            self._fail(error)

    def _take(self, items: list[Item | NeedsFetch]) -> None:
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
        except Exception as error:  # noqa: BLE001 - whatever it is ends the run, in order
            self._fail(error)
