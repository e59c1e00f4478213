"""A budget of bytes, shared by threads and the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class MemoryBudget:
    """Limits the bytes held by prepared records.

    When nothing is held a reservation is always granted, so that a record larger than the budget
    can pass alone.

    Args:
        total: Bytes.

    Attributes:
        total: Bytes.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._held = 0
        self._closed = False
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._blocked = 0  # threads that are waiting
        self._thread = threading.local()
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def held(self) -> int:
        """Bytes that are reserved now."""
        return self._held

    def before_waiting(self, hand_over: Callable[[], None]) -> None:
        """Set what this thread calls before it waits: it must release what others wait for."""
        self._thread.hand_over = hand_over

    def reserve(self, size: int, *, wait: bool = True) -> None:
        """Take bytes; block until they are free unless ``wait`` is false or the budget closed."""
        with self._condition:
            hand_over = getattr(self._thread, "hand_over", None)
            if wait and hand_over is not None and not self._fits(size):
                hand_over()
            self._blocked += 1
            while wait and not self._fits(size):
                self._condition.wait()
            self._blocked -= 1
            self._held += size

    def try_reserve(self, size: int) -> bool:
        """Take bytes if they are free, and return whether they were."""
        with self._lock:
            fits = self._fits(size)
            self._held += size if fits else 0
            return fits

    async def reserve_async(self, size: int) -> None:
        """Take bytes as `reserve` does, without blocking the event loop."""
        while True:
            with self._lock:
                if self._fits(size):
                    self._held += size
                    return
                room = asyncio.get_running_loop().create_future()
                self._waiters.append(room)
            await room

    def change(self, size: int) -> None:
        """Take bytes (a negative number returns them), without waiting."""
        with self._lock:
            self._held += size
            if size < 0 and (self._blocked or self._waiters):
                self._wake()

    def release(self, size: int) -> None:
        """Return bytes."""
        self.change(-size)

    def close(self) -> None:
        """Grant all reservations from now on: the run is ending."""
        with self._condition:
            self._closed = True
            self._wake()

    def _fits(self, size: int) -> bool:
        return not self._held or self._held + size <= self.total or self._closed

    def _wake(self) -> None:
        self._condition.notify_all()
        waiters, self._waiters = self._waiters, []
        for room in waiters:
            room.get_loop().call_soon_threadsafe(_settle, room)


def _settle(room: asyncio.Future[None]) -> None:
    if not room.done():
        room.set_result(None)
