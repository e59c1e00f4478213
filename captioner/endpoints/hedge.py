"""The end of a run: what takes much longer than usual is sent a second time.

A run ends when its whole input is read and fewer requests are left than may be in flight. The
permits that are free then cost nothing, and a single slow request would keep the run going.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from captioner.core.types import Completion

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from captioner.core.progress import Progress
    from captioner.endpoints.endpoint import Endpoint
    from captioner.endpoints.limiter import Limiter

    Answer = tuple[Endpoint, Completion | Exception]

LOOK_S = 0.1
"""Seconds between two looks at the requests in flight."""

SHARE = 0.99
FEWEST = 100
"""Part of all requests that are faster than one that is sent again, and how many must be known."""


@dataclass(slots=True, eq=False)
class _Request:
    """A request that has no answer yet."""

    send_again: Callable[[], Awaitable[Answer]]
    task: asyncio.Task[object]
    began: float
    cancelled: int  # times that its task was cancelled before
    second: asyncio.Task[None] | None = None
    answer: Answer | None = None  # to the second one


class Hedge:
    """Sends stragglers at the end of a run a second time; the first answer wins.

    Args:
        progress: The run.
        limiters: Returns the limiters of its endpoints.
    """

    def __init__(self, progress: Progress, limiters: Callable[[], Sequence[Limiter]]) -> None:
        self._progress = progress
        self._limiters = limiters
        self._open: dict[_Request, None] = {}
        self._ends_since = 0.0  # 0: the run does not end yet
        self._watcher: asyncio.Task[None] | None = None
        self._seconds: set[asyncio.Task[None]] = set()

    async def first_answer(
        self, send: Callable[[], Awaitable[Answer]], send_again: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """Send a request, a second time if that is worth it, and return the first answer.

        The other request is cancelled. It is counted at the same cost as the answer, because its
        own cost is not known.

        Args:
            send: Sends it.
            send_again: Sends it for the second time.

        Raises:
            CaptionerError: What the first request raises.
        """
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
        task = cast("asyncio.Task[object]", asyncio.current_task())
        now = asyncio.get_running_loop().time()
        request = _Request(send_again, task, now, task.cancelling())
        self._open[request] = None
        try:
            answer = await send()
            second = request.second
            if second is not None and not isinstance(answer[1], Completion):
                await asyncio.wait([second])  # which cancels this if it has an answer
        except asyncio.CancelledError:
            if request.answer is None or task.uncancel() > request.cancelled:
                raise
            return _counted_twice(request.answer)
        finally:
            del self._open[request]
            is_lost = request.second is not None and request.second.cancel()
        return _counted_twice(answer) if is_lost else answer

    async def close(self) -> None:
        """Cancel what is left."""
        tasks = [*self._seconds, *([self._watcher] if self._watcher is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._look(asyncio.get_running_loop().time())

    def _look(self, now: float) -> None:
        """Send again what takes too long."""
        limiters = self._limiters()
        progress = self._progress
        ends = progress.complete and progress.stage != "draining" and not progress.waiting
        if not ends or len(self._open) >= sum(limiter.limit for limiter in limiters):
            self._ends_since = 0.0
            return
        # Before, a request may have waited for its turn.
        self._ends_since = self._ends_since or now
        known = sorted(seconds for limiter in limiters for seconds in limiter.recent_s)
        if len(known) < FEWEST:
            return
        longest_s = known[int(SHARE * len(known))]
        for request in self._open:
            if request.second is None and now - max(request.began, self._ends_since) > longest_s:
                request.second = asyncio.create_task(self._send_again(request))
                self._seconds.add(request.second)
                request.second.add_done_callback(self._seconds.discard)

    async def _send_again(self, request: _Request) -> None:
        with contextlib.suppress(Exception):  # the first one may still be answered
            answer = await request.send_again()
            if isinstance(answer[1], Completion) and request in self._open:
                request.answer = answer
                request.task.cancel()


def _counted_twice(answer: Answer) -> Answer:
    endpoint, completion = answer
    if isinstance(completion, Completion):
        endpoint.count(completion.usage)
    return answer
