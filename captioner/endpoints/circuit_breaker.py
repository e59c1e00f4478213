"""Circuit breaker: whether an endpoint works, as seen by all workers together.

Endpoint errors cost no attempts of a record. After `FAULTS_TO_OPEN` errors in a row the circuit
opens: workers wait, and one probe at a time is sent after 1, 2, 4 … 60 s, until a probe succeeds
or the outage exceeds ``--max-outage``. No pause is longer than an eighth of the outage so far, so
a short outage is not prolonged by much.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from captioner.core.cancellation import EndpointBusyError
from captioner.core.errors import EndpointFaultError, EndpointGaveOutError, EndpointRefusedError
from captioner.core.humanize import sentence
from captioner.core.retry import waits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

FAULTS_TO_OPEN = 10
CHANCE_TO_OPEN = 1e-8
"""Errors in a row that open the circuit; more where errors come by chance, so that chance alone
opens it once in a hundred million requests."""

SHORTEST_PAUSE_S = 1.0
NEVER_CAPTIONED_S = 60.0
"""Longest outage of an endpoint without a caption so far: address or model are probably wrong."""

LOADING_S = 1_800.0
"""The same while the endpoint says that it loads its model."""


def unknown_host(fault: EndpointFaultError) -> EndpointRefusedError:
    """Return the error that stops a run whose endpoint has a name that does not exist."""
    return EndpointRefusedError(
        f"{sentence(fault.message)} There is no host of that name: check --base-url, and a proxy "
        "in the environment."
    )


class CircuitBreaker:
    """Circuit breaker of one endpoint, shared by all workers.

    Args:
        name: The endpoint as the user knows it, for messages.
        max_outage_s: Seconds without a success after which the run gives up; None is no limit.
        sleep: Waits some seconds; raises or is cancelled when the run is cancelled.

    Attributes:
        successes: Responses so far that show that the endpoint works.
        captions: Responses with text of the model among them.
        is_open: The endpoint keeps failing: workers wait and probes are sent.
        probing: A worker probes, or waits to probe.
        shared: Other endpoints may do the work: waiting workers leave when something changes.
        sharers: Pools in which others may.
        noise: Share of errors that come by chance.
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
        self.is_open = False
        self.probing = False
        self.shared = False
        self.sharers: set[int] = set()
        self.noise = 0.0
        self._name = name
        self._max_outage_s = max_outage_s
        self._sleep = sleep
        self._patience_s = NEVER_CAPTIONED_S  # until the first caption
        self._faults = 0  # in a row
        self._since = 0.0  # loop time of the first of them
        self._waits: Iterator[float] = iter(())
        self._probe_at = 0.0
        self._changed = asyncio.Event()

    async def ready(self) -> bool:
        """Return when a request may be sent; True if it is the probe.

        After a probe, call `record_success`, `record_fault` or `abandon_probe`.

        Raises:
            EndpointBusyError: The circuit is still open, and another endpoint may work.
        """
        while self.is_open:
            if not self.probing:
                self.probing = True
                try:
                    now = asyncio.get_running_loop().time()
                    await self._sleep(max(0.0, min(self._probe_at - now, self.seconds_left())))
                except BaseException:
                    self.abandon_probe()
                    raise
                return True
            await self._changed.wait()
            if self.is_open and self.shared:
                raise EndpointBusyError
        return False

    def probe_due(self) -> bool:
        """Return whether it is time for a probe that no worker waits to send."""
        return (
            self.is_open
            and not self.probing
            and asyncio.get_running_loop().time() >= self._probe_at
        )

    def record_success(self, *, caption: bool = True) -> bool:
        """Record a response of a working endpoint: the model's text, or another one.

        Returns:
            Whether an outage ended with it.
        """
        self.successes += 1
        self.captions += caption
        self._faults = 0
        was_open = self.is_open
        if was_open:
            self.is_open = self.probing = False
            self.wake()
        return was_open

    def record_fault(self, fault: EndpointFaultError, *, probe: bool) -> None:
        """Record an error of the endpoint.

        Raises:
            EndpointRefusedError: There is no such host, and there never was a caption.
            EndpointGaveOutError: The outage has lasted longer than allowed.
        """
        if fault.is_unknown_host and not self.captions:
            if probe:
                self.abandon_probe()
            raise unknown_host(fault)
        now = asyncio.get_running_loop().time()
        if not self._faults:
            self._since = now
        if fault.is_loading:
            self._patience_s = LOADING_S
        elif fault.retry_after_s is not None:
            self._patience_s = max(self._patience_s, now - self._since + fault.retry_after_s + 1)
        self._faults += 1
        if self._faults >= self._faults_to_open and not self.is_open:
            self.is_open = True
            self._waits = waits()
            self._probe_after(now)
        if probe:
            self._probe_after(now)
            self.abandon_probe()
        if self.seconds_left() <= 0:
            raise EndpointGaveOutError(
                f"The endpoint {self._name} has given no caption for {now - self._since:.0f} s. "
                f"{sentence(f'The last error: {fault.message}')} Run the same command again when "
                "it works."
            )

    @property
    def _faults_to_open(self) -> float:
        if not 0.0 < self.noise < 1.0:
            return FAULTS_TO_OPEN
        return max(FAULTS_TO_OPEN, math.log(CHANCE_TO_OPEN) / math.log(self.noise))

    def _probe_after(self, now: float) -> None:
        longest = max(SHORTEST_PAUSE_S, (now - self._since) / 8)
        self._probe_at = now + min(longest, max(0.1, next(self._waits)))

    def seconds_left(self) -> float:
        """Return the seconds until this outage has lasted too long, infinite without an outage."""
        longest = self.patience_s
        if not self._faults:
            return math.inf
        return max(0.0, self._since + longest - asyncio.get_running_loop().time())

    @property
    def patience_s(self) -> float:
        """Seconds that an outage may last; infinite is no limit."""
        if self._max_outage_s is not None:
            return self._max_outage_s
        return math.inf if self.captions else self._patience_s

    def abandon_probe(self) -> None:
        """Note that a probe ended without a verdict; the next worker sends one."""
        self.probing = False
        self.wake()

    def wake(self) -> None:
        """Wake all waiters."""
        self._changed.set()
        self._changed = asyncio.Event()
