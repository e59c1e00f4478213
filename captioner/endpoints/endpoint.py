"""One endpoint: sends requests within its limits, and says what their responses mean."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING, NoReturn

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
    RunError,
    ServerDiedError,
    TokenLimitError,
)
from captioner.core.progress import EndpointState
from captioner.core.types import NO_OVERRIDES
from captioner.endpoints.blame import RefusalGuard, reason_of
from captioner.endpoints.exchange import Exchange
from captioner.endpoints.goodput import GIVEN_UP, REFUSAL

if TYPE_CHECKING:
    from captioner.core.protocols import Dialect, Transport
    from captioner.core.types import Completion, RequestOverrides, Usage
    from captioner.endpoints.blame import PoisonDetector
    from captioner.endpoints.circuit_breaker import CircuitBreaker
    from captioner.endpoints.cost_budget import EndpointCosts
    from captioner.endpoints.limiter import Limiter
    from captioner.endpoints.server_load import ServerWatch
    from captioner.settings.context import RunContext

logger = logging.getLogger(__name__)

_PROXY_GAVE_UP = (
    "The proxy in front of the server waited too long for it: lower --concurrency, or raise the "
    "proxy's read timeout."
)
ADVICE = {
    "http_504": _PROXY_GAVE_UP,
    "http_524": _PROXY_GAVE_UP,
    "timeout": "The server is too slow for so many: lower --concurrency, or raise --timeout.",
}
"""Advice for requests that were given up while the server may still work on them, by code."""

GIVEN_UP_TO_WARN = 2
"""Requests that were given up before a warning."""

FIRST_GUESS_TOKENS = 1_500.0
"""Tokens that a request is assumed to cost until the first responses."""

ALIVE = (
    BadReplyError,
    RefusedError,
    ParameterError,
    ImageRejectedError,
    TokenLimitError,
)
"""Errors with which an endpoint shows that it works."""


def is_refusal(error: EndpointFaultError) -> bool:
    """Return whether an error says that less should be sent."""
    return error.code == "http_429" or error.retry_after_s is not None


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
        thinking_settled: It is known whether the endpoint takes parameters for thinking.
        watch: Asks the server for its load; None if nothing is asked.
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
        self.thinking_settled = False
        self.watch: ServerWatch | None = None
        self._progress = context.progress
        self._cancel = context.cancel
        self._costs = costs
        self._guard = RefusalGuard(context.settings.run.stop_after)
        self._exchange = Exchange(
            name, dialect, transport, limiter, self._progress, self._guard, costs
        )
        self._confirming = asyncio.Lock()
        self._mean_tokens = FIRST_GUESS_TOKENS
        self._known_good: tuple[bytes, ...] | None = None
        self._given_up = 0
        self._told_less = False  # by the last error

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
            self._held_by,
        )

    @property
    def _held_by(self) -> str:
        limiter = self.limiter
        is_stated = min(limiter.requests.per_minute, limiter.tokens.per_minute) < math.inf
        if limiter.is_rationed and (is_stated or self._told_less):
            return "quota"
        if self.watch is not None and (found := self.watch.held_by):
            return found
        if limiter.is_lowered:
            return "quota" if self._told_less else "capacity"
        return ""

    @property
    def load(self) -> tuple[float, float]:
        """Seconds until one more request could be sent, and how full it is; less is better."""
        return self.limiter.backlog_s(self._mean_tokens), self.limiter.load / self.weight

    async def attempt(
        self,
        messages: tuple[bytes, ...],
        overrides: RequestOverrides,
        *,
        retry: bool,
        poison: PoisonDetector | None = None,
    ) -> Completion:
        """Send one request and return the model's text.

        While the circuit is open, a request that succeeded before is sent as the probe: a record
        that makes the endpoint fail then does not keep the others waiting. The same request
        confirms that the endpoint works where no other record does.

        Args:
            messages: The messages of the request.
            overrides: Changes to the settings.
            retry: It is not the record's first request.
            poison: The errors of the record so far.

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
            except ALIVE:
                continue
        if poison is not None and messages is not self._known_good:
            await self._confirm(poison)
        try:
            completion = await self._send(messages, overrides, retry=retry, probe=probe)
        except (RefusedError, BadReplyError) as error:
            if self._is_refusal(error, overrides) and self._guard.works:
                busy = self.limiter.in_flight > 0
                is_own = poison is not None and poison.has_worked(self)
                if not is_own and not await self._guard.is_alone(busy=busy):
                    raise EndpointFaultError(error.code, error.message) from None
            raise
        if completion.text:
            self._known_good = messages
        return completion

    def leave_out_thinking(self, refusal: Exception) -> None:
        """Send no parameters for thinking: the endpoint answers without them.

        Args:
            refusal: What it said to a request with them.
        """
        self.thinking_settled = True
        self._exchange.leave_out_thinking(refusal)

    def forget_captions(self) -> None:
        """Count from now on as an endpoint that has given no caption."""
        self._guard.works = False

    async def _confirm(self, poison: PoisonDetector) -> None:
        """Send a request that succeeded before if nothing else shows that the endpoint works."""
        if not poison.needs_confirmation(self):
            return
        async with self._confirming:  # one confirms it for all that wait
            if self._known_good is not None and poison.needs_confirmation(self):
                with contextlib.suppress(EndpointFaultError, *ALIVE):
                    await self._send(self._known_good, NO_OVERRIDES, retry=True, probe=False)
                    self.confirmed += 1

    async def _send(
        self,
        messages: tuple[bytes, ...],
        overrides: RequestOverrides,
        *,
        retry: bool,
        probe: bool,
    ) -> Completion:
        has_verdict = True
        guard = self._guard
        number = 0
        try:
            estimated = self._mean_tokens
            epoch = await self.limiter.acquire(estimated)
            number = guard.begin()
            permit = epoch, estimated
            completion = await self._with_permit(permit, messages, overrides, retry=retry)
        except EndpointFaultError as error:
            self._fault(error, probe=probe)
            raise
        except ALIVE as error:
            self._progress.waiting = ""
            if is_refusal := self._is_refusal(error, overrides):
                guard.refusal(error, error.code, number, verdict=False)
            if is_refusal and guard.works and guard.row > 1:
                # Several were refused since the last caption: it may be the endpoint.
                self._fault(EndpointFaultError(error.code, error.message), probe=probe)
            else:
                self._works(caption=False)
            raise
        except ServerDiedError:  # a fact, unlike what an endpoint responds
            has_verdict = False
            raise
        except (NotFoundError, EndpointRefusedError, EndpointGaveOutError) as error:
            self._refused(error, number, probe=probe)
        except BaseException:
            has_verdict = False
            raise
        else:
            guard.caption(number)
            self.thinking_settled |= overrides.thinking is not None
            self._works()
            return completion
        finally:
            if probe and not has_verdict:
                self.breaker.abandon_probe()
            if not self.limiter.in_flight:
                guard.settle()

    def _is_refusal(self, error: Exception, overrides: RequestOverrides) -> bool:
        """Return whether a response refuses a record, and not its content.

        A request with parameters for thinking, which no other got through with yet, is sent again
        without them: its first refusal says nothing.
        """
        if isinstance(error, RefusedError):
            is_tried = overrides.thinking is None or self.thinking_settled
            return error.code.startswith("http_") and is_tried
        return isinstance(error, BadReplyError) and error.code == "bad_reply"

    def _works(self, *, caption: bool = True) -> None:
        if self.breaker.record_success(caption=caption) and not self._told_less:
            self.limiter.recovered()

    def _fault(self, error: EndpointFaultError, *, probe: bool) -> None:
        self._progress.waiting = error.message
        self._told_less = is_refusal(error)
        self.breaker.record_fault(error, probe=probe)
        if self.breaker.is_open and self.breaker.shared:
            self.limiter.reject_waiters()

    async def _with_permit(
        self,
        permit: tuple[int, float],
        messages: tuple[bytes, ...],
        overrides: RequestOverrides,
        *,
        retry: bool,
    ) -> Completion:
        epoch, estimated = permit
        hold_s = 0.0
        try:
            if self._cancel:
                raise StoppedError
            if self._costs is not None:
                await self._costs.begin()
            began = time.monotonic()
            completion = await self._exchange.complete(messages, overrides, retry=retry)
        except EndpointFaultError as error:
            # Slow down before the permit goes to the next request.
            if error.retry_after_s is not None:
                self.limiter.pause(min(error.retry_after_s, self.breaker.patience_s))
            if error.code != "connection":
                hold_s = self._slow_down(epoch, error, time.monotonic() - began)
            raise
        else:
            self.limiter.succeeded(epoch, time.monotonic() - began)
            if used := completion.usage.total:
                self.limiter.correct_tokens(estimated, used)
                self._mean_tokens += (used - self._mean_tokens) / 16
            return completion
        finally:
            self.limiter.release(hold_s)

    def _slow_down(self, epoch: int, error: EndpointFaultError, latency_s: float) -> float:
        """Report an error to the limiter; return the seconds for which the permit is held."""
        weight = 1.0
        if advice := ADVICE.get(error.code):
            weight = GIVEN_UP
            self._given_up += 1
            if self._given_up == GIVEN_UP_TO_WARN:
                logger.warning(
                    "%s: %s. Sending fewer at once. %s", self.name, error.message, advice
                )
        elif is_refusal(error):
            weight = REFUSAL
        hold_s = self.limiter.overloaded(epoch, latency_s, weight)
        self.breaker.noise = self.limiter.window.noise
        return hold_s

    def fails_by_chance(self, fault: EndpointFaultError) -> bool:
        """Return whether an error is of those that come by chance: no wait would help."""
        return self.limiter.window.is_noisy and not is_refusal(fault) and not self.breaker.is_open

    def _refused(self, error: RunError | NotFoundError, number: int, *, probe: bool) -> NoReturn:
        """Handle a response by which no record would be captioned.

        Routers that restart, gateways with a full disk and checks of single images send such
        responses as well, so the record is retried until the guard stops the run.

        Raises:
            EndpointFaultError: The record is retried.
            RunError: See `RefusalGuard.refusal`.
        """
        fault = EndpointFaultError(error.code, reason_of(error))
        try:
            self._guard.refusal(error, error.code, number, verdict=isinstance(error, RunError))
        except BaseException:
            if probe:
                self.breaker.abandon_probe()
            raise
        self._fault(fault, probe=probe)
        raise fault from None

    def count(self, usage: Usage) -> None:
        """Count the tokens that a request used, and their cost."""
        self._exchange.count(usage)
