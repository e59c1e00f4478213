"""The endpoints of a run: each with its own permits and health, the least loaded one chosen.

::

    record ─▶ Endpoints.attempt ─▶ Endpoint ─▶ health ─▶ limiter ─▶ transport ─▶ dialect.judge
"""

from __future__ import annotations

import asyncio
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
from captioner.core.types import EndpointState, Request
from captioner.endpoints.prices import FREE
from captioner.endpoints.ratelimit_headers import NO_LIMITS, read_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captioner.core.cancellation import CancelToken
    from captioner.core.protocols import Dialect, Transport
    from captioner.core.types import Completion, Progress, RequestOverrides
    from captioner.endpoints.circuit_breaker import CircuitBreaker
    from captioner.endpoints.cost_budget import CostBudget
    from captioner.endpoints.limiter import Limiter
    from captioner.endpoints.prices import Price

POISON_FAULTS = 3
POISON_SUCCESSES = 20
POISON_CHANCE = 1e-6
"""A record is blamed only if so many faults in a row would be this unlikely by chance."""

NOT_FOUND_TIMES = 3
"""So many 404s in a row before any caption, or that name the model: no oversized body."""

FIRST_GUESS_TOKENS = 1_500.0
"""Tokens a record is taken to cost until the endpoint has told what the first ones did."""

_OVERLOAD = frozenset({"connection", "http_429", "http_503", "http_529"})
_ALIVE = (BadReplyError, RefusedError, ParameterError, ImageRejectedError, NotFoundError)


class Endpoint:
    """One endpoint: its language, its connection, its permits and its health.

    Args:
        name: As the user knows it.
        dialect: Builds requests, judges replies.
        transport: Carries them.
        limiter: Permits.
        health: What its workers have seen of it.
        progress: Counts.
        cancel: Ends waits.
        weight: Its share beside others with as many requests in flight.
        warn: Called with a sentence when the dialect had to adapt.
        spending: Counts money, and ends the run before a cap is crossed.
        price: Of the model asked for.
    """

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        transport: Transport,
        limiter: Limiter,
        health: CircuitBreaker,
        progress: Progress,
        cancel: CancelToken,
        *,
        weight: float = 1.0,
        warn: Callable[[str], None],
        spending: CostBudget | None = None,
        price: Price = FREE,
    ) -> None:
        self.name = name
        self.limiter = limiter
        self.health = health
        self.weight = weight
        self._dialect = dialect
        self._transport = transport
        self._progress = progress
        self._cancel = cancel
        self._warn = warn
        self._spending = spending
        self._price = price
        self._mean_tokens = FIRST_GUESS_TOKENS
        self._not_found = 0

    @property
    def state(self) -> EndpointState:
        """How it stands."""
        limiter = self.limiter
        return EndpointState(
            self.name,
            limiter.in_flight,
            limiter.limit,
            limiter.requests.per_minute,
            limiter.paused_s,
            self.health.resting,
        )

    @property
    def load(self) -> tuple[float, float]:
        """Seconds until it could take one more request, and how full it is; less is better."""
        return self.limiter.backlog_s(self._mean_tokens), self.limiter.load / self.weight

    async def attempt(
        self, messages: tuple[bytes, ...], overrides: RequestOverrides, *, retry: bool
    ) -> Completion:
        """Send one request and return the answer, or raise what became of it.

        Raises:
            DispersedError: No permit was to be had soon, and others may have one.
            AttemptError: There is no answer.
            RefusedError: There never will be.
            RunError: This endpoint answers nobody.
        """
        probe = await self.health.ready()
        verdict = False
        try:
            estimated = self._mean_tokens
            epoch = await self.limiter.acquire(estimated)
            try:
                if self._cancel:
                    raise StoppedError
                completion = await self._exchange(messages, overrides, retry=retry)
                self._note_success(estimated, completion)
            except EndpointFaultError as error:
                # All before the permit goes to the next one.
                if error.retry_after_s is not None:
                    self.limiter.pause(error.retry_after_s)
                if error.code != "connection":
                    self.limiter.overloaded(epoch)
                raise
            finally:
                self.limiter.release()
        except EndpointFaultError as error:
            verdict = True
            self._progress.waiting = f"the endpoint: {error.message}"
            self.health.faulted(error, probe=probe)
            if self.health.resting and self.health.shared:
                self.limiter.reject_waiters()
            raise
        except _ALIVE as error:
            verdict = True
            self._progress.waiting = ""
            if isinstance(error, NotFoundError):
                self._note_not_found(error)
            self.health.succeeded(caption=isinstance(error, BadReplyError | RefusedError))
            raise
        else:
            verdict = True
            self.health.succeeded()
            return completion
        finally:
            if probe and not verdict:
                self.health.abandoned()

    async def _exchange(
        self, messages: tuple[bytes, ...], overrides: RequestOverrides, *, retry: bool
    ) -> Completion:
        progress, dialect = self._progress, self._dialect
        version = dialect.version
        spending = self._spending
        if spending is not None:
            await spending.begin(self._price)
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
            if spending is not None:
                spending.end()
        progress.answers += 1
        progress.answered_s += time.monotonic() - began
        self.health.answered()
        limits = read_limits(response.headers)
        if limits is not NO_LIMITS:
            requests, tokens = limits
            self.limiter.learn_requests(*requests)
            self.limiter.learn_tokens(*tokens)
        try:
            completion = dialect.judge(response)
        except ParameterError as error:
            # Many may be refused at once; the first adapts for all.
            if dialect.version == version:
                change = dialect.adapt(error.parameter)
                if not change:
                    raise RefusedError(error.code, error.message) from None
                self._warn(f"{self.name} refuses a parameter ({error.message}): sending {change}")
            raise
        progress.waiting = ""
        if spending is not None:
            spending.note(completion.usage, self._price)
        return completion

    def _note_success(self, estimated: float, completion: Completion) -> None:
        self.limiter.succeeded()
        self._not_found = 0
        used = sum(completion.usage)
        if used:
            self.limiter.correct_tokens(estimated, used)
            self._mean_tokens += (used - self._mean_tokens) / 16

    def _note_not_found(self, error: NotFoundError) -> None:
        self._not_found += 1
        hopeless = error.certain or not self.health.captions
        if hopeless and self._not_found >= NOT_FOUND_TIMES:
            raise unknown_model(error) from None

    async def answers(self) -> bool:
        """Tell whether the endpoint answers a harmless question."""
        try:
            reply = await self._transport.send(Request("GET", "/models"))
        except EndpointFaultError:
            return False
        return reply.status < 500 and reply.status not in (404, 429)


