"""A candidate for the limiter: how much an endpoint is asked at once is found by what gets through.

`goodput_sim.py` compares it with the rule of captioner. It is not part of captioner yet: behind the
broker of Ray it does not follow a service that scales up (`cluster_sim.py`).

Errors alone say little. Some endpoints fail a third of all requests by chance; to send less helps
nothing there. Others refuse what exceeds their slots or their quota; to send more helps nothing.
So when errors come, the limit is lowered to what got through, as an experiment. If the share of
errors falls, the load was the cause and the lower limit stays. If it does not, the errors are
noise: the limit goes back, and only more errors than that count from then on. Increases are
experiments too: a little more is tried, and stays if no more errors come of it. The idea is that
of PCC (Dong et al., NSDI 2015): rates are chosen by experiments with their results.

There are two limits. `GoodputLimit.limit` is on requests in flight, for endpoints with slots;
`GoodputLimit.pace` is on requests a second, for quotas. The class is pure: the caller passes the
time.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

FEWEST = 8
"""Results before anything is concluded from errors."""

ROUND = 16
ROUND_S = 0.5
"""Results and seconds of one round, at least. A round also has a result for each permit."""

USUAL_NOISE = 0.005
"""Share of errors that any endpoint may have."""

SURE = 9.0
LIKELY = 4.0
PERHAPS = 3.5
"""Evidence, the logarithm of how unlikely the errors are by chance, needed to suspect the load, to
end an experiment with less load, and to take an increase back."""

STRIKES = 3
"""Rounds in a row with a few more errors than usual that raise suspicion as well."""

MOSTLY = 0.5
"""A share of errors above that is taken for noise only if it stays when hardly anything is sent."""

RECHECK_ROUNDS = 40
MOST_RECHECK_ROUNDS = 640
"""Rounds after which noise is tested again, twice as many after each test that confirms it."""

WAIT_S = 1.0
LONGEST_WAIT_S = 32.0
"""Seconds after a decrease before more is tried; doubled by each increase that fails."""

SETTLE = 1.5
"""Latencies after a change during which results still show the load before it."""

PACE_STEP = 0.05
"""Requests a second of the smallest increase of the pace, times the root of the pace: that step
lets several clients of one quota converge to equal parts."""


class _Phase(Enum):
    STEADY = "steady"
    MEASURING = "measuring the share of errors before an experiment with less load"
    LESS = "experimenting with less load"
    MORE = "experimenting with more load"


class _Level(NamedTuple):
    """A load to return to, with the results that were seen at it."""

    limit: float
    pace: float
    results: int = 0
    errors: int = 0


def divergence(share: float, expected: float) -> float:
    """Return the Kullback-Leibler divergence of two probabilities, in nats a result."""
    expected = min(max(expected, 1e-9), 1.0 - 1e-9)
    total = share * math.log(share / expected) if share > 0 else 0.0
    return total + ((1 - share) * math.log((1 - share) / (1 - expected)) if share < 1 else 0.0)


class GoodputLimit:
    """A limit on requests in flight and a pace, adapted by experiments.

    Args:
        ceiling: Most requests in flight ever.
        start: Requests in flight at the beginning.
        longest_s: Seconds after which a request is given up. Requests that would wait for half of
            that in the endpoint's queue are not sent.
        courtesy: Price of refused requests: the pauses between increases are that much longer.

    Attributes:
        limit: Requests in flight now; fractions count up to the next one.
        pace: Requests a second; infinite while none is learnt.
        noise: Share of errors that does not depend on the load.
        is_noisy: Errors were found to be noise: nothing is gained by waiting after one.
        epoch: Number of changes so far; a request carries the one it was sent in.
        held_back: The pace held a request back lately; the caller sets it.
        latency_s: Mean seconds of a successful request.
    """

    def __init__(
        self,
        ceiling: int,
        start: float,
        *,
        longest_s: float = math.inf,
        courtesy: float = 1.0,
    ) -> None:
        self.ceiling = ceiling
        self.limit = float(start)
        self.pace = math.inf
        self.noise = 0.0
        self.is_noisy = False
        self.epoch = 0
        self.held_back = False
        self.latency_s = 0.0
        self._longest_s = longest_s
        self._courtesy = courtesy
        self._slow_start = True
        self._shortest_s = math.inf
        self._interval_s = 0.0  # between two successes
        self._last = 0.0
        self._phase = _Phase.STEADY
        self._settled = 0.0  # results before that time are of the load before
        self._results = 0
        self._errors = 0
        self._weight = 0.0
        self._began = -1.0  # of the round
        self._full = False  # all permits were out in the round
        self._strikes = 0
        self._gain = 1.0
        self._wait_s = WAIT_S
        self._more_at = 0.0
        self._before = _Level(self.limit, self.pace)
        self._share_before = 0.0
        self._share_hoped = 0.0  # if the load was the cause
        self._rounds = 0
        self._recheck = RECHECK_ROUNDS
        self._last_noise = 0.0

    def succeeded(self, epoch: int, latency_s: float, in_flight: int, now: float) -> None:
        """Note a success.

        Args:
            epoch: The epoch that the request was sent in.
            latency_s: Seconds that it took.
            in_flight: Requests in flight, this one included.
            now: Monotonic seconds.
        """
        if not self.latency_s:
            self.latency_s = latency_s
        self.latency_s += (latency_s - self.latency_s) / 16
        self._shortest_s = min(self._shortest_s, latency_s)
        if self._last:
            self._interval_s += (now - self._last - self._interval_s) / 8
        self._last = now
        if in_flight >= int(self.limit):
            self._full = True
        if self._slow_start and self._phase is _Phase.STEADY and 2 * in_flight >= self.limit:
            self._grow_fast(in_flight)
        if epoch != self.epoch:
            return
        half_s = self._longest_s / 2
        if latency_s > half_s and latency_s > 2 * self._shortest_s:
            self._shorten_queue(in_flight * half_s / latency_s, now)
        elif now >= self._settled:
            self._results += 1
            self._conclude(now)

    def failed(self, epoch: int, in_flight: int, now: float, weight: float = 1.0) -> None:
        """Note an error that too much load may have caused.

        Args:
            epoch: The epoch that the request was sent in.
            in_flight: Requests in flight, this one included.
            now: Monotonic seconds.
            weight: How strongly this kind of error speaks of load.
        """
        if epoch != self.epoch or now < self._settled:
            return
        self._results += 1
        self._errors += 1
        self._weight += weight
        if self.latency_s or in_flight <= 1:  # the first replies may be on their way
            self._conclude(now)

    def hold_s(self, latency_s: float, now: float, since: float) -> float:
        """Return how long the permit of a failed request stays out.

        A quick refusal keeps its permit as long as a reply would. Without that, the permits above
        the endpoint's limit would be refused hundreds of times a second.

        Args:
            latency_s: Seconds that the request took.
            now: Monotonic seconds.
            since: When the first request was sent.
        """
        if self.is_noisy and self._phase is not _Phase.MEASURING:
            return 0.0
        return max(0.0, (self.latency_s or now - since) - latency_s)

    def recovered(self, now: float) -> None:
        """Forget what an outage did: the endpoint works again."""
        if self._phase is _Phase.LESS:
            self.limit, self.pace = self._before.limit, self._before.pace
        self._phase = _Phase.STEADY
        self._change(now)

    # How results become decisions.

    @property
    def _share(self) -> float:
        return self._errors / self._results if self._results else 0.0

    def _evidence(self) -> float:
        """Return how strongly the errors of this round exceed the noise."""
        share = self._share
        if share <= self.noise:
            return 0.0
        each = divergence(share, max(self.noise, USUAL_NOISE))
        return self._results * each * self._weight / self._errors

    def _conclude(self, now: float) -> None:
        if self._began < 0:
            self._began = now
        size = max(ROUND, int(self.limit))
        long = now - self._began >= ROUND_S
        if self._phase is _Phase.STEADY:
            if self._errors and self._results >= FEWEST and self._evidence() > SURE:
                self._measure(now)
            elif self._results >= size and long:
                self._end_round(now)
        elif self._phase is _Phase.MEASURING:
            many = self._errors >= 12 and self._share > MOSTLY
            if many or (self._results >= 2 * size and long):
                self._end_measuring(now)
        elif self._phase is _Phase.LESS:
            if self._results >= FEWEST:
                self._judge_less(now, 8 * size)
        elif self._errors and self._evidence() > PERHAPS:
            self._take_back(now)
        elif self._results >= 2 * size and long:
            self._keep_more(now)

    def _end_round(self, now: float) -> None:
        share = self._share
        more_errors = share > self.noise + 0.01
        self._strikes = self._strikes + 1 if more_errors else 0
        if self.noise > 0.02 and abs(share - self.noise) < 0.05:
            self.noise += (share - self.noise) / 16
        elif share < self.noise:
            self.noise += (share - self.noise) / 8
        self._rounds += 1
        if self._strikes >= STRIKES:
            self._measure(now)
        elif self.noise > 0.02 and self._rounds >= self._recheck:
            self.noise = 0.0  # the next round suspects the load, if there are errors still
            self._rounds = 0
            self._count_again()
        elif not more_errors and now >= self._more_at and not self._slow_start:
            self._try_more(now)
        else:
            self._count_again()

    # Less load.

    def _measure(self, now: float) -> None:
        """Measure the share of errors without the bias of the moment that raised suspicion."""
        self._phase = _Phase.MEASURING
        self._strikes = 0
        if self.is_noisy:
            self._change(now, 2.0)  # permits are held from now on
        else:
            self._count_again()
            self._settled = now + self.latency_s

    def _end_measuring(self, now: float) -> None:
        if self._evidence() > PERHAPS:
            self._before = _Level(self.limit, self.pace, self._results, self._errors)
            self._try_less(now)
            return
        self.noise = max(self.noise, (self.noise + self._share) / 2)
        self._phase = _Phase.STEADY
        self._count_again()

    def _try_less(self, now: float) -> None:
        """Lower the load to what got through."""
        good = self._results - self._errors
        kept = min(1.0, (good + 0.5) / (self._results + 0.5) / (1.0 - self.noise))
        share = self._share_before = min(0.99, max(self._share, 0.01))
        expected = max(self.noise, 1 - (1 - share) / kept, share / 3)
        self._share_hoped = min(expected, 0.9 * share)
        if self.latency_s:
            self.pace = max(min(self.pace, self.limit / self.latency_s) * kept, 0.05)
        self.limit = max(1.0, self.limit * kept)
        self._phase = _Phase.LESS
        self._change(now)

    def _judge_less(self, now: float, most: int) -> None:
        share, before, hoped = self._share, self._share_before, self._share_hoped
        if share > before and self._results * divergence(share, before) > LIKELY:
            self._try_less(now)  # it had not been all of the errors
            return
        good = self._results - self._errors
        fell = good * math.log((1 - hoped) / (1 - before)) + self._errors * math.log(hoped / before)
        if fell > LIKELY or (self._results >= most and fell > 0):
            self._stay_less(now)
        elif fell < -LIKELY or self._results >= most:
            self._go_back(now)

    def _stay_less(self, now: float) -> None:
        """The load was the cause."""
        self._slow_start = self.is_noisy = False
        self._phase = _Phase.STEADY
        self._wait(now)
        self._count_again()

    def _go_back(self, now: float) -> None:
        """The errors are noise."""
        before = self._before
        share = (self._errors + before.errors) / (self._results + before.results)
        if share > MOSTLY and self.limit > 2:
            self._stay_less(now)  # which measures again, and tries still less
            return
        confirmed = abs(share - self._last_noise) < share / 2
        self._recheck = min(MOST_RECHECK_ROUNDS, 2 * self._recheck) if confirmed else RECHECK_ROUNDS
        self._rounds = 0
        self.noise = self._last_noise = share
        self.is_noisy = True
        self.limit, self.pace = before.limit, before.pace
        self._phase = _Phase.STEADY
        self._change(now)

    def _shorten_queue(self, limit: float, now: float) -> None:
        """Lower the limit, because requests wait so long that they may be given up."""
        self.limit = max(1.0, min(self.limit, limit))
        self._slow_start = False
        self._phase = _Phase.STEADY
        self._wait(now)
        self._change(now)

    # More load.

    def _grow_fast(self, in_flight: int) -> None:
        """Double each round trip, until the first trouble or a queue that grows too long."""
        if (in_flight + 1) * self._interval_s < self._longest_s / 2:
            self.limit = min(float(self.ceiling), self.limit + 1)

    def _try_more(self, now: float) -> None:
        """Raise what holds requests back, permits or pace, by a little."""
        full = self._full and self.limit < self.ceiling and self.latency_s < 0.4 * self._longest_s
        paced = self.held_back and self.pace < math.inf
        if not (full or paced):
            self._count_again()
            return
        self._before = _Level(self.limit, self.pace)
        grown = 0.0
        if full:
            step = min(self._gain * max(1.0, self.limit / 32), self.limit / 2)
            limit = min(float(self.ceiling), self.limit + step)
            grown = limit / self.limit - 1
            self.limit = limit
        if paced:
            self.pace += min(PACE_STEP * math.sqrt(self.pace) * self._gain, self.pace / 2)
        elif self.pace < math.inf:
            self.pace *= 1 + min(grown, 0.05 * self._gain)
        self._phase = _Phase.MORE
        self._change(now, 1.0)

    def _keep_more(self, now: float) -> None:
        """Keep an increase, and try one twice as large at once."""
        self._gain *= 2
        if self._gain > 4:
            self._wait_s = max(WAIT_S, self._wait_s / 2)
        self._phase = _Phase.STEADY
        if self.limit >= self.ceiling and self.pace * self.latency_s > 2 * self.ceiling:
            self.pace = math.inf  # it holds nothing back
        self._try_more(now)

    def _take_back(self, now: float) -> None:
        """Return to the load before an increase."""
        self.limit, self.pace = self._before.limit, self._before.pace
        self._phase = _Phase.STEADY
        self._wait(now)
        self._change(now)

    def _wait(self, now: float) -> None:
        self._gain = 1.0
        self._more_at = now + self._wait_s * self._courtesy
        self._wait_s = min(LONGEST_WAIT_S, 2 * self._wait_s)

    def _count_again(self) -> None:
        self._results = self._errors = 0
        self._weight = 0.0
        self._began = -1.0
        self._full = self.held_back = False

    def _change(self, now: float, settle: float = SETTLE) -> None:
        """Count only what is sent from now on, once it shows the changed load."""
        self.epoch += 1
        self._count_again()
        self._settled = now + settle * self.latency_s
