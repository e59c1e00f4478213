from __future__ import annotations

import asyncio
import errno
import threading

import pytest
from conftest import rows

import captioner.journal.writer
from captioner.core.cancellation import CancelToken
from captioner.core.errors import DiskError
from captioner.core.keys import RecordKeys
from captioner.core.progress import Progress
from captioner.core.types import Caption, Failure, InputRecord, Usage
from captioner.journal.disk import Files
from captioner.journal.journal import Journal
from captioner.journal.row_encoder import RowEncoder
from captioner.journal.writer import JournalSink

IDENTITY = RecordKeys(("caption",))


class Watched(Files):
    """Notes which writes are made in the event loop's thread; refuses some, holds up others."""

    def __init__(self):
        self.in_loop = []
        self.batches = []
        self.refusals = []
        self.waiting = threading.Event()
        self.release = threading.Event()
        self.release.set()

    def write(self, fd, data, offset):
        self.in_loop.append(threading.current_thread() is threading.main_thread())
        if bytes(data[:6]) == b'{"id":':
            self.batches.append(bytes(data).count(b"\n"))
            if self.refusals:
                raise OSError(self.refusals.pop(), "refused")
        elif data[:7] == b'{"line"':
            self.hold()
        return super().write(fd, data, offset)

    def sync(self, fd):
        self.in_loop.append(threading.current_thread() is threading.main_thread())
        self.hold()
        super().sync(fd)

    def hold(self):
        self.waiting.set()
        assert self.release.wait(30)

    async def held(self):
        """Return once a write or a sync is held up."""
        async with asyncio.timeout(20):
            while not self.waiting.is_set():
                await asyncio.sleep(0.001)

    def hold_next(self):
        self.waiting.clear()
        self.release.clear()


@pytest.fixture
def disk():
    return Watched()


@pytest.fixture
def journal(tmp_path, disk):
    journal = Journal(tmp_path / "out.jsonl", IDENTITY, {}, files=disk)
    journal.open()
    disk.in_loop.clear()
    yield journal
    journal.close()


def sink_of(journal, disk_wait_s=0):
    made = RowEncoder(IDENTITY, ("caption",)), Progress(), CancelToken()
    return JournalSink(journal, *made, disk_wait_s=disk_wait_s)


def outcome(number):
    return Caption(InputRecord(number, b'{"id":%d}' % number), "c", False, 1, Usage())


def failure(number):
    return Failure(InputRecord(number, b'{"id":%d}' % number), "bad", "it is bad", 1)


async def test_leaving_writes_everything_at_once(journal, monkeypatch):
    """Leaving writes what was put, even if its caller is gone, and does not wait for a commit."""
    monkeypatch.setattr(captioner.journal.writer, "COMMIT_S", 1_000.0)
    async with sink_of(journal) as sink:
        await sink.put([outcome(1)])
        late = asyncio.create_task(sink.put([outcome(2)]))
        await asyncio.sleep(0)
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
    assert [row["id"] for row in rows(journal.path)] == [1, 2]
    assert not journal.dirty


async def test_a_large_row_is_written_though_its_caller_is_gone(journal, monkeypatch):
    """An answer that is being encoded in a thread when the run is stopped is not lost."""
    encoding, go_on = threading.Event(), threading.Event()
    encode = RowEncoder.caption

    def slow(self, caption):
        encoding.set()
        assert go_on.wait(30)
        return encode(self, caption)

    monkeypatch.setattr(RowEncoder, "caption", slow)
    raw = b'{"id":1,"text":"' + b"a" * (1 << 20) + b'"}'
    large = Caption(InputRecord(1, raw), "c", False, 1, Usage())
    async with sink_of(journal) as sink:
        putting = asyncio.create_task(sink.put([large, outcome(2)]))
        assert await asyncio.to_thread(encoding.wait, 30)
        for _ in range(2):  # as the pipeline cancels its workers
            putting.cancel()
            await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await putting
    assert [row["id"] for row in rows(journal.path)] == [1, 2]


async def test_the_event_loop_never_waits_for_the_disk(journal, disk):
    """Captions, failures and syncs are written by threads."""
    async with sink_of(journal) as sink:
        await sink.put([outcome(1), failure(2)])
        await sink.commit()
    assert disk.in_loop
    assert not any(disk.in_loop)


