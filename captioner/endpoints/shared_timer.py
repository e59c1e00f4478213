"""How long one exchange may take: one timer for all of them."""

from __future__ import annotations

import asyncio


class SharedTimer:
    """Ends exchanges that take too long, with one timer for all: they are all allowed as much.

    What `asyncio.timeout` does, for a tenth of the price.

    Args:
        seconds: Allowed for each.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.running: dict[Deadline, None] = {}  # in the order they began
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> Deadline:
        """Begin an exchange of the task that calls."""
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
    """When one exchange has to be over."""

    __slots__ = ("_deadlines", "_expired", "_task", "_wishes", "when")

    def __init__(self, deadlines: SharedTimer, when: float) -> None:
        self._deadlines = deadlines
        self._task = asyncio.current_task()
        self._wishes = self._task.cancelling() if self._task else 0
        self._expired = False
        self.when = when

    def expire(self) -> None:
        """Cancel the exchange."""
        self.end()
        if self._task is not None:
            self._expired = True
            self._task.cancel()

    def passed(self) -> bool:
        """Tell whether a cancellation was this deadline's alone."""
        return self._expired and self._task is not None and self._task.uncancel() <= self._wishes

    def end(self) -> None:
        """Note that the exchange is over."""
        self._deadlines.running.pop(self, None)
