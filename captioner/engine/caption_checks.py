"""Whether an answer will do as a caption, and how to ask again if not. Pure, no I/O.

Each fault has a code of its own and its own way of trying again; nothing is ever cut out of a
caption to make it pass.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from captioner.core.errors import BadReplyError
from captioner.core.types import RequestOverrides, Turn, ValidatedCompletion

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from captioner.core.types import Completion


REFUSAL_CHARS = 300
"""A refusal is short; a longer text that begins like one describes something all the same."""

LOOP_CHARS = 80
LOOP_TIMES = 5
LOOP_UNIT = 300
"""A loop: the end is one unit of at most so many characters, so many times, this long in all."""

HOTTER = 0.3
HOTTEST = 1.2
DEFAULT_TEMPERATURE = 0.7
LONGER = 2
FIRST_LENGTH = 1_024
LONGEST = 16_384

_REFUSAL = re.compile(
    r"[\"'\s]*(?:(?:i am |i'm |i |we're |my )?(?:very |so |really )?"
    r"(?:sorry|apologi[sz]e|apologies)\b"
    r"(?:\W*\Z|[^.!?]{0,40}\b(?:i|we)\b.{0,30}?(?:can ?not|can't|unable|not able|won't|will not))"
    r"|(?:unfortunately,? )?i (?:can ?not|can't|won't|will not|am unable to|am not able to"
    r"|must decline to) (?:help|assist|describe|view|see|identify|process|provide|analy[sz]e|fulfil"
    r"|comply|answer|tell|access|generate|continue|do that|discuss|recogni[sz]e)"
    r"|(?:unfortunately,? )?i'm (?:unable|not able) to\b"
    r"|as an ai (?:language )?(?:model|assistant))",
    re.IGNORECASE,
)


class CaptionRules(NamedTuple):
    """What a caption has to be like.

    Attributes:
        min_chars: Fewest characters.
        max_chars: Most characters; None is no limit.
        accept: Codes of faults that are let pass, flagged.
        max_attempts: Attempts a record gets.
        parse: Makes the value of a text, raising `BadReplyError`; None takes the text itself.
        schema: The JSON Schema that ``parse`` checks, for whoever has to answer again.
    """

    min_chars: int = 1
    max_chars: int | None = None
    accept: frozenset[str] = frozenset()
    max_attempts: int = 5
    parse: Callable[[str], Any] | None = None
    schema: str = ""


def check(completion: Completion, rules: CaptionRules) -> ValidatedCompletion:
    """Return the answer to keep.

    Raises:
        BadReplyError: ``empty``, ``truncated``, ``refused``, ``looping``, ``too_short``,
            ``too_long`` or ``schema``: the reply will not do.
    """
    text = completion.text
    code, message = _fault(completion, rules)
    if code and not (code in rules.accept and text):
        raise BadReplyError(code, message)
    if rules.parse is None:
        return ValidatedCompletion(text, completion, code)
    try:
        value = rules.parse(text)
    except BadReplyError:
        if not code:
            raise
        return ValidatedCompletion(
            text, completion, code
        )  # accepted as it is: half an object is text
    texts = [one for one in value.values() if isinstance(one, str)]
    if texts and all(map(looks_refused, texts)):
        code = code or "refused"
        if "refused" not in rules.accept:
            raise BadReplyError("refused", f"the model refused: {' '.join(texts[0].split())}")
    return ValidatedCompletion(value, completion, code)


def ask_again(
    fault: BadReplyError,
    completion: Completion,
    asked: RequestOverrides,
    usual: RequestOverrides,
    rules: CaptionRules,
) -> RequestOverrides:
    """Return how to ask after a reply that would not do.

    Loops are met with a higher temperature (the same one gives the same loop again), truncation
    with more tokens, an answer against the schema with what is wrong about it.

    Args:
        fault: What was wrong.
        completion: The answer that would not do.
        asked: How it was asked for.
        usual: Temperature and length where ``asked`` leaves them to the settings.
        rules: What a caption has to be like.
    """
    if fault.code == "looping":
        now = usual.temperature if asked.temperature is None else asked.temperature
        now = DEFAULT_TEMPERATURE if now is None else now
        return asked._replace(temperature=round(min(max(HOTTEST, now), now + HOTTER), 2))
    if fault.code == "truncated":
        had = asked.max_tokens or usual.max_tokens or completion.usage.completion_tokens
        return asked._replace(max_tokens=min(max(LONGEST, had), max(FIRST_LENGTH, had * LONGER)))
    if fault.code == "schema":
        said = Turn("assistant", (completion.text,))
        again = f"Answer again with nothing but one JSON object that follows it: {rules.schema}"
        return asked._replace(turns=(said, Turn("user", (f"{fault.message}. {again}",))))
    return asked


def attempts_for(code: str, rules: CaptionRules) -> int:
    """Return after how many such replies a record fails: refusals are not begged for long."""
    return min(2, rules.max_attempts) if code == "refused" else rules.max_attempts


def is_looping(text: str) -> bool:
    """Tell whether a text ends in one unit over and over, as a model does that found no end."""
    if len(text) < LOOP_CHARS:
        return False
    end = len(text)
    tail = text[-12:]
    before = text.rfind(tail, max(0, end - 12 - LOOP_UNIT), end - 1)
    while before >= 0:
        unit = end - 12 - before
        times = max(LOOP_TIMES, -(-LOOP_CHARS // unit))
        if text.endswith(text[end - unit :] * times) and any(map(str.isalpha, tail)):
            return True
        before = text.rfind(tail, max(0, end - 12 - LOOP_UNIT), before + 11) if before else -1
    return False


def looks_refused(text: str) -> bool:
    """Tell whether a caption reads like a refusal: it is short, and begins like one."""
    short = len(text) <= REFUSAL_CHARS
    return short and _REFUSAL.match(text.replace("\u2019", "'")) is not None


def _fault(completion: Completion, rules: CaptionRules) -> tuple[str, str]:
    """Return code and message of what is wrong with an answer, empty if nothing is."""
    text = completion.text
    length = len(text)
    code = message = ""
    if is_looping(text):
        code, message = "looping", "the caption repeats itself without end"
    elif completion.finish_reason == "length":
        code, message = "truncated", "the caption was cut off at the token limit"
    elif not text:
        code, message = "empty", "the endpoint gave an empty caption"
    elif looks_refused(text):
        code, message = "refused", f"the model refused: {' '.join(text.split())}"
    elif length < rules.min_chars:
        code = "too_short"
        message = f"the caption has {length} characters, fewer than {rules.min_chars}"
    elif rules.max_chars is not None and length > rules.max_chars:
        code = "too_long"
        message = f"the caption has {length} characters, more than {rules.max_chars}"
    return code, message
