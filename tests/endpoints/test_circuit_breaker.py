from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from captioner.core.cancellation import StoppedError
from captioner.core.errors import EndpointFaultError, EndpointGaveOutError
from captioner.endpoints.circuit_breaker import FAULTS_TO_OPEN, NEVER_CAPTIONED_S, CircuitBreaker

FAULT = EndpointFaultError("http_500", "boom")


class Naps:
    """Sleeps that last until they are ended by hand."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._ends: list[asyncio.Future[None]] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self._ends.append(asyncio.get_running_loop().create_future())
        await self._ends[-1]

    async def end(self, error: BaseException | None = None) -> None:
        last = self._ends[-1]
        last.set_exception(error) if error else last.set_result(None)
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def breaker(sleep: Callable[[float], Awaitable[None]] | None = None, **options) -> CircuitBreaker:
    options = {"max_outage_s": 1000.0, **options}
    return CircuitBreaker("http://x/v1", sleep=sleep or Naps(), **options)


def fault(subject: CircuitBreaker, times: int = 1, *, probe: bool = False) -> None:
    for _ in range(times):
        subject.record_fault(FAULT, probe=probe)


async def test_well_until_a_row_of_faults():
    """Nine faults in a row hold nobody up; the tenth lets the endpoint rest."""
    subject = breaker()
    fault(subject, FAULTS_TO_OPEN - 1)
    assert not subject.is_open
    assert await subject.ready() is False
    fault(subject)
    assert subject.is_open


async def test_a_success_ends_the_row():
    """Faults between successes are no outage, however many there are in all."""
    subject = breaker()
    for _ in range(50):
        fault(subject, FAULTS_TO_OPEN - 1)
        subject.record_success()
    assert not subject.is_open
    assert subject.successes == 50


async def test_one_probe_at_a_time(monkeypatch):
    """A resting endpoint gets one request after a pause, however many workers there are."""
    now = asyncio.get_running_loop().time()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    naps = Naps()
    subject = breaker(naps)
    fault(subject, FAULTS_TO_OPEN)
    workers = [asyncio.create_task(subject.ready()) for _ in range(8)]
    for number in range(1, 6):
        await settle()
        assert len(naps.seconds) == number  # one sleeps, the others wait for it
        await naps.end()
        done = [worker for worker in workers if worker.done()]
        assert [worker.result() for worker in done] == [True] * number
        fault(subject, probe=True)
    assert all(0.1 <= round(seconds, 6) <= 60 for seconds in naps.seconds)
    for worker in workers:
        worker.cancel()


async def test_recovery_releases_everybody():
    """As soon as a probe succeeds all workers go on, as ordinary ones."""
    naps = Naps()
    subject = breaker(naps)
    fault(subject, FAULTS_TO_OPEN)
    workers = [asyncio.create_task(subject.ready()) for _ in range(8)]
    await settle()
    await naps.end()
    subject.record_success()
    assert sorted(await asyncio.gather(*workers)) == [False] * 7 + [True]
    assert not subject.is_open
    fault(subject, FAULTS_TO_OPEN - 1)
    assert not subject.is_open  # the row begins anew


async def test_late_fault_of_an_ordinary_request_starts_no_second_probe():
    """Requests that were on the wire when the endpoint failed do not multiply the probes."""
    naps = Naps()
    subject = breaker(naps)
    fault(subject, FAULTS_TO_OPEN)
    workers = [asyncio.create_task(subject.ready()) for _ in range(3)]
    await settle()
    fault(subject, 5)
    await settle()
    assert len(naps.seconds) == 1
    for worker in workers:
        worker.cancel()


@pytest.mark.parametrize("error", [StoppedError(), asyncio.CancelledError()])
async def test_a_probe_given_up_is_taken_over(error):
    """If the worker that was to probe is stopped, another one probes; nobody waits for ever."""
    naps = Naps()
    subject = breaker(naps)
    fault(subject, FAULTS_TO_OPEN)
    workers = [asyncio.create_task(subject.ready()) for _ in range(3)]
    await settle()
    await naps.end(error)
    assert len(naps.seconds) == 2
    await naps.end()
    subject.abandon_probe()  # the second one was stopped before it had sent anything
    await settle()
    assert len(naps.seconds) == 3
    await naps.end()
    results = await asyncio.gather(*workers, return_exceptions=True)
    assert results.count(True) == 2


async def test_outage_ends_the_run(skip):
    """An endpoint away for longer than allowed ends the run, saying which, how long and why."""
    subject = breaker(max_outage_s=600)
    subject.record_success()
    fault(subject, FAULTS_TO_OPEN)
    skip(599)
    fault(subject, probe=True)
    skip(2)
    with pytest.raises(EndpointGaveOutError, match=r"http://x/v1 .* 601 s\. .*boom"):
        fault(subject, probe=True)


async def test_outage_is_counted_from_its_first_fault(skip):
    """A success in between starts the clock again."""
    subject = breaker(max_outage_s=600)
    fault(subject, FAULTS_TO_OPEN)
    skip(590)
    subject.record_success()
    skip(590)
    fault(subject, FAULTS_TO_OPEN)
    skip(590)
    fault(subject)
    skip(20)
    with pytest.raises(EndpointGaveOutError):
        fault(subject)


async def test_faults_with_captions_between_them_are_no_outage(skip):
    """An endpoint that gives captions now and then is not away, however long it limps."""
    subject = breaker(max_outage_s=10)
    for _ in range(5 * FAULTS_TO_OPEN):
        fault(subject)
        skip(9)
        subject.record_success()
        skip(100)


async def test_an_outage_ends_a_run_however_few_requests_met_it(skip):
    """One record alone on a dead endpoint is given up in time, too."""
    subject = breaker(max_outage_s=10)
    subject.record_success()
    fault(subject)
    skip(10)
    with pytest.raises(EndpointGaveOutError):
        fault(subject)


async def test_no_limit_means_for_ever(skip):
    """Who wants to wait for ever, waits for ever, once the endpoint has answered anything."""
    subject = breaker(max_outage_s=None)
    subject.record_success()
    fault(subject, FAULTS_TO_OPEN)
    skip(1e7)
    fault(subject)
    assert subject.is_open


async def test_an_address_that_never_answered(skip):
    """A mistyped address is told after a minute, not after the whole outage allowed."""
    subject = breaker(max_outage_s=None)
    fault(subject, FAULTS_TO_OPEN)
    skip(NEVER_CAPTIONED_S - 1)
    fault(subject)
    skip(2)
    with pytest.raises(EndpointGaveOutError):
        fault(subject)


async def test_a_shorter_outage_holds_for_new_addresses_too(skip):
    """A limit shorter than a minute is kept for an address that never answered."""
    subject = breaker(max_outage_s=5)
    fault(subject, FAULTS_TO_OPEN)
    skip(6)
    with pytest.raises(EndpointGaveOutError):
        fault(subject)


async def test_giving_out_leaves_nobody_waiting(skip):
    """When the run ends over an outage, the probe is free again and the others are woken."""
    naps = Naps()
    subject = breaker(naps, max_outage_s=10)
    fault(subject, FAULTS_TO_OPEN)
    workers = [asyncio.create_task(subject.ready()) for _ in range(2)]
    await settle()
    await naps.end()
    skip(11)
    with pytest.raises(EndpointGaveOutError):
        fault(subject, probe=True)
    await settle()
    assert len(naps.seconds) == 2
    await naps.end(StoppedError())
    assert sum(worker.done() for worker in workers) == 2
    await asyncio.gather(*workers, return_exceptions=True)
