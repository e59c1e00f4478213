"""Whether an endpoint is well, as all its workers together have seen it.

An endpoint in trouble spends nobody's attempts. After a row of faults without one success it
rests: the workers wait, and one probe at a time goes out after 1, 2, 4 … 60 s, until one succeeds
or the outage has lasted longer than the user wants to wait. No pause is longer than an eighth of
the outage so far, so that a minute's outage is not made to last half a minute more.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from captioner.core.cancellation import EndpointBusyError
from captioner.core.errors import EndpointFaultError, EndpointGaveOutError
from captioner.core.retry import waits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

FAULTS_TO_REST = 10
SHORTEST_REST_S = 1.0
NEVER_ANSWERED_S = 60.0
"""An address that has never answered anything is more likely wrong than away."""


class CircuitBreaker:
    """Shared by all workers of one endpoint.

    Args:
        name: The endpoint as the user knows it, for messages.
        max_outage_s: Seconds without a success after which to give up; None is never.
        sleep: Waits so many seconds; raises or is cancelled when the run is stopping.

    Attributes:
        successes: Replies so far that show the endpoint well.
        captions: Answers of the model among them.
        blamed: Faults so far for which a record may be to blame.
        resting: Workers wait, and probes go out.
        probing: Somebody probes it, or waits to.
        shared: Others may do the work: who waits here is sent away when something changes.
    """

    def __init__(
        self,
        name: str,
        *,
        max_outage_s: float | None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.successes = 0
        self.captions = 0
        self.blamed = 0
        self.resting = False
        self.shared = False
        self._name = name
        self._max_outage_s = max_outage_s
        self._sleep = sleep
        self._answered = False
        self._faults = 0
        self._since = 0.0
        self.probing = False
        self._waits: Iterator[float] = iter(())
        self._probe_at = 0.0
        self._changed = asyncio.Event()

    async def ready(self) -> bool:
        """Return when a request may go out; True if it is the probe.

        A probe must be followed by `succeeded` or `faulted`, or by `abandoned`.

        Raises:
            DispersedError: It still rests, and another endpoint may be well.
        """
        while self.resting:
            if not self.probing:
                self.probing = True
                try:
                    now = asyncio.get_running_loop().time()
                    await self._sleep(max(0.0, min(self._probe_at - now, self.left_s())))
                except BaseException:
                    self.abandoned()
                    raise
                return True
            await self._changed.wait()
            if self.resting and self.shared:
                raise EndpointBusyError
        return False

    def probe_due(self) -> bool:
        """Tell whether a resting endpoint is to be asked now how it is."""
        return (
            self.resting
            and not self.probing
            and asyncio.get_running_loop().time() >= self._probe_at
        )

    def succeeded(self, *, caption: bool = True) -> None:
        """Note an answer of the model, or another reply of an endpoint that is well."""
        self.successes += 1
        self.captions += caption
        self._answered = True
        self._faults = 0
        if self.resting:
            self.resting = self.probing = False
            self.wake()

    def answered(self) -> None:
        """Note any HTTP reply: there is a server at that address."""
        self._answered = True

    def faulted(self, fault: EndpointFaultError, *, probe: bool) -> None:
        """Note a fault.

        Raises:
            EndpointGaveOutError: The outage has lasted longer than allowed.
        """
        now = asyncio.get_running_loop().time()
        if not self._faults:
            self._since = now
        self._faults += 1
        if self._faults >= FAULTS_TO_REST and not self.resting:
            self.resting = True
            self._waits = waits()
            self._probe_after(now)
        if probe:
            self._probe_after(now)
            self.abandoned()
        if self.left_s() <= 0:
            raise EndpointGaveOutError(
                f"The endpoint {self._name} has given no caption for {now - self._since:.0f} s "
                f"({fault.message}). When it is well again, run the same command again."
            )

    def _probe_after(self, now: float) -> None:
        longest = max(SHORTEST_REST_S, (now - self._since) / 8)
        self._probe_at = now + min(longest, max(0.1, next(self._waits)))

    def left_s(self) -> float:
        """Return the seconds until this outage has lasted too long, infinite while all is well."""
        longest = self._max_outage_s
        if not self._answered:
            longest = min(NEVER_ANSWERED_S, longest or NEVER_ANSWERED_S)
        if longest is None or not self._faults:
            return math.inf
        return max(0.0, self._since + longest - asyncio.get_running_loop().time())

    def abandoned(self) -> None:
        """Note that the probe ended without a verdict; the next worker sends one."""
        self.probing = False
        self.wake()

    def wake(self) -> None:
        """Have everybody look again who waits for it."""
        self._changed.set()
        self._changed = asyncio.Event()
