"""How much an endpoint is asked at once, found by what gets through.

Errors alone say little. Some endpoints fail a third of all requests by chance; to send less helps
nothing there. Others refuse what exceeds their slots or their quota; to send more helps nothing.
So when errors come, the load is lowered to what got through, as an experiment. If the share of
errors falls, the load was the cause and the lower load stays. If it does not, the errors are
noise: the load goes back, and only more errors than that count from then on. Refusals are taken for
noise only if they stay with a quarter of the load, which then grows again in steps. The idea is
that of PCC (Dong et al., NSDI 2015): rates are chosen by experiments with their results.

The load is one number, the requests in flight. Once an endpoint has refused requests, they are
also spread evenly in time: one is sent every `latency / limit` seconds (Little's law). A limit
below 1 is then a pause between requests, so the same number fits slots and quotas.

The class is pure: the caller passes the time.
"""

from __future__ import annotations

import math

REFUSAL = 2.0
GIVEN_UP = 4.0
"""How strongly an error speaks of too much load, where any other counts as 1: one that names a rate
limit or a time to wait, and a request that was given up."""

FEWEST = 8
"""Results before anything is concluded from errors."""

ROUND = 16
ROUND_S = 0.5
"""Results and seconds of one round, at least. A round also has a result for each permit."""

USUAL_NOISE = 0.005
"""Share of errors that any endpoint may have."""

SOME = 0.02
"""Noise worth the name."""

SURE = 9.0
LIKELY = 4.0
PERHAPS = 3.5
"""Evidence, the logarithm of how unlikely the errors are by chance, needed to lower the load, to
end the experiment, and to take an increase back."""

MOSTLY = 0.5
"""A share of errors above that is taken for noise only if it stays when hardly anything is sent."""

LEAST = 0.95
MOST_CUT = 0.1
"""One decrease lowers the load by a twentieth at least, and to a tenth at most."""

RARELY = 0.2
"""A share of refusals that chance may cause; less of it with more courtesy. With more than that,
runs that share a quota take each other's requests for chance, and are refused more and more."""

FAR = 0.25
"""Part of a load that is far less."""

LONGEST_GAP_S = 10.0
"""Longest time between two requests."""

RECHECK_ROUNDS = 100
MOST_RECHECK_ROUNDS = 800
"""Rounds after which noise is tested again, twice as many after each test that confirms it."""

WAIT_S = 1.0
LONGEST_WAIT_S = 32.0
"""Seconds after a decrease before more is tried; doubled by each increase that fails."""

STEP = 0.18
MOST_FIRST_STEP = 0.06
MOST_STEP = 0.5
"""Part by which a load is raised: at first that divided by the root of the load, but at most the
second; twice as much each round until errors come, but at most the third. So several runs on one
quota come to equal parts. Far below a load that led to errors the largest one comes first."""

NEAR = 0.9
"""A step closes a third of the way to that part of a load that led to errors, if that is more."""

FEW = 8
"""From that load on, a step is a whole request at least; below it, at most up to the next whole
number, which may be all that the endpoint has slots for."""

MOST_HOLD_S = 2.0
"""Longest time for which the permit of a refused request stays out."""

SETTLE = 1.5
SETTLE_MORE = 0.5
"""Latencies after a decrease and an increase during which results still show the load before."""


