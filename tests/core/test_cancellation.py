from __future__ import annotations

import asyncio

import pytest

from captioner.core.cancellation import CancelToken, StoppedError


async def test_wished_once_and_for_all():
    """Whoever looks sees the wish, and wishing twice is the same as once."""
    cancel = CancelToken()
    assert not cancel
    cancel.request()
    assert cancel
    cancel.request()
    assert cancel
    await cancel.wait()


async def test_sleep_lasts():
    """Without the wish a wait lasts at least as long as it should."""
    clock = asyncio.get_running_loop().time
    before = clock()
    await CancelToken().sleep(0.03)
    assert clock() - before >= 0.03
    await CancelToken().sleep(0)


async def test_the_wish_ends_waits():
    """A wait of an hour ends as soon as the run is to stop, and says that it was cut short."""
    cancel = CancelToken()
    sleeps = [asyncio.create_task(cancel.sleep(3600)) for _ in range(3)]
    await asyncio.sleep(0)
    cancel.request()
    results = await asyncio.gather(*sleeps, return_exceptions=True)
    assert {type(result) for result in results} == {StoppedError}


@pytest.mark.parametrize("seconds", [0, 0.0, 3600])
async def test_no_wait_begins_after_the_wish(seconds):
    """Once wished no wait begins, not even one of no length."""
    cancel = CancelToken()
    cancel.request()
    with pytest.raises(StoppedError):
        await cancel.sleep(seconds)


async def test_cancelling_a_sleep_is_cancelling():
    """A cancelled wait is neither over nor stopped."""
    task = asyncio.create_task(CancelToken().sleep(3600))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_hurrying_wishes_too():
    """Who wants it at once wants it; who merely wants it is not in a hurry."""
    cancel = CancelToken()
    forced = asyncio.create_task(cancel.wait_forced())
    cancel.request()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not forced.done()
    cancel.force()
    await forced
    other = CancelToken()
    other.force()
    assert other
    await other.wait()


async def test_callbacks_are_called_once():
    """Waits that know nothing of stopping are told, each once, late comers at once."""
    cancel = CancelToken()
    calls = []
    cancel.on_request(lambda: calls.append("a"))
    cancel.on_request(lambda: calls.append("b"))
    assert calls == []
    cancel.request()
    cancel.force()
    assert calls == ["a", "b"]
    cancel.on_request(lambda: calls.append("c"))
    assert calls == ["a", "b", "c"]


async def test_callbacks_see_the_wish():
    """A callback that wakes others finds the wish already made."""
    cancel = CancelToken()
    seen = []
    cancel.on_request(lambda: seen.append(bool(cancel)))
    cancel.request()
    assert seen == [True]
