"""One limit for many workers: leases of a share of it, and what they meet told back.

The arithmetic is pure and takes its time from outside; `captioner.executors.ray.driver` puts it
into an actor, `benchmarks/cluster_sim.py` into a simulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from captioner.endpoints.limiter import AimdLimit, start_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captioner.endpoints.limiter import Limiter

LEASE_S = 5.0
"""Seconds that a lease lasts: a worker that dies gives its part back after them."""

RENEW_S = 1.0
"""Seconds between two renewals."""


class Lease(NamedTuple):
    """What a worker may use until the next one.

    Attributes:
        share: Part of the rates a minute.
        in_flight: Requests in flight.
        pause_s: Seconds in which nobody sends anything, for the endpoint asked for that.
        epoch: Handed back with what was met, so that one trouble is one decrease.
    """

    share: float
    in_flight: int
    pause_s: float = 0.0
    epoch: int = 0


class Feedback(NamedTuple):
    """What a worker has met since its last lease.

    Attributes:
        good: Requests that went well.
        bad: Requests for which the endpoint had too much.
        in_flight: Requests in flight now.
        pause_s: Seconds that the endpoint asked to be left alone.
        epoch: That of the lease.
    """

    good: int = 0
    bad: int = 0
    in_flight: int = 0
    pause_s: float = 0.0
    epoch: int = 0


@dataclass(slots=True)
class _Worker:
    until: float
    in_flight: int = 0


class RateBroker:
    """Shares one limit out.

    Args:
        in_flight: Most requests in flight of all workers together.
        clock: Monotonic seconds.
    """

    def __init__(self, in_flight: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.window = AimdLimit(in_flight, float(min(in_flight, start_of(in_flight))))
        self._workers: dict[str, _Worker] = {}
        self._closed_until = 0.0

    @property
    def live(self) -> int:
        """Workers with a lease."""
        return len(self._workers)

    def lease(self, name: str, met: Feedback) -> Lease:
        """Take what a worker has met, and return what it may use from now on."""
        now = self._clock()
        for other in [one for one, worker in self._workers.items() if worker.until <= now]:
            del self._workers[other]
        worker = self._workers.setdefault(name, _Worker(0.0))
        worker.until = now + LEASE_S
        worker.in_flight = met.in_flight
        self._closed_until = max(self._closed_until, now + met.pause_s)
        total = sum(one.in_flight for one in self._workers.values())
        for _ in range(met.good):
            self.window.succeeded(total)
        for _ in range(met.bad):
            self.window.overloaded(met.epoch)
        rank = list(self._workers).index(name)
        whole, rest = divmod(int(self.window.limit), self.live)
        return Lease(
            1 / self.live,
            whole + (rank < rest),  # none for the last ones where there are fewer than workers
            max(0.0, self._closed_until - now),
            self.window.epoch,
        )

    def leave(self, name: str) -> None:
        """Give a worker's part back."""
        self._workers.pop(name, None)


class LeasedLimit(AimdLimit):
    """A limit that others set: what is met is counted for them."""

    __slots__ = ()

    def succeeded(self, in_flight: int) -> None:
        """Count a success."""
        del in_flight
        self.good += 1

    def overloaded(self, epoch: int) -> None:
        """Count an overload."""
        del epoch
        self.bad += 1


class LeaseHolder:
    """A worker's limiters under leases.

    Args:
        limiters: One for each endpoint.
        workers: How many there are, to begin with before there is a lease.
        fresh: This worker has had nothing of the rates yet: it may begin with a full part.
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

    def met(self) -> Feedback:
        """Return what was met since the last call."""
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
        """Use a lease from now on."""
        self._lease = lease
        for limiter in self._limiters:
            limiter.lease(lease.share, lease.in_flight)
            if lease.pause_s > limiter.paused_s:
                limiter.pause(lease.pause_s)

    def halve(self) -> None:
        """Go on with less: whoever shares out cannot be asked."""
        lease = self._lease
        self.apply(lease._replace(share=lease.share / 2, in_flight=max(1, lease.in_flight // 2)))
