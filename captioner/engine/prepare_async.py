"""Prepare single records from the event loop: in threads, after fetching their images."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from captioner.core.types import NeedsFetch, Outcome, PreparedRecord

if TYPE_CHECKING:
    from captioner.core.memory import MemoryBudget
    from captioner.core.types import FetchedImages, ImageOverrides, InputRecord
    from captioner.engine.prepare import Preparer
    from captioner.images.fetch import Fetcher


RECENT_BYTES = 64 << 20
"""Bytes of downloaded images of which more parts may be wanted."""


class AsyncPreparer:
    """Prepares single records without blocking the event loop.

    Records that wait for memory and records that hold some have separate threads, so the
    second kind never waits for the first.

    Args:
        preparer: Prepares records.
        fetcher: Fetches remote images.
        memory: Bytes that prepared records hold.
    """

    def __init__(self, preparer: Preparer, fetcher: Fetcher, memory: MemoryBudget) -> None:
        self._preparer = preparer
        self._fetcher = fetcher
        self._memory = memory
        self._recent = _RecentDownloads()
        count = min(8, os.cpu_count() or 1)
        self._waiting = ThreadPoolExecutor(count, thread_name_prefix="captioner-prepare")
        self._holding = ThreadPoolExecutor(count, thread_name_prefix="captioner-fetched")

    def close(self) -> None:
        """Let the threads end."""
        self._waiting.shutdown(wait=False)
        self._holding.shutdown(wait=False)

    async def prepare(self, record: InputRecord) -> PreparedRecord | Outcome:
        """Return a record ready to be sent, or its outcome if it needs no request."""
        item = await self._in_thread(self._waiting, record)
        return await self.fetch(item) if isinstance(item, NeedsFetch) else item

    async def again(
        self, record: InputRecord, image_overrides: ImageOverrides
    ) -> PreparedRecord | Outcome:
        """Return a record that was sent before, its images encoded differently.

        Its memory is reserved already.
        """
        item = await self._in_thread(self._holding, record, image_overrides)
        if not isinstance(item, NeedsFetch):
            return item
        if image_overrides.crop is None:
            return await self.fetch(item, image_overrides)
        fetched = self._recent.get(item.urls)
        if fetched is None:
            fetched = await self._fetcher.fetch(item.urls, reserve=False)
            self._recent.put(item.urls, fetched)
        return await self._prepared(record, image_overrides, fetched)

    async def fetch(
        self, remote: NeedsFetch, image_overrides: ImageOverrides | None = None
    ) -> PreparedRecord | Outcome:
        """Return a record ready to be sent after fetching its images."""
        fetched = await self._fetcher.fetch(remote.urls, reserve=image_overrides is None)
        return await self._prepared(remote.record, image_overrides, fetched)

    async def _prepared(
        self, record: InputRecord, image_overrides: ImageOverrides | None, fetched: FetchedImages
    ) -> PreparedRecord | Outcome:
        item = await self._in_thread(self._holding, record, image_overrides, fetched)
        if isinstance(item, NeedsFetch):
            raise AssertionError("a record whose images were fetched needs no fetch")  # noqa: TRY004
        return item

    async def _in_thread(
        self,
        pool: ThreadPoolExecutor,
        record: InputRecord,
        image_overrides: ImageOverrides | None = None,
        fetched: FetchedImages | None = None,
    ) -> PreparedRecord | NeedsFetch | Outcome:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(
            pool, self._preparer.prepare, record, image_overrides, fetched
        )
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:

            def release(done: asyncio.Future[PreparedRecord | NeedsFetch | Outcome]) -> None:
                if not done.cancelled() and isinstance(item := done.result(), PreparedRecord):
                    self._memory.release(item.reserved)

            future.add_done_callback(release)
            raise


class _RecentDownloads:
    """The images that were cut into parts last, so that each is downloaded once for all parts."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, ...], FetchedImages] = OrderedDict()
        self._bytes = 0

    def get(self, urls: tuple[str, ...]) -> FetchedImages | None:
        if urls in self._found:
            self._found.move_to_end(urls)
        return self._found.get(urls)

    def put(self, urls: tuple[str, ...], fetched: FetchedImages) -> None:
        size = _size(fetched)
        is_whole = all(isinstance(image, bytes) for image in fetched.images.values())
        if not is_whole or size > RECENT_BYTES or urls in self._found:
            return
        self._found[urls] = fetched
        self._bytes += size
        while self._bytes > RECENT_BYTES:
            _, oldest = self._found.popitem(last=False)
            self._bytes -= _size(oldest)


def _size(fetched: FetchedImages) -> int:
    return sum(len(image) for image in fetched.images.values() if isinstance(image, bytes))
