"""One limit shared by many workers, without a cluster: time stands still unless told to go."""

from __future__ import annotations

import asyncio

import pytest

from captioner.endpoints.limiter import Limiter
from captioner.executors.ray.rate_broker import LEASE_S, Feedback, Lease, LeaseHolder, RateBroker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_everybody_gets_a_part_of_everything(clock):
    broker = RateBroker(64, clock)
    names = [f"w{number}" for number in range(5)]
    for name in names:
        broker.lease(name, Feedback())
    leases = [broker.lease(name, Feedback()) for name in names]
    assert sorted(lease.load for lease in leases) == [1, 1, 2, 2, 2]
    assert sum(lease.share for lease in leases) == pytest.approx(1)


def test_the_part_of_a_worker_that_died_goes_to_the_others(clock):
    broker = RateBroker(8, clock)
    broker.lease("a", Feedback())
    assert broker.lease("b", Feedback()).share == 0.5
    clock.now = LEASE_S - 0.1
    assert broker.lease("b", Feedback()).share == 0.5
    clock.now = LEASE_S
    assert broker.lease("b", Feedback()).share == 1.0
    broker.leave("b")
    assert broker.live == 0


def test_trouble_of_one_is_trouble_of_all_and_counts_once(clock):
    """Forty 429s of one moment, met by two workers, halve the load of both, and once."""
    broker = RateBroker(800, clock)
    for name in "ab":
        broker.lease(name, Feedback())
    clock.now = 4.0
    epoch = broker.lease("a", Feedback(good=200, latency_s=1.0, in_flight=25)).epoch
    before = broker.window.load
    clock.now += 4.0  # the replies now are of the load that there is
    for name in "ab":
        bad = Feedback(bad=20, weight=2.0, in_flight=25, epoch=epoch)
        lease = broker.lease(name, bad)
    assert before / 4 <= broker.window.load <= before / 2
    assert (lease.load, lease.epoch) == (pytest.approx(broker.window.load / 2), epoch + 1)


def test_a_load_below_the_workers_is_spread_in_time(clock):
    """Each of a thousand workers sends, a few at a time: none has a permit that none else gets."""
    broker = RateBroker(8, clock)
    for number in range(1_000):
        broker.lease(f"w{number}", Feedback())
    broker.lease("w1", Feedback(good=8, latency_s=2.0, in_flight=8))
    clock.now = 3.5  # the replies now are of the load that there is
    epoch = broker.window.epoch
    broker.lease("w1", Feedback(bad=20, weight=2.0, in_flight=8, epoch=epoch))
    lease = broker.lease("w2", Feedback(epoch=broker.window.epoch))
    limiter = Limiter(8, clock=clock)
    LeaseHolder([limiter]).apply(lease)
    assert limiter.limit == 1
    assert limiter.window.gap_s == pytest.approx(1_000 * 2.0 / broker.window.load)


def test_the_limit_grows_while_all_of_it_is_used(clock):
    broker = RateBroker(100, clock)
    begin = broker.window.load
    broker.lease("a", Feedback(good=8, latency_s=1.0, in_flight=8))
    assert broker.window.load == begin + 8


def test_a_pause_that_one_was_asked_for_holds_all(clock):
    broker = RateBroker(8, clock)
    broker.lease("a", Feedback(pause_s=3.0))
    clock.now = 1.0
    assert broker.lease("b", Feedback()).pause_s == 2.0


async def test_a_holder_uses_its_lease_and_no_more(clock):
    limiter = Limiter(64, rpm=600, clock=clock)
    holder = LeaseHolder([limiter])
    await limiter.acquire()
    limiter.release()
    holder.apply(Lease(0.25, 3, epoch=7))
    assert (limiter.limit, limiter.requests.per_minute) == (3, 150)
    assert await limiter.acquire() == 7
    limiter.succeeded(7, 2.0)
    limiter.overloaded(7, 0.1, 2.0)
    limiter.overloaded(6, 0.1, 2.0)
    assert limiter.limit == 3
    assert holder.take_feedback() == Feedback(1, 2.0, 1, 2.0, 1, epoch=7)
    assert holder.take_feedback() == Feedback(in_flight=1, epoch=7)
    holder.apply(Lease(0.5, 4, pause_s=2.0, epoch=8))
    assert limiter.paused_s == 2.0
    holder.halve()
    assert (limiter.limit, limiter.requests.per_minute) == (2, 150)


async def test_a_learnt_rate_is_shared_as_a_given_one_is(clock):
    limiter = Limiter(64, clock=clock)
    await limiter.acquire()
    limiter.learn_requests(1_200, None)
    limiter.lease(0.5)
    assert limiter.requests.per_minute == 600


async def test_only_a_workers_first_shard_begins_with_a_full_part(clock):
    """A minute's worth is granted once, however many shards there are."""
    granted = 0
    for shard in range(6):
        limiter = Limiter(64, rpm=600, clock=clock)
        holder = LeaseHolder([limiter], workers=2, fresh=shard == 0)
        holder.apply(Lease(0.5, 1_000))
        while limiter.requests.delay(1, clock.now) == 0 and granted < 2_000:
            task = asyncio.ensure_future(limiter.acquire())
            await asyncio.sleep(0)
            if not task.done():
                task.cancel()
                break
            granted += 1
    assert granted == 300


def test_a_worker_whom_the_broker_has_not_answered_yet_goes_on(clock):
    limiter = Limiter(64, rpm=600, clock=clock)
    holder = LeaseHolder([limiter], workers=4)
    for _ in range(40):
        holder.halve()
    assert limiter.limit >= 1
