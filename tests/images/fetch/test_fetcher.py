"""Object stores through fsspec's own store in memory, and what fetching holds in the budget."""

from __future__ import annotations

import asyncio
import inspect
import io
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import fsspec
import pytest
from conftest import jpeg
from fsspec.implementations.memory import MemoryFileSystem

from captioner.core.errors import BadImageError, SettingsError, StoreGaveOutError
from captioner.core.memory import MemoryBudget
from captioner.core.types import STORES
from captioner.images.archives import Archives
from captioner.images.fetch import store_guard
from captioner.images.fetch.fetcher import Fetcher
from captioner.settings.options import ImageSettings


class TokenBucket(MemoryFileSystem):
    """S3 as far as we use it: counts what is asked."""

    protocol = ("s3", "s3a")
    cachable = False
    asked: list[str] = []  # noqa: RUF012 - one for the test, as there is one store
    broken: set[str] = set()  # noqa: RUF012 - objects whose next read fails

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("s3://").removeprefix("s3a://").lstrip("/")

    def cat_file(  # type: ignore[override]
        self,
        path: str,
        version_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
        chunksize: int | None = None,
        max_concurrency: int | None = None,
    ) -> bytes:
        assert version_id is chunksize is max_concurrency is None
        self.asked.append(f"{path} {start}-{end}")
        if "forbidden" in path:
            raise PermissionError(path)
        if "broken" in path or path in self.broken:
            self.broken.discard(path)
            raise RuntimeError("the bucket\nis on fire")
        return bytes(super().cat_file(path, start, end))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch) -> None:
    monkeypatch.setattr(store_guard, "LONGEST_PAUSE_S", 0)


@pytest.fixture
def bucket() -> Iterator[TokenBucket]:
    fsspec.register_implementation("s3", TokenBucket, clobber=True)
    made = TokenBucket()
    TokenBucket.asked.clear()
    TokenBucket.broken.clear()
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


def test_the_store_of_these_tests_reads_as_s3fs_does() -> None:
    """A fake with other parameters than s3fs hides calls that cannot work."""
    s3fs = pytest.importorskip("s3fs")
    real = inspect.signature(s3fs.S3FileSystem(anon=True).cat_file).parameters
    assert [*inspect.signature(TokenBucket().cat_file).parameters] == [*real]


async def test_a_missing_library_stops_the_run(monkeypatch) -> None:
    """No record can be read without it, so the error names the command that installs it."""

    def missing(*_: object) -> None:
        raise ImportError("Install it") from ModuleNotFoundError("No module named 'x'")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    libraries = {"s3": "s3fs", "gcs": "gcsfs", "hf": "huggingface_hub", "azure": "adlfs"}
    for scheme, extra in STORES.items():
        with pytest.raises(SettingsError, match=f"pip install {libraries[extra]}$") as raised:
            await fetch(f"{scheme}://b/a.jpg")
        assert f"{scheme}:// addresses" in str(raised.value)
        assert "No module named 'x'" in str(raised.value)


class Store:
    """A fetcher of records with one object each, and what became of them."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    async def codes(self, *names: str) -> list[str]:
        """Return the error code of each object, empty if it was read."""
        found = await asyncio.gather(
            *(self._fetcher.fetch((f"s3://b/{name}",), reserve=False) for name in names)
        )
        return [getattr(image, "code", "") for one in found for image in one.images.values()]


@asynccontextmanager
async def store_of(stop_after: int | None = None) -> AsyncIterator[Store]:
    budget, archives = MemoryBudget(1 << 30), Archives(1 << 20)
    async with Fetcher(ImageSettings(), budget, archives, stop_after) as fetcher:
        yield Store(fetcher)


@pytest.mark.parametrize("name", ["broken", "forbidden"])
async def test_a_store_that_gives_nothing_stops_the_run(bucket, name) -> None:
    """Its records stay pending: none of them is a failure."""
    async with store_of() as store:
        with pytest.raises(
            StoreGaveOutError, match=rf"10 requests in a row.*{name}0?.*--stop-after"
        ):
            await store.codes(*(f"{name}{number}" for number in range(16)))


async def test_a_store_that_ends_in_mid_run_stops_it_later(bucket) -> None:
    """After an object 25 errors are needed; --stop-after sets both numbers."""
    bucket.pipe_file("s3://b/good", b"x")
    many = [f"forbidden{number}" for number in range(24)]
    async with store_of() as store:
        assert await store.codes("good") == [""]
        assert await store.codes(*many) == ["image_unreadable"] * 24
        with pytest.raises(StoreGaveOutError, match="25 requests"):
            await store.codes("forbidden24")
    async with store_of(stop_after=3) as store:
        with pytest.raises(StoreGaveOutError, match="3 requests"):
            await store.codes(*many)


async def test_an_object_is_to_blame_only_if_others_can_be_read(bucket) -> None:
    """Nine errors are held until an object is read; then the row begins again."""
    bucket.pipe_file("s3://b/good", b"x")
    bad = [f"forbidden{number}" for number in range(9)]
    async with store_of() as store:
        for _ in range(3):
            assert await store.codes(*bad, "good") == ["image_unreadable"] * 9 + [""]


async def test_a_short_trouble_of_a_store_costs_no_record(bucket) -> None:
    """A read that fails is repeated."""
    bucket.pipe_file("s3://b/good", b"x")
    bucket.broken.add("s3://b/good")
    async with store_of() as store:
        assert await store.codes("good") == [""]
    assert len(bucket.asked) == 2


async def test_a_record_alone_fails_after_three_attempts(bucket) -> None:
    """With nothing else to read, nothing can show whose fault it is: the run goes on."""
    async with store_of() as store:
        assert await store.codes("broken") == ["image_fetch_failed"]
    assert len(bucket.asked) == store_guard.ATTEMPTS


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
