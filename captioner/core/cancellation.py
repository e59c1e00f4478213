"""Cancellation of a run: one token, shared by everything that waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

T = TypeVar("T")


class StoppedError(Exception):
    """The run is stopping; the record at hand stays pending."""


class EndpointBusyError(Exception):
    """An endpoint will accept nothing for a while; another one may."""


class CancelToken:
    """Cancellation token of a run.

    After `request`, no new work starts and pending waits return; requests in flight may finish.
    After `force`, requests in flight are given up as well. A token that was not requested is
    false.
    """

    def __init__(self) -> None:
        self._requested = asyncio.Event()
        self._forced = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        """Return whether cancellation was requested."""
        return self._requested.is_set()

    def request(self) -> None:
        """Request cancellation: start nothing new, let requests in flight finish."""
        if not self:
            self._requested.set()
            for callback in self._callbacks:
                callback()

    def force(self) -> None:
        """Request cancellation and give up requests in flight."""
        self.request()
        self._forced.set()

    def raise_if_requested(self) -> None:
        """Raise `StoppedError` if cancellation was requested."""
        if self:
            raise StoppedError

    def on_request(self, callback: Callable[[], None]) -> None:
        """Call a function when cancellation is requested, at once if it was."""
        if self:
            callback()
        else:
            self._callbacks.append(callback)

    @property
    def forced(self) -> bool:
        """Whether requests in flight are given up as well."""
        return self._forced.is_set()

    async def wait(self) -> None:
        """Return when cancellation is requested."""
        await self._requested.wait()

    async def wait_forced(self) -> None:
        """Return when cancellation is forced."""
        await self._forced.wait()

    async def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            StoppedError: Cancellation was requested before the time was over.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._requested.wait()
        except TimeoutError:
            return
        raise StoppedError

    async def race(self, work: Coroutine[Any, Any, T], *, timeout_s: float | None = None) -> T:
        """Return the result of a coroutine unless cancellation comes first.

        Args:
            work: The coroutine. It is cancelled if it does not finish first.
            timeout_s: Seconds it may take; None is no limit.

        Raises:
            StoppedError: Cancellation was requested first.
            TimeoutError: The time was over first.
        """
        task = asyncio.ensure_future(work)
        requested = asyncio.ensure_future(self._requested.wait())
        try:
            await asyncio.wait(
                (task, requested), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if self:
                raise StoppedError
            if not task.done():
                raise TimeoutError
            return task.result()
        finally:
            task.cancel()
            requested.cancel()

    # The names until version 0.2.
    set = request
    hurry = force


Stopping = CancelToken
"""The name of `CancelToken` until version 0.2."""
