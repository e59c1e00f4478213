"""The pipeline: bounded, in order when it stops, and nothing left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace

import pytest

from captioner.core.cancellation import StoppedError
from captioner.core.errors import DiskError, EndpointGaveOutError
from captioner.core.memory import MemoryBudget
from captioner.core.types import (
    Caption,
    Failure,
    InputRecord,
    NeedsFetch,
    Outcome,
    PreparedRecord,
    Usage,
)
from captioner.engine.pipeline import Pipeline
from captioner.engine.prefetch import AHEAD as FEW
from captioner.engine.prefetch import CHUNK
from captioner.settings.context import RunContext
from captioner.settings.settings import Settings

CONCURRENCY = 8
BATCH = 10
FETCHES = 1
AHEAD = CHUNK * (8 + 2) + FETCHES + CONCURRENCY + BATCH
"""Most lines on the way: with at most 8 threads and in the queue, with workers, in one batch."""


class Rig:
    """A pipeline whose every part is in the test's hands."""

    in_threads = True

    def __init__(self, count: int = 100, *, drain_s: float = 30.0) -> None:
        self.count = count
        self.taken = 0
        self.most_ahead = 0
        self.closed = False
        self.settled: list[Outcome] = []
        self.calls = 0
        self.cancelled = 0
        self.in_flight = 0
        self.source_error: tuple[int, Exception] | None = None
        self.caption: Callable[[PreparedRecord], object] = lambda _: asyncio.sleep(0)
        self.put: Callable[[Outcome], object] = lambda _: asyncio.sleep(0)
        self.reject: Callable[[InputRecord], bool] = lambda _: False
        settings = Settings.create(
            "in.jsonl", concurrency=CONCURRENCY, drain=drain_s, fetch_concurrency=FETCHES
        )
        context = RunContext(settings)
        self.progress = context.progress
        self.cancel = context.cancel
        self.budget = MemoryBudget(1 << 30)
        engine = SimpleNamespace(
            preparer=_Preparer(self),
            async_preparer=SimpleNamespace(fetch=_fetch_nothing),
            deduplicator=_Endpoint(self),
            memory=self.budget,
        )
        self.pipeline = Pipeline(engine, context, _Sink(self), self.settled.append)

    async def lines(self) -> AsyncIterator[list[InputRecord]]:
        try:
            while self.taken < self.count:
                if self.source_error is not None and self.taken >= self.source_error[0]:
                    raise self.source_error[1]
                size = min(BATCH, self.count - self.taken)
                batch = [InputRecord(self.taken + at + 1, b"{}") for at in range(size)]
                self.taken += size
                self.most_ahead = max(self.most_ahead, self.taken - len(self.settled))
                yield batch
        finally:
            self.closed = True

    async def run(self) -> None:
        before = asyncio.all_tasks()
        try:
            async with asyncio.timeout(20):
                await self.pipeline.run(self.lines())
        finally:
            assert asyncio.all_tasks() == before, "tasks are left behind"
            assert self.closed, "the source was not closed"


