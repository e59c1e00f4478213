"""Check whether an answer is a caption, and decide how to request it again if not. Pure, no I/O.

Each fault has its own code and its own way to retry. Nothing is cut out of a caption to make
it pass.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from captioner.core.errors import BadReplyError, RefusedError
from captioner.core.humanize import exactly
from captioner.core.types import RequestOverrides, Turn, ValidatedCompletion
from captioner.endpoints.finish_reasons import finish_family
from captioner.engine.error_documents import is_error_document
from captioner.engine.garbage import (
    EMPTY_BEGINS,
    LOOP_CHARS,
    is_empty_value,
    is_garbage,
    is_looping,
)
from captioner.engine.wordings import fault_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from captioner.core.types import Completion
    from captioner.engine.shape import Shape


HOTTER = 0.3
HOTTEST = 1.2
DEFAULT_TEMPERATURE = 0.7
LONGER = 2
FIRST_LENGTH = 1_024
LONGEST = 16_384
"""Tokens that a retry asks for: at first, and at most."""

CUT = ("forbidden", "too_many_tokens")
"""Faults of captions that are asked for again once, and then cut."""

SHOWN_CHARS = 200
"""Most characters of an answer in a message."""


class CaptionRules(NamedTuple):
    """What a caption must be like.

    Attributes:
        min_chars: Fewest characters.
        max_chars: Most characters; None is no limit.
        accept: Codes of faults that are accepted and flagged.
        max_attempts: Attempts of a record.
        parse: Returns the value of a text, or raises `BadReplyError`; None keeps the text.
        schema: The JSON Schema that ``parse`` checks, for the next request.
        shape: What is cut from captions and put around them; None leaves them as they are.
        parse_cut: Returns the value of a text that was cut off, or raises `BadReplyError`; None
            takes no such text.
        wanted: What ``parse`` looks for, for the next request.
    """

    min_chars: int = 1
    max_chars: int | None = None
    accept: frozenset[str] = frozenset()
    max_attempts: int = 5
    parse: Callable[[str], Any] | None = None
    schema: str = ""
    shape: Shape | None = None
    parse_cut: Callable[[str], Any] | None = None
    wanted: str = ""


def check(
    completion: Completion,
    rules: CaptionRules,
    *,
    any_finish: bool = False,
    may_cut: bool = False,
) -> ValidatedCompletion:
    """Return the answer to keep.

    Args:
        completion: The model's text.
        rules: What a caption must be like.
        any_finish: Accept and flag a text that ended for an unknown reason.
        may_cut: Accept a text from which forbidden words or tokens too many can be cut.

    Raises:
        BadReplyError: The text is no caption; the code says why.
    """
    text = completion.text
    code, message = _fault(completion, rules)
    if not code and rules.shape is not None:
        code, message = rules.shape.fault(text)
        if code and may_cut and rules.shape.without_forbidden(text):
            code = ""
    if code == "truncated" and rules.parse_cut is not None:
        with suppress(BadReplyError):
            return ValidatedCompletion(rules.parse_cut(text), completion)
    accepted = code in rules.accept or (code == "unknown_finish" and any_finish)
    if code and not (accepted and text):
        raise BadReplyError(code, message)
    if rules.parse is None:
        return ValidatedCompletion(text, completion, code)
    try:
        value = rules.parse(text)
    except BadReplyError:
        if not (code and rules.schema):
            raise
        return ValidatedCompletion(text, completion, code)  # half an object is kept as text
    of = value.values() if isinstance(value, dict) else ()
    texts = [one for one in of if isinstance(one, str)]
    if texts and all(map(fault_in, texts)):
        said, message = _instead(texts[0], rules)
        if said not in rules.accept:
            raise BadReplyError(said, message)
        code = code or said
    return ValidatedCompletion(value, completion, code)


def ask_again(
    fault: BadReplyError,
    completion: Completion,
    overrides: RequestOverrides,
    defaults: RequestOverrides,
    rules: CaptionRules,
) -> RequestOverrides:
    """Return how to request a caption again after an answer that was none.

    A loop is retried at a higher temperature, because the same one gives the same loop, and with
    bounded tokens. A truncated text is retried with more tokens. An answer against the schema,
    or without the yes, the no or the number that was asked for, is sent back with its fault.

    Args:
        fault: What was wrong.
        completion: The answer.
        overrides: How it was requested.
        defaults: Temperature and length of the settings.
        rules: What a caption must be like.

    Raises:
        RefusedError: The text was cut off, and more tokens are not asked for.
    """
    if fault.code in ("looping", "garbage"):
        now = defaults.temperature if overrides.temperature is None else overrides.temperature
        now = DEFAULT_TEMPERATURE if now is None else now
        tokens = overrides.max_tokens or defaults.max_tokens or LONGER * FIRST_LENGTH
        return overrides._replace(
            temperature=round(min(max(HOTTEST, now), now + HOTTER), 2), max_tokens=tokens
        )
    if fault.code in ("truncated", "thinking"):
        had = overrides.max_tokens or defaults.max_tokens or completion.usage.completion_tokens
        if had >= LONGEST and (fault.code == "truncated" or overrides.thinking is not None):
            raise RefusedError(fault.code, f"{fault.message} ({had}, no more is asked for)")
        return overrides._replace(max_tokens=min(LONGEST, max(FIRST_LENGTH, had * LONGER)))
    if fault.code in CUT:
        again = f"{fault.message}. Answer again without that, and with nothing else."
    elif fault.code == "schema":
        again = f"Answer again with nothing but one JSON object that follows it: {rules.schema}"
        again = f"{fault.message}. {again}"
    elif fault.code == "unclear":
        again = f"{fault.message}. Answer again with {rules.wanted} alone."
    else:
        return overrides
    said = Turn("assistant", (completion.text,))
    return overrides._replace(turns=(said, Turn("user", (again,))))


def attempts_for(code: str, rules: CaptionRules) -> int:
    """Return the answers with a fault after which a record fails: fewer for refusals."""
    few = code in ("refused", "no_image_seen", "unclear", *CUT)
    return min(2, rules.max_attempts) if few else rules.max_attempts


def may_cut(bad_replies: Mapping[str, int] | None, rules: CaptionRules) -> bool:
    """Return whether the next answer may be cut: an earlier one had such a fault, or none comes.

    Only where captions have a shape.
    """
    return rules.max_attempts == 1 or any((bad_replies or {}).get(code) for code in CUT)


def looks_refused(text: str) -> bool:
    """Return whether a caption reads like a refusal: it is short and begins like one."""
    return fault_in(text) == "refused"


def says_no_image(text: str) -> bool:
    """Return whether an answer says that the model got no image."""
    return fault_in(text) == "unseen"


def _fault(completion: Completion, rules: CaptionRules) -> tuple[str, str]:
    """Return code and message of the fault of an answer, empty if there is none."""
    text = completion.text
    length = len(text)
    family = finish_family(completion.finish_reason)
    code = message = ""
    if family == "loop" or (length >= LOOP_CHARS and is_looping(text)):
        code, message = "looping", "the caption repeats itself without end"
    elif not text and completion.thought:
        used = completion.usage.completion_tokens
        tokens = f"its {exactly(used, 'token')}" if used else "all tokens"
        code, message = "thinking", f"the model used {tokens} for thinking"
    elif text and (is_garbage(text) or (text[0] in EMPTY_BEGINS and is_empty_value(text))):
        code, message = "garbage", f"the caption has no words: {text[:40]!a}"
    elif text and (said := _instead(text, rules))[0]:
        code, message = said
    elif family == "length":
        code, message = "truncated", "the caption was cut off at the token limit"
    elif not text:
        code, message = "empty", "the endpoint gave an empty caption"
    elif family == "unknown":
        reason = completion.finish_reason[:40]
        code, message = "unknown_finish", f"the caption ended for an unknown reason ({reason!r})"
    elif length < rules.min_chars:
        code = "too_short"
        message = f"the caption has {exactly(length, 'character')}, fewer than {rules.min_chars}"
    elif rules.max_chars is not None and length > rules.max_chars:
        code = "too_long"
        message = f"the caption has {exactly(length, 'character')}, more than {rules.max_chars}"
    return code, message


def _instead(text: str, rules: CaptionRules) -> tuple[str, str]:
    """Return code and message of what a text says instead of a caption, empty if it is one."""
    kind = fault_in(text)
    if not kind and text[0] in "<{[(`" and rules.parse is None and is_error_document(text):
        kind = "error"
    code = message = ""
    if kind == "unseen":
        code, message = "no_image_seen", "the model saw no image"
    elif kind == "refused":
        code, message = "refused", "the model refused"
    elif kind == "error":
        code, message = "bad_reply", "the caption is an error message"
    return code, f"{message}: {' '.join(text.split())[:SHOWN_CHARS]}" if code else ""