class GoodputLimit:
    """A load, adapted by experiments.

    Args:
        ceiling: Most requests in flight ever.
        start: Requests in flight at the beginning.
        longest_s: Seconds after which a request is given up. Requests that would wait for half of
            that in the endpoint's queue are not sent.
        lag_s: Seconds until a change reaches those who send.
        courtesy: Price of refused requests: the pauses between increases are that much longer.

    Attributes:
        load: Requests in flight now, on average; fractions count.
        in_flight: Most requests in flight now.
        rests_until: No request is sent before that time.
        spreads: The endpoint refused what was too much: requests are spread in time.
        noise: Share of errors that does not depend on the load.
        epoch: Number of changes so far; a request carries the one it was sent in.
        held_back: A request waited for a permit lately; the caller sets it.
        latency_s: Mean seconds of a successful request.
    """

    def __init__(
        self,
        ceiling: int,
        start: float,
        *,
        longest_s: float = math.inf,
        courtesy: float = 1.0,
        lag_s: float = 0.0,
    ) -> None:
        self.ceiling = ceiling
        self.spreads = False
        self.load, self.in_flight, self.rests_until = float(start), int(start), 0.0
        self._learn_noise(0.0)
        self.epoch, self.held_back = -1, False
        self._excess = self._began = 0.0
        self.latency_s = 0.0
        self._longest_s = longest_s
        self._courtesy = courtesy
        self._lag_s = lag_s
        self._slow_start = True
        self._shortest_s = math.inf
        self._interval_s = 0.0  # between two successes
        self._last = 0.0
        self._gain = STEP
        self._wait_s = WAIT_S
        self._more_at = 0.0
        self._failed_at = math.inf  # a load that led to errors
        self._experimenting = False  # with less load
        self._below: float | None = None  # the load before an increase that is not proven
        self._load_before, self._spreads_before = self.load, False
        self._kept_before = self._weight_before = 1.0
        self._share_before, self._results_before = 0.0, 0
        self._rounds, self._recheck = 0, RECHECK_ROUNDS
        self._last_noise = 0.0
        self._change(0.0)

    @property
    def is_noisy(self) -> bool:
        """Errors were found to be noise: nothing is gained by waiting after one."""
        return self.noise > SOME

    @property
    def gap_s(self) -> float:
        """Seconds between two requests."""
        return self.latency_s / max(self.load, self._least_load) if self.spreads else 0.0

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
        if latency_s < self._shortest_s:  # noqa: PLR1730 - a call less for each response
            self._shortest_s = latency_s
        if self._last:
            self._interval_s += (now - self._last - self._interval_s) / 8
        self._last = now
        if self._slow_start and not self._experimenting and 2 * in_flight >= self.load:
            self._grow_fast(in_flight)
        if epoch != self.epoch:
            return
        half_s = self._longest_s / 2
        if latency_s > half_s and latency_s > 2.5 * self._shortest_s:
            self._shorten_queue(in_flight * half_s / latency_s, now)
        elif now >= self._settled:
            self._results += 1
            if self._excess:  # as `_weigh` does, for most results
                self._weigh(0.0)
            is_over = self._results >= self._round and now - self._began >= ROUND_S
            if is_over or self._began < 0 or self._experimenting:
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
        self._weigh(weight)
        # The first replies may be on their way, unless a request was given up.
        if self.latency_s or in_flight <= 1 or weight >= GIVEN_UP:
            self._conclude(now)

    def hold_s(self, latency_s: float) -> float:
        """Return how long the permit of a failed request stays out.

        A quick refusal keeps its permit as long as a reply would, but no longer than `MOST_HOLD_S`.
        Without that, the permits above the endpoint's limit would be refused hundreds of times a
        second.

        Args:
            latency_s: Seconds that the request took.
        """
        if self.is_noisy:
            return 0.0
        return max(0.0, min(self.latency_s, MOST_HOLD_S) - latency_s)

    def recovered(self, now: float) -> None:
        """Forget what an outage did: the endpoint works again."""
        if self._experimenting:
            self._restore()
        if self.noise > MOSTLY:
            self._learn_noise(0.0)
        self._change(now)

    # How results become decisions.

    @property
    def _share(self) -> float:
        return self._errors / self._results if self._results else 0.0

    @property
    def _by_chance(self) -> bool:
        """Most errors do not say that they are refusals: few results may show them to be noise."""
        return self._weight <= 1.5 * self._errors

    def _learn_noise(self, share: float, weight: float = 1.0) -> None:
        """Set the noise, and what a result then says of the load (a CUSUM test; Page 1954).

        Args:
            share: Share of errors.
            weight: How strongly these speak of load.
        """
        self.noise = share
        self._noise_weight = weight if share > SOME else 1.0
        floor = self._floor = min(0.9, max(share, USUAL_NOISE))
        more = floor + min(0.02 + min(floor, 0.1), (1 - floor) / 2)
        self._says_more = math.log(more / floor)
        self._says_less = math.log((1 - more) / (1 - floor))

    def _weigh(self, weight: float) -> None:
        """Sum the evidence that there are more errors than noise.

        Args:
            weight: That of an error, 0 for a success.
        """
        more = weight / self._noise_weight * self._says_more
        self._excess += more if weight else self._says_less
        if self._excess <= 0:
            self._excess = 0.0
            self._seen = self._seen_errors = 0
            self._seen_weight = 0.0
        else:
            self._seen += 1
            self._seen_errors += weight > 0
            self._seen_weight += weight

    def _conclude(self, now: float) -> None:
        if self._began < 0:
            self._began = now
        if self._experimenting:
            if self._results >= FEWEST:
                judge = self._judge if self._share_before else self._judge_half
                judge(now, max(2 * ROUND, self._round))
        elif self._below is not None and self._excess > PERHAPS:
            self._take_back(now)
        elif self._excess > SURE:
            self._experiment(now)
        elif self._results >= self._round and now - self._began >= ROUND_S:
            self._end_round(now)

    # Less load.

    def _kept(self, results: int, errors: int) -> float:
        """Return the part of the load that got through."""
        return min(1.0, (results - errors + 0.5) / (results + 0.5) / (1.0 - self._floor))

    def _experiment(self, now: float) -> None:
        """Halve the load and see what becomes of the errors."""
        self._experimenting = True
        self._load_before, self._spreads_before = self.load, self.spreads
        seen = self._seen, self._seen_errors
        self._weight_before = self._seen_weight / self._seen_errors
        self._kept_before = self._kept(max(seen[0], int(self.load)), seen[1])
        self._share_before, self._results_before = 0.0, 0
        self._below = None
        self._lower(max(0.25, min(0.5, 2 * self._kept(*seen))), now)

    @property
    def _least_load(self) -> float:
        return min(1.0, self.latency_s / LONGEST_GAP_S) if self.spreads else 1.0

    def _lower(self, factor: float, now: float) -> None:
        self.spreads = self.latency_s > 0
        self._set(max(self._least_load, self.load * factor))
        self._change(now)
        if self._slow_start and self._weight_before > 1:  # doubling sent far more than is taken
            self.rests_until = self._settled

    def _odds(self, share: float, other: float) -> float:
        """Return how much likelier the results are with one share of errors than with another."""
        good = self._results - self._errors
        return good * math.log((1 - share) / (1 - other)) + self._errors * math.log(share / other)

    def _judge_half(self, now: float, most: int) -> None:
        """See whether half of the load leaves no more errors than noise."""
        floor, lost = self._floor, 1 - self._kept_before
        other = min(0.98, max(0.02, floor + 0.01, floor + (1 - floor) * 0.75 * lost))
        odds = self._odds(floor, other)
        full = self._results >= most
        sure = odds > 2 * LIKELY / self._weight_before
        chance = self._by_chance and self._share < MOSTLY
        refused = self._weight_before > 1  # refusals were among the errors
        if not sure and full and chance and not refused and self._share > lost / 2:
            self._go_back(now)  # as many errors as before
        elif sure or (full and chance):
            if not sure:
                self._learn_noise(max(self.noise, self._share))
            # Half was less than needed.
            self._set(max(self.load, self._load_before * min(LEAST, self._kept_before)))
            self._stay(now)
        elif full or (odds < -LIKELY and (refused or not chance)):
            self._lower_more(now)

    def _judge(self, now: float, most: int) -> None:
        """See whether less load leaves as many errors as before."""
        before = min(0.98, max(0.02, self._floor + 0.01, self._share_before))
        same = self._odds(before, max(self._floor, before / 2))
        weight = self._weight / max(1, self._errors)
        full = self._results >= most
        chance = self._by_chance or self._share < 2 * before  # less load refused more: another run
        sure = self._odds(self._floor, before) > 2 * LIKELY / self._weight_before
        if sure or (full and not self._errors):
            self._stay(now)
        elif (
            (same > LIKELY * weight or (full and self._by_chance and same > -LIKELY / 2))
            and (self._share < MOSTLY or self.load <= self._least_load)
            and chance
        ):
            self._go_back(now)
        elif full and self._is_partly_chance(same):
            self._learn_noise(max(self.noise, self._share), weight)
            self._stay(now)  # more is tried in steps
        elif same < -LIKELY or full:
            self._lower_more(now)

    def _is_partly_chance(self, same: float) -> bool:
        """Return whether some refusals seem to come by chance: far less load leaves them."""
        failed_at = self._failed_at if self._failed_at < math.inf else 0.0
        is_far = self.load <= FAR * max(self._load_before, failed_at)
        return is_far and same > -LIKELY / 2 and SOME < self._share < RARELY / self._courtesy

    def _lower_more(self, now: float) -> None:
        """Lower the load again: it was not the cause of the errors, or not of all."""
        self._share_before, self._results_before = self._share, self._results
        kept = self._kept(self._results, self._errors)
        self._lower(max(MOST_CUT, min(0.5, kept)), now)

    def _stay(self, now: float) -> None:
        """The load was the cause."""
        self._wait(now, self._load_before if self._experimenting else math.inf)
        self._experimenting = False
        self._slow_start = False
        self._change(now)

    def _go_back(self, now: float) -> None:
        """The errors are noise."""
        errors = self._errors + self._share_before * self._results_before
        share = errors / (self._results + self._results_before)
        confirmed = abs(share - self._last_noise) < share / 2
        self._recheck = min(MOST_RECHECK_ROUNDS, 2 * self._recheck) if confirmed else RECHECK_ROUNDS
        self._rounds = 0
        self._learn_noise(share)
        self._last_noise = share
        self._restore()
        self._change(now)

    def _restore(self) -> None:
        self.spreads = self._spreads_before
        self._set(self._load_before)
        self._experimenting = False

    def _end_round(self, now: float) -> None:
        share = self._share
        if self.is_noisy and abs(share - self.noise) < 0.05 + self.noise / 4:
            self._learn_noise(self.noise + (share - self.noise) / 16, self._noise_weight)
        elif share < self.noise:
            self._learn_noise(self.noise + (share - self.noise) / 8, self._noise_weight)
        self._rounds += 1
        if self.is_noisy and self._rounds >= self._recheck:
            self._learn_noise(0.0)  # the next round suspects the load, if there are errors still
            self._rounds = 0
            self._count_again()
        else:
            self._raise(now)

    # More load.

    def _grow_fast(self, in_flight: int) -> None:
        """Double each round trip, until the first trouble or a queue that grows too long."""
        if (in_flight + 1) * self._interval_s < self._longest_s / 2:
            self._set(self.load + 1)

    def _raise(self, now: float) -> None:
        """Try a little more load; twice as much more each time that no errors come of it.

        A load that led to errors is tried again only after a wait.
        """
        if self._below is not None and self.load >= self._failed_at:  # it does not any more
            self._failed_at = math.inf
            self._wait_s = max(WAIT_S, self._wait_s / 4)
        self._below = None
        if self._failed_at < math.inf:
            third = (NEAR * self._failed_at / self.load - 1) / 3
            self._gain = max(self._gain, min(MOST_STEP, third))
        whole = math.floor(self.load) + 1.0
        load = (max if self.load >= FEW else min)(whole, self.load * (1 + self._gain))
        load = min(float(self.ceiling), load)
        waits = now < self._more_at and load >= 0.95 * self._failed_at
        slow = self.latency_s > max(0.4 * self._longest_s, 2 * self._shortest_s)
        if self._slow_start or waits or slow or load <= self.load or not self.held_back:
            self._count_again()
            return
        self._below = self.load
        self._set(load)
        self._gain = min(MOST_STEP, 2 * self._gain)
        self._change(now, SETTLE_MORE)

    def _take_back(self, now: float) -> None:
        """Return to the load before an increase."""
        self._wait(now, self.load)
        self._set(self._below or self.load)
        self._below = None
        self._change(now)

    def _wait(self, now: float, failed_at: float) -> None:
        self._failed_at = failed_at
        self._gain = MOST_STEP
        if self.load > failed_at / 4:
            self._gain = min(MOST_FIRST_STEP, STEP / math.sqrt(max(1.0, self.load)))
        self._more_at = now + self._wait_s * self._courtesy
        self._wait_s = min(LONGEST_WAIT_S, 2 * self._wait_s)

    def _shorten_queue(self, load: float, now: float) -> None:
        """Lower the load, because requests wait so long that they may be given up."""
        self._below = None
        self._set(min(self.load, max(1.0, load)))
        self._stay(now)

    def _set(self, load: float) -> None:
        self.load = min(float(self.ceiling), load)
        self.in_flight = max(1, math.ceil(self.load - 1e-9) if self.spreads else int(self.load))

    def _count_again(self) -> None:
        self._results = self._errors = 0
        self._weight = 0.0  # of the errors
        self._began = -1.0  # the round
        self._round = max(FEWEST // 2, min(ROUND, int(4 * self.load)), int(self.load))
        self.held_back = False

    def _change(self, now: float, settle: float = SETTLE) -> None:
        """Count only what is sent from now on, once it shows the changed load."""
        self.epoch += 1
        self._excess = 0.0  # evidence that there are more errors than noise
        self._seen = self._seen_errors = 0  # results of which it consists
        self._seen_weight = 0.0
        self._count_again()
        self._settled = now + settle * self.latency_s + self._lag_s
