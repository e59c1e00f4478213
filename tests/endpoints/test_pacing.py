"""How fast an endpoint is asked: adaptive, within rates a minute, learnt or given."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from captioner.endpoints.limiter import DECREASE, HALVE, AimdLimit, Limiter, TokenBucket, start_of


def full_round(window: AimdLimit, bad: int = 0) -> None:
    """One round trip with all permits out; some come back with too much."""
    out = int(window.limit)
    epoch = window.epoch
    for number in range(out):
        if number < bad:
            window.overloaded(epoch)
        else:
            window.succeeded(out - number)


def test_a_run_begins_slowly_and_doubles() -> None:
    """8, 12, … up to the ceiling: an endpoint that scales up is not hit by all at once."""
    window = AimdLimit(128, 8.0)
    seen = []
    while window.limit < 128:
        seen.append(window.limit)
        full_round(window)
    assert len(seen) < 15
    assert all(after <= 2 * before for before, after in itertools.pairwise(seen))


def test_whoever_asks_for_many_begins_with_more() -> None:
    """Four doublings from any ceiling: a slow endpoint is not asked timidly for half a minute."""
    assert [start_of(ceiling) for ceiling in (1, 32, 128, 512, 2_000)] == [8, 8, 8, 32, 125]


def test_a_single_error_never_slows_the_pool() -> None:
    """One 429 among many is no reason; nor are two among hundreds."""
    window = AimdLimit(100, 100.0)
    window.overloaded(0)
    assert window.limit == 100
    for _ in range(100):
        window.succeeded(100)
    window.overloaded(0)
    assert window.limit == 100


def test_a_whole_cohort_that_fails_is_one_decrease() -> None:
    """128 that fail together cost one step, not 0.9 to the 128th."""
    window = AimdLimit(128, 128.0)
    full_round(window, bad=128)
    assert window.limit == pytest.approx(128 * DECREASE)


def test_requests_that_were_given_up_halve_the_limit() -> None:
    """The server still works on them: the limit comes down in a few round trips, once in each."""
    window = AimdLimit(64, 64.0)
    for left in (32, 16, 8):
        epoch = window.epoch
        for _ in range(int(window.limit)):
            window.overloaded(epoch, HALVE)
        assert window.limit == left


def test_after_trouble_the_limit_creeps_up() -> None:
    """Additive increase: about one permit a round trip."""
    window = AimdLimit(128, 64.0)
    full_round(window, bad=64)
    before = window.limit
    full_round(window)
    assert before < window.limit <= before + 1


def test_after_a_long_calm_the_limit_grows_faster() -> None:
    """An endpoint that has scaled up meanwhile is found out in seconds, not in hours."""
    window = AimdLimit(10_000, 64.0)
    full_round(window, bad=64)
    rounds = 0
    while window.limit < 1_000 and rounds < 100:
        full_round(window)
        rounds += 1
    assert 20 < rounds < 80
    before = window.limit
    full_round(window, bad=int(before))
    full_round(window)
    assert window.limit <= before


def test_the_limit_grows_only_while_it_is_what_holds_us_back() -> None:
    """A run with few records does not talk itself into a hundred permits."""
    window = AimdLimit(128, 20.0)
    for _ in range(1000):
        window.succeeded(3)
    assert window.limit == 20


def test_the_limit_stays_at_least_one() -> None:
    """However bad it gets, one request may go out."""
    window = AimdLimit(8, 8.0)
    for _ in range(100):
        window.overloaded(window.epoch)
    assert window.limit == 1


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
