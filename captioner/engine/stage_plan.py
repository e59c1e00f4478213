"""What is asked in stages: their templates and expressions, checked before the run. No I/O."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from captioner.core.errors import SettingsError
from captioner.core.where import Where
from captioner.engine.shape import SENTENCE
from captioner.engine.template_context import NAMES
from captioner.engine.templates import Templates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from captioner.settings.settings import Settings
    from captioner.settings.stages import StageSettings

MOST_ITEMS = 100
"""Most items of a list for each of which a stage asks."""

OWN = frozenset({"item", "number", "codes", "doubt", "doubts", "record"})
"""Names that stages cannot have: an item and its number, codes and doubts of earlier stages."""

_OF_STAGES = frozenset({"item", "number", "codes", "doubt", "doubts"})


def _numbers(value: Any) -> list[float]:
    """Return the numbers of a list; of a stage that asked for each item those of its answers."""
    if not isinstance(value, list | tuple):
        return []
    answers = (one.get("answer") if isinstance(one, dict) else one for one in value)
    return [one for one in answers if isinstance(one, int | float)]


def sentences(value: Any) -> list[str]:
    """Return the sentences of a text."""
    text = value if isinstance(value, str) else ""
    return [one.strip() for one in SENTENCE.split(text) if one.strip()]


def _lines(value: Any) -> list[str]:
    text = value if isinstance(value, str) else ""
    return [one for line in text.splitlines() if (one := re.sub(r"^\W*\d*[.)]?\s*", "", line))]


def _mean(value: Any) -> float | None:
    found = _numbers(value)
    return sum(found) / len(found) if found else None


def _corners(value: Any) -> list[float] | None:
    """Return left, top, right and bottom of a box given by left, top, width and height."""
    box = _numbers(value)
    if len(box) != 4:
        return None
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


FUNCTIONS = {
    "sentences": sentences,
    "lines": _lines,
    "lowest": lambda value: min(_numbers(value), default=None),
    "highest": lambda value: max(_numbers(value), default=None),
    "mean": _mean,
    "corners": _corners,
}
"""Functions of the expressions of stages, beside those of ``--where``."""


class StagePlan:
    """One stage, its texts compiled.

    Args:
        stage: The stage, with texts read from their files.
        run: The settings of the run.

    Attributes:
        stage: The stage.
        name: Its name.
        settings: The settings of a run that would ask just its question.
        texts: Its system prompt and its prompt; None if it asks the record's own question.
        names: What its texts and expressions name.

    Raises:
        SettingsError: A template or an expression is wrong.
    """

    def __init__(self, stage: StageSettings, run: Settings) -> None:
        self.stage = stage
        self.name = stage.name
        self.settings = stage.applied(run).resolved()
        prompt = self.settings.prompt
        self.texts: Templates | None = None
        if "prompt" in stage.options:
            strict = prompt.missing == "fail"
            try:
                self.texts = Templates(prompt.system_prompt, prompt.prompt, strict=strict)
            except SettingsError as error:
                raise SettingsError(f"stage {self.name}: {error}") from None
        elif not stage.image or stage.each or stage.crop or stage.choose:
            raise SettingsError(
                f"stage {self.name}: without a prompt it asks the record's own question about the "
                "whole image; give it a prompt"
            )
        self.when = self._expression("when", stage.when)
        self.each = self._expression("each", stage.each)
        self.crop = self._expression("crop", stage.crop)
        found = (one.names for one in (self.when, self.each, self.crop) if one is not None)
        self.names = frozenset(chain(self.texts.named if self.texts else (), *found))

    def _expression(self, option: str, text: str | None) -> Where | None:
        return Where(text, f"stage {self.name}: {option}", FUNCTIONS) if text else None


def plans_of(settings: Settings) -> list[StagePlan]:
    """Return the stages of a run, in order.

    Raises:
        SettingsError: A stage is wrong, or names one that comes after it.
    """
    plans = [StagePlan(stage, settings) for stage in settings.stages]
    names = [plan.name for plan in plans]
    for at, plan in enumerate(plans):
        if plan.name in OWN | NAMES and "prompt" in plan.stage.options:
            raise SettingsError(f"stage {plan.name}: the name is taken; choose another")
        later = sorted(plan.names.intersection(names[at:]))
        if later:
            raise SettingsError(f"stage {plan.name}: {later[0]} has no answer yet; it comes later")
        if plan.crop is not None and settings.images.pass_urls:
            raise SettingsError(
                f"stage {plan.name}: crop cannot be combined with --pass-urls: captioner then "
                "never has the image itself"
            )
        chosen = plan.stage.choose
        if chosen is not None and chosen not in names[:at]:
            raise SettingsError(f"stage {plan.name}: choose: no earlier stage is named {chosen!r}")
    return plans


def named_of_records(plans: Sequence[StagePlan]) -> frozenset[str]:
    """Return what stages name of the record and its image."""
    named = frozenset(chain.from_iterable(plan.names for plan in plans))
    return named - {plan.name for plan in plans} - _OF_STAGES


def values_of(plan: StagePlan, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the expressions of a stage name; None for what is not known."""
    return {name: known.get(name) for name in plan.names}
