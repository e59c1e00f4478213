"""How fast an endpoint is asked: adaptive, within rates a minute, learnt or given."""

from __future__ import annotations

import asyncio

import pytest

from captioner.endpoints.limiter import Limiter, start_of
from captioner.endpoints.token_bucket import TokenBucket


def test_whoever_asks_for_many_begins_with_more() -> None:
    """Four doublings from any ceiling: a slow endpoint is not asked timidly for half a minute."""
    assert [start_of(ceiling) for ceiling in (1, 32, 128, 512, 2_000)] == [8, 8, 8, 32, 125]


def test_a_bucket_grants_its_rate_and_no_more() -> None:
    """600 a minute from a full bucket: 600 at once, then ten a second."""
    bucket = TokenBucket()
    bucket.set_rate(600, 0.0)
    now = 0.0
    granted = 0
    while now < 30:
        wait = bucket.delay(1, now)
        if wait:
            now += wait
            continue
        bucket.take(1, now)
        granted += 1
    assert granted == pytest.approx(600 + 300, abs=1)


def test_a_cost_above_the_whole_bucket_is_granted_when_it_is_full() -> None:
    """One enormous record waits for a minute's worth, not for ever."""
    bucket = TokenBucket()
    bucket.set_rate(1000, 0.0)
    bucket.take(1000, 0.0)
    assert bucket.delay(5000, 0.0) == pytest.approx(60)
    assert bucket.delay(5000, 60.0) == 0


def test_what_the_endpoint_says_is_left_counts() -> None:
    """Others may use the same key: the endpoint's own count goes before ours."""
    bucket = TokenBucket()
    bucket.set_rate(60, 0.0)
    bucket.no_more_than(0, 0.0)
    assert bucket.delay(1, 0.0) == pytest.approx(1)


async def test_a_learnt_rate_holds_back_and_a_given_one_stands() -> None:
    """Headers set the pace where the user has not."""
    now = 0.0
    learning = Limiter(100, clock=lambda: now)
    fixed = Limiter(100, rpm=6000, clock=lambda: now)
    for limiter in (learning, fixed):
        await limiter.acquire()
        limiter.learn_requests(60, 1)
        limiter.release()
        await limiter.acquire()
        limiter.release()
    assert learning.requests.per_minute == 60
    assert fixed.requests.per_minute == 6000
    waiting = asyncio.create_task(learning.acquire())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_limiter_that_is_one_of_several_takes_its_part() -> None:
    """Of a rate that is given, of one that is learnt, and of what is left of it."""
    now = 0.0
    given = Limiter(100, rpm=600, share=0.25, clock=lambda: now)
    learning = Limiter(100, share=0.25, clock=lambda: now)
    learning.learn_requests(600, 40)
    for limiter, left in ((given, 150), (learning, 10)):
        for _ in range(left):
            await limiter.acquire()
            limiter.release()
        assert limiter.requests.per_minute == 150
        assert limiter.requests.delay(1, now) == pytest.approx(60 / 150)


async def test_tokens_are_estimated_and_then_corrected() -> None:
    """A budget of tokens a minute is kept by what the endpoint counts, not by our guess."""
    now = 0.0
    limiter = Limiter(100, tpm=10_000, clock=lambda: now)
    for _ in range(5):
        await limiter.acquire(1_000)
        limiter.correct_tokens(1_000, 2_000)
        limiter.release()
    assert limiter.tokens.level == pytest.approx(0)
    assert limiter.tokens.delay(1_000, now) == pytest.approx(6)
