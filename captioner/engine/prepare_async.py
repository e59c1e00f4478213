"""Preparing one record from the event loop, with the fetching that it may take."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from captioner.core.types import Fetched, Prepared, Remote

if TYPE_CHECKING:
    from captioner.core.memory import ByteBudget
    from captioner.core.types import Failure, Line, Remake
    from captioner.engine.prepare import Preparer
    from captioner.images.fetch.fetcher import Fetcher


class Preparation:
    """Prepares records in threads, and fetches their pictures before where that must be.

    Those that may wait for memory and those that hold some have threads of their own: the ones
    must not stand in the way of the others.

    Args:
        preparer: Does it, blocking.
        fetcher: Fetches.
        budget: Bytes held by prepared records.
    """

    def __init__(self, preparer: Preparer, fetcher: Fetcher, budget: ByteBudget) -> None:
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

    async def prepare(self, line: Line) -> Prepared | Failure:
        """Return the record ready to be sent, or why it never will be."""
        item = await self._in_thread(self._waiting, line)
        return await self.fetch(item) if isinstance(item, Remote) else item

    async def again(self, line: Line, remake: Remake) -> Prepared | Failure:
        """Return a record that was sent before, its pictures made otherwise.

        What it replaces has its place in the memory budget.
        """
        item = await self._in_thread(self._holding, line, remake)
        return await self.fetch(item, remake) if isinstance(item, Remote) else item

    async def fetch(self, remote: Remote, remake: Remake | None = None) -> Prepared | Failure:
        """Return a record ready to be sent whose pictures had to be fetched."""
        fetched = await self._fetcher.fetch(remote.urls, reserve=remake is None)
        item = await self._in_thread(self._holding, remote.line, remake, fetched)
        if isinstance(item, Remote):
            raise AssertionError("what was fetched is not to be fetched again")  # noqa: TRY004
        return item

    async def _in_thread(
        self,
        pool: ThreadPoolExecutor,
        line: Line,
        remake: Remake | None = None,
        fetched: Fetched | None = None,
    ) -> Prepared | Remote | Failure:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(pool, self._preparer.prepare, line, remake, fetched)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:

            def give_back(done: asyncio.Future[Prepared | Remote | Failure]) -> None:
                if not done.cancelled() and isinstance(item := done.result(), Prepared):
                    self._budget.release(item.reserved)

            future.add_done_callback(give_back)
            raise
