"""What a run has spent, and what it may: intake ends before a cap is crossed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.errors import LimitReachedError
from captioner.prices import FREE

if TYPE_CHECKING:
    from captioner.prices import Price
    from captioner.records import Progress, Usage

FIRST_GUESS = 1_500.0, 200.0
"""Tokens in and out that a request is taken to cost until the first ones have told."""


class Spending:
    """Counts tokens and money of all endpoints, and says when there may be no more requests.

    Args:
        progress: Is told what was spent.
        most_tokens: Cap of tokens, input and output; None is no cap.
        most_money: Cap in US dollars; None is no cap.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        most_tokens: float | None = None,
        most_money: float | None = None,
    ) -> None:
        self._progress = progress
        self._most_tokens = most_tokens
        self._most_money = most_money
        self._mean = FIRST_GUESS
        self._seen = 0
        self._in_flight = 0
        self._tokens = 0

    @property
    def capped(self) -> bool:
        """There is a cap."""
        return self._most_tokens is not None or self._most_money is not None

    def begin(self, price: Price) -> None:
        """Note that a request goes out.

        Raises:
            LimitReachedError: With those that are out it might cross a cap.
        """
        out = self._in_flight + 1
        tokens = self._tokens + out * sum(self._mean)
        if self._most_tokens is not None and tokens > self._most_tokens:
            raise LimitReachedError(
                f"The budget of {self._most_tokens:,.0f} tokens (--budget-tokens) is used up: "
                f"{self._tokens:,} are spent, and another request may cost "
                f"{sum(self._mean):,.0f}. Run the same command again to go on with as many more."
            )
        each = (price.input * self._mean[0] + price.output * self._mean[1]) / 1_000_000
        if self._most_money is not None and self._progress.cost + out * each > self._most_money:
            raise LimitReachedError(
                f"The budget of ${self._most_money:,.2f} (--budget) is used up: "
                f"${self._progress.cost:,.4f} are spent, and another request may cost "
                f"${each:,.4f}. Run the same command again to go on with as much more."
            )
        self._in_flight += 1

    def end(self) -> None:
        """Note that a request is over, whatever came of it."""
        self._in_flight -= 1

    def note(self, usage: Usage, price: Price = FREE) -> None:
        """Note what a reply has cost, whether its answer is kept or not."""
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