async def test_rows_that_arrive_during_a_write_are_written_together(journal, disk):
    """A slow disk gets few large writes."""
    async with sink_of(journal) as sink:
        disk.hold_next()
        first = asyncio.create_task(sink.put([failure(1)]))
        await disk.held()
        rest = [asyncio.create_task(sink.put([outcome(number)])) for number in range(2, 10)]
        await asyncio.sleep(0)
        disk.release.set()
        await asyncio.gather(first, *rest)
    assert disk.batches == [8]
    assert [row["id"] for row in rows(journal.path)] == list(range(2, 10))


async def test_writing_goes_on_during_a_sync(journal, disk):
    """A slow sync does not hold up the rows that come after it."""
    async with sink_of(journal) as sink:
        await sink.put([outcome(1)])
        disk.hold_next()
        committing = asyncio.create_task(sink.commit())
        await disk.held()
        await sink.put([outcome(2)])
        assert not committing.done()
        assert [row["id"] for row in rows(journal.path)] == [1, 2]
        disk.release.set()
        await committing


async def test_put_returns_when_the_rows_are_in_the_file(journal, disk):
    """Not earlier: a kill after it loses nothing."""
    async with sink_of(journal) as sink:
        disk.hold_next()
        putting = asyncio.create_task(sink.put([failure(1)]))
        await disk.held()
        assert not putting.done()
        disk.release.set()
        await putting
        await sink.put([outcome(2)])
        assert [row["id"] for row in rows(journal.path)] == [2]
        assert [row["line"] for row in rows(journal.failures.path)] == [1]


async def test_only_rows_that_are_not_written_raise(journal, disk):
    """Rows that are in their file stay settled when the very next write fails."""
    with pytest.raises(DiskError):
        async with sink_of(journal) as sink:
            disk.hold_next()
            first = asyncio.create_task(sink.put([failure(2)]))
            await disk.held()
            disk.refusals = [errno.EIO]
            second = asyncio.create_task(sink.put([outcome(1)]))
            await asyncio.sleep(0)
            disk.release.set()
            await first
            with pytest.raises(DiskError):
                await second
            with pytest.raises(DiskError):
                await sink.put([outcome(3)])
            with pytest.raises(DiskError):
                await sink.commit()
    assert [row["id"] for row in rows(journal.path)] == [1, 3]


async def test_answers_outlive_a_sync_that_fails(journal, disk):
    """After a failed sync the run stops, but what is paid for is still written."""

    def refuse(_):
        raise OSError(errno.EIO, "refused")

    with pytest.raises(DiskError):
        async with sink_of(journal) as sink:
            await sink.put([outcome(1)])
            disk.sync = refuse
            with pytest.raises(DiskError):
                await sink.commit()
            with pytest.raises(DiskError):
                await sink.put([outcome(2), outcome(3), failure(4)])
    assert [row["id"] for row in rows(journal.path)] == [1, 2, 3]
    assert [row["line"] for row in rows(journal.failures.path)] == [4]


async def test_lost_answers_are_counted(journal, disk, caplog):
    """If the disk refuses to the end, the run says how many answers it could not write."""
    with pytest.raises(DiskError):
        async with sink_of(journal) as sink:
            disk.refusals = [errno.EIO] * 9
            for number in range(3):
                with pytest.raises(DiskError):
                    await sink.put([outcome(number)])
    assert "3 answers could not be written and will be requested again" in caplog.messages
    assert not rows(journal.path)


async def test_a_full_disk_is_waited_for(journal, disk, monkeypatch, caplog):
    """The write is repeated until there is space, with one warning."""
    monkeypatch.setattr(captioner.journal.writer, "RETRY_S", 0.0)
    disk.refusals = [errno.ENOSPC] * 3
    async with sink_of(journal, disk_wait_s=30) as sink:
        await sink.put([outcome(1)])
    assert [row["id"] for row in rows(journal.path)] == [1]
    assert caplog.messages == ["the disk is full; waiting up to 30 s for space"]


async def test_a_cancelled_writer_settles_nothing(journal, disk):
    """A caller whose rows were not written does not continue as if they were."""
    sink = sink_of(journal)
    before = asyncio.all_tasks()
    await sink.__aenter__()
    (writer,) = asyncio.all_tasks() - before
    disk.hold_next()
    first = asyncio.create_task(sink.put([failure(1)]))
    await disk.held()
    second = asyncio.create_task(sink.put([outcome(2)]))
    await asyncio.sleep(0)
    writer.cancel()  # as `asyncio.run` does at Ctrl-C
    found = await asyncio.gather(first, second, return_exceptions=True)
    disk.release.set()
    with pytest.raises(asyncio.CancelledError):
        await sink.__aexit__(None, None, None)
    assert [type(one) for one in found] == [asyncio.CancelledError] * 2
