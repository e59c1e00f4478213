"""Whose fault errors and refusals are: one record's, the endpoint's for a while, or the run's."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from typing import TYPE_CHECKING

from captioner.core.errors import EndpointGaveOutError, EndpointRefusedError, RunError
from captioner.core.humanize import sentence

if TYPE_CHECKING:
    from captioner.core.errors import CaptionerError, EndpointFaultError
    from captioner.endpoints.endpoint import Endpoint

STOP_FIRST = 10
STOP_LATER = 25
"""Refusals of the same kind in a row, before the first caption and after it, that stop the run."""

STOP_VERDICT = 3
"""The same before the first caption if the words say that no record will be captioned."""

STOP_ROUNDS = 6
"""Rounds of refusals after the first caption: a request counts as a new round if it was sent after
the previous refusal came. A fault of a second refuses all requests in flight, but only them."""

STOP_S = 5.0
"""Seconds that refusals last after the first caption before they stop the run."""

POISON_FAULTS = 3
POISON_SUCCESSES = 20
POISON_CHANCE = 1e-6
"""A record is blamed only if that many errors in a row would be this unlikely by chance."""

CONFIRMATION = 10
"""Successes of other records that one success of a known good request stands for."""

OVERLOAD_FAULTS = 10
OVERLOAD_CONFIRMATIONS = 5
"""The same for errors of overload, which a large request meets more often than a small one."""

_OVERLOAD = frozenset({"http_429", "http_503", "http_529"})
_NAMES = re.compile(r"['\"`][^'\"`]*['\"`]|\S*\d\S*|\b[0-9a-f]{8,}\b", re.IGNORECASE)
"""Parts of a message that differ from request to request: quoted text, numbers, identifiers."""


class RefusalGuard:
    """Stops a doomed run, whatever the words of its refusals.

    Refusals are alike if their messages are, without numbers, identifiers and quoted parts.
    Twice as many stop the run if only their codes are equal.

    Args:
        stop_after: Refusals alike in a row that stop the run; None is `STOP_FIRST` before the
            first caption and `STOP_LATER` after it.

    Attributes:
        works: There was a caption.
    """

    def __init__(self, stop_after: int | None) -> None:
        self._stop_after = stop_after
        self.works = False
        self._sent = 0
        self._counts: Counter[str] = Counter()
        self._rounds = 0
        self._round_at = 0  # requests sent when the last round began
        self._began = 0.0  # when the first refusal of the row came
        self._since = 0  # requests sent when the first refusal of the row came
        self._alone: asyncio.Future[bool] | None = None

    def begin(self) -> int:
        """Return the number of a request that is sent now."""
        self._sent += 1
        return self._sent

    @property
    def row(self) -> int:
        """Refusals since the last caption that was sent after the first of them."""
        return self._counts.total()

    def caption(self, number: int) -> None:
        """Note a caption of the request of that number."""
        self.works = True
        if self._counts and number > self._since:
            self._counts.clear()
            self._rounds = 0
            self.settle(alone=True)

    def refusal(self, error: CaptionerError, code: str, number: int, *, verdict: bool) -> None:
        """Note a refusal of the request of that number.

        Args:
            error: The refusal.
            code: Its failure code.
            number: From `begin`.
            verdict: Its words say that no record will be captioned.

        Raises:
            EndpointRefusedError: There were too many, and there never was a caption.
            EndpointGaveOutError: There were too many since the last caption.
        """
        if not self._counts:
            self._since = self._sent
            self._began = time.monotonic()
        if not self._rounds or number > self._round_at:
            self._rounds += 1
            self._round_at = self._sent
        words = _NAMES.sub("", str(error))[:200]
        self._counts[f"{code} {words}"] += 1
        if self.row > 1:
            self.settle(alone=False)
        alike = self._counts[f"{code} {words}"]
        coded = sum(count for kind, count in self._counts.items() if kind.startswith(f"{code} "))
        said = sentence(reason_of(error))
        limit = self._stop_after or (STOP_LATER if self.works else STOP_FIRST)
        too_many = alike >= limit or coded >= 2 * limit
        lasting = self._stop_after or time.monotonic() - self._began >= STOP_S
        if self.works and too_many and lasting and self._rounds >= min(limit, STOP_ROUNDS):
            many = f"{self.row} requests in a row were" if self.row > 1 else "a request was"
            raise EndpointGaveOutError(
                f"After captions with the same settings, {many} refused. {said} Check the endpoint "
                "and run the same command again. --stop-after N allows more."
            )
        if self.works:
            return
        if verdict and alike >= min(limit, STOP_VERDICT):
            raise error
        if too_many:
            first = f"{self.row} requests were all" if self.row > 1 else "request was"
            raise EndpointRefusedError(
                f"The first {first} refused. {said} Check --base-url, --model and the key. "
                "--stop-after N allows more."
            )

    async def is_alone(self, *, busy: bool) -> bool:
        """Return whether the only refusal of a row stays the only one.

        It does if a caption comes whose request was sent later, or if no request is in flight.

        Args:
            busy: Requests are in flight; call `settle` when there are none.
        """
        if self.row != 1 or not busy:
            return self.row < 2
        if self._alone is None:
            self._alone = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._alone)

    def settle(self, *, alone: bool = True) -> None:
        """Answer those who wait in `is_alone`."""
        if self._alone is not None:
            if not self._alone.done():
                self._alone.set_result(alone)
            self._alone = None


def reason_of(error: CaptionerError) -> str:
    """Return what the endpoint responded, without the advice in the message of a `RunError`."""
    return (isinstance(error, RunError) and error.reason) or str(error)


class PoisonDetector:
    """Detects whether one record makes an endpoint fail."""

    def __init__(self) -> None:
        self._seen: dict[Endpoint, tuple[int, int, int]] = {}
        self._last: tuple[int, int] = (-1, -1)
        self._was_refusal = False

    def check(self, endpoint: Endpoint, fault: EndpointFaultError) -> int:
        """Record an error; return the record's number of errors if it is to blame, else 0.

        A record is to blame if that many errors in a row are too unlikely to come by chance, and
        the endpoint worked meanwhile: for other records, or for a known good request. Errors of
        records that succeeded afterwards say how often errors come by chance.
        """
        breaker = endpoint.breaker
        self._last = breaker.captions, endpoint.confirmed
        self._was_refusal = fault.code.startswith("http_4") and fault.code not in _OVERLOAD
        if fault.code == "connection":
            return 0
        faults, successes, confirmed = self._seen.get(endpoint, (0, *self._last))
        faults += 1
        self._seen[endpoint] = faults, successes, confirmed
        share = (endpoint.noise + 0.04) / (breaker.captions + endpoint.noise + 2)
        confirmations = endpoint.confirmed - confirmed
        if fault.code in _OVERLOAD:
            enough = faults >= OVERLOAD_FAULTS and confirmations >= OVERLOAD_CONFIRMATIONS
        else:
            worked = breaker.captions - successes + CONFIRMATION * confirmations
            enough = faults >= POISON_FAULTS and worked >= POISON_SUCCESSES
        return faults if enough and share**faults <= POISON_CHANCE else 0

    def has_worked(self, endpoint: Endpoint) -> bool:
        """Return whether the endpoint gave a caption since the record's last error."""
        return self._last != (endpoint.breaker.captions, endpoint.confirmed)

    def needs_confirmation(self, endpoint: Endpoint) -> bool:
        """Return whether nothing shows since a refusal, or several errors, that it works."""
        faults = self._seen.get(endpoint, (0, 0, 0))[0]
        return faults > (0 if self._was_refusal else 1) and not self.has_worked(endpoint)

    def succeeded(self) -> None:
        """Note that the record succeeded: its errors came by chance."""
        for endpoint, (faults, _, _) in self._seen.items():
            endpoint.noise += faults
