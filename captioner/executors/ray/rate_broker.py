"""One limit for many workers: each leases a share and reports its requests.

The arithmetic does no I/O and takes the time from outside; `captioner.executors.ray.driver` runs
it in an actor, `benchmarks/cluster_sim.py` in a simulation.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

from captioner.endpoints.goodput import GoodputLimit
from captioner.endpoints.limiter import Limiter, start_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


LEASE_S = 5.0
"""Seconds that a lease lasts. The share of a worker that died is free afterwards."""

RENEW_S = 1.0
"""Seconds between two renewals."""

LEAST_PART = 16
"""A worker that cannot reach the broker keeps at least that part of its rates."""


class Lease(NamedTuple):
    """What a worker may use until its next lease.

    Attributes:
        share: Part of the rates a minute.
        load: Requests in flight on average; see `GoodputLimit`.
        latency_s: Mean seconds of a request.
        spreads: Requests are spread in time.
        noise: Share of errors that come by chance.
        pause_s: Seconds in which no worker may send, because the endpoint asked for it.
        epoch: Returned with the feedback, so that one overload causes one decrease.
    """

    share: float
    load: float
    latency_s: float = 0.0
    spreads: bool = False
    noise: float = 0.0
    pause_s: float = 0.0
    epoch: int = 0


class Feedback(NamedTuple):
    """Results of a worker's requests since its last lease.

    Attributes:
        good: Successful requests of the lease's epoch.
        latency_s: Mean seconds that they took.
        bad: Errors of its requests that too much load may have caused.
        weight: How strongly each of them speaks of load, on average.
        in_flight: Requests in flight now.
        held_back: The load held requests back.
        pause_s: Seconds of the pause that the endpoint asked for.
        epoch: Epoch of the lease.
    """

    good: int = 0
    latency_s: float = 0.0
    bad: int = 0
    weight: float = 1.0
    in_flight: int = 0
    held_back: bool = False
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
        begin = min(in_flight, start_of(in_flight))
        self.window = GoodputLimit(in_flight, begin, lag_s=RENEW_S)
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
        window = self.window
        window.held_back |= feedback.held_back
        results = feedback.good + feedback.bad
        successes = 0
        for number in range(1, results + 1):
            # In turn, as they came: errors in a row would speak of more than they are.
            if successes < number * feedback.good // results:
                successes += 1
                window.succeeded(feedback.epoch, feedback.latency_s, total, now)
            else:
                window.failed(feedback.epoch, total, now, feedback.weight)
        load = window.load / self.live
        if not window.spreads:  # some have one more, or one and the others none
            whole, rest = divmod(window.in_flight, self.live)
            load = whole + (list(self._workers).index(name) < rest)
        return Lease(
            1 / self.live,
            load,
            window.latency_s,
            window.spreads,
            window.noise,
            max(0.0, self._closed_until - now),
            window.epoch,
        )

    def leave(self, name: str) -> None:
        """Free a worker's share."""
        self._workers.pop(name, None)


class LeasedLimit(GoodputLimit):
    """A load set by the broker: results of requests are only counted."""

    good = bad = 0
    total_s = total_weight = 0.0

    def succeeded(self, epoch: int, latency_s: float, in_flight: int, now: float) -> None:
        """Count a success of the lease's epoch."""
        del in_flight, now
        if epoch == self.epoch:
            self.good += 1
            self.total_s += latency_s

    def failed(self, epoch: int, in_flight: int, now: float, weight: float = 1.0) -> None:
        """Count an error of the lease's epoch."""
        del in_flight, now
        if epoch == self.epoch:
            self.bad += 1
            self.total_weight += weight

    def recovered(self, now: float) -> None:
        """Leave it to the broker."""

    @property
    def gap_s(self) -> float:
        """Seconds between two requests."""
        return self.latency_s / self.load if self.spreads else 0.0

    def lease(self, lease: Lease) -> None:
        """Use a lease; its results count from now on."""
        self.load, self.spreads, self.noise = lease.load, lease.spreads, lease.noise
        self.in_flight = math.ceil(self.load - 1e-9)
        self.latency_s = lease.latency_s
        self.epoch = lease.epoch

    def count_again(self) -> None:
        """Begin to count."""
        self.good = self.bad = 0
        self.total_s = self.total_weight = 0.0
        self.held_back = False


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
        self._windows = []
        for limiter in limiters:
            limiter.window = window = LeasedLimit(limiter.window.ceiling, 1.0)
            self._windows.append(window)
            if not fresh:
                limiter.begin_empty()
        self._lease = Lease(1 / workers, start_of(ceiling) / workers)
        self.apply(self._lease)

    def take_feedback(self) -> Feedback:
        """Return the feedback since the last call."""
        windows = self._windows
        good = sum(window.good for window in windows)
        bad = sum(window.bad for window in windows)
        feedback = Feedback(
            good,
            sum(window.total_s for window in windows) / max(1, good),
            bad,
            sum(window.total_weight for window in windows) / bad if bad else 1.0,
            sum(limiter.in_flight for limiter in self._limiters),
            any(window.held_back for window in windows),
            max((limiter.paused_s for limiter in self._limiters), default=0.0),
            self._lease.epoch,
        )
        for window in windows:
            window.count_again()
        return feedback

    def apply(self, lease: Lease) -> None:
        """Apply a lease."""
        self._lease = lease
        self._granted = lease.share
        for limiter, window in zip(self._limiters, self._windows, strict=True):
            window.lease(lease)
            limiter.lease(lease.share)
            if lease.pause_s > limiter.paused_s:
                limiter.pause(lease.pause_s)

    def halve(self) -> None:
        """Continue with half of the lease, at least: the broker cannot be reached."""
        lease = self._lease
        load = lease.load / 2 if lease.load > 2 else min(lease.load or 1.0, 1.0)
        share = max(lease.share / 2, self._granted / LEAST_PART)
        granted = self._granted
        self.apply(lease._replace(share=share, load=load))
        self._granted = granted
