"""The sentences of a text. Pure, no I/O."""

from __future__ import annotations

import re
from itertools import islice, pairwise

_END = re.compile(
    r"(?<![.!?…])[.!?…]++[\"'”’»)\]*]*+(?=\s)"  # noqa: RUF001 - also the signs of typographers
    r"|[。！？]++[”’」』]*+"  # noqa: RUF001 - and of Chinese
    r"|(?<=\S)[^\S\n]*+\n"
)
"""What may be the end of a sentence: a sign, or the end of a line."""

_NEXT = re.compile(r"\S")
_WORD = re.compile(r"[^\W\d_](?:\.?[^\W\d_])*")
_NUMBER_OF_LINE = re.compile(r"(?:^|\n)[^\S\n]*\d{1,3}\Z")
_TITLES = frozenset({
    "dr", "mr", "mrs", "ms", "prof", "st", "mt", "vs", "ca", "approx", "fig", "jr", "sr",
})  # fmt: skip
_OPENING = "\"'([*“‘"  # noqa: RUF001
_LONGEST_BEFORE = 24
"""Characters before a full stop that tell whether it ends a sentence."""

_MOST = 10_000
"""Ends of sentences that are looked for; what comes after them is one sentence."""


def sentence_ends(text: str) -> list[int]:
    """Return where the sentences of a text end, without its last one.

    An abbreviation ends none, and neither does the number of a list. A line ends one, unless the
    next goes on with a small letter.
    """
    ends: list[int] = []
    for found in islice(_END.finditer(text), _MOST):
        sign = found[0].strip()
        end = found.end() if sign else found.start()
        following = _NEXT.search(text, end)
        before = text[max(0, found.start() - _LONGEST_BEFORE) : found.start()]
        if following and ends[-1:] != [end] and not _goes_on(before, sign, following[0]):
            ends.append(end)
    return ends


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, which together are the text."""
    ends = [0, *sentence_ends(text), len(text)]
    return [text[begin:end] for begin, end in pairwise(ends) if begin < end]


def _goes_on(before: str, sign: str, after: str) -> bool:
    """Return whether a sentence goes on after a sign, or after a line if there is no sign."""
    is_small = after.islower()
    if sign != ".":
        return is_small and (not sign or sign[0] == "…" or sign.startswith(".."))
    if before[-1:].isdigit():
        return _NUMBER_OF_LINE.search(before) is not None
    word = before.rsplit(maxsplit=1)[-1].lstrip(_OPENING) if before.strip() else ""
    if not _WORD.fullmatch(word):
        return False
    is_letters = len(word) == 1 or "." in word  # such as e.g., p.m., U.S. and J.
    return (
        word.lower() in _TITLES
        or (word.lower() == "no" and after.isdigit())
        or (is_letters and (is_small or word.isupper()))
    )
