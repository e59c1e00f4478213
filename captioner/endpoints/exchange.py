"""One request and its response: sent, counted, paid for and parsed."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from captioner.core.errors import (
    CaptionerError,
    EndpointFaultError,
    NotFoundError,
    ParameterError,
    RefusedError,
)
from captioner.endpoints.ratelimit_headers import NO_LIMITS, read_limits
from captioner.endpoints.replies import SHORT_REPLY, THINKING, usage_of

if TYPE_CHECKING:
    from captioner.core.progress import Progress
    from captioner.core.protocols import Dialect, Transport
    from captioner.core.types import Completion, Request, RequestOverrides, Response, Usage
    from captioner.endpoints.blame import RefusalGuard
    from captioner.endpoints.cost_budget import EndpointCosts
    from captioner.endpoints.limiter import Limiter

logger = logging.getLogger(__name__)


class Exchange:
    """Sends requests to an endpoint, counts them and their cost, and parses the responses.

    Args:
        name: The endpoint as the user knows it.
        dialect: Builds requests and parses responses.
        transport: Sends requests.
        limiter: Learns the rate limits that responses state.
        progress: The counters of the run.
        guard: Says whether the endpoint gave a caption before.
        costs: Counts money; None counts nothing.
    """

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        transport: Transport,
        limiter: Limiter,
        progress: Progress,
        guard: RefusalGuard,
        costs: EndpointCosts | None,
    ) -> None:
        self._name = name
        self._dialect = dialect
        self._transport = transport
        self._limiter = limiter
        self._progress = progress
        self._guard = guard
        self._costs = costs
        self._thinking_left_out = False

    def leave_out_thinking(self, refusal: Exception) -> None:
        """Send no parameters for thinking from now on.

        Args:
            refusal: What the endpoint said to a request with them.
        """
        if self._dialect.adapt(THINKING):
            self._thinking_left_out = True
            logger.warning(
                "%s refuses parameters for thinking without naming them (%s): sending none",
                self._name,
                refusal,
            )

    async def complete(
        self, messages: tuple[bytes, ...], overrides: RequestOverrides, *, retry: bool
    ) -> Completion:
        """Send a request and return what the model said.

        Args:
            messages: The messages of the request.
            overrides: Changes to the settings.
            retry: It is not the record's first request.

        Raises:
            CaptionerError: There is no response, or it is not a completion.
        """
        dialect = self._dialect
        version = dialect.version
        response = await self._response(dialect.request(messages, overrides), retry=retry)
        limits = read_limits(response.headers)
        if limits is not NO_LIMITS:
            requests, tokens = limits
            self._limiter.learn_requests(*requests)
            self._limiter.learn_tokens(*tokens)
        try:
            completion = await self._judged(response, overrides, version)
        except CaptionerError:
            # A response that refuses may be paid for as well.
            is_short = not response.body[SHORT_REPLY:]
            self.count(
                usage_of(response) if is_short else await asyncio.to_thread(usage_of, response)
            )
            raise
        self._progress.waiting = ""
        self.count(completion.usage, is_answer=True)
        return completion

    def count(self, usage: Usage, *, is_answer: bool = False) -> None:
        """Count tokens and their cost."""
        if not (is_answer or any(usage)):
            return
        self._progress.prompt_tokens += usage.prompt_tokens
        self._progress.completion_tokens += usage.completion_tokens
        self._progress.cached_tokens += usage.cached_tokens
        if self._costs is not None:
            self._costs.charge(usage)

    async def _response(self, request: Request, *, retry: bool) -> Response:
        """Send a request and count it; without a connection it does not count."""
        progress = self._progress
        progress.calls += 1
        progress.retries += retry
        progress.in_flight += 1
        ticket = object()
        progress.began[ticket] = began = time.monotonic()
        try:
            response = await self._transport.send(request)
        except EndpointFaultError as error:
            if error.code == "connection":
                progress.calls -= 1
                progress.retries -= retry
            raise
        finally:
            progress.in_flight -= 1
            del progress.began[ticket]
            if self._costs is not None:
                self._costs.end()
        progress.answers += 1
        progress.answered_s += time.monotonic() - began
        return response

    async def _judged(
        self, response: Response, overrides: RequestOverrides, version: int
    ) -> Completion:
        """Return the completion in a response to a request of that version of the dialect."""
        dialect = self._dialect
        try:
            if not response.body[SHORT_REPLY:]:  # len would be a call more
                return dialect.judge(response)
            return await asyncio.to_thread(dialect.judge, response)
        except ParameterError as error:
            # Many requests may be refused at once; the first one adapts for all.
            if dialect.version == version:
                change = dialect.adapt(error.parameter)
                if not change:
                    raise RefusedError(error.code, error.message) from None
                logger.warning(
                    "%s refuses a parameter (%s): sending %s", self._name, error.message, change
                )
            raise
        except RefusedError as error:
            is_outdated = dialect.version != version and overrides.thinking is not None
            if self._thinking_left_out and is_outdated:
                raise ParameterError(error.code, error.message, THINKING) from None
            raise
        except NotFoundError as error:
            if self._guard.works:  # a router whose server restarts
                raise EndpointFaultError(error.code, error.message) from None
            raise
