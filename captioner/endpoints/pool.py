"""The endpoints of a run. Each has its own limits and circuit breaker; the least loaded is used.

::

    record ─▶ EndpointPool.attempt ─▶ Endpoint ─▶ breaker ─▶ limiter ─▶ transport ─▶ dialect.judge
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from captioner.core.cancellation import EndpointBusyError, StoppedError
from captioner.core.errors import (
    BadReplyError,
    EndpointFaultError,
    EndpointGaveOutError,
    EndpointRefusedError,
    ImageRejectedError,
    NotFoundError,
    ParameterError,
    RefusedError,
)
from captioner.core.progress import EndpointState
from captioner.core.types import Request
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

NOT_FOUND_TIMES = 3
"""404s in a row, before any caption or naming the model, that do not come from large bodies."""

FIRST_GUESS_TOKENS = 1_500.0
"""Tokens that a request is assumed to cost until the first responses."""

_OVERLOAD = frozenset({"connection", "http_429", "http_503", "http_529"})
_ALIVE = (BadReplyError, RefusedError, ParameterError, ImageRejectedError, NotFoundError)


class Endpoint:
    """One endpoint: its API format, connection, limits and circuit breaker.

    Args:
        name: The endpoint as the user knows it.
        dialect: Builds requests and parses responses.
        transport: Sends requests.
        limiter: Grants permits.
        breaker: Holds requests back while the endpoint fails.
        context: Progress and cancellation of the run.
        weight: Its share of the work beside other endpoints.
        costs: Counts money and holds requests back at the budget; None counts nothing.
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
        self._dialect = dialect
        self._transport = transport
        self._progress = context.progress
        self._cancel = context.cancel
        self._costs = costs
        self._mean_tokens = FIRST_GUESS_TOKENS
        self._not_found = 0  # in a row

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

        Raises:
            EndpointBusyError: No permit is available soon, and another endpoint may have one.
            AttemptError: This attempt failed.
            RefusedError: This record will never get a caption.
            RunError: This endpoint will caption no record.
        """
        probe = await self.breaker.ready()
        has_verdict = False
        try:
            estimated = self._mean_tokens
            epoch = await self.limiter.acquire(estimated)
            try:
                if self._cancel:
                    raise StoppedError
                completion = await self._exchange(messages, overrides, retry=retry)
                self._record_success(estimated, completion)
            except EndpointFaultError as error:
                # Slow down before the permit goes to the next request.
                if error.retry_after_s is not None:
                    self.limiter.pause(error.retry_after_s)
                if error.code != "connection":
                    self.limiter.overloaded(epoch)
                raise
            finally:
                self.limiter.release()
        except EndpointFaultError as error:
            has_verdict = True
            self._progress.waiting = f"the endpoint: {error.message}"
            self.breaker.record_fault(error, probe=probe)
            if self.breaker.is_open and self.breaker.shared:
                self.limiter.reject_waiters()
            raise
        except _ALIVE as error:
            has_verdict = True
            self._progress.waiting = ""
            if isinstance(error, NotFoundError):
                self._record_not_found(error)
            self.breaker.record_success(caption=isinstance(error, BadReplyError | RefusedError))
            raise
        else:
            has_verdict = True
            self.breaker.record_success()
            return completion
        finally:
            if probe and not has_verdict:
                self.breaker.abandon_probe()

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
        self.breaker.record_response()
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
        progress.waiting = ""
        if costs is not None:
            costs.charge(completion.usage)
        return completion

    def _record_success(self, estimated: float, completion: Completion) -> None:
        self.limiter.succeeded()
        self._not_found = 0
        used = sum(completion.usage)
        if used:
            self.limiter.correct_tokens(estimated, used)
            self._mean_tokens += (used - self._mean_tokens) / 16

    def _record_not_found(self, error: NotFoundError) -> None:
        self._not_found += 1
        hopeless = error.certain or not self.breaker.captions
        if hopeless and self._not_found >= NOT_FOUND_TIMES:
            raise unknown_model(error) from None

    async def answers(self) -> bool:
        """Return whether the endpoint responds to a request for its models."""
        try:
            response = await self._transport.send(Request("GET", "/models"))
        except EndpointFaultError:
            return False
        return response.status < 500 and response.status not in (404, 429)


def unknown_model(error: NotFoundError) -> EndpointRefusedError:
    """Return the error that ends a run whose endpoint responds 404 to every record."""
    return EndpointRefusedError(
        f"The endpoint does not know the model or the address ({error.message}). "
        "Check --model and --base-url."
    )


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
    """Detects whether one record makes an endpoint fail.

    Args:
        max_attempts: Errors after which the endpoint is asked for its models.
    """

    def __init__(self, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self._seen: dict[Endpoint, tuple[int, int]] = {}  # errors, successes before the first

    async def check(self, endpoint: Endpoint, fault: EndpointFaultError) -> int:
        """Record an error; return the record's number of errors if it is to blame, else 0.

        A record is to blame if other records succeeded meanwhile and the endpoint fails so rarely
        that chance is no explanation. Without other records, it is to blame if the endpoint
        responds to a request for its models between two errors.
        """
        if fault.code in _OVERLOAD:
            return 0
        breaker = endpoint.breaker
        faults, before = self._seen.get(endpoint, (0, breaker.successes))
        faults += 1
        self._seen[endpoint] = faults, before
        breaker.blamed += 1
        others = breaker.successes - before
        elsewhere = breaker.blamed - faults
        share = (elsewhere + 0.04) / (breaker.successes + elsewhere + 2)
        if faults < POISON_FAULTS or share**faults > POISON_CHANCE:
            return 0
        if others >= POISON_SUCCESSES:
            return faults
        if faults < self._max_attempts or not await endpoint.answers():
            return 0
        return faults
