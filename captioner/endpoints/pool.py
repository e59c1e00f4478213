"""The endpoints of a run. Each has its own limits and circuit breaker; the least loaded is used.

::

    record ─▶ EndpointPool.attempt ─▶ Endpoint ─▶ breaker ─▶ limiter ─▶ transport ─▶ dialect.judge
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, NoReturn

from captioner.core.cancellation import EndpointBusyError, StoppedError
from captioner.core.errors import (
    BadReplyError,
    CaptionerError,
    EndpointFaultError,
    EndpointGaveOutError,
    EndpointRefusedError,
    ImageRejectedError,
    NotFoundError,
    ParameterError,
    RefusedError,
    RunError,
    TokenLimitError,
)
from captioner.core.humanize import sentence
from captioner.core.progress import EndpointState
from captioner.core.types import NO_OVERRIDES
from captioner.endpoints.ratelimit_headers import NO_LIMITS, read_limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.core.protocols import Dialect, Transport
    from captioner.core.types import Completion, RequestOverrides
    from captioner.endpoints.circuit_breaker import CircuitBreaker
    from captioner.endpoints.cost_budget import EndpointCosts
    from captioner.endpoints.limiter import Limiter
    from captioner.settings.context import RunContext

logger = logging.getLogger(__name__)

POISON_FAULTS = 3
POISON_SUCCESSES = 20
POISON_CHANCE = 1e-6
"""A record is blamed only if that many errors in a row would be this unlikely by chance."""

CONFIRMATION = 10
"""Successes of other records that one success of a known good request stands for."""

STOP_FIRST = 10
STOP_LATER = 25
"""Refusals alike in a row, before the first caption and after it, that stop the run."""

FIRST_GUESS_TOKENS = 1_500.0
"""Tokens that a request is assumed to cost until the first responses."""

_OVERLOAD = frozenset({"connection", "http_429", "http_503", "http_529"})
_ALIVE = (
    BadReplyError,
    RefusedError,
    ParameterError,
    ImageRejectedError,
    TokenLimitError,
)


class RefusalGuard:
    """Stops a doomed run, whatever the words of its refusals.

    Refusals count as alike if their messages differ only in numbers and quoted parts.

    Args:
        stop_after: Refusals alike in a row that stop the run; None is `STOP_FIRST` before the
            first caption and `STOP_LATER` after it.
    """

    def __init__(self, stop_after: int | None) -> None:
        self._stop_after = stop_after
        self._counts: Counter[str] = Counter()
        self.works = False

    def caption(self) -> None:
        """Note a caption."""
        self.works = True
        if self._counts:
            self._counts.clear()

    def refusal(self, error: CaptionerError) -> None:
        """Note a refusal.

        Raises:
            EndpointRefusedError: There were too many, and there never was a caption.
            EndpointGaveOutError: There were too many since the last caption.
        """
        kind = re.sub(r"['\"`][^'\"`]*['\"`]|\d+", "", str(error))[:200]
        self._counts[kind] += 1
        limit = self._stop_after or (STOP_LATER if self.works else STOP_FIRST)
        if self._counts[kind] < limit:
            return
        said = sentence(_reason(error))
        if self.works:
            many = f"{limit} requests in a row were" if limit > 1 else "a request was"
            raise EndpointGaveOutError(
                f"After captions with the same settings, {many} refused. {said} Check the endpoint "
                "and run the same command again. --stop-after N allows more."
            )
        first = "request was" if limit == 1 else f"{limit} requests were all"
        raise EndpointRefusedError(
            f"The first {first} refused. {said} Check --base-url, --model and the key. "
            "--stop-after N allows more."
        )


def _reason(error: CaptionerError) -> str:
    """Return what the endpoint responded, without the advice in the message of a `RunError`."""
    return (isinstance(error, RunError) and error.reason) or str(error)


class Endpoint:
    """One endpoint: its API format, connection, limits and circuit breaker.

    Args:
        name: The endpoint as the user knows it.
        dialect: Builds requests and parses responses.
        transport: Sends requests.
        limiter: Grants permits.
        breaker: Holds requests back while the endpoint fails.
        context: Settings, progress and cancellation of the run.
        weight: Its share of the work beside other endpoints.
        costs: Counts money and holds requests back at the budget; None counts nothing.

    Attributes:
        noise: Errors of records that succeeded afterwards: those that came by chance.
        confirmed: Probes with a known good request that succeeded.
    """

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        transport: Transport,
        limiter: Limiter,
        breaker: CircuitBreaker,
        context: RunContext,
        *,
        weight: float = 1.0,
        costs: EndpointCosts | None = None,
    ) -> None:
        self.name = name
        self.limiter = limiter
        self.breaker = breaker
        self.weight = weight
        self.noise = 0
        self.confirmed = 0
        self._dialect = dialect
        self._transport = transport
        self._progress = context.progress
        self._cancel = context.cancel
        self._costs = costs
        self._guard = RefusalGuard(context.settings.run.stop_after)
        self._mean_tokens = FIRST_GUESS_TOKENS
        self._known_good: tuple[bytes, ...] | None = None

    @property
    def state(self) -> EndpointState:
        """The state for the display."""
        limiter = self.limiter
        return EndpointState(
            self.name,
            limiter.in_flight,
            limiter.limit,
            limiter.requests.per_minute,
            limiter.paused_s,
            self.breaker.is_open,
        )

    @property
    def load(self) -> tuple[float, float]:
        """Seconds until one more request could be sent, and how full it is; less is better."""
        return self.limiter.backlog_s(self._mean_tokens), self.limiter.load / self.weight

    async def attempt(
        self, messages: tuple[bytes, ...], overrides: RequestOverrides, *, retry: bool
    ) -> Completion:
        """Send one request and return the model's text.

        While the circuit is open, a request that succeeded before is sent as the probe: a record
        that makes the endpoint fail then does not keep the others waiting.

        Raises:
            EndpointBusyError: No permit is available soon, and another endpoint may have one.
            AttemptError: This attempt failed.
            RefusedError: This record will never get a caption.
            RunError: This endpoint will caption no record.
        """
        while probe := await self.breaker.ready():
            if self._known_good is None:
                break
            try:
                await self._send(self._known_good, NO_OVERRIDES, retry=True, probe=True)
                self.confirmed += 1
            except EndpointFaultError:
                if self.breaker.shared:
                    raise EndpointBusyError from None
            except _ALIVE:
                continue
        completion = await self._send(messages, overrides, retry=retry, probe=probe)
        self._known_good = messages
        return completion

    async def _send(
        self,
        messages: tuple[bytes, ...],
        overrides: RequestOverrides,
        *,
        retry: bool,
        probe: bool,
    ) -> Completion:
        has_verdict = True
        try:
            completion = await self._with_permit(messages, overrides, retry=retry)
        except EndpointFaultError as error:
            self._progress.waiting = error.message
            self.breaker.record_fault(error, probe=probe)
            if self.breaker.is_open and self.breaker.shared:
                self.limiter.reject_waiters()
            raise
        except _ALIVE as error:
            self._progress.waiting = ""
            self.breaker.record_success(caption=False)
            if _is_refusal(error):
                self._guard.refusal(error)
            raise
        except (NotFoundError, EndpointRefusedError, EndpointGaveOutError) as error:
            if probe:
                self.breaker.abandon_probe()
            if not (self._guard.works or isinstance(error, NotFoundError)):
                raise
            self._refused(error)
        except BaseException:
            has_verdict = False
            raise
        else:
            self._guard.caption()
            self.breaker.record_success()
            return completion
        finally:
            if probe and not has_verdict:
                self.breaker.abandon_probe()

    async def _with_permit(
        self, messages: tuple[bytes, ...], overrides: RequestOverrides, *, retry: bool
    ) -> Completion:
        estimated = self._mean_tokens
        epoch = await self.limiter.acquire(estimated)
        try:
            if self._cancel:
                raise StoppedError
            completion = await self._exchange(messages, overrides, retry=retry)
        except EndpointFaultError as error:
            # Slow down before the permit goes to the next request.
            if error.retry_after_s is not None:
                self.limiter.pause(min(error.retry_after_s, self.breaker.patience_s))
            if error.code != "connection":
                self.limiter.overloaded(epoch)
            raise
        else:
            self.limiter.succeeded()
            if used := sum(completion.usage):
                self.limiter.correct_tokens(estimated, used)
                self._mean_tokens += (used - self._mean_tokens) / 16
            return completion
        finally:
            self.limiter.release()

    def _refused(self, error: RunError | NotFoundError) -> NoReturn:
        """Handle a response by which no record would be captioned.

        A router that restarts and a gateway with a full disk send such responses as well, so after
        a first caption the record is retried until the guard stops the run.

        Raises:
            EndpointFaultError: The record is retried.
            RunError: See `RefusalGuard.refusal`.
        """
        reason = _reason(error)
        self._progress.waiting = reason
        self._guard.refusal(error)
        raise EndpointFaultError(error.code, reason) from None

    async def _exchange(
        self, messages: tuple[bytes, ...], overrides: RequestOverrides, *, retry: bool
    ) -> Completion:
        progress, dialect, costs = self._progress, self._dialect, self._costs
        version = dialect.version
        if costs is not None:
            await costs.begin()
        request = dialect.request(messages, overrides)
        progress.calls += 1
        progress.retries += retry
        progress.in_flight += 1
        ticket = object()
        progress.began[ticket] = began = time.monotonic()
        try:
            response = await self._transport.send(request)
        finally:
            progress.in_flight -= 1
            del progress.began[ticket]
            if costs is not None:
                costs.end()
        progress.answers += 1
        progress.answered_s += time.monotonic() - began
        limits = read_limits(response.headers)
        if limits is not NO_LIMITS:
            requests, tokens = limits
            self.limiter.learn_requests(*requests)
            self.limiter.learn_tokens(*tokens)
        try:
            completion = dialect.judge(response)
        except ParameterError as error:
            # Many requests may be refused at once; the first one adapts for all.
            if dialect.version == version:
                change = dialect.adapt(error.parameter)
                if not change:
                    raise RefusedError(error.code, error.message) from None
                logger.warning(
                    "%s refuses a parameter (%s): sending %s", self.name, error.message, change
                )
            raise
        except NotFoundError as error:
            if self._guard.works:  # a router whose server restarts
                raise EndpointFaultError(error.code, error.message) from None
            raise
        progress.waiting = ""
        if costs is not None:
            costs.charge(completion.usage)
        return completion


def _is_refusal(error: Exception) -> bool:
    """Return whether a response refuses a record, and not its content."""
    if isinstance(error, RefusedError):
        return error.code.startswith("http_")
    return isinstance(error, BadReplyError) and error.code == "bad_reply"


class EndpointPool:
    """All endpoints of a run.

    Args:
        endpoints: At least one.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
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
            endpoint.limiter.shared = endpoint.breaker.shared = len(self._left) > 1

    @property
    def seconds_left(self) -> float:
        """Seconds until the last endpoint is given up, infinite while one works."""
        return max(endpoint.breaker.seconds_left() for endpoint in self._left)

    def choose(self) -> Endpoint:
        """Return the endpoint for the next attempt: one that is due a probe, else the least loaded.

        Endpoints with an open circuit are left alone while others work. If all circuits are open,
        each endpoint gets a worker that waits to probe it.
        """
        if len(self._left) == 1:
            return self._left[0]
        for endpoint in self._left:
            if endpoint.breaker.probe_due():
                return endpoint
        working = [endpoint for endpoint in self._left if not endpoint.breaker.is_open]
        unprobed = [endpoint for endpoint in self._left if not endpoint.breaker.probing]
        return min(working or unprobed or self._left, key=lambda endpoint: endpoint.load)

    async def attempt(
        self, messages: tuple[bytes, ...], overrides: RequestOverrides, *, retry: bool
    ) -> tuple[Endpoint, Completion | Exception]:
        """Send one request to the best endpoint; return it with the model's text or the error.

        Raises:
            RunError: No endpoint is left.
            StoppedError: The run is cancelled.
        """
        while True:
            endpoint = self.choose()
            was_open = endpoint.breaker.is_open
            try:
                completion = await endpoint.attempt(messages, overrides, retry=retry)
            except EndpointBusyError:
                await asyncio.sleep(0)
            except (EndpointRefusedError, EndpointGaveOutError) as error:
                self._drop(endpoint, error)
            except (EndpointFaultError, *_ALIVE) as error:
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
            endpoint.limiter.reject_waiters()
            endpoint.breaker.wake()
            self._update_shared()
            logger.warning("going on without %s: %s", endpoint.name, error)


