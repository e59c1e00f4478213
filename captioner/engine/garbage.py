"""Texts that are no answer of any kind: loops, signs, invisible letters, empty values."""

from __future__ import annotations

import re

LOOP_CHARS = 80
LOOP_TIMES = 5
LOOP_UNIT = 300
"""A loop ends with a unit of at most `LOOP_UNIT` characters, repeated `LOOP_TIMES` times or more,
`LOOP_CHARS` characters long in all."""

SIGNS_CHARS = 100
SIGNS_SHARE = 20
"""A text of `SIGNS_CHARS` or more is garbage if less than one in `SIGNS_SHARE` is a letter."""

HIDDEN_SHARE = 5
"""A text is garbage if more than one in `HIDDEN_SHARE` of its characters is not to be seen."""

LONGEST_RUN = 30
LONGEST_RULING = 200
LONGEST_WHOLE = 8
LONGEST_DIGITS = 20
"""Most times that a text may end in one character: a sign, a sign that rules lines, and one
character that is the whole text, or one digit."""

_RULING = frozenset(".-_=*~\u00b7\u2026\u2014\u2013\u2500\u2502|#+")
_NO_WORD = re.compile(r"<[^<>\s]{1,24}>|\[(?:PAD|UNK|EOS)\]|\\[nrt]")
_HIDDEN = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\xad\u034f\u115f\u1160\u17b4\u17b5\u180e"
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ue000-\uf8ff\ufeff\uffa0\ufffd]"
)
_EMOJI = re.compile("[\u2600-\u27bf\U0001f000-\U0001faff]")
_EMPTY_VALUE = re.compile(
    r"[\s\"'`(\[{<]*(?:null|none|undefined|nan|nil|n/?a|\[?object object\]?|(?<=[(\[{<])empty"
    r"|(?:empty|no)[ _]?(?:content"
    r"|response|output|answer|caption|text|result|string|data)(?: (?:found|available|generated"
    r"|returned|provided))?)[\s\"'`)\]}>.]*",
    re.IGNORECASE,
)
_LONGEST_EMPTY_VALUE = 40
EMPTY_BEGINS = frozenset(" nNuUeE\"'`([{<")
"""First characters of an empty value."""


def is_looping(text: str) -> bool:
    """Return whether a text ends in one unit, repeated until the model was stopped."""
    if len(text) < LOOP_CHARS:
        return False
    end = len(text)
    tail = text[-12:]
    before = text.rfind(tail, max(0, end - 12 - LOOP_UNIT), end - 1)
    while before >= 0:
        unit = end - 12 - before
        times = max(LOOP_TIMES, -(-LOOP_CHARS // unit))
        if text.endswith(text[end - unit :] * times) and any(map(str.isalnum, tail)):
            return True
        before = text.rfind(tail, max(0, end - 12 - LOOP_UNIT), before + 11) if before else -1
    return False


def is_garbage(text: str) -> bool:
    """Return whether a text has no words, is mostly signs, or has invisible characters."""
    has_marks = "<" in text or "[" in text or "\\" in text
    marks = _NO_WORD.sub("", text) if has_marks else text
    seen = _HIDDEN.sub("", marks)
    words = sum(map(str.isalnum, seen))
    if not words:
        return not _EMOJI.search(seen) or _ends_in_one_sign(text)
    if words * SIGNS_SHARE < len(text) and len(text) >= SIGNS_CHARS:
        return True
    if seen != marks and (len(marks) - len(seen)) * HIDDEN_SHARE > len(text):
        return True
    return "\x00" in text or (text[-4:-1] == text[-1] * 3 and _ends_in_one_sign(text))


def is_empty_value(text: str) -> bool:
    """Return whether a text is a program's word for nothing: null, undefined, [object Object]."""
    return len(text) <= _LONGEST_EMPTY_VALUE and _EMPTY_VALUE.fullmatch(text) is not None


def _ends_in_one_sign(text: str) -> bool:
    """Return whether a text ends in one character, over and over."""
    last = text[-1]
    run = len(text) - len(text.rstrip(last))
    if run == len(text):
        return run >= (LONGEST_DIGITS if last.isdigit() else LONGEST_WHOLE)
    return run >= (LONGEST_RULING if last in _RULING else LONGEST_RUN)
