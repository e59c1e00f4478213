"""Fetching what is not on this machine, so many pictures at once."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING

from captioner.errors import BadImageError
from captioner.fetching.http import HttpFetcher
from captioner.fetching.stores import Stores
from captioner.records import Fetched
from captioner.values import without_secrets

if TYPE_CHECKING:
    from typing import Self

    from captioner.budget import ByteBudget
    from captioner.images.archives import Archives
    from captioner.options import ImageSettings


class Fetcher:
    """Fetches the pictures of records from the web and from object stores.

    While they come in, what is in memory is bounded by their number; what has come in counts in
    the memory budget. Nothing that has a place in the budget waits for another here.

    Args:
        images: Bounds.
        budget: Bytes that may be held at once.
        archives: Archives that have been opened.
        web: Fetches http(s); by default one made of the bounds.
    """

    def __init__(
        self,
        images: ImageSettings,
        budget: ByteBudget,
        archives: Archives,
        web: HttpFetcher | None = None,
    ) -> None:
        self._budget = budget
        self._slots = asyncio.Semaphore(images.fetch_concurrency)
        self._web = web or HttpFetcher(
            timeout_s=images.fetch_timeout,
            max_bytes=images.max_image_bytes,
            private=images.allow_private_urls,
        )
        self._stores = Stores(max_bytes=images.max_image_bytes, archives=archives)
        self._threads = ThreadPoolExecutor(
            images.fetch_concurrency, thread_name_prefix="captioner-fetch"
        )
        self._timeout_s = images.fetch_timeout

    async def __aenter__(self) -> Self:
        """Return the fetcher itself."""
        await self._web.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections."""
        await self._web.__aexit__()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, urls: tuple[str, ...], *, reserve: bool) -> Fetched:
        """Return the pictures of one record.

        Args:
            urls: Where they are.
            reserve: They take a place in the memory budget, which the caller gives back.
        """
        pictures: dict[str, bytes | Exception] = {}
        reserved = 0
        try:
            async with self._slots:  # one for all of them: nobody waits for a second one
                for url in dict.fromkeys(urls):
                    try:
                        found = await self._fetch(url)
                    except BadImageError as error:
                        pictures[url] = error
                        break
                    with found:
                        size = found.tell()
                        if reserve:
                            # What holds some already must not wait for others that do the same.
                            await self._budget.reserve_soon(size + size // 3, wait=not reserved)
                            reserved += size + size // 3
                        found.seek(0)
                        pictures[url] = found.read()
        except BaseException:
            self._budget.release(reserved)
            raise
        return Fetched(pictures, reserved)

    async def _fetch(self, url: str) -> IO[bytes]:
        if url[:5].lower() in ("http:", "https"):
            return await self._web.fetch(url)
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._threads, self._stores.read, url)
        try:
            async with asyncio.timeout(self._timeout_s):
                file = io.BytesIO(await reading)
        except TimeoutError:
            shown, limit = without_secrets(url)[:200], f"{self._timeout_s:g} s (--fetch-timeout)"
            raise BadImageError(
                "image_fetch_failed", f"cannot fetch {shown} within {limit}"
            ) from None
        file.seek(0, io.SEEK_END)
        return file
