"""The budget of a run: no request is sent that might exceed it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from captioner.core.errors import LimitReachedError
from captioner.core.humanize import money
from captioner.core.types import Usage

if TYPE_CHECKING:
    from captioner.core.progress import Progress
    from captioner.endpoints.prices import Price

logger = logging.getLogger(__name__)

FIRST_GUESS = 1_500.0, 200.0
"""Input and output tokens that a request is assumed to cost until the first responses."""


class CostBudget:
    """Counts tokens and money of all endpoints, and holds requests back at the budget.

    Args:
        progress: Its ``cost`` is kept up to date.
        max_tokens: Budget in tokens, input and output; None is no limit.
        max_cost: Budget in US dollars; None is no limit.
        parts: Equal parts that the run's budget was cut into; this is one of them.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        max_tokens: float | None = None,
        max_cost: float | None = None,
        parts: int = 1,
    ) -> None:
        self._progress = progress
        self._max_tokens = max_tokens
        self._max_cost = max_cost
        self._parts = parts
        self._mean = FIRST_GUESS  # tokens of a request, input and output
        self._seen = 0
        self._in_flight = 0
        self._tokens = 0
        self._warned = False
        self._changed = asyncio.Event()

    async def begin(self, price: Price) -> None:
        """Return when a request may be sent.

        If requests in flight might use up the rest, their responses are awaited. The first
        request is always sent, because its cost is not known.

        Raises:
            LimitReachedError: Another request might exceed the budget.
        """
        while message := self._exceeded(price):
            if not self._in_flight:
                raise LimitReachedError(message)
            self._changed.clear()
            await self._changed.wait()
        self._in_flight += 1

    def _exceeded(self, price: Price) -> str:
        """Return a message if one more request might exceed the budget, else an empty text."""
        if not (self._tokens or self._in_flight):
            return ""
        requests = self._in_flight + 1
        parts = f", in {self._parts} equal parts," if self._parts > 1 else ""
        again = "Run the same command again to continue with the same budget once more."
        tokens = sum(self._mean)
        if self._max_tokens is not None and self._tokens + requests * tokens > self._max_tokens:
            return (
                f"The budget of {self._max_tokens * self._parts:.0f} tokens (--budget)"
                f"{parts} is used up: {self._tokens} are spent, and another request may cost "
                f"{tokens:.0f}. {again}"
            )
        each = (price.input * self._mean[0] + price.output * self._mean[1]) / 1_000_000
        spent = self._progress.cost
        if self._max_cost is not None and spent + requests * each > self._max_cost:
            return (
                f"The budget of {money(self._max_cost * self._parts)} (--budget){parts} is used "
                f"up: {money(spent)} are spent, and another request may cost {money(each)}. {again}"
            )
        return ""

    def end(self) -> None:
        """Note that a request is over, with or without a response."""
        self._in_flight -= 1
        self._changed.set()

    def charge(self, usage: Usage, price: Price) -> None:
        """Add the cost of a response, whether its text is kept or not."""
        if not any(usage):  # the endpoint does not report usage: assume the mean
            limited = self._max_tokens is not None or self._max_cost is not None
            if limited and not self._warned:
                self._warned = True
                logger.warning("the endpoint does not report usage; the budget is estimated")
            usage = Usage(*map(round, self._mean))
        self._tokens += usage.prompt_tokens + usage.completion_tokens
        self._progress.cost += price.of(usage)
        if usage.prompt_tokens:
            self._seen += 1
            part = 1 / min(self._seen, 50)
            old_in, old_out = self._mean
            self._mean = (
                old_in + (usage.prompt_tokens - old_in) * part,
                old_out + (usage.completion_tokens - old_out) * part,
            )


@dataclass(frozen=True, slots=True)
class EndpointCosts:
    """The costs of one endpoint: the budget of the run, and the price of the endpoint's model."""

    budget: CostBudget
    price: Price

    async def begin(self) -> None:
        """Return when a request may be sent; see `CostBudget.begin`."""
        await self.budget.begin(self.price)

    def end(self) -> None:
        """Note that a request is over."""
        self.budget.end()

    def charge(self, usage: Usage) -> None:
        """Add the cost of a response."""
        self.budget.charge(usage, self.price)
