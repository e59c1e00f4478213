"""The wish to stop, shared by everything that waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class StoppedError(Exception):
    """The run is stopping; the record at hand stays pending."""


class DispersedError(Exception):
    """An endpoint will take nothing for a while; another one may."""


class Stopping:
    """Once wished, new work is not begun and waits end; what is on the wire may still finish."""

    def __init__(self) -> None:
        self._is_wished = False  # every record asks, and an event takes twice as long to tell
        self._wished = asyncio.Event()
        self._hurried = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        """Tell whether it has been wished."""
        return self._is_wished

    def set(self) -> None:
        """Wish it."""
        if not self._is_wished:
            self._is_wished = True
            self._wished.set()
            for callback in self._callbacks:
                callback()

    def hurry(self) -> None:
        """Wish it at once: what is on the wire is given up."""
        self.set()
        self._hurried.set()

    def then(self, callback: Callable[[], None]) -> None:
        """Call a function once it is wished, for waits that do not know of it."""
        if self:
            callback()
        else:
            self._callbacks.append(callback)

    @property
    def hurried(self) -> bool:
        """It has been wished at once."""
        return self._hurried.is_set()

    async def wait(self) -> None:
        """Return when it is wished."""
        await self._wished.wait()

    async def wait_hurried(self) -> None:
        """Return when it is wished at once."""
        await self._hurried.wait()

    async def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            StoppedError: It was wished before the time was over.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._wished.wait()
        except TimeoutError:
            return
        raise StoppedError
