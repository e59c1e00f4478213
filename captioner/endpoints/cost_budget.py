"""The budget of an output: no request is sent that might exceed it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from captioner.core.errors import LimitReachedError
from captioner.core.humanize import counted, money
from captioner.core.progress import Spent
from captioner.core.types import Usage

if TYPE_CHECKING:
    from captioner.core.progress import Progress
    from captioner.endpoints.prices import Price

logger = logging.getLogger(__name__)

FIRST_GUESS = Usage(1_500, 200)
"""Tokens of a request to an endpoint that never says what one used."""

FEW = 20
"""Responses that are too few to know what requests cost."""

MARGIN = 1.25
"""How much more than the largest so far another request may cost; twice that after a few."""


class CostBudget:
    """Counts the money of all endpoints, and holds requests back at the budget.

    Until the first response says what requests cost, they are sent one at a time; then as many
    may be in flight as responses came.

    Args:
        progress: Its ``cost`` and tokens count, and those of earlier runs.
        max_tokens: Budget in tokens, input and output; None is no limit.
        max_cost: Budget in US dollars; None is no limit.
        parts: Equal parts that the budget was cut into; this is one of them.
        per_run: It is that of this run, whatever earlier ones have used.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        max_tokens: float | None = None,
        max_cost: float | None = None,
        parts: int = 1,
        per_run: bool = False,
    ) -> None:
        self._progress = progress
        self._max_tokens = max_tokens
        self._max_cost = max_cost
        self._parts = parts
        self._per_run = per_run
        self._before = Spent() if per_run else progress.spent_before
        self._largest = _mean(progress.spent_before)  # tokens of a request; None: unknown
        self._seen = 0
        self._in_flight: Counter[Price | None] = Counter()
        self._warned = False
        self._changed = asyncio.Event()

    @property
    def is_limited(self) -> bool:
        """Whether there is a budget, and not only prices."""
        return self._max_tokens is not None or self._max_cost is not None

    def used(self) -> float:
        """Return which part of the budget is used; 1 is all of it."""
        spent = self._before.plus(self._progress)
        tokens = spent.prompt_tokens + spent.completion_tokens
        parts = (spent.cost, self._max_cost), (tokens, self._max_tokens)
        return max(amount / most if most else 1.0 for amount, most in parts if most is not None)

    async def begin(self, price: Price | None) -> None:
        """Return when a request may be sent.

        If requests in flight might use up the rest, their responses are awaited. The first
        request of an output is always sent, because its cost is not known.

        Raises:
            LimitReachedError: Another request might exceed the budget.
        """
        while True:
            message = self._exceeded(price)
            flying = self._in_flight.total()
            if message and not flying:
                raise LimitReachedError(message)
            if not message and flying < max(1, self._seen):
                break
            self._changed.clear()
            await self._changed.wait()
        self._in_flight[price] += 1

    def _exceeded(self, price: Price | None) -> str:
        """Return a message if one more request might exceed the budget, else an empty text."""
        if self._largest is None:
            return ""
        factor = MARGIN if self._seen >= FEW else 2 * MARGIN
        one = Usage(*(round(factor * tokens) for tokens in self._largest))
        spent = self._before.plus(self._progress)
        used = spent.prompt_tokens + spent.completion_tokens
        requests = self._in_flight.total() + 1
        if self._max_tokens is not None and used + requests * one.total > self._max_tokens:
            budget = counted(round(self._max_tokens * self._parts), "token")
            return self._message(budget, counted(round(used), "token"), counted(one.total, "token"))
        flying = sum(n * at.of(one) for at, n in self._in_flight.items() if at is not None)
        more = price.of(one) if price is not None else 0.0
        if self._max_cost is not None and spent.cost + flying + more > self._max_cost:
            return self._message(
                money(self._max_cost * self._parts), money(spent.cost), money(more)
            )
        return ""

    def _message(self, budget: str, spent: str, more: str) -> str:
        option = "--budget-per-run" if self._per_run else "--budget"
        parts = f", in {self._parts} equal parts," if self._parts > 1 else ""
        again = "Run the same command again to continue with the same budget once more."
        if not self._per_run:
            again = (
                "It is for all runs of this output: raise it to continue, or allow an amount for "
                "each run with --budget-per-run."
            )
        return (
            f"The budget of {budget} ({option}){parts} is used up: {spent} spent, and another "
            f"request may cost up to {more}. {again}"
        )

    def end(self, price: Price | None) -> None:
        """Note that a request is over, with or without a response."""
        self._in_flight[price] -= 1
        self._changed.set()

    def charge(self, usage: Usage, price: Price | None) -> None:
        """Add the cost of a response, whether its text is kept or not.

        Its tokens are counted already, unless the endpoint does not say them.
        """
        progress = self._progress
        if self.is_limited and not any(usage):
            if not self._warned:
                self._warned = True
                logger.warning("the endpoint does not report usage; the budget is estimated")
            usage = self._largest or FIRST_GUESS
            progress.prompt_tokens += usage.prompt_tokens
            progress.completion_tokens += usage.completion_tokens
        if price is not None:
            progress.cost = (progress.cost or 0.0) + price.of(usage)
        self._seen += 1
        self._largest = Usage(*map(max, usage, self._largest or usage))


def _mean(spent: Spent) -> Usage | None:
    """Return the mean tokens of a request in earlier runs; None if it is not known."""
    if not (spent.answers and spent.prompt_tokens):
        return None
    each = spent.prompt_tokens / spent.answers, spent.completion_tokens / spent.answers
    return Usage(*map(round, each))


@dataclass(frozen=True, slots=True)
class EndpointCosts:
    """The costs of one endpoint: the budget, and the price of its model, None if not known."""

    budget: CostBudget
    price: Price | None

    async def begin(self) -> None:
        """Return when a request may be sent; see `CostBudget.begin`."""
        if self.budget.is_limited:
            await self.budget.begin(self.price)

    def end(self) -> None:
        """Note that a request is over."""
        if self.budget.is_limited:
            self.budget.end(self.price)

    def charge(self, usage: Usage) -> None:
        """Add the cost of a response."""
        self.budget.charge(usage, self.price)
