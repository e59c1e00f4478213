"""Permits for requests: how many in flight, how many a minute, and the pauses a server asks for.

How many may be in flight is learnt by `GoodputLimit`; `TokenBucket` keeps the rates that the
endpoint or the user states. `Limiter` adds the waiting. Nothing here knows HTTP: `endpoint.py`
decides what a 429 says of the load.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import sys
from collections import deque
from typing import TYPE_CHECKING

from captioner.core.cancellation import EndpointBusyError
from captioner.endpoints.goodput import GoodputLimit
from captioner.endpoints.token_bucket import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

SLOW_START = 8
SLOW_START_SHARE = 16
"""Permits at the beginning: 8, or a sixteenth of the ceiling if that is more. They double each
round trip until the first overload; four doublings reach the ceiling."""

CATCH_UP_S = 0.02
"""Requests that are spread in time may be late by that much, or by half of their gap, and still
make it good: timers are not exact."""

GAP_CHANGE = 0.2
"""Part by which the time between two requests changes before processes spread theirs again."""


def start_of(ceiling: int) -> int:
    """Return the permits that a run begins with."""
    return max(SLOW_START, ceiling // SLOW_START_SHARE)


class Limiter:
    """Grants permits, first come first served.

    During a pause no permit is granted to anyone. A second, shorter pause does not shorten it.

    Args:
        ceiling: Most permits out at once.
        start: Permits at the beginning; by default the ceiling at once.
        rpm: Requests a minute; None is no limit until one is learnt.
        tpm: Tokens a minute; likewise.
        share: Part of these limits, and of what is left of them, that this process may use.
        longest_s: Seconds after which a request is given up.
        courtesy: See `GoodputLimit`.
        clock: Monotonic seconds; by default the running loop's.

    Attributes:
        window: The adaptive limit on requests in flight.
        requests: Requests a minute.
        tokens: Tokens a minute.
        in_flight: Permits out now.
        shared: Other endpoints may do the work: a pause rejects all that wait here.
        sharers: Pools in which others may.
        recent_s: Seconds of the last 1,000 successful requests.
    """

    def __init__(
        self,
        ceiling: int,
        *,
        start: int | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
        share: float = 1.0,
        longest_s: float = math.inf,
        courtesy: float = 1.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        begin = float(min(ceiling, start or ceiling))
        self.window = GoodputLimit(ceiling, begin, longest_s=longest_s, courtesy=courtesy)
        self.requests = TokenBucket()
        self.tokens = TokenBucket()
        self.in_flight = 0
        self.shared = False
        self.sharers: set[int] = set()
        self.recent_s: deque[float] = deque(maxlen=1_000)
        self._ceiling = ceiling
        self._fixed = (rpm, tpm)
        self._learnt: list[float | None] = [None, None]
        self._share = share
        self._held = 0  # permits of quick refusals that are not given back yet
        self._leased_gap_s = 0.0
        self._sent_at = 0.0  # when the last of the requests that are spread in time was due
        self._empty = False
        self._begun = False
        self._clock = clock
        self._closed_until = 0.0
        self._opened = False
        self._waiting: deque[tuple[asyncio.Future[int], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_rationed(self) -> bool:
        """Requests wait for time to pass, not for others to end."""
        return bool(self._waiting) and self._timer is not None

    @property
    def is_lowered(self) -> bool:
        """Requests wait because the endpoint did not take more at once."""
        return bool(self._waiting) and self.window.spreads

    def hold_growth(self, *, held: bool) -> None:
        """Let no more be in flight than now, or again as many as may be.

        Args:
            held: The server says that it is full.
        """
        most = max(1, min(self._ceiling, math.ceil(self.window.load)))
        self.window.ceiling = most if held else self._ceiling

    @property
    def load(self) -> float:
        """Requests out or waiting for each one that may be out."""
        return (self.in_flight + len(self._waiting)) / max(1.0, self.window.load)

    def backlog_s(self, tokens: float) -> float:
        """Return the seconds until pauses and rates would let one more request go out."""
        now = self._now()
        ahead = len(self._waiting) + 1
        return max(
            self.paused_s,
            self.requests.backlog_s(ahead, now),
            self.tokens.backlog_s(ahead * tokens, now),
        )

    def reject_waiters(self) -> None:
        """Raise `EndpointBusyError` in all calls that wait for a permit."""
        for granted, _ in self._waiting:
            if not granted.done():
                granted.set_exception(EndpointBusyError())
        self._waiting.clear()

    async def acquire(self, tokens: float = 0.0) -> int:
        """Return when the caller may send one request.

        Args:
            tokens: Estimate of the tokens that the request takes.

        Returns:
            The epoch, for `succeeded` and `overloaded`.

        Raises:
            EndpointBusyError: See `reject_waiters`.
        """
        if not self._begun:
            self._begin()
        if not self._waiting and self._delay(tokens) == 0:
            return self._take(tokens)
        self.window.held_back = True
        granted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((granted, tokens))
        self._grant()
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self.release()
            else:
                with contextlib.suppress(ValueError):  # a release may have passed it over
                    self._waiting.remove((granted, tokens))
            raise

    def release(self, hold_s: float = 0.0) -> None:
        """Give a permit back, or in a number of seconds."""
        self.in_flight -= 1
        if hold_s > 0:
            self._held += 1
            asyncio.get_running_loop().call_later(hold_s, self._free)
        elif self._waiting:
            self._grant()

    def _free(self) -> None:
        self._held -= 1
        self._grant()

    def pause(self, seconds: float) -> None:
        """Grant no permit for a number of seconds from now."""
        if not self._opened:
            self._closed_until = max(self._closed_until, self._now() + seconds)
            if self.shared:
                self.reject_waiters()

    def succeeded(self, epoch: int, latency_s: float) -> None:
        """Note a success, before its permit is given back.

        Args:
            epoch: What `acquire` returned.
            latency_s: Seconds that the request took.
        """
        if self._waiting:
            self.window.held_back = True
        self.recent_s.append(latency_s)
        now = self._clock() if self._clock is not None else self._now()
        self.window.succeeded(epoch, latency_s, self.in_flight, now)

    def overloaded(self, epoch: int, latency_s: float, weight: float = 1.0) -> float:
        """Note an error that too much load may have caused, before its permit is given back.

        Args:
            epoch: What `acquire` returned.
            latency_s: Seconds that the request took.
            weight: How strongly this kind of error speaks of load.

        Returns:
            The seconds for which the permit is to be held.
        """
        self.window.failed(epoch, self.in_flight, self._now(), weight)
        return self.window.hold_s(latency_s)

    def recovered(self) -> None:
        """Note that an outage is over."""
        self.window.recovered(self._now())
        self._grant()

    def learn_requests(self, per_minute: float | None, left: float | None) -> None:
        """Note what the endpoint says of its limit; what the user fixed stands."""
        self._learnt[0] = per_minute or self._learnt[0]
        self._learn(self.requests, self._fixed[0], per_minute, left)

    def learn_tokens(self, per_minute: float | None, left: float | None) -> None:
        """Note what the endpoint says of its limit; what the user fixed stands."""
        self._learnt[1] = per_minute or self._learnt[1]
        self._learn(self.tokens, self._fixed[1], per_minute, left)

    def correct_tokens(self, estimated: float, used: float) -> None:
        """Note what a request really cost."""
        if not math.isinf(self.tokens.per_minute):
            self.tokens.take(used - estimated, self._now())

    def begin_empty(self) -> None:
        """Begin with empty buckets, because another process may have used this minute."""
        self._empty = True

    def lease(self, share: float) -> None:
        """Use a part of the rates a minute from now on; other processes use the rest.

        Where requests are spread in time, the next one comes at a random moment after each change,
        so that the processes do not send at once and then all wait.
        """
        self._share = share
        now = self._now()
        if self._begun:
            buckets = (self.requests, self.tokens)
            for bucket, fixed, learnt in zip(buckets, self._fixed, self._learnt, strict=True):
                if (rate := learnt if fixed is None else fixed) is not None:
                    bucket.set_rate(rate * share, now)
        gap_s = self.window.gap_s
        if abs(gap_s - self._leased_gap_s) > GAP_CHANGE * gap_s:
            self._leased_gap_s = gap_s
            self._sent_at = now - random.random() * gap_s  # noqa: S311
        self._grant()

    def open(self) -> None:
        """Grant every permit from now on, so that waiting workers see that the run stops."""
        self._opened = True
        self._closed_until = 0.0
        self._grant()

    @property
    def limit(self) -> int:
        """Permits now."""
        return sys.maxsize if self._opened else self.window.in_flight

    @property
    def paused_s(self) -> float:
        """Seconds until permits are granted again, 0 if they are."""
        return max(0.0, self._closed_until - self._now()) if self._closed_until else 0.0

    def _begin(self) -> None:
        self._begun = True
        now = self._now()
        for bucket, rate in zip((self.requests, self.tokens), self._fixed, strict=True):
            if rate is not None:
                bucket.set_rate(rate * self._share, now)
                if self._empty:
                    bucket.no_more_than(0.0, now)

    def _learn(
        self, bucket: TokenBucket, fixed: float | None, per_minute: float | None, left: float | None
    ) -> None:
        now = self._now()
        if fixed is None and per_minute is not None:
            rate = per_minute * self._share
            if rate != bucket.per_minute:
                bucket.set_rate(rate, now)
        if left is not None and not math.isinf(bucket.per_minute):
            # The endpoint may not have counted the requests in flight yet.
            bucket.no_more_than(left * self._share, now)

    def _delay(self, tokens: float) -> float:
        """Return the seconds to wait, infinite if it is for a permit to come back."""
        if self._opened:
            return 0.0
        window = self.window
        if self.in_flight + self._held >= window.in_flight:
            return math.inf
        stated = not (math.isinf(self.requests.per_minute) and math.isinf(self.tokens.per_minute))
        if not stated and not window.spreads:
            return 0.0 if self._closed_until == 0.0 else self.paused_s
        now = self._now()
        wait = self.paused_s
        if window.spreads:
            wait = max(wait, self._sent_at + window.gap_s - now, window.rests_until - now)
        if stated:
            wait = max(wait, self.requests.delay(1.0, now), self.tokens.delay(tokens, now))
        return wait

    def _take(self, tokens: float) -> int:
        self.in_flight += 1
        window = self.window
        if window.spreads:
            now, gap_s = self._now(), window.gap_s
            late_s = max(CATCH_UP_S, 0.5 * gap_s)
            self._sent_at = max(self._sent_at + gap_s, now - late_s)
        if not math.isinf(self.requests.per_minute):
            self.requests.take(1.0, self._now())
        if not math.isinf(self.tokens.per_minute):
            self.tokens.take(tokens, self._now())
        return window.epoch

    def _grant(self) -> None:
        wait = 0.0
        while self._waiting:
            granted, tokens = self._waiting[0]
            if not granted.done():
                if wait := self._delay(tokens):
                    break
                granted.set_result(self._take(tokens))
            self._waiting.popleft()
        if self._waiting and self._timer is None and 0 < wait < math.inf:
            self._timer = asyncio.get_running_loop().call_later(wait, self._reopen)

    def _reopen(self) -> None:
        self._timer = None
        self._grant()

    def _now(self) -> float:
        if self._clock is None:
            self._clock = asyncio.get_running_loop().time  # others ask from their threads
        return self._clock()
