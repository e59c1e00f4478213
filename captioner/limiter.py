"""Permits for requests in flight, and the pauses a server asks for. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Limiter:
    """Bounds how many requests are in flight, first come first served.

    A pause is a floor for everybody: while it lasts no permit is granted, and asking again
    for less never shortens it.

    Args:
        limit: Most permits out at once.
        clock: Monotonic seconds; by default the running loop's.
    """

    def __init__(self, limit: int, *, clock: Callable[[], float] | None = None) -> None:
        self.limit = limit
        self.in_flight = 0
        self._clock = clock
        self._closed_until = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self) -> None:
        """Return when the caller may send one request."""
        if not self._waiting and self._free():
            self.in_flight += 1
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append(granted)
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release()
            else:
                with contextlib.suppress(ValueError):  # a release may have passed it over
                    self._waiting.remove(granted)
            raise

    def release(self) -> None:
        """Give a permit back."""
        self.in_flight -= 1
        self._grant()

    def pause(self, seconds: float) -> None:
        """Grant nothing for so many seconds from now."""
        if self.limit < sys.maxsize:
            self._closed_until = max(self._closed_until, self._now() + seconds)

    def open(self) -> None:
        """Grant everything from now on: the run is stopping, and those who wait are to see it."""
        self.limit = sys.maxsize
        self._closed_until = 0.0
        self._grant()

    @property
    def paused_s(self) -> float:
        """Seconds until permits are granted again, 0 if they are."""
        return max(0.0, self._closed_until - self._now())

    def _free(self) -> bool:
        return self.in_flight < self.limit and (
            self._closed_until == 0.0 or self._now() >= self._closed_until
        )

    def _grant(self) -> None:
        while self._waiting and self._free():
            granted = self._waiting.popleft()
            if not granted.done():
                self.in_flight += 1
                granted.set_result(None)
        if self._waiting and self._timer is None and (wait := self.paused_s):
            self._timer = asyncio.get_running_loop().call_later(wait, self._reopen)

    def _reopen(self) -> None:
        self._timer = None
        self._grant()

    def _now(self) -> float:
        return self._clock() if self._clock else asyncio.get_running_loop().time()
