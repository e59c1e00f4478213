"""Time limits of requests: one timer for all of them, because all have the same limit."""

from __future__ import annotations

import asyncio


class SharedTimer:
    """Cancels requests that take too long, like `asyncio.timeout` at a tenth of its cost.

    Args:
        seconds: Limit of each request.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.running: dict[Deadline, None] = {}  # ordered by start
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> Deadline:
        """Start the limit for a request of the current task."""
        loop = asyncio.get_running_loop()
        deadline = Deadline(self, loop.time() + self._seconds)
        self.running[deadline] = None
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._sweep)
        return deadline

    def _sweep(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        for deadline in list(self.running):
            if deadline.when > loop.time():
                self._timer = loop.call_at(deadline.when, self._sweep)
                return
            deadline.expire()


class Deadline:
    """The deadline of one request."""

    __slots__ = ("_expired", "_requests", "_task", "_timer", "when")

    def __init__(self, timer: SharedTimer, when: float) -> None:
        self._timer = timer
        self._task = asyncio.current_task()
        self._requests = self._task.cancelling() if self._task else 0
        self._expired = False
        self.when = when

    def expire(self) -> None:
        """Cancel the request."""
        self.end()
        if self._task is not None:
            self._expired = True
            self._task.cancel()

    def passed(self) -> bool:
        """Return whether a cancellation came from this deadline alone."""
        return self._expired and self._task is not None and self._task.uncancel() <= self._requests

    def end(self) -> None:
        """Note that the request is over."""
        self._timer.running.pop(self, None)
