"""The shape of captions: what is replaced, forbidden, cut, and put around them. Pure, no I/O.

Each text goes through the same steps, in this order: ``--replace``, ``--replace-re``, sentences
with forbidden words cut out, the old caption joined (``--existing``), ``--tags``, ``--prefix`` and
``--suffix``, ``--caption-template``. A text with too many tokens is cut before the last three.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import partial
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.core.errors import BadRecordError, SettingsError
from captioner.core.humanize import counted
from captioner.engine.existing import joined
from captioner.engine.schema_patterns import linear
from captioner.engine.sentences import sentence_ends, split_sentences
from captioner.engine.tags import Tags
from captioner.engine.templates import CaptionTemplate
from captioner.engine.tokens import clip_tokens, t5_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captioner.core.types import Notes, ValidatedCompletion
    from captioner.settings.settings import Settings

_WORD = re.compile(r"\s+")
_GROUP = re.compile(r"\\(\d)")


class _Budget(NamedTuple):
    """Most tokens of a caption."""

    name: str
    most: int
    count: Callable[[str], int]


class Shape:
    """Gives captions the form that the settings ask for.

    Args:
        settings: The settings, with texts read from their files.

    Raises:
        SettingsError: A template or pattern is wrong, or a library is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        wanted = settings.captions
        edits = [partial(_replaced, *pair) for pair in wanted.pairs("replace")]
        self._edits: list[Callable[[str], str]] = [
            *edits,
            *(_replacer(*pair) for pair in wanted.pairs("replace_re")),
        ]
        self._forbidden = _phrases(wanted.forbid)
        is_tags = wanted.tags or wanted.tag_blacklist
        self._tags = Tags(wanted.tags or "given", wanted.tag_blacklist) if is_tags else None
        self._prefix, self._suffix = wanted.prefix or "", wanted.suffix or ""
        self._existing = settings.records.existing
        self._template = (
            CaptionTemplate(wanted.caption_template, strict=settings.prompt.missing == "fail")
            if wanted.caption_template
            else None
        )
        self._budgets: list[_Budget] = []
        if wanted.max_clip_tokens is not None:
            self._budgets.append(_Budget("CLIP", wanted.max_clip_tokens, clip_tokens()))
        if wanted.max_t5_tokens is not None:
            count = t5_tokens(wanted.t5_tokenizer)
            self._budgets.append(_Budget("T5", wanted.max_t5_tokens, count))

    def fault(self, text: str) -> tuple[str, str]:
        """Return code and message of what is wrong with an answer; empty if nothing is."""
        text = self._edited(text)
        if self._forbidden and (found := self._forbidden.search(text)):
            return "forbidden", f"the caption has the forbidden words {found[0]!r}"
        if self._budgets:
            whole = self._around(text, {}) if not self._named else text
            for name, most, count in self._budgets:
                if (tokens := count(whole)) > most:
                    said = f"the caption has {counted(tokens, f'{name} token')}, more than {most}"
                    return "too_many_tokens", said
        return "", ""

    def without_forbidden(self, text: str) -> str:
        """Return an answer without its sentences that have forbidden words."""
        text = self._edited(text)
        forbidden = self._forbidden
        if not forbidden or not forbidden.search(text):
            return text
        kept = (one for one in split_sentences(text) if not forbidden.search(one))
        return "".join(kept).strip()

    def shaped(
        self, each: Sequence[Sequence[ValidatedCompletion]], notes: Notes | None
    ) -> list[list[ValidatedCompletion]]:
        """Return the answers to each question in their final form; values are texts.

        Raises:
            BadRecordError: Nothing is left of a caption, or the template cannot be filled in.
        """
        old = notes.existing if notes is not None else ()
        values = notes.values if notes is not None else {}
        return [
            [
                answer._replace(
                    value=self._shaped(answer.value, old[at] if old else "", values),
                    raw=answer.value,
                )
                for answer in several
            ]
            for at, several in enumerate(each)
        ]

    def _shaped(self, answer: str, old: str, values: dict[str, Any]) -> str:
        text = self.without_forbidden(answer)
        if old:
            text = joined(old, text) if self._existing == "append" else joined(text, old)
        if not text.strip() or (self._tags and not self._tags.of(text)):
            raise BadRecordError("empty", "nothing is left of the caption after --forbid or --tags")
        return self._fitted(text, partial(self._around, values=values))

    @property
    def _named(self) -> bool:
        """Whether the template names more than the caption."""
        return self._template is not None and bool(self._template.names)

    def _edited(self, text: str) -> str:
        for edit in self._edits:
            text = edit(text)
        return text

    def _around(self, text: str, values: dict[str, Any]) -> str:
        """Return a text as tags if wanted, with what goes around it."""
        if self._tags is not None:
            text = ", ".join(self._tags.of(text))
        if not text.startswith(self._prefix):
            text = self._prefix + text
        if not text.endswith(self._suffix):
            text += self._suffix
        return self._template.fill(text, values) if self._template is not None else text

    def _fitted(self, text: str, around: Callable[[str], str]) -> str:
        """Return a text with what goes around it, cut to the budgets of tokens.

        It is cut after a sentence or a tag, or after a word if the first sentence is too long.
        """
        if self._fits(whole := around(text)):
            return whole
        ways = [[one.end() for one in re.finditer(r"[,\n]", text)]] if self._tags else []
        ways += [sentence_ends(text), [one.start() for one in _WORD.finditer(text)]]
        for ends in ways:
            at = bisect_right(ends, 0, key=lambda end: not self._fits(around(_until(text, end))))
            shorter = _until(text, ends[at - 1]) if at else ""
            if shorter and self._fits(whole := around(shorter)):
                return whole
        raise BadRecordError(
            "too_many_tokens", "what is put around the caption has too many tokens already"
        )

    def _fits(self, text: str) -> bool:
        return all(budget.count(text) <= budget.most for budget in self._budgets)


def _until(text: str, end: int) -> str:
    return text[:end].strip(" ,\n")


def _replaced(old: str, new: str, text: str) -> str:
    return text.replace(old, new)


def _replacer(pattern: str, new: str) -> Callable[[str], str]:
    r"""Return a function that replaces a pattern; ``\1`` in the new text is its first group.

    Raises:
        SettingsError: The pattern is wrong, or has not that many groups.
    """
    compiled = linear(pattern, "replace-re")
    pieces = _GROUP.split(new)
    numbers = list(map(int, pieces[1::2]))
    if max(numbers, default=0) > compiled.groups:
        raise SettingsError(f"replace-re: the pattern {pattern!r} has no group {max(numbers)}")

    def made(match: Any) -> str:
        groups = (match.group(number) or "" for number in numbers)
        return "".join(chain.from_iterable(zip_longest(pieces[::2], groups, fillvalue="")))

    return lambda text: str(compiled.sub(made, text))


def _phrases(phrases: Sequence[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds phrases, whatever their case, but no parts of words."""
    if not phrases:
        return None
    each = []
    for phrase in phrases:
        words = r"\s+".join(map(re.escape, phrase.split()))
        begin = r"(?<!\w)" if _has_spaces(phrase[0]) else ""
        end = r"(?!\w)" if _has_spaces(phrase[-1]) else ""
        each.append(f"{begin}{words}{end}")
    return re.compile("|".join(each), re.IGNORECASE)


def _has_spaces(letter: str) -> bool:
    """Return whether a letter is of a script that has spaces between words."""
    return letter.isalnum() and letter < "\u2e80"
