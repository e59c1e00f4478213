"""One limit for many workers: each leases a share and reports its requests.

The arithmetic does no I/O and takes the time from outside; `captioner.executors.ray.driver` runs
it in an actor, `benchmarks/cluster_sim.py` in a simulation.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from captioner.endpoints.limiter import DECREASE, AimdLimit, Limiter, start_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


LEASE_S = 5.0
"""Seconds that a lease lasts. The share of a worker that died is free afterwards."""

RENEW_S = 1.0
"""Seconds between two renewals."""


class Lease(NamedTuple):
    """What a worker may use until its next lease.

    Attributes:
        share: Part of the rates a minute.
        in_flight: Requests in flight.
        pause_s: Seconds in which no worker may send, because the endpoint asked for it.
        epoch: Returned with the feedback, so that one overload causes one decrease.
    """

    share: float
    in_flight: int
    pause_s: float = 0.0
    epoch: int = 0


class Feedback(NamedTuple):
    """Results of a worker's requests since its last lease.

    Attributes:
        good: Successful requests.
        bad: Requests that overloaded the endpoint.
        in_flight: Requests in flight now.
        pause_s: Seconds of the pause that the endpoint asked for.
        epoch: Epoch of the lease.
    """

    good: int = 0
    bad: int = 0
    in_flight: int = 0
    pause_s: float = 0.0
    epoch: int = 0


class RateBroker:
    """Divides one limit among workers.

    Args:
        in_flight: Maximum of requests in flight of all workers together.
        clock: Monotonic seconds.
    """

    def __init__(self, in_flight: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.window = AimdLimit(in_flight, float(min(in_flight, start_of(in_flight))))
        self._workers: dict[str, tuple[float, int]] = {}  # end of the lease, requests in flight
        self._closed_until = 0.0

    @property
    def live(self) -> int:
        """Workers with a lease."""
        return len(self._workers)

    def lease(self, name: str, feedback: Feedback) -> Lease:
        """Take a worker's feedback, and return its new lease."""
        now = self._clock()
        self._workers[name] = now + LEASE_S, feedback.in_flight
        self._workers = {one: held for one, held in self._workers.items() if held[0] > now}
        self._closed_until = max(self._closed_until, now + feedback.pause_s)
        total = sum(in_flight for _, in_flight in self._workers.values())
        for _ in range(feedback.good):
            self.window.succeeded(total)
        for _ in range(feedback.bad):
            self.window.overloaded(feedback.epoch)
        rank = list(self._workers).index(name)
        whole, rest = divmod(int(self.window.limit), self.live)
        return Lease(
            1 / self.live,
            whole + (rank < rest),  # 0 for the last ones if the limit is below the workers
            max(0.0, self._closed_until - now),
            self.window.epoch,
        )

    def leave(self, name: str) -> None:
        """Free a worker's share."""
        self._workers.pop(name, None)


class LeasedLimit(AimdLimit):
    """A limit set by the broker: results of requests are only counted."""

    __slots__ = ()

    def succeeded(self, in_flight: int) -> None:
        """Count a success."""
        del in_flight
        self.good += 1

    def overloaded(self, epoch: int, factor: float = DECREASE) -> None:
        """Count an overload."""
        del epoch, factor
        self.bad += 1


class LeaseHolder:
    """Applies leases to a worker's limiters.

    Args:
        limiters: One for each endpoint.
        workers: Number of workers, for a first share before there is a lease.
        fresh: This worker has used nothing of the rates yet: it may begin with a full share.
    """

    def __init__(
        self, limiters: Sequence[Limiter], *, workers: int = 1, fresh: bool = True
    ) -> None:
        self._limiters = limiters
        ceiling = max((limiter.window.ceiling for limiter in limiters), default=1)
        self._lease = Lease(1 / workers, max(1, start_of(ceiling) // workers))
        for limiter in limiters:
            limiter.window = LeasedLimit(limiter.window.ceiling, 1.0)
            if not fresh:
                limiter.begin_empty()
        self.apply(self._lease)

    def take_feedback(self) -> Feedback:
        """Return the feedback since the last call."""
        good = bad = in_flight = 0
        pause = 0.0
        for limiter in self._limiters:
            good += limiter.window.good
            bad += limiter.window.bad
            limiter.window.good = limiter.window.bad = 0
            in_flight += limiter.in_flight
            pause = max(pause, limiter.paused_s)
        return Feedback(good, bad, in_flight, pause, self._lease.epoch)

    def apply(self, lease: Lease) -> None:
        """Apply a lease."""
        self._lease = lease
        for limiter in self._limiters:
            limiter.lease(lease.share, lease.in_flight)
            if lease.pause_s > limiter.paused_s:
                limiter.pause(lease.pause_s)

    def halve(self) -> None:
        """Continue with half of the lease: the broker cannot be reached."""
        lease = self._lease
        self.apply(lease._replace(share=lease.share / 2, in_flight=max(1, lease.in_flight // 2)))
