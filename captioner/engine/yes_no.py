# ruff: noqa: RUF001 - words of many languages
"""Read yes or no in an answer, in 15 languages. Pure, no I/O."""

from __future__ import annotations

import re
import unicodedata

from captioner.core.errors import BadReplyError

_YES_WORDS = (
    "yes", "yeah", "yep", "yup", "true",
    "ja", "oui", "si", "sí", "sì", "sim", "tak", "да", "evet", "네", "예", "نعم", "对", "對",
)  # fmt: skip
_NO_WORDS = (
    "no", "nope", "nah", "false", "untrue",
    "nein", "non", "nee", "não", "nao", "nie", "нет", "hayır", "hayir", "아뇨", "لا", "不",
)  # fmt: skip
"""Whole words."""

_YES_BEGINS = ("是", "对的", "對的", "はい", "हाँ", "हां")
_NO_BEGINS = (
    "否", "不是", "不对", "不對", "不正确", "不正確", "没有", "沒有", "いいえ", "아니", "아닙",
    "नहीं",
)  # fmt: skip
"""How a text begins in scripts without blanks, or a word that has endings."""

_YES = rf"(?:(?:{'|'.join(_YES_WORDS)})(?!\w)|{'|'.join(_YES_BEGINS)})"
_NO = rf"(?:(?:{'|'.join(_NO_WORDS)})(?!\w)|{'|'.join(_NO_BEGINS)})"
_OR = r"\s*(?:/|\b(?:or|oder|ou|of|o|lub|или|veya)\b|或|还是|還是|か)\s*"
_UNDECIDED = rf"{_YES}{_OR}{_NO}|no\s+doubt(?!\w)|not\s+false(?!\w)|是否|不确定|不確定|不知道"
"""The question said again, words that are no answer alone, and "whether", "not certain", "do not
know"."""

_NOT_TRUE = r"(?:(?:can)?not|\w{1,9}n['’]t)(?:[\s,]+\w+){0,4}[\s,]+true(?!\w)"
_VERDICT = re.compile(rf"(?<!\w)(?:{_UNDECIDED}|(?P<no>{_NOT_TRUE}|{_NO})|(?P<yes>{_YES}))")


def yes_or_no(text: str) -> float:
    """Return 1.0 for an answer that says yes, 0.0 for one that says no.

    The first word of either kind counts, wherever it stands.

    Raises:
        BadReplyError: ``unclear``: there is none.
    """
    for found in _VERDICT.finditer(_plain(text)):
        if found.lastgroup is not None:
            return float(found.lastgroup == "yes")
    raise BadReplyError("unclear", f"the answer is neither yes nor no: {text[:80]!r}")


def begins_yes_or_no(text: str) -> float:
    """Return the same for an answer that was cut off: it must begin with one of the words.

    Raises:
        BadReplyError: ``unclear``: it does not.
    """
    said = first_word(text)
    if said is None:
        raise BadReplyError("unclear", f"the answer begins with neither yes nor no: {text[:80]!r}")
    return float(said)


def first_word(text: str) -> bool | None:
    """Return True for a text or a token that begins with yes, False for no, None for neither."""
    words = _plain(text)
    begin = re.search(r"\w", words)
    found = _VERDICT.match(words, begin.start()) if begin is not None else None
    return None if found is None or found.lastgroup is None else found.lastgroup == "yes"


def _plain(text: str) -> str:
    """Return a text in small letters, and letters with their accents as one character."""
    return unicodedata.normalize("NFKC", text).lower()