def unknown_model(error: NotFoundError) -> EndpointRefusedError:
    """Return what ends a run whose endpoint answers 404 to every record."""
    return EndpointRefusedError(
        f"The endpoint does not know the model or the address ({error.message}). "
        "Check --model and --base-url."
    )


class EndpointPool:
    """All endpoints of a run.

    Args:
        endpoints: At least one.
        warn: Called with a sentence when one is given up while others go on.
    """

    def __init__(self, endpoints: Sequence[Endpoint], *, warn: Callable[[str], None]) -> None:
        self._left = list(endpoints)
        self._warn = warn
        self._share()

    @property
    def limiters(self) -> list[Limiter]:
        """The permits of each endpoint."""
        return [endpoint.limiter for endpoint in self._left]

    def states(self) -> list[EndpointState]:
        """Return how each of them stands."""
        return [endpoint.state for endpoint in self._left]

    def _share(self) -> None:
        for endpoint in self._left:
            endpoint.limiter.shared = endpoint.health.shared = len(self._left) > 1

    @property
    def left_s(self) -> float:
        """Seconds until the last endpoint is given up, infinite while one is well."""
        return max(endpoint.health.left_s() for endpoint in self._left)

    def choose(self) -> Endpoint:
        """Return the endpoint for the next attempt: one due a probe, else the least loaded.

        Resting ones are left alone while others are well; where all rest, each gets somebody who
        waits to probe it.
        """
        if len(self._left) == 1:
            return self._left[0]
        for endpoint in self._left:
            if endpoint.health.probe_due():
                return endpoint
        well = [endpoint for endpoint in self._left if not endpoint.health.resting]
        idle = [endpoint for endpoint in self._left if not endpoint.health.probing]
        return min(well or idle or self._left, key=lambda endpoint: endpoint.load)

    async def attempt(
        self, messages: tuple[bytes, ...], overrides: RequestOverrides, *, retry: bool
    ) -> tuple[Endpoint, Completion | Exception]:
        """Send one request to the best endpoint; return which, and the answer or its lack.

        Raises:
            RunError: No endpoint is left.
            StoppedError: The run is stopping.
        """
        while True:
            endpoint = self.choose()
            rested = endpoint.health.resting
            try:
                completion = await endpoint.attempt(messages, overrides, retry=retry)
            except EndpointBusyError:
                await asyncio.sleep(0)
            except (EndpointRefusedError, EndpointGaveOutError) as error:
                self._give_up(endpoint, error)
            except (EndpointFaultError, *_ALIVE) as error:
                return endpoint, error
            else:
                if rested and not endpoint.health.resting:
                    for other in self._left:  # who waits for one that still rests can come here
                        other.health.wake()
                return endpoint, completion

    def _give_up(
        self, endpoint: Endpoint, error: EndpointRefusedError | EndpointGaveOutError
    ) -> None:
        """Leave an endpoint out from now on.

        Raises:
            RunError: It was the last one.
        """
        if self._left == [endpoint]:
            raise error
        if endpoint in self._left:
            self._left.remove(endpoint)
            endpoint.limiter.reject_waiters()
            endpoint.health.wake()
            self._share()
            self._warn(f"going on without {endpoint.name}: {error}")


class PoisonDetector:
    """The faults of one record, and whether it is the record that breaks an endpoint.

    Args:
        max_attempts: Faults after which an endpoint is asked how it is.
    """

    def __init__(self, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self._seen: dict[Endpoint, tuple[int, int]] = {}

    async def check(self, endpoint: Endpoint, fault: EndpointFaultError) -> int:
        """Note a fault; return the number of faults if the record is to blame, else 0.

        It is if others went through meanwhile, and the endpoint does not fail so often that it
        may be chance; where there are no others to tell by, if the endpoint answers a harmless
        question between two faults.
        """
        if fault.code in _OVERLOAD:
            return 0
        health = endpoint.health
        faults, before = self._seen.get(endpoint, (0, health.successes))
        faults += 1
        self._seen[endpoint] = faults, before
        health.blamed += 1
        others = health.successes - before
        elsewhere = health.blamed - faults
        share = (elsewhere + 0.04) / (health.successes + elsewhere + 2)
        if faults < POISON_FAULTS or share**faults > POISON_CHANCE:
            return 0
        if others >= POISON_SUCCESSES:
            return faults
        if faults < self._max_attempts or not await endpoint.answers():
            return 0
        return faults
