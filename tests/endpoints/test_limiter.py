from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from captioner.endpoints.limiter import Limiter


@pytest.fixture
async def skip(monkeypatch) -> Callable[[float], Awaitable[None]]:
    """Move the loop's clock ahead and run whatever has become due, without waiting."""
    loop = asyncio.get_running_loop()
    time, ahead = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: time() + ahead)

    async def skip(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds
        await settle()

    return skip


async def settle() -> None:
    """Let everything that can run, run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_more_than_the_limit():
    """There are never more requests in flight than allowed, and all of them get their turn."""
    limiter = Limiter(3)
    now = most = 0
    chance = random.Random(1)

    async def work() -> None:
        nonlocal now, most
        await limiter.acquire()
        now += 1
        most = max(most, now)
        assert now <= limiter.in_flight <= 3
        for _ in range(chance.randrange(5)):
            await asyncio.sleep(0)
        now -= 1
        limiter.release()

    await asyncio.gather(*(work() for _ in range(200)))
    assert (most, now, limiter.in_flight) == (3, 0, 0)


async def test_first_come_first_served():
    """Nobody is overtaken, not even by one who comes just when a permit is free."""
    limiter = Limiter(1)
    order = []
    await limiter.acquire()

    async def work(number: int) -> None:
        await limiter.acquire()
        order.append(number)
        limiter.release()

    tasks = [asyncio.create_task(work(number)) for number in range(5)]
    await settle()
    limiter.release()
    tasks.append(asyncio.create_task(work(5)))
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4, 5]


async def test_a_pause_holds_everybody(skip):
    """While a server wants to be left alone nobody sends; then all go on by themselves."""
    limiter = Limiter(10)
    limiter.pause(30)
    tasks = [asyncio.create_task(limiter.acquire()) for _ in range(3)]
    await settle()
    assert 29 < limiter.paused_s <= 30
    await skip(29)
    assert limiter.in_flight == 0
    await skip(2)
    assert limiter.in_flight == 3
    assert limiter.paused_s == 0
    await asyncio.gather(*tasks)


async def test_a_pause_is_a_floor(skip):
    """A second server's shorter wish never shortens a pause; a longer one prolongs it."""
    limiter = Limiter(1)
    limiter.pause(30)
    limiter.pause(1)
    limiter.pause(0)
    task = asyncio.create_task(limiter.acquire())
    await skip(25)
    limiter.pause(30)
    await skip(25)  # the first timer has fired in vain
    assert not task.done()
    await skip(6)
    assert task.done()


async def test_a_pause_begun_while_others_wait(skip):
    """Those who wait for a permit when the pause begins are held by it as well."""
    limiter = Limiter(1)
    await limiter.acquire()
    task = asyncio.create_task(limiter.acquire())
    await settle()
    limiter.pause(30)
    limiter.release()
    await skip(29)
    assert not task.done()
    await skip(2)
    assert task.done()


async def test_a_given_clock_is_used():
    """The clock can be given; a pause ends when that clock says so."""
    now = 100.0
    limiter = Limiter(1, clock=lambda: now)
    limiter.pause(5)
    assert limiter.paused_s == 5
    now = 105.0
    await limiter.acquire()
    assert limiter.paused_s == 0


async def test_opening_lets_all_through(skip):
    """When the run stops, everybody who waits gets to see it at once."""
    limiter = Limiter(1)
    await limiter.acquire()
    limiter.pause(1000)
    tasks = [asyncio.create_task(limiter.acquire()) for _ in range(5)]
    await settle()
    limiter.open()
    await settle()
    assert all(task.done() for task in tasks)
    await limiter.acquire()
    await skip(2000)  # the timer of the pause does no harm afterwards


async def test_nothing_pauses_after_opening():
    """A late wish of a server for a pause does not hold up a run that is stopping."""
    limiter = Limiter(1)
    limiter.open()
    limiter.pause(1000)
    task = asyncio.create_task(limiter.acquire())
    await settle()
    done = task.done()
    task.cancel()
    assert done


async def test_cancelled_waiters_leave_no_trace():
    """Cancelling those who wait loses no permit and keeps the order of the others."""
    limiter = Limiter(1)
    await limiter.acquire()
    tasks = [asyncio.create_task(limiter.acquire()) for _ in range(4)]
    await settle()
    tasks[0].cancel()
    tasks[2].cancel()
    await settle()
    limiter.release()
    await settle()
    assert tasks[1].done()
    assert not tasks[3].done()
    limiter.release()
    await tasks[3]
    assert limiter.in_flight == 1


async def test_a_permit_granted_to_a_cancelled_waiter_is_given_back():
    """One who is cancelled just as the permit arrives passes it on."""
    limiter = Limiter(1)
    await limiter.acquire()
    first, second = (asyncio.create_task(limiter.acquire()) for _ in range(2))
    await settle()
    limiter.release()
    first.cancel()
    await settle()
    assert first.cancelled()
    assert second.done()
    assert limiter.in_flight == 1


async def test_a_waiter_cancelled_just_before_a_release():
    """One who is cancelled just before a permit comes free ends as cancelled, not as a bug."""
    limiter = Limiter(1)
    await limiter.acquire()
    first, second = (asyncio.create_task(limiter.acquire()) for _ in range(2))
    await settle()
    first.cancel()
    limiter.release()
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1] == 0
    assert limiter.in_flight == 1


@pytest.mark.parametrize("seed", range(20))
async def test_no_permit_is_lost_whoever_is_cancelled(seed):
    """After any mix of work and cancelling all permits are back."""
    chance = random.Random(seed)
    limiter = Limiter(2)

    async def work() -> None:
        await limiter.acquire()
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            limiter.release()

    tasks = [asyncio.create_task(work()) for _ in range(30)]
    for _ in range(40):
        chance.choice(tasks).cancel() if chance.random() < 0.5 else None
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
    assert limiter.in_flight == 0
    await limiter.acquire()
    await limiter.acquire()