@pytest.fixture(params=["in threads", "at once"], autouse=True)
def _where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every promise holds whether records are prepared in threads or in the event loop."""
    monkeypatch.setattr(Rig, "in_threads", request.param == "in threads")


class _Preparer:
    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def prepare(self, line: InputRecord) -> PreparedRecord | Failure:
        if self._rig.reject(line):
            return Failure(line, "bad", "it is bad", 0)
        self._rig.budget.reserve(1)
        return PreparedRecord(line, ((b"[]",),), replaces=False, reserved=1)

    def prepare_at_once(self, line: InputRecord) -> PreparedRecord | Failure | None:
        if self._rig.in_threads or not self._rig.budget.try_reserve(1):
            return None
        self._rig.budget.release(1)
        return self.prepare(line)


class _Endpoint:
    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    async def outcomes(self, prepared: PreparedRecord) -> list[Outcome]:
        rig = self._rig
        rig.calls += 1
        rig.in_flight += 1
        try:
            await rig.caption(prepared)
        except asyncio.CancelledError:
            rig.cancelled += 1
            raise
        finally:
            rig.in_flight -= 1
        return [Caption(prepared.record, "text", replaces=False, attempts=1, usage=Usage(3, 2))]

    def close(self) -> None:
        pass


async def _fetch_nothing(remote: NeedsFetch) -> PreparedRecord:
    raise AssertionError(remote)


class _Sink:
    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    async def put(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            await self._rig.put(outcome)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


# -- all goes well -----------------------------------------------------------------------------


async def test_every_record_is_settled_once_and_counted():
    """Captions and failures add up, and every record has one outcome."""
    rig = Rig(1000)
    rig.reject = lambda line: line.number % 10 == 0
    await rig.run()
    assert sorted(o.record.number for o in rig.settled) == list(range(1, 1001))
    assert (rig.progress.captioned, rig.progress.failed) == (900, 100)
    assert rig.progress.codes == {"bad": 100}
    assert rig.progress.examples["bad"].record.number % 10 == 0
    assert rig.progress.complete
    assert rig.calls == 900
    assert rig.budget.held == 0


async def test_an_empty_source_ends_at_once():
    """No records are a run as well, complete and without threads that wait."""
    rig = Rig(0)
    await rig.run()
    assert rig.progress.complete
    assert not rig.settled


async def test_a_record_without_caption_waits_for_nobody():
    """Failures that need no request pass while all requests hang."""
    rig = Rig(40)
    gate = asyncio.Event()
    rig.caption = lambda _: gate.wait()
    rig.reject = lambda line: line.number > CONCURRENCY - 1
    task = asyncio.create_task(rig.run())
    await until(lambda: rig.progress.failed == 40 - CONCURRENCY + 1)
    gate.set()
    await task


# -- bounds ------------------------------------------------------------------------------------


async def test_memory_is_bounded_by_concurrency_not_by_input():
    """Of 20,000 records no more are taken than are settled, plus a few for each part at work."""
    rig = Rig(20_000)
    await rig.run()
    assert len(rig.settled) == 20_000
    assert rig.most_ahead <= AHEAD


@pytest.mark.parametrize("slow", ["put", "caption"])
async def test_the_source_stands_still_with_the_slowest_part(slow):
    """When disk or endpoint stands still, so does reading: the rest stays in the file."""
    rig = Rig(20_000)
    gate = asyncio.Event()
    setattr(rig, slow, lambda _: gate.wait())
    task = asyncio.create_task(rig.run())
    await until(lambda: rig.calls == CONCURRENCY)
    before = -1
    while before != rig.taken:
        before = rig.taken
        await asyncio.sleep(0.1)
    assert rig.taken <= AHEAD
    assert rig.calls == CONCURRENCY
    rig.count = rig.taken
    gate.set()
    await task
    assert len(rig.settled) == rig.taken


async def test_little_memory_slows_a_run_but_never_halts_it():
    """Records larger than all of the memory pass one at a time; no thread waits for itself."""
    rig = Rig(100)
    rig.budget.total = 1
    task = asyncio.create_task(rig.run())
    try:
        await until(lambda: len(rig.settled) == 100)
    finally:
        rig.cancel.request()
        await task


async def test_no_more_requests_than_workers():
    """The endpoint never sees more at once than the concurrency."""
    rig = Rig(500)
    most = 0

    async def caption(_: PreparedRecord) -> None:
        nonlocal most
        most = max(most, rig.in_flight)
        await asyncio.sleep(0)

    rig.caption = caption
    await rig.run()
    assert most == CONCURRENCY


# -- something breaks --------------------------------------------------------------------------


async def test_a_failing_sink_stops_the_run():
    """A disk that refuses ends the run with its reason, after few more requests, not after all."""
    rig = Rig(20_000)

    async def put(_: Outcome) -> None:
        if len(rig.settled) >= 20:
            raise DiskError("the disk refused")

    rig.put = put
    with pytest.raises(DiskError, match="refused"):
        await rig.run()
    assert len(rig.settled) == 20
    assert rig.calls <= 20 + CONCURRENCY
    assert not rig.progress.complete
    assert rig.taken <= 20 + AHEAD


async def test_what_is_prepared_at_once_is_not_prepared_far_ahead(monkeypatch):
    """While all requests hang, no more records are made ready than are soon sent."""
    monkeypatch.setattr(Rig, "in_threads", False)
    rig = Rig(1000)
    gate = asyncio.Event()
    rig.caption = lambda _: gate.wait()
    prepared = []
    rig.reject = lambda line: prepared.append(line.number)
    task = asyncio.create_task(rig.run())
    await until(lambda: len(prepared) >= CONCURRENCY + FEW)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(prepared) == CONCURRENCY + FEW
    gate.set()
    await task
    assert len(rig.settled) == 1000


async def test_a_failing_source_stops_the_run_in_order():
    """What the source raises is raised; requests on the wire finish and are written first."""
    rig = Rig(1000)
    rig.source_error = (BATCH, ZeroDivisionError())
    gate = asyncio.Event()
    rig.caption = lambda _: gate.wait()
    task = asyncio.create_task(rig.run())
    await until(lambda: bool(rig.cancel))
    in_flight = rig.in_flight
    gate.set()
    with pytest.raises(ZeroDivisionError):
        await task
    assert len(rig.settled) == rig.calls >= in_flight
    assert rig.cancelled == 0
    assert not rig.progress.complete


async def test_a_fatal_answer_lets_the_others_finish():
    """One worker learns that the account is empty: no new requests, what is paid for is kept."""
    rig = Rig(1000)
    gate = asyncio.Event()

    async def caption(prepared: PreparedRecord) -> None:
        if prepared.record.number == 1:
            await until(lambda: rig.in_flight == CONCURRENCY)
            raise EndpointGaveOutError("out of quota")
        await gate.wait()

    rig.caption = caption
    task = asyncio.create_task(rig.run())
    await until(lambda: bool(rig.cancel))
    gate.set()
    with pytest.raises(EndpointGaveOutError):
        await task
    assert rig.calls == CONCURRENCY
    assert len(rig.settled) == CONCURRENCY - 1


async def test_a_bug_is_told_before_the_trouble_it_met():
    """An internal error is not hidden behind an endpoint that gave out a moment earlier."""
    rig = Rig(10)
    both = asyncio.Barrier(2)

    async def caption(prepared: PreparedRecord) -> None:
        if prepared.record.number <= 2:
            await both.wait()
        if prepared.record.number == 1:
            raise EndpointGaveOutError("out of quota")
        if prepared.record.number == 2:
            await rig.cancel.wait()
            raise ZeroDivisionError

    rig.caption = caption
    with pytest.raises(ZeroDivisionError):
        await rig.run()


async def test_a_bug_in_a_preparing_thread_ends_the_run():
    """An unexpected error in a thread is raised; no record vanishes without a word."""
    rig = Rig(1000)

    def reject(line: InputRecord) -> bool:
        if line.number == 50:
            raise ZeroDivisionError
        return False

    rig.reject = reject
    with pytest.raises(ZeroDivisionError):
        await rig.run()
    assert not any(o.record.number == 50 for o in rig.settled)


# -- stopping ----------------------------------------------------------------------------------


async def test_stopping_lets_what_is_on_the_wire_finish():
    """After the wish to stop nothing new is sent, and everything sent is written."""
    rig = Rig(20_000)
    gate = asyncio.Event()
    rig.caption = lambda _: gate.wait()
    task = asyncio.create_task(rig.run())
    await until(lambda: rig.in_flight == CONCURRENCY)
    rig.cancel.request()
    await until(lambda: rig.progress.stage == "draining")
    gate.set()
    await task
    assert (rig.calls, len(rig.settled), rig.cancelled) == (CONCURRENCY, CONCURRENCY, 0)
    assert not rig.progress.complete


async def test_a_drain_that_takes_too_long_is_cut_off():
    """Requests that do not come back within the drain are cancelled; the run ends."""
    rig = Rig(1000, drain_s=0.05)
    rig.caption = lambda _: asyncio.Event().wait()
    task = asyncio.create_task(rig.run())
    await until(lambda: rig.in_flight == CONCURRENCY)
    rig.cancel.request()
    await task
    assert (rig.cancelled, len(rig.settled)) == (CONCURRENCY, 0)


async def test_in_a_hurry_the_drain_is_skipped():
    """Asked twice, requests are given up at once however long the drain might be."""
    rig = Rig(1000, drain_s=3600)
    rig.caption = lambda _: asyncio.Event().wait()
    task = asyncio.create_task(rig.run())
    await until(lambda: rig.in_flight == CONCURRENCY)
    rig.cancel.request()
    await until(lambda: rig.progress.stage == "draining")
    assert not rig.cancelled
    rig.cancel.force()
    await task
    assert rig.cancelled == CONCURRENCY


async def test_stopped_before_the_start_nothing_is_sent():
    """A signal that came during the start is honoured."""
    rig = Rig(1000)
    rig.cancel.request()
    before = asyncio.all_tasks()
    async with asyncio.timeout(10):
        await rig.pipeline.run(rig.lines())
    assert asyncio.all_tasks() == before
    assert rig.calls == 0
    assert not rig.settled


async def test_records_that_wait_stay_pending_when_stopped():
    """A worker that waits to try again leaves its record for the next run."""
    rig = Rig(CONCURRENCY)

    async def caption(_: PreparedRecord) -> None:
        await rig.cancel.wait()
        raise StoppedError

    rig.caption = caption
    task = asyncio.create_task(rig.run())
    await until(lambda: rig.in_flight == CONCURRENCY)
    rig.cancel.request()
    await task
    assert not rig.settled


async def test_stopping_frees_threads_that_wait_for_memory():
    """Threads that wait for memory do not hold up the end of a run."""
    rig = Rig(1000)
    rig.budget.total = 1
    gate = asyncio.Event()
    rig.caption = lambda _: gate.wait()
    task = asyncio.create_task(rig.run())
    try:
        await until(lambda: rig.in_flight == 1)
    finally:
        rig.cancel.request()
        gate.set()
        await task
    assert rig.calls == 1


async def test_cancelling_the_run_cancels_everything():
    """A caller who cancels the task is obeyed at once."""
    rig = Rig(1000, drain_s=3600)
    rig.caption = lambda _: asyncio.Event().wait()
    task = asyncio.create_task(rig.run())
    await until(lambda: rig.in_flight == CONCURRENCY)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rig.cancelled == CONCURRENCY


async def test_no_thread_outlives_the_run():
    """A process that runs many batches does not collect threads."""
    names = {thread.name for thread in threading.enumerate()}
    for stop in (False, True):
        rig = Rig(200)
        if stop:
            rig.put = lambda _, rig=rig: asyncio.sleep(0, rig.cancel.request())
        await rig.run()
        rig.pipeline = None  # type: ignore[assignment]
    await until(lambda: {thread.name for thread in threading.enumerate()} <= names)
