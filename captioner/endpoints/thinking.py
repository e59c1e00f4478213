"""Take thinking, answer boxes and end-of-turn tokens out of a model's text.

Servers that know a model's marks remove them. Others pass them on, each model family with its own.
A mark that a caption quotes stays.
"""

from __future__ import annotations

import re

from captioner.endpoints.turn_marks import without_turn_marks

_STEM = (
    r"think|thought|reason|analy[sz]|reflect|scratchpad|(?<![a-z])cot(?![a-z])|monologue|internal"
)
_NAME = rf"[a-z0-9_:.-]{{0,24}}?(?:{_STEM})[a-z0-9_:.-]{{0,24}}"
_MARK = re.compile(
    rf"(?:<\|?|&lt;|◁|<\uff5c)(?P<close>/|end_(?:of_)?)?\s{{0,3}}(?:{_NAME})(?:\s[^<>\n]{{0,100}}?)?"
    r"(?P<empty>/?)(?:\|?>|&gt;|▷|\uff5c>)"
    r"|(?P<bracket>\[(?P<close2>/?)(?:THINK(?:ING)?|REASONING|THOUGHT)\])"
    r"|(?P<begin><\|channel>\s*(?:thought|analysis)|<unused\d+>\s*thought)"
    r"|(?P<end><channel\|>|<unused\d+>)",
    re.IGNORECASE,
)
"""A mark of thinking, of any name that has a stem of it: `<think>`, `[THINK]`, `◁think▷`,
`<|begin_of_thought|>`, `<seed:think>`, `<mm:think>`, escaped ones."""

_DETAILS = re.compile(
    r"<details\b[^<>]{0,200}\btype=[\"']?reasoning[^<>]{0,200}>"
    r"|\A\s*<details\b[^<>]{0,200}>\s*<summary>\s*(?:thought|thinking|reasoning)\b",
    re.IGNORECASE,
)

_HARMONY = re.compile(r"<\|?channel\|?>\s{0,8}(\w{1,40})[^<]{0,200}<\|?message\|?>")
"""A message of OpenAI's harmony format; the channel ``final`` is for the user."""

_BARE_HARMONY = re.compile(r"assistant\s{0,8}final(?=[A-Z\W])")
_BARE_ANALYSIS = re.compile(r"\s*analysis(?=[A-Z])")
"""The same format without its tokens: ``analysisThe user wants …assistantfinalA cat.``"""

_SPOKEN = re.compile(r"\s*Thinking(?: Process)?(?:\.\.\.|…|:)[ \t]*\n")
_SPOKEN_END = re.compile(r"(?:\.\.\.|…)\s?done thinking\.?")

_HEADED = re.compile(
    r"\s*[#*_ ]{0,8}(?:thinking|reasoning|thoughts?|(?:thought|thinking) process|analysis"
    r"|reflection)[#*_: ]{0,8}\n",
    re.IGNORECASE,
)
_FINAL_HEAD = re.compile(
    r"^[#*_ ]{0,8}(?:(?:my )?final (?:answer|caption|response|output)|answer|response)"
    r"[#*_: ]{0,8}\n",
    re.IGNORECASE | re.MULTILINE,
)

_BEFORE_QUOTED = frozenset("\"'“\u2018`«「『")
_AFTER_QUOTED = frozenset("\"'”\u2019`»」』")

_LEADS = frozenset(
    begin
    for word in ("thi", "tho", "rea", "ref", "ana", "ass", "mod")
    for begin in (word, word.capitalize(), word.upper())
)
_SIGNS = frozenset("#*_ \n\t")
"""Beginnings of a text that may hold thinking or a role without having any sign of a mark."""


def final_text(text: str) -> tuple[str, bool]:
    """Return the text that is for the user, and whether there was thinking in it.

    The text is empty if the thinking has no end: then nothing after it is known to be an answer.
    """
    if (
        "<" not in text
        and "[" not in text
        and "◁" not in text
        and "\\" not in text
        and "&" not in text
        and "assistantfinal" not in text
        and text[:3] not in _LEADS
        and text[:1] not in _SIGNS
    ):
        return text.strip(), False
    text, thought = _without_channels(text)
    text, marked = _without_marks(text)
    return without_turn_marks(text), thought or marked


def _without_channels(text: str) -> tuple[str, bool]:
    """Return a text without thinking that channels, headings or folds mark."""
    if messages := list(_HARMONY.finditer(text)):
        finals = [message.end() for message in messages if message[1] == "final"]
        return (text[finals[-1] :] if finals else ""), messages[0][1] != "final"
    if finals := [final.end() for final in _BARE_HARMONY.finditer(text)]:
        return text[finals[-1] :], True
    if (fold := _DETAILS.search(text)) and not _is_quoted(text, *fold.span()):
        end = text.rfind("</details>")
        return (text[: fold.start()] + text[end + 10 :] if end >= fold.end() else ""), True
    if begun := _BARE_ANALYSIS.match(text) or _SPOKEN.match(text):
        ended = _SPOKEN_END.search(text, begun.end())
        return (text[ended.end() :] if ended else ""), True
    if _HEADED.match(text) and (heads := list(_FINAL_HEAD.finditer(text))):
        return text[heads[-1].end() :], True
    return text, False


def _without_marks(text: str) -> tuple[str, bool]:
    """Return a text without thinking between marks, nested or not, and whether there was any."""
    kept: list[str] = []
    at = depth = 0
    thought = in_brackets = False
    for mark in _MARK.finditer(text):
        is_end, is_empty = _ends(mark), bool(mark["empty"])
        begin, end = mark.span()
        if not depth and is_end is None:
            continue  # an unused token that ends nothing
        if _is_quoted(text, begin, end) or (
            not depth and _is_half_quoted(text, begin, end, is_end=is_end)
        ):
            continue
        if is_empty:
            if not depth:
                kept.append(text[at:begin])
                at = end
        elif is_end or is_end is None:
            if not depth:  # the opening mark was part of the prompt
                kept.clear()
            depth = max(0, depth - 1)
            thought = True
            at = end if not depth else at
        else:
            if not depth:
                kept.append(text[at:begin])
                at, in_brackets = end, mark["bracket"] is not None
            depth += 1
    if not depth:
        return "".join(kept) + text[at:], thought
    before = "".join(kept)
    if not text[at:].strip() or (in_brackets and before.strip()):
        return text, thought  # a caption that names the mark
    return "", True


def _ends(mark: re.Match[str]) -> bool | None:
    """Return whether a mark ends thinking; None if it does so only after one that began some."""
    if mark["end"]:
        return None
    return bool(mark["close"] or mark["close2"])


def _is_quoted(text: str, begin: int, end: int) -> bool:
    return text[begin - 1 : begin] in _BEFORE_QUOTED and text[end : end + 1] in _AFTER_QUOTED


def _is_half_quoted(text: str, begin: int, end: int, *, is_end: bool | None) -> bool:
    """Return whether a mark outside of thinking stands at one side of a quoted pair."""
    if is_end:
        return text[end : end + 1] in _AFTER_QUOTED
    return text[begin - 1 : begin] in _BEFORE_QUOTED and bool(text[: begin - 1].strip())
