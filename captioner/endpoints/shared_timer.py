"""Time limits of requests: one timer for all of them, because all have the same limit."""

from __future__ import annotations

import asyncio

TICK_S = 1.0
"""Seconds between two looks at the clock while requests are running."""

STOPPED_S = 0.25
"""Seconds by which a look is late if this process was stopped, or the event loop was held up. That
time does not count: the responses that came meanwhile are read first."""


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
            self._look_at(loop, deadline.when)
        return deadline

    def _look_at(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        due = min(when, loop.time() + TICK_S)
        self._timer = loop.call_at(due, self._sweep, due)

    def _sweep(self, due: float) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        late = loop.time() - due
        if late > STOPPED_S:
            for deadline in self.running:
                deadline.when += late + TICK_S  # it may have been stopped since the last look
        for deadline in list(self.running):
            if deadline.when > loop.time():
                self._look_at(loop, deadline.when)
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
