"""A budget of bytes that threads draw on and the event loop gives back to."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class MemoryBudget:
    """Bounds the bytes held by prepared records, whatever the concurrency.

    One reservation is always granted when nothing is held, so that a record larger than the whole
    budget passes alone.

    Args:
        total: Bytes.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = 0
        self._closed = False
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._blocked = 0  # threads that wait
        self._thread = threading.local()
        self._waiters: list[asyncio.Future[None]] = []

    def before_waiting(self, hand_over: Callable[[], None]) -> None:
        """Set what this thread does before it waits: it must not sit on what others wait for."""
        self._thread.hand_over = hand_over

    def reserve(self, size: int, *, wait: bool = True) -> None:
        """Take bytes; blocks until they are free unless ``wait`` is false or it is closed."""
        with self._condition:
            if wait and self._held and self._held + size > self._total and not self._closed:
                getattr(self._thread, "hand_over", _nothing)()
            self._blocked += 1
            while wait and self._held and self._held + size > self._total and not self._closed:
                self._condition.wait()
            self._blocked -= 1
            self._held += size

    def reserve_at_once(self, size: int) -> bool:
        """Take bytes if they are free, and tell whether they were."""
        with self._lock:
            if self._held and self._held + size > self._total and not self._closed:
                return False
            self._held += size
            return True

    async def reserve_soon(self, size: int, *, wait: bool = True) -> None:
        """Take bytes from the event loop; as `reserve`, but only the caller waits."""
        while True:
            with self._condition:
                full = self._held and self._held + size > self._total
                if not (wait and full) or self._closed:
                    self._held += size
                    return
                room = asyncio.get_running_loop().create_future()
                self._waiters.append(room)
            await room

    def change(self, size: int) -> None:
        """Take or, below 0, give back bytes, without waiting."""
        with self._lock:
            self._held += size
            if size < 0 and (self._blocked or self._waiters):
                self._wake()

    def release(self, size: int) -> None:
        """Give bytes back."""
        self.change(-size)

    def close(self) -> None:
        """Let everybody through: the run is ending."""
        with self._condition:
            self._closed = True
            self._wake()

    def _wake(self) -> None:
        """Have everybody who waits look again."""
        self._condition.notify_all()
        waiters, self._waiters = self._waiters, []
        for room in waiters:
            room.get_loop().call_soon_threadsafe(_settle, room)


def _settle(room: asyncio.Future[None]) -> None:
    if not room.done():
        room.set_result(None)


def _nothing() -> None:
    """Hand over nothing: this thread holds no more than it is about to return."""
