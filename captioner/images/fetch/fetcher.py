"""Fetching what is not on this machine, so many images at once."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING

from captioner.core.errors import BadImageError
from captioner.core.secrets import without_secrets
from captioner.core.types import FetchedImages
from captioner.images.fetch.http import IN_MEMORY, HttpFetcher
from captioner.images.fetch.object_stores import Stores

if TYPE_CHECKING:
    from typing import Self

    from captioner.core.memory import MemoryBudget
    from captioner.images.archives import Archives
    from captioner.settings.options import ImageSettings


class Fetcher:
    """Fetches the images of records from the web and from object stores.

    While images come in, and while they wait for a place in the memory budget, the larger part of
    them is on disk.

    Args:
        images: Bounds.
        budget: Bytes that may be held at once.
        archives: Archives that have been opened.
        web: Fetches http(s); by default one made of the bounds.
    """

    def __init__(
        self,
        images: ImageSettings,
        budget: MemoryBudget,
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

    async def fetch(self, urls: tuple[str, ...], *, reserve: bool) -> FetchedImages:
        """Return the images of one record.

        Args:
            urls: Where they are.
            reserve: They take a place in the memory budget, which the caller gives back.
        """
        fetched_images: dict[str, bytes | Exception] = {}
        reserved = 0
        with contextlib.ExitStack() as stack:
            files: dict[str, IO[bytes]] = {}
            async with self._slots:
                for url in dict.fromkeys(urls):
                    try:
                        files[url] = stack.enter_context(await self._fetch(url))
                    except BadImageError as error:
                        return FetchedImages({url: error}, 0)
            # Nobody waits for memory in a slot: who has the memory may want one.
            if reserve:
                size = sum(file.tell() for file in files.values())
                reserved = size + size // 3
                await self._budget.reserve_async(reserved)
            for url, file in files.items():
                file.seek(0)
                fetched_images[url] = file.read()
        return FetchedImages(fetched_images, reserved)

    async def _fetch(self, url: str) -> IO[bytes]:
        if url[:5].lower() in ("http:", "https"):
            return await self._web.fetch(url)
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._threads, self._read, url)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await reading
        except TimeoutError:
            shown, limit = without_secrets(url)[:200], f"{self._timeout_s:g} s (--fetch-timeout)"
            raise BadImageError(
                "image_fetch_failed", f"cannot fetch {shown} within {limit}"
            ) from None

    def _read(self, url: str) -> IO[bytes]:
        """Return a file that holds an object, at its end; large ones wait on disk."""
        data = self._stores.read(url)
        file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - the caller closes it
        file.write(data)
        return file