class PoisonDetector:
    """Detects whether one record makes an endpoint fail."""

    def __init__(self) -> None:
        self._seen: dict[Endpoint, tuple[int, int, int]] = {}

    def check(self, endpoint: Endpoint, fault: EndpointFaultError) -> int:
        """Record an error; return the record's number of errors if it is to blame, else 0.

        A record is to blame if that many errors in a row are too unlikely to come by chance, and
        the endpoint worked meanwhile: for other records, or for a known good request. Errors of
        records that succeeded afterwards say how often errors come by chance.
        """
        if fault.code in _OVERLOAD:
            return 0
        breaker = endpoint.breaker
        faults, successes, confirmed = self._seen.get(
            endpoint, (0, breaker.captions, endpoint.confirmed)
        )
        faults += 1
        self._seen[endpoint] = faults, successes, confirmed
        share = (endpoint.noise + 0.04) / (breaker.captions + endpoint.noise + 2)
        worked = breaker.captions - successes + CONFIRMATION * (endpoint.confirmed - confirmed)
        enough = faults >= POISON_FAULTS and worked >= POISON_SUCCESSES
        return faults if enough and share**faults <= POISON_CHANCE else 0

    def succeeded(self) -> None:
        """Note that the record succeeded: its errors came by chance."""
        for endpoint, (faults, _, _) in self._seen.items():
            endpoint.noise += faults
