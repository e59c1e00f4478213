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
from captioner.journal.writer import JournalSink, RowEncoder

IDENTITY = RecordKeys(("caption",))


class Watched(Files):
    """Notes which thread writes captions; refuses some; a sync or the failures may be held."""

    def __init__(self):
        self.here = []
        self.refusals = []
        self.waiting = threading.Event()
        self.release = threading.Event()
        self.release.set()

    def write(self, fd, data, offset):
        if bytes(data[:6]) == b'{"id":':
            self.here.append(threading.current_thread() is threading.main_thread())
            if self.refusals:
                raise OSError(self.refusals.pop(), "refused")
        elif data[:7] == b'{"line"':
            self.hold()
        return super().write(fd, data, offset)

    def sync(self, fd):
        self.hold()
        super().sync(fd)

    def hold(self):
        self.waiting.set()
        assert self.release.wait(30)

    async def held(self):
        """Return once somebody is held."""
        async with asyncio.timeout(20):
            while not self.waiting.is_set():
                await asyncio.sleep(0.001)


@pytest.fixture
def disk():
    return Watched()


@pytest.fixture
def journal(tmp_path, disk):
    journal = Journal(tmp_path / "out.jsonl", IDENTITY, {}, files=disk)
    journal.open()
    yield journal
    journal.close()


def sink_of(journal, disk_wait_s=0):
    made = RowEncoder(IDENTITY, ("caption",)), Progress(), CancelToken()
    return JournalSink(journal, *made, warn=print, disk_wait_s=disk_wait_s)


def outcome(number):
    return Caption(InputRecord(number, b'{"id":%d}' % number), "c", False, 1, Usage())


async def test_it_ends_at_once_although_the_last_rows_wait_for_others(journal, monkeypatch):
    """Leaving it writes what was put and does not wait for the next commit, or for ever."""
    monkeypatch.setattr(captioner.journal.writer, "COMMIT_S", 1_000.0)
    monkeypatch.setattr(captioner.journal.writer, "GATHER_S", 0.05)
    monkeypatch.setattr(captioner.journal.writer, "QUICK_S", -1.0)
    async with sink_of(journal) as sink:
        await sink.put([outcome(1)])
        late = asyncio.create_task(sink.put([outcome(2)]))
        await asyncio.sleep(0.001)  # it is gathered now
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
    assert [row["id"] for row in rows(journal.path)] == [1, 2]


async def test_a_slow_write_keeps_the_loop_waiting_once(journal, disk, monkeypatch):
    """A quick disk is written to in the event loop; after a slow write it is a thread awhile."""
    monkeypatch.setattr(captioner.journal.writer, "QUICK_S", 1_000.0)
    async with sink_of(journal) as sink:
        await sink.put([outcome(1)])
        monkeypatch.setattr(captioner.journal.writer, "QUICK_S", -1.0)  # any write is slow
        monkeypatch.setattr(captioner.journal.writer, "TRIPS", 3)
        for number in range(2, 8):
            await sink.put([outcome(number)])
        assert disk.here == [True, True, False, False, False, True, False]
    assert [row["id"] for row in rows(journal.path)] == [1, 2, 3, 4, 5, 6, 7]


async def test_a_large_write_is_for_a_thread(journal, disk, monkeypatch):
    """Copying many megabytes takes long on any disk."""
    monkeypatch.setattr(captioner.journal.writer, "QUICK_BYTES", 10)
    async with sink_of(journal) as sink:
        await sink.put([outcome(1)])
    assert disk.here == [False]


async def test_nobody_waits_in_the_loop_for_a_sync(journal, disk, monkeypatch):
    """A write beside a running sync may have to wait for it: a thread does, the loop goes on."""
    monkeypatch.setattr(captioner.journal.writer, "QUICK_S", 1_000.0)
    async with sink_of(journal) as sink:
        await sink.put([outcome(1)])
        disk.waiting.clear()
        disk.release.clear()
        committing = asyncio.create_task(sink.commit())
        await disk.held()
        await sink.put([outcome(2)])
        disk.release.set()
        await committing
        await sink.put([outcome(3)])
    assert disk.here == [True, False, True]


async def test_only_what_is_not_written_is_told_so(journal, disk, monkeypatch):
    """Rows that are in their file stay settled when the very next write fails."""
    monkeypatch.setattr(captioner.journal.writer, "QUICK_S", 1_000.0)
    monkeypatch.setattr(captioner.journal.writer, "SLOW_TRIP_S", 1_000.0)
    with pytest.raises(DiskError):
        async with sink_of(journal) as sink:
            disk.waiting.clear()
            disk.release.clear()
            failure = Failure(InputRecord(2, b'{"id":2}'), "bad", "it is bad", 1)
            first = asyncio.create_task(sink.put([failure]))
            await disk.held()
            disk.refusals = [errno.EIO]
            second = asyncio.create_task(sink.put([outcome(1)]))
            await asyncio.sleep(0)
            disk.release.set()
            await first
            with pytest.raises(DiskError):
                await second
    assert disk.here == [True]


async def test_a_full_disk_that_refuses_slowly_keeps_the_loop_waiting_once(
    journal, disk, monkeypatch
):
    """It is tried again and again, and from the second time on in a thread."""
    monkeypatch.setattr(captioner.journal.writer, "QUICK_S", -1.0)
    monkeypatch.setattr(captioner.journal.writer, "RETRY_S", 0.0)
    disk.refusals = [errno.ENOSPC] * 3
    async with sink_of(journal, disk_wait_s=30) as sink:
        await sink.put([outcome(1)])
    assert disk.here == [True, False, False, False]
    assert [row["id"] for row in rows(journal.path)] == [1]


async def test_the_loop_waits_for_no_network(journal, disk, monkeypatch):
    """A server that stands still holds up a thread, and Ctrl-C is heard."""
    monkeypatch.setattr(captioner.journal.writer, "network_file_system", lambda _: "nfs4")
    async with sink_of(journal) as sink:
        await sink.put([outcome(1)])
    assert disk.here == [False]


async def test_a_writer_that_is_stopped_calls_nothing_written(journal, disk):
    """Whoever waits for a row that was not written does not go on as if it were."""
    sink = sink_of(journal)
    await sink.__aenter__()
    disk.waiting.clear()
    disk.release.clear()
    failure = Failure(InputRecord(1, b'{"id":1}'), "bad", "it is bad", 1)
    first = asyncio.create_task(sink.put([failure]))
    await disk.held()
    second = asyncio.create_task(sink.put([outcome(2)]))
    await asyncio.sleep(0)
    assert sink._writer is not None
    sink._writer.cancel()
    found = await asyncio.gather(first, second, return_exceptions=True)
    disk.release.set()
    with pytest.raises(asyncio.CancelledError):
        await sink.__aexit__(None, None, None)
    assert [type(one) for one in found] == [asyncio.CancelledError] * 2
