"""Search in rows and failures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from captioner.core.row import FLAG
from captioner.outputs.rows import caption_text, parsed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from captioner.outputs.viewer.store import ViewerStore

LONGEST_TEXT = 2_000
"""Characters of a field that are shown and searched."""


class Query(NamedTuple):
    """A search; an empty field matches everything.

    Attributes:
        text: Text in a caption, a prompt or another field, ignoring case.
        verdict: A `captioner.journal.reviews.Verdict`; ``none`` finds rows without a review.
        flag: A flag of a caption; ``any`` finds every flag.
        shortest: Minimum characters of the caption.
        longest: Maximum characters of the caption.
        code: The code of a failure.
        repeated: ``exactly`` finds captions that are there more than once, ``nearly`` also
            those that differ little. This and what follows is found in the index only.
        opening: The hash of a caption's first words; see `RowIndex.choices`.
        prompt: The hash of a prompt.
        model: The hash of a model's name.
    """

    text: str = ""
    verdict: str = ""
    flag: str = ""
    shortest: int = 0
    longest: int = 0
    code: str = ""
    repeated: str = ""
    opening: str = ""
    prompt: str = ""
    model: str = ""

    @property
    def needs_index(self) -> bool:
        """Whether only an index can tell what matches."""
        return bool(self.repeated or self.opening or self.prompt or self.model)


def row_matcher(query: Query, store: ViewerStore) -> Callable[[bytes], bool]:
    """Return a predicate: does the line of a row match the query?"""
    reader, reviews = store.reader, store.reviews
    fields = reader.fields
    has_text = _text_matcher(query.text)
    edited = any(review.captions for review in reviews)
    needs_review = len(reviews) > 0 and (edited or query.verdict)
    may_match = (lambda _: True) if edited else _prefilter(query.text)

    def matches(line: bytes) -> bool:
        if not may_match(line):
            return False
        try:
            row = parsed(line)
            key = reader.keys.of_output(line) if needs_review else None
        except ValueError:
            return False
        review = reviews.of(key, row, fields) if key is not None else None
        if query.verdict and query.verdict != (review.verdict if review else "none"):
            return False
        flags = flags_of(row, fields)
        if query.flag and not (flags if query.flag == "any" else query.flag in flags):
            return False
        row = review.edited(row) if review is not None else row
        length = len(caption_text(row.get(fields[0])))
        too_long = query.longest and length > query.longest
        return length >= query.shortest and not too_long and has_text(row)

    return matches


def failure_matcher(query: Query) -> Callable[[bytes], bool]:
    """Return a predicate: does the line of a failure match the query?"""
    has_text = _text_matcher(query.text)

    def matches(line: bytes) -> bool:
        failure = failure_of(line)
        return query.code in ("", failure.get("code")) and has_text(failure)

    return matches


def _text_matcher(text: str) -> Callable[[Any], bool]:
    wanted = text.casefold()
    return lambda value: not wanted or any(wanted in one for one in texts_of(value))


def _prefilter(text: str) -> Callable[[bytes], bool]:
    """Return a fast predicate that rejects most lines without the text before they are parsed.

    Lines with escapes or characters beyond ASCII always pass: they may spell the text differently.
    """
    wanted = text.casefold().encode(errors="replace")
    if not wanted.isascii():
        return lambda _: True
    return lambda line: b"\\" in line or not line.isascii() or wanted in line.lower()


def texts_of(value: Any) -> Iterator[str]:
    """Yield the case-folded texts in a JSON value."""
    if isinstance(value, str):
        if len(value) <= LONGEST_TEXT or " " in value[:LONGEST_TEXT]:  # else it is base64
            yield value.casefold()
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from texts_of(one)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def failure_of(line: bytes) -> dict[str, Any]:
    """Return a failure from its line; an unreadable line becomes a message that says so."""
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {"message": "this line cannot be read"}
    return found if isinstance(found, dict) else {}


def flags_of(row: Mapping[str, Any], fields: Sequence[str]) -> list[str]:
    """Return the flags of a row's captions."""
    found: list[Any] = []
    for name in fields:
        flags = row.get(f"{name}_{FLAG}")
        found += flags if isinstance(flags, list) else [flags]
    return [str(flag) for flag in found if flag]
