"""What the stages of a run will cost, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.endpoints.connect import estimated_price
from captioner.engine.stage_plan import plans_of

if TYPE_CHECKING:
    from captioner.engine.stage_plan import StagePlan
    from captioner.settings.settings import Settings

ITEMS = 8
"""Items of a list for each of which a stage asks: as many sentences as ``detailed`` asks for."""

CHARS_A_TOKEN = 4.0
"""English text, about, with the tokenizers of the day."""

TOKENS_A_MESSAGE = 10
"""What marks the turns of a request."""

OUT_TOKENS = 150
"""Tokens of an answer, where nothing is known."""

WORD_TOKENS = 2
"""Tokens of an answer that is a word or a number."""


class StageCost(NamedTuple):
    """What one stage takes if it runs for every record.

    Attributes:
        name: Its name.
        model: The model that it asks; empty for the one that the endpoint serves.
        requests: Requests.
        prompt_tokens: Input tokens.
        completion_tokens: Output tokens.
        cost: US dollars; None where no price is known.
        is_guess: The items of its list are not known (``each``).
        is_bound: It may run for fewer records (``when``, ``order``).
    """

    name: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    is_guess: bool
    is_bound: bool


def stage_costs(
    settings: Settings, records: int, image_tokens: int, text_tokens: int
) -> list[StageCost]:
    """Return what each stage of a run takes if it runs for every record.

    Args:
        settings: The settings of the run.
        records: Records that are sent.
        image_tokens: Tokens of all their images.
        text_tokens: Tokens of their own questions.
    """
    plans = plans_of(settings)
    lengths = {plan.name: _answer(plan) * _items(plan) for plan in plans}
    found = []
    for plan in plans:
        stage, samples = plan.stage, plan.settings.prompt.samples
        times = _items(plan) * samples
        text: float = text_tokens
        if plan.texts is not None:
            chars = len(plan.texts.texts.system_prompt) + len(plan.texts.texts.prompt)
            named = sum(lengths[name] for name in plan.names & lengths.keys())
            text = records * (chars / CHARS_A_TOKEN + TOKENS_A_MESSAGE + named)
        prompt_tokens = times * (text + (image_tokens if stage.image else 0))
        completion_tokens = records * times * _answer(plan)
        price = estimated_price(plan.settings)
        cost = None
        if price is not None:
            money = price.input * prompt_tokens + price.output * completion_tokens
            cost = money / 1_000_000
        model = plan.settings.each_endpoint[0].model or ""
        is_bound = stage.when is not None or stage.order == "doubt"
        found.append(
            StageCost(
                plan.name,
                model,
                records * times,
                round(prompt_tokens),
                completion_tokens,
                cost,
                stage.each is not None,
                is_bound,
            )
        )
    return found


def total_cost(costs: list[StageCost]) -> float | None:
    """Return the cost of all stages, None if the price of one is not known."""
    known: list[Any] = [one.cost for one in costs]
    return None if None in known else sum(known)


def _items(plan: StagePlan) -> int:
    return ITEMS if plan.each is not None else 1


def _answer(plan: StagePlan) -> int:
    """Return the tokens of one answer."""
    if plan.stage.answer == "yes-no" or plan.stage.choose is not None:
        return WORD_TOKENS
    return plan.settings.prompt.max_tokens or OUT_TOKENS
