"""What a run has spent, and what it may: intake ends before a cap is crossed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from captioner.core.errors import LimitReachedError
from captioner.core.humanize import money
from captioner.core.types import Usage
from captioner.endpoints.prices import FREE

if TYPE_CHECKING:
    from collections.abc import Callable

    from captioner.core.types import Progress
    from captioner.endpoints.prices import Price

FIRST_GUESS = 1_500.0, 200.0
"""Tokens in and out that a request is taken to cost until the first ones have told."""


class CostBudget:
    """Counts tokens and money of all endpoints, and says when there may be no more requests.

    Args:
        progress: Is told what was spent.
        most_tokens: Cap of tokens, input and output; None is no cap.
        most_money: Cap in US dollars; None is no cap.
        parts: The caps are of one of so many equal parts of the run's.
        warn: Called with a sentence when something is worth knowing but no error.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        most_tokens: float | None = None,
        most_money: float | None = None,
        parts: int = 1,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._progress = progress
        self._most_tokens = most_tokens
        self._most_money = most_money
        self._mean = FIRST_GUESS
        self._seen = 0
        self._in_flight = 0
        self._tokens = 0
        self._parts = parts
        self._warn = warn
        self._silent = False
        self._changed = asyncio.Event()

    @property
    def capped(self) -> bool:
        """There is a cap."""
        return self._most_tokens is not None or self._most_money is not None

    async def begin(self, price: Price) -> None:
        """Return when a request may go out.

        Where those that are out might use up the rest, they are waited for: they tell what is
        really left. A first one always goes, for nobody knows what it costs.

        Raises:
            LimitReachedError: Another one might cross a cap.
        """
        while message := self._over(price):
            if not self._in_flight:
                raise LimitReachedError(message)
            self._changed.clear()
            await self._changed.wait()
        self._in_flight += 1

    def _over(self, price: Price) -> str:
        """Return what there is to say if one more request might cross a cap, else nothing."""
        if not (self._tokens or self._in_flight):
            return ""
        out = self._in_flight + 1
        parts = f", in {self._parts} equal parts," if self._parts > 1 else ""
        again = "Run the same command again to go on with as much more."
        tokens = sum(self._mean)
        if self._most_tokens is not None and self._tokens + out * tokens > self._most_tokens:
            return (
                f"The budget of {self._most_tokens * self._parts:,.0f} tokens (--budget-tokens)"
                f"{parts} is used up: {self._tokens:,} are spent, and another request may cost "
                f"{tokens:,.0f}. {again}"
            )
        each = (price.input * self._mean[0] + price.output * self._mean[1]) / 1_000_000
        spent = self._progress.cost
        if self._most_money is not None and spent + out * each > self._most_money:
            return (
                f"The budget of {money(self._most_money * self._parts)} (--budget){parts} is used "
                f"up: {money(spent)} are spent, and another request may cost {money(each)}. {again}"
            )
        return ""

    def end(self) -> None:
        """Note that a request is over, whatever came of it."""
        self._in_flight -= 1
        self._changed.set()

    def note(self, usage: Usage, price: Price = FREE) -> None:
        """Note what a reply has cost, whether its answer is kept or not."""
        if not any(usage):  # the endpoint does not say: it costs what is guessed
            if self.capped and not self._silent:
                self._silent = True
                self._warn("the endpoint does not say what it used; the budget goes by estimates")
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
