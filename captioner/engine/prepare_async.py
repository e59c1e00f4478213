"""Preparing one record from the event loop, with the fetching that it may take."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from captioner.core.types import FetchedImages, NeedsFetch, PreparedRecord

if TYPE_CHECKING:
    from captioner.core.memory import MemoryBudget
    from captioner.core.types import Failure, ImageOverrides, InputRecord
    from captioner.engine.prepare import Preparer
    from captioner.images.fetch.fetcher import Fetcher


class AsyncPreparer:
    """Prepares records in threads, and fetches their images before where that must be.

    Those that may wait for memory and those that hold some have threads of their own: the ones
    must not stand in the way of the others.

    Args:
        preparer: Does it, blocking.
        fetcher: Fetches.
        budget: Bytes held by prepared records.
    """

    def __init__(self, preparer: Preparer, fetcher: Fetcher, budget: MemoryBudget) -> None:
        self._preparer = preparer
        self._fetcher = fetcher
        self._budget = budget
        count = min(8, os.cpu_count() or 1)
        self._waiting = ThreadPoolExecutor(count, thread_name_prefix="captioner-prepare")
        self._holding = ThreadPoolExecutor(count, thread_name_prefix="captioner-fetched")

    def close(self) -> None:
        """Let the threads end."""
        self._waiting.shutdown(wait=False)
        self._holding.shutdown(wait=False)

    async def prepare(self, line: InputRecord) -> PreparedRecord | Failure:
        """Return the record ready to be sent, or why it never will be."""
        item = await self._in_thread(self._waiting, line)
        return await self.fetch(item) if isinstance(item, NeedsFetch) else item

    async def again(
        self, line: InputRecord, image_overrides: ImageOverrides
    ) -> PreparedRecord | Failure:
        """Return a record that was sent before, its images made otherwise.

        What it replaces has its place in the memory budget.
        """
        item = await self._in_thread(self._holding, line, image_overrides)
        return await self.fetch(item, image_overrides) if isinstance(item, NeedsFetch) else item

    async def fetch(
        self, remote: NeedsFetch, image_overrides: ImageOverrides | None = None
    ) -> PreparedRecord | Failure:
        """Return a record ready to be sent whose images had to be fetched."""
        fetched = await self._fetcher.fetch(remote.urls, reserve=image_overrides is None)
        item = await self._in_thread(self._holding, remote.record, image_overrides, fetched)
        if isinstance(item, NeedsFetch):
            raise AssertionError("what was fetched is not to be fetched again")  # noqa: TRY004
        return item

    async def _in_thread(
        self,
        pool: ThreadPoolExecutor,
        line: InputRecord,
        image_overrides: ImageOverrides | None = None,
        fetched: FetchedImages | None = None,
    ) -> PreparedRecord | NeedsFetch | Failure:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(pool, self._preparer.prepare, line, image_overrides, fetched)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:

            def give_back(done: asyncio.Future[PreparedRecord | NeedsFetch | Failure]) -> None:
                if not done.cancelled() and isinstance(item := done.result(), PreparedRecord):
                    self._budget.release(item.reserved)

            future.add_done_callback(give_back)
            raise
