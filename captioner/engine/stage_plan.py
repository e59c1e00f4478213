"""What is asked in stages: their templates and expressions, checked before the run. No I/O."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from captioner.core.errors import SettingsError
from captioner.core.where import FUNCTIONS as USUAL
from captioner.core.where import Where
from captioner.engine.json_schema import read_schema
from captioner.engine.sentences import split_sentences
from captioner.engine.template_context import NAMES
from captioner.engine.templates import Templates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from captioner.settings.settings import Settings
    from captioner.settings.stages import StageSettings

MOST_ITEMS = 100
"""Most items of a list for each of which a stage asks."""

_WORDS = frozenset({
    "item", "number", "codes", "doubt", "doubts", "record", "true", "false", "none", "if", "elif",
    "else", "for", "in", "is", "not", "and", "or", "loop", "range", "dict", "namespace", "cycler",
    "joiner", "lipsum", "self", "super", "caller", "varargs", "kwargs",
})  # fmt: skip
"""Names that stages cannot have: they already have a meaning in expressions and templates."""

_MARK = re.compile(r"\s*(?:[-*•]\s+|\d{1,3}[.)]\s+)?")
"""What stands before an item of a list in a text."""

_OF_STAGES = frozenset({"codes", "doubt", "doubts"})
_OF_ITEMS = frozenset({"item", "number"})


def _numbers(value: Any) -> list[float]:
    """Return the numbers of a list; of a stage that asked for each item those of its answers."""
    if not isinstance(value, list | tuple):
        return []
    answers = (one.get("answer") if isinstance(one, dict) else one for one in value)
    return [one for one in answers if isinstance(one, int | float)]


def sentences(value: Any) -> list[str]:
    """Return the sentences of a text, without the marks of a list."""
    text = value if isinstance(value, str) else ""
    return [one for part in split_sentences(text) if (one := _MARK.sub("", part, count=1).strip())]


def _lines(value: Any) -> list[str]:
    text = value if isinstance(value, str) else ""
    return [one for line in text.splitlines() if (one := _MARK.sub("", line, count=1).strip())]


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
        unseen: What its expressions name that no record had so far; a list may have no items.

    Raises:
        SettingsError: A template, an expression or the stage's own schema is wrong.
    """

    def __init__(self, stage: StageSettings, run: Settings) -> None:
        self.stage = stage
        self.name = stage.name
        self.settings = stage.applied(run).resolved()
        prompt = self.settings.prompt
        self.texts: Templates | None = None
        try:
            if "prompt" in stage.options:
                strict = prompt.missing == "fail"
                self.texts = Templates(prompt.system_prompt, prompt.prompt, strict=strict)
            own = stage.options.get("schema")
            if own and own != run.prompt.schema:
                read_schema(prompt.schema or "", "the file")
        except SettingsError as error:
            raise SettingsError(f"stage {self.name}: {error}") from None
        if self.texts is None and (not stage.image or stage.each or stage.crop or stage.choose):
            raise SettingsError(
                f"stage {self.name}: without a prompt it asks the record's own question about the "
                "whole image; give it a prompt"
            )
        self.when = self._expression("when", stage.when)
        self.each = self._expression("each", stage.each)
        self.crop = self._expression("crop", stage.crop)
        found = (one.names for one in (self.when, self.each) if one is not None)
        crop = self.crop.names if self.crop is not None else frozenset()
        self.unseen = {*chain(*found), *(crop - _OF_ITEMS if self.each is not None else crop)}
        self.names = self.unseen.union(crop, self.texts.named if self.texts else ())

    def _expression(self, option: str, text: str | None) -> Where | None:
        return Where(text, f"stage {self.name}: {option}", FUNCTIONS) if text else None


def plans_of(settings: Settings) -> list[StagePlan]:
    """Return the stages of a run, in order.

    Raises:
        SettingsError: A stage is wrong, or names one that comes after it.
    """
    plans = [StagePlan(stage, settings) for stage in settings.stages]
    taken = _WORDS | NAMES | FUNCTIONS.keys() | USUAL.keys()
    earlier: dict[str, StagePlan] = {}
    for at, plan in enumerate(plans):
        later = plan.names.intersection(other.name for other in plans[at:])
        chosen = earlier.get(plan.stage.choose or "")
        if plan.name in taken and "prompt" in plan.stage.options:
            problem = "the name is taken; choose another"
        elif later:
            problem = f"{min(later)} has no answer yet; it comes later"
        elif plan.stage.order == "doubt" and at < len(plans) - 1:
            problem = 'order = "doubt" is for the last stage; others would pay from its budget'
        elif plan.stage.choose and (chosen is None or chosen.settings.prompt.samples == 1):
            problem = f"choose: no earlier stage with several samples is named {plan.stage.choose}"
        else:
            problem = _problem_of(plan, settings)
        if problem:
            raise SettingsError(f"stage {plan.name}: {problem}")
        earlier[plan.name] = plan
    return plans


def _problem_of(plan: StagePlan, settings: Settings) -> str:
    """Return why a stage cannot work, whatever the others are; empty if it can."""
    stage, problem = plan.stage, ""
    if plan.crop is not None and (settings.images.pass_urls or not stage.image):
        problem = "crop needs the image: leave out --pass-urls, and image = false"
    elif plan.each is not None and plan.settings.prompt.samples > 1:
        problem = "each cannot be combined with samples"
    elif stage.on_failure == "skip-item" and plan.each is None:
        problem = 'on-failure = "skip-item" is for stages with each'
    elif stage.answer == "yes-no" and (stage.choose or plan.settings.prompt.schema):
        problem = "an answer of yes or no can have neither choose nor a schema"
    elif stage.order == "doubt" and settings.run.processes > 1:
        problem = 'order = "doubt" works in one process: leave out --processes'
    elif plan.texts and plan.settings.endpoint.offline and settings.prompt.pick != "merge":
        problem = (
            "the built-in describer (--offline) answers no questions; give the stage a base-url, "
            "or leave --offline out"
        )
    return problem


def named_of_records(plans: Sequence[StagePlan]) -> frozenset[str]:
    """Return what stages name of the record and its image."""
    each = (plan.names - _OF_ITEMS if plan.each is not None else plan.names for plan in plans)
    return frozenset(chain.from_iterable(each)) - {plan.name for plan in plans} - _OF_STAGES


def values_of(plan: StagePlan, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the expressions of a stage name; None for what is not known."""
    values = {name: known.get(name) for name in plan.names}
    if plan.unseen:
        plan.unseen.difference_update(name for name, value in values.items() if value is not None)
    return values
