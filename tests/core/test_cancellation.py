from __future__ import annotations

import asyncio

import pytest

from captioner.core.cancellation import StoppedError, Stopping


async def test_wished_once_and_for_all():
    """Whoever looks sees the wish, and wishing twice is the same as once."""
    stopping = Stopping()
    assert not stopping
    stopping.set()
    assert stopping
    stopping.set()
    assert stopping
    await stopping.wait()


async def test_sleep_lasts():
    """Without the wish a wait lasts at least as long as it should."""
    clock = asyncio.get_running_loop().time
    before = clock()
    await Stopping().sleep(0.03)
    assert clock() - before >= 0.03
    await Stopping().sleep(0)


async def test_the_wish_ends_waits():
    """A wait of an hour ends as soon as the run is to stop, and says that it was cut short."""
    stopping = Stopping()
    sleeps = [asyncio.create_task(stopping.sleep(3600)) for _ in range(3)]
    await asyncio.sleep(0)
    stopping.set()
    results = await asyncio.gather(*sleeps, return_exceptions=True)
    assert {type(result) for result in results} == {StoppedError}


@pytest.mark.parametrize("seconds", [0, 0.0, 3600])
async def test_no_wait_begins_after_the_wish(seconds):
    """Once wished no wait begins, not even one of no length."""
    stopping = Stopping()
    stopping.set()
    with pytest.raises(StoppedError):
        await stopping.sleep(seconds)


async def test_cancelling_a_sleep_is_cancelling():
    """A cancelled wait is neither over nor stopped."""
    task = asyncio.create_task(Stopping().sleep(3600))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_hurrying_wishes_too():
    """Who wants it at once wants it; who merely wants it is not in a hurry."""
    stopping = Stopping()
    hurried = asyncio.create_task(stopping.wait_hurried())
    stopping.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not hurried.done()
    stopping.hurry()
    await hurried
    other = Stopping()
    other.hurry()
    assert other
    await other.wait()


async def test_callbacks_are_called_once():
    """Waits that know nothing of stopping are told, each once, late comers at once."""
    stopping = Stopping()
    calls = []
    stopping.then(lambda: calls.append("a"))
    stopping.then(lambda: calls.append("b"))
    assert calls == []
    stopping.set()
    stopping.hurry()
    assert calls == ["a", "b"]
    stopping.then(lambda: calls.append("c"))
    assert calls == ["a", "b", "c"]


async def test_callbacks_see_the_wish():
    """A callback that wakes others finds the wish already made."""
    stopping = Stopping()
    seen = []
    stopping.then(lambda: seen.append(bool(stopping)))
    stopping.set()
    assert seen == [True]
