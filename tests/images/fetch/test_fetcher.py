"""Object stores through fsspec's own store in memory, and what fetching holds in the budget."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from conftest import jpeg
from fsspec.implementations.memory import MemoryFileSystem

from captioner.core.errors import BadImageError
from captioner.core.memory import MemoryBudget
from captioner.images.archives import Archives
from captioner.images.fetch import object_stores as stores
from captioner.images.fetch.fetcher import Fetcher
from captioner.settings.options import ImageSettings


class TokenBucket(MemoryFileSystem):
    """S3 as far as we use it: counts what is asked."""

    protocol = ("s3", "s3a")
    cachable = False
    asked: list[str] = []  # noqa: RUF012 - one for the test, as there is one store

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("s3://").removeprefix("s3a://").lstrip("/")

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        self.asked.append(f"{path} {start}-{end}")
        if "forbidden" in path:
            raise PermissionError(path)
        if "broken" in path:
            raise RuntimeError("the bucket\nis on fire")
        return super().cat_file(path, start, end, **options)


@pytest.fixture
def bucket() -> Iterator[TokenBucket]:
    fsspec.register_implementation("s3", TokenBucket, clobber=True)
    made = TokenBucket()
    TokenBucket.asked.clear()
    yield made
    made.store.clear()


async def fetch(*urls: str, total: int = 1 << 30, **options: Any) -> dict[str, Any]:
    images = ImageSettings(**options)
    budget = MemoryBudget(total)
    archives = Archives(images.max_image_bytes)
    async with Fetcher(images, budget, archives) as fetcher:
        found = await fetcher.fetch(urls, reserve=True)
    archives.close()
    held = sum(len(one) * 4 // 3 for one in found.images.values() if isinstance(one, bytes))
    assert abs(found.reserved - held) <= 2 * len(urls)
    assert budget.held == found.reserved
    return found.images


async def test_objects_are_read_in_one_request(bucket) -> None:
    """An image of a usual size takes one request; a large one three."""
    bucket.pipe_file("s3://b/a.jpg", jpeg(1))
    large = bytes(range(256)) * 8_192
    bucket.pipe_file("s3://b/large", large)
    assert await fetch("s3://b/a.jpg") == {"s3://b/a.jpg": jpeg(1)}
    assert len(TokenBucket.asked) == 1
    assert await fetch("s3://b/large") == {"s3://b/large": large}
    assert len(TokenBucket.asked) == 3


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("s3://b/none.jpg", "image_missing"),
        ("s3://b/forbidden.jpg", "image_unreadable"),
        ("s3://b/broken.jpg", "image_fetch_failed"),
        ("s3://b/large.jpg", "image_too_large"),
        ("s3://b/a.tar#none.jpg", "image_missing"),
    ],
)
async def test_what_cannot_be_read_says_why(bucket, url, code) -> None:
    """Each error is one sentence that names the URL, without secrets or line breaks."""
    bucket.pipe_file("s3://b/large.jpg", bytes(2_000_000))
    bucket.pipe_file("s3://b/a.tar", archive())
    found = await fetch(url, max_image_bytes=1_500_000)
    error = found[url]
    assert isinstance(error, BadImageError)
    assert error.code == code
    assert "\n" not in error.message
    assert url.partition("#")[0] in error.message


def archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        info = tarfile.TarInfo("in/a.jpg")
        info.size = len(jpeg(7))
        file.addfile(info, io.BytesIO(jpeg(7)))
    return out.getvalue()


async def test_members_of_archives_that_are_objects(bucket) -> None:
    """``s3://bucket/archive.tar#member`` reads a member in place."""
    bucket.pipe_file("s3://b/a.tar", archive())
    assert await fetch("s3://b/a.tar#in/a.jpg") == {"s3://b/a.tar#in/a.jpg": jpeg(7)}


async def test_a_missing_library_is_named(monkeypatch) -> None:
    """If the library for a store is missing, the error names the command that installs it."""

    def missing(*_: object) -> None:
        raise ImportError

    monkeypatch.setattr(fsspec, "filesystem", missing)
    for scheme, extra in stores.STORES.items():
        found = await fetch(f"{scheme}://b/a.jpg")
        error = found[f"{scheme}://b/a.jpg"]
        assert isinstance(error, BadImageError)
        assert error.code == "image_needs_extra"
        assert f"captioner[{extra}]" in error.message


async def test_what_has_come_in_waits_for_room(bucket) -> None:
    """Fetched images count in the memory budget, and concurrent fetches do not deadlock."""
    for number in range(20):
        bucket.pipe_file(f"s3://b/{number}", bytes([number]) * 1000)
    images = ImageSettings(fetch_concurrency=4)
    budget = MemoryBudget(2_700)  # room for one record of two
    most = 0
    async with Fetcher(images, budget, Archives(1 << 20)) as fetcher:

        async def one(number: int) -> None:
            nonlocal most
            urls = (f"s3://b/{number}", f"s3://b/{(number + 1) % 20}")
            found = await fetcher.fetch(urls, reserve=True)
            most = max(most, budget.held)
            await asyncio.sleep(0)
            budget.release(found.reserved)

        async with asyncio.timeout(10):
            await asyncio.gather(*(one(number) for number in range(20)))
    assert budget.held == 0
    assert most <= 2_700


async def test_waiting_for_memory_takes_no_slot(bucket) -> None:
    """A record that holds memory can fetch again while others wait for memory."""
    for number in range(3):
        bucket.pipe_file(f"s3://b/{number}", bytes(1000))
    budget = MemoryBudget(1_400)
    async with Fetcher(ImageSettings(fetch_concurrency=1), budget, Archives(1 << 20)) as fetcher:
        held = await fetcher.fetch(("s3://b/0",), reserve=True)
        waiting = asyncio.create_task(fetcher.fetch(("s3://b/1",), reserve=True))
        while len(TokenBucket.asked) < 2:
            await asyncio.sleep(0.001)
        async with asyncio.timeout(5):
            again = await fetcher.fetch(("s3://b/2",), reserve=False)
        assert again.reserved == 0
        assert not waiting.done()
        budget.release(held.reserved)
        budget.release((await waiting).reserved)
    assert budget.held == 0


async def test_giving_up_gives_memory_back(bucket) -> None:
    """A record that is cancelled while it waits for memory holds none."""
    bucket.pipe_file("s3://b/a", bytes(1000))
    waiting = asyncio.Event()

    class Budget(MemoryBudget):
        async def reserve_async(self, size: int) -> None:
            waiting.set()
            await super().reserve_async(size)

    budget = Budget(1_000)
    budget.change(500)
    async with Fetcher(ImageSettings(), budget, Archives(1 << 20)) as fetcher:
        task = asyncio.create_task(fetcher.fetch(("s3://b/a",), reserve=True))
        await waiting.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert budget.held == 500
