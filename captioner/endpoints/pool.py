"""The endpoints of a run. Each has its own limits and circuit breaker; the least loaded is used.

::

    record ─▶ EndpointPool.attempt ─▶ Endpoint ─▶ breaker ─▶ limiter ─▶ transport ─▶ dialect.judge
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from captioner.core.cancellation import EndpointBusyError
from captioner.core.errors import EndpointFaultError, EndpointGaveOutError, EndpointRefusedError
from captioner.endpoints.endpoint import ALIVE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.core.progress import EndpointState
    from captioner.core.types import Completion, RequestOverrides
    from captioner.endpoints.blame import PoisonDetector
    from captioner.endpoints.endpoint import Endpoint
    from captioner.endpoints.hedge import Hedge
    from captioner.endpoints.limiter import Limiter

logger = logging.getLogger(__name__)

ALONE_S = 0.1
"""Pause of a record that has nowhere else to go where others have."""

STAY_S = 1.0
STAY = 0.5
"""What a request may lose by going where its image went before, whose server may still have it:
seconds until it is sent, and the difference of the loads (see `Limiter.load`)."""


class EndpointPool:
    """All endpoints of a run.

    Args:
        endpoints: At least one.

    Attributes:
        hedge: Sends stragglers again; None does not.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.hedge: Hedge | None = None
        self._left = list(endpoints)
        self._update_shared()

    @property
    def limiters(self) -> list[Limiter]:
        """The limiter of each endpoint."""
        return [endpoint.limiter for endpoint in self._left]

    def states(self) -> list[EndpointState]:
        """Return the state of each endpoint."""
        return [endpoint.state for endpoint in self._left]

    def _update_shared(self) -> None:
        for endpoint in self._left:
            self._share(endpoint, among_several=len(self._left) > 1)

    def _share(self, endpoint: Endpoint, *, among_several: bool) -> None:
        """Say whether records of this pool that wait for an endpoint may go to another one.

        Pools of several stages may have the same endpoint, and then its limits, too.
        """
        for part in (endpoint.limiter, endpoint.breaker):
            if among_several:
                part.sharers.add(id(self))
            else:
                part.sharers.discard(id(self))
            part.shared = bool(part.sharers)

    def forget_captions(self) -> None:
        """Count from now on as endpoints that have given no caption."""
        for endpoint in self._left:
            endpoint.forget_captions()

    @property
    def seconds_left(self) -> float:
        """Seconds until the last endpoint is given up, infinite while one works."""
        return max(endpoint.breaker.seconds_left() for endpoint in self._left)

    def choose(self, before: Endpoint | None = None) -> Endpoint:
        """Return the endpoint for the next attempt: one that is due a probe, else the least loaded.

        Endpoints with an open circuit are left alone while others work. If all circuits are open,
        each endpoint gets a worker that waits to probe it.

        Args:
            before: The one that has answered with the same image; see `STAY`.
        """
        if len(self._left) == 1:
            return self._left[0]
        for endpoint in self._left:
            if endpoint.breaker.probe_due():
                return endpoint
        working = [endpoint for endpoint in self._left if not endpoint.breaker.is_open]
        unprobed = [endpoint for endpoint in self._left if not endpoint.breaker.probing]
        best = min(working or unprobed or self._left, key=lambda endpoint: endpoint.load)
        near = [one for one in working if before is not None and one.limiter is before.limiter]
        if near:
            (wait_s, full), (least_s, least) = near[0].load, best.load
            if wait_s <= least_s + STAY_S and full <= least + STAY:
                return near[0]
        return best

    async def attempt(
        self,
        messages: tuple[bytes, ...],
        overrides: RequestOverrides,
        *,
        retry: bool,
        poison: PoisonDetector | None = None,
        before: Endpoint | None = None,
    ) -> tuple[Endpoint, Completion | Exception]:
        """Send one request to the best endpoint; return it with the model's text or the error.

        The arguments are those of `Endpoint.attempt` and `choose`.

        Raises:
            RunError: No endpoint is left.
            StoppedError: The run is cancelled.
        """
        first = partial(
            self._attempt, messages, overrides, retry=retry, poison=poison, before=before
        )
        if self.hedge is None:
            return await first()
        second = partial(self._attempt, messages, overrides, retry=True, poison=None, before=None)
        return await self.hedge.first_answer(first, second)

    async def _attempt(
        self,
        messages: tuple[bytes, ...],
        overrides: RequestOverrides,
        *,
        retry: bool,
        poison: PoisonDetector | None,
        before: Endpoint | None,
    ) -> tuple[Endpoint, Completion | Exception]:
        while True:
            endpoint = self.choose(before)
            was_open = endpoint.breaker.is_open
            try:
                completion = await endpoint.attempt(messages, overrides, retry=retry, poison=poison)
            except EndpointBusyError:
                await asyncio.sleep(0 if len(self._left) > 1 else ALONE_S)
            except (EndpointRefusedError, EndpointGaveOutError) as error:
                self._drop(endpoint, error)
            except (EndpointFaultError, *ALIVE) as error:
                return endpoint, error
            else:
                if was_open and not endpoint.breaker.is_open:
                    for other in self._left:  # workers that wait for another one can come here
                        other.breaker.wake()
                return endpoint, completion

    def _drop(self, endpoint: Endpoint, error: EndpointRefusedError | EndpointGaveOutError) -> None:
        """Send nothing to an endpoint from now on.

        Raises:
            RunError: It was the last one.
        """
        if self._left == [endpoint]:
            raise error
        if endpoint in self._left:
            self._left.remove(endpoint)
            self._share(endpoint, among_several=False)
            endpoint.limiter.reject_waiters()
            endpoint.breaker.wake()
            self._update_shared()
            logger.warning("going on without %s: %s", endpoint.name, error)
