"""Fetching the images of records, several at once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING

from captioner.core.descriptors import TOO_MANY_OPEN, none_left, patiently
from captioner.core.errors import BadImageError, DescriptorsError
from captioner.core.secrets import without_secrets
from captioner.core.types import FetchedImages
from captioner.images.fetch.http import IN_MEMORY, HttpFetcher
from captioner.images.fetch.object_stores import ObjectStores, StoreFaultError
from captioner.images.fetch.store_guard import StoreGuard

if TYPE_CHECKING:
    from typing import Self

    from captioner.core.memory import MemoryBudget
    from captioner.images.archives import Archives
    from captioner.settings.options import ImageSettings


class Fetcher:
    """Fetches images over HTTP and from object stores. An async context manager.

    Large images are kept on disk until they have a place in the memory budget.

    Args:
        images: The limits.
        budget: Bytes that may be held at once.
        archives: The archives of the run.
        stop_after: See `StoreGuard`.
    """

    def __init__(
        self,
        images: ImageSettings,
        budget: MemoryBudget,
        archives: Archives,
        stop_after: int | None = None,
    ) -> None:
        self._budget = budget
        self._timeout_s = images.fetch_timeout
        self._slots = asyncio.Semaphore(images.fetch_concurrency)
        self._http = HttpFetcher(images)
        self._stores = ObjectStores(images.max_image_bytes, archives, images.max_video_bytes)
        self._guard = StoreGuard(stop_after)
        self._threads = ThreadPoolExecutor(
            images.fetch_concurrency, thread_name_prefix="captioner-fetch"
        )

    async def __aenter__(self) -> Self:
        """Return the fetcher itself."""
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections."""
        await self._http.__aexit__()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, urls: tuple[str, ...], *, reserve: bool) -> FetchedImages:
        """Return the images of one record, or the first error.

        Args:
            urls: Where they are.
            reserve: Reserve memory for them in the budget; the caller releases it.

        Raises:
            StoreGaveOutError: The object stores give nothing.
            SettingsError: The library that reads a store is not installed.
        """
        with contextlib.ExitStack() as stack:
            files: dict[str, IO[bytes]] = {}
            if not all(map(_is_http, urls)):
                stack.enter_context(self._guard)
            attempts = 0
            while failed := await self._fetch_missing(urls, files, stack):
                attempts += 1
                url, error = failed
                again = isinstance(error, StoreFaultError) and await self._guard.try_again(
                    error, attempts
                )
                if not again:
                    return FetchedImages({url: error}, 0)
            # A record that holds memory may need a slot: never wait for memory in one.
            reserved = 0
            if reserve:
                size = sum(file.tell() for file in files.values())
                reserved = size + size // 3
                await self._budget.reserve_async(reserved)
            images: dict[str, bytes | Exception] = {}
            for url, file in files.items():
                file.seek(0)
                images[url] = file.read()
        return FetchedImages(images, reserved)

    async def _fetch_missing(
        self, urls: tuple[str, ...], files: dict[str, IO[bytes]], stack: contextlib.ExitStack
    ) -> tuple[str, BadImageError] | None:
        """Fetch what is not in ``files`` yet; return the first URL that failed, with its error."""
        size = sum(file.tell() for file in files.values())
        async with self._slots:
            for url in dict.fromkeys(urls):
                if url not in files:
                    try:
                        files[url] = stack.enter_context(await self._fetch(url))
                    except BadImageError as error:
                        return url, error
                    size += files[url].tell()
                    if len(files) > 1 and size + size // 3 > self._budget.total:
                        return url, _too_large(self._budget.total)
        return None

    async def _fetch(self, url: str) -> IO[bytes]:
        if _is_http(url):
            return await self._http.fetch(url)
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._threads, self._read, url)
        try:
            async with asyncio.timeout(self._timeout_s):
                file = await reading
        except TimeoutError:
            shown, reason = without_secrets(url)[:200], f"{self._timeout_s:g} s (--fetch-timeout)"
            raise StoreFaultError(
                "image_fetch_failed", f"cannot fetch {shown} within {reason}", kind="timeout"
            ) from None
        except BadImageError as error:
            if not isinstance(error, StoreFaultError):
                self._guard.answered(found=error.code != "image_missing")
            raise
        self._guard.answered(found=True)
        return file

    def _read(self, url: str) -> IO[bytes]:
        """Return a file that holds an object, at its end."""
        try:
            data = patiently(lambda: self._read_store(url))
        except OSError:
            raise DescriptorsError(TOO_MANY_OPEN) from None
        file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - the caller closes it
        file.write(data)
        return file

    def _read_store(self, url: str) -> bytes:
        try:
            return self._stores.read(url)
        except BadImageError:
            if none_left():  # the store's library hides the reason
                raise OSError(errno.EMFILE, TOO_MANY_OPEN) from None
            raise


def _too_large(most: int) -> BadImageError:
    return BadImageError(
        "record_too_large",
        "the images of the record take more memory than all records may together: "
        f"{most} bytes (--memory)",
    )


def _is_http(url: str) -> bool:
    return url[:5].lower() in ("http:", "https")
