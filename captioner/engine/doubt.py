"""How doubtful an answer is, and what is chosen of several. Pure, no I/O.

A doubt is a number from 0 to 1. It comes from the probabilities of tokens where the endpoint gives
them (``logprobs`` of OpenAI's chat completions), and from how far several samples disagree.
"""

from __future__ import annotations

import math
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import BadReplyError
from captioner.engine.yes_no import first_word

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from captioner.core.types import ValidatedCompletion

MOST_TOKENS = 10_000
"""Tokens of an answer whose probabilities are read."""

MOST_CHARS = 40
"""Characters of a token in which yes or no is looked for."""


def a_number(text: str) -> int:
    """Return the first whole number in an answer.

    Raises:
        BadReplyError: ``unclear``: there is none.
    """
    found = re.search(r"\d{1,6}", text)
    if found is None:
        raise BadReplyError("unclear", f"the answer has no number: {text[:80]!r}")
    return int(found[0])


def probability_of_yes(answer: ValidatedCompletion) -> float:
    """Return the probability of yes, from that of the tokens of the answer if it is known.

    The first token that says what the answer does counts: "not true" is no, and has a "true".
    """
    for token in _tokens(answer):
        if _says(token) == bool(answer.value):
            others = token.get("top_logprobs")
            either = [token, *islice(others if isinstance(others, list) else (), 20)]
            found = {str(one.get("token")): one for one in either if isinstance(one, dict)}
            yes = _sum(one for one in found.values() if _says(one))
            no = _sum(one for one in found.values() if _says(one) is False)
            if yes + no > 0:
                return round(yes / (yes + no), 4)
    return float(answer.value)


def doubt_of(several: Sequence[ValidatedCompletion]) -> float | None:
    """Return how doubtful the samples of an answer are; None if it is not known."""
    found = [doubt for one in several if (doubt := _improbable(one)) is not None]
    if len(several) > 1:
        found.append(1 - sum(_agreements(several)) / len(several))
    return round(max(found), 4) if found else None


def most_agreed(several: Sequence[ValidatedCompletion]) -> ValidatedCompletion:
    """Return the sample that agrees most with the others; the first of equals."""
    agreements = _agreements(several)
    return several[agreements.index(max(agreements))]


def longest(several: Sequence[ValidatedCompletion]) -> ValidatedCompletion:
    """Return the longest sample; the first of equals."""
    return max(several, key=lambda one: len(_text(one)))


def _improbable(answer: ValidatedCompletion) -> float | None:
    """Return 1 less the geometric mean of the probabilities of an answer's tokens."""
    logs = [log for token in _tokens(answer) if (log := _log(token)) is not None]
    return 1 - math.exp(sum(logs) / len(logs)) if logs else None


def _agreements(several: Sequence[ValidatedCompletion]) -> list[float]:
    """Return for each sample the mean share of words that it has in common with another."""
    words = [frozenset(re.findall(r"\w+", _text(one).lower())) for one in several]
    return [
        sum(_common(own, other) for at, other in enumerate(words) if at != number)
        / max(1, len(words) - 1)
        for number, own in enumerate(words)
    ]


def _common(one: frozenset[str], other: frozenset[str]) -> float:
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0


def _text(answer: ValidatedCompletion) -> str:
    value = answer.value
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _tokens(answer: ValidatedCompletion) -> Iterator[dict[str, Any]]:
    given = answer.completion.logprobs
    content = given.get("content") if isinstance(given, dict) else None
    if isinstance(content, list):
        yield from (one for one in islice(content, MOST_TOKENS) if isinstance(one, dict))


def _says(token: dict[str, Any]) -> bool | None:
    """Return whether a token is a yes, or None if it is neither yes nor no."""
    text = token.get("token")
    return first_word(text[:MOST_CHARS].strip("▁Ġ")) if isinstance(text, str) else None


def _log(token: dict[str, Any]) -> float | None:
    value = token.get("logprob")
    return float(value) if isinstance(value, int | float) and -1e4 < value <= 0 else None


def _sum(tokens: Iterator[dict[str, Any]]) -> float:
    return sum(math.exp(log) for token in tokens if (log := _log(token)) is not None)
