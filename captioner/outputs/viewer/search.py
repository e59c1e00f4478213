"""Which rows and which failures are looked for, told by their lines."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from captioner.core.row import FLAG
from captioner.outputs.reader import parsed
from captioner.readers.rows import dumped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from captioner.journal.reviews import Review, Reviews
    from captioner.outputs.reader import OutputReader

LONGEST_TEXT = 2_000
"""Characters of one of a record's members that are shown and looked through."""


class Query(NamedTuple):
    """What rows are looked for; what is empty asks for nothing.

    Attributes:
        text: Stands in a caption, a prompt or another member, in whatever case.
        verdict: A `captioner.journal.reviews.Verdict`; ``none`` for those without one.
        flag: ``any``, or the flag that a caption carries.
        shortest: Characters that a caption has at the least.
        longest: Characters that it has at the most.
        code: Of a failure.
    """

    text: str = ""
    verdict: str = ""
    flag: str = ""
    shortest: int = 0
    longest: int = 0
    code: str = ""


def row_fits(query: Query, book: OutputReader, reviews: Reviews) -> Callable[[bytes], bool]:
    """Return what tells by the line of a row whether it is looked for."""
    fields = book.fields
    wanted = query.text.casefold()
    edited = any(review.captions for review in reviews)
    judged = len(reviews) > 0 and (edited or query.verdict)
    maybe = _sieve(wanted)

    def fits(line: bytes) -> bool:
        if wanted and not edited and not maybe(line):
            return False
        try:
            row = parsed(line)
            key = book.identity.of_output(line) if judged else None
        except ValueError:
            return False
        review = reviews.of(key, row, fields) if key is not None else None
        if query.verdict and query.verdict != (review.verdict if review else "none"):
            return False
        return _fits(query, fields, row, review, wanted)

    return fits


def _fits(
    query: Query,
    fields: Sequence[str],
    row: dict[str, Any],
    review: Review | None,
    wanted: str,
) -> bool:
    """Tell whether a row has the flag, the length and the text that are looked for."""
    shown = review.edited(row) if review is not None else row
    if query.flag:
        flags = flags_of(row, fields)
        if not flags or (query.flag != "any" and query.flag not in flags):
            return False
    if query.shortest or query.longest:
        length = len(editable(shown.get(fields[0])))
        if length < query.shortest or (query.longest and length > query.longest):
            return False
    return not wanted or any(wanted in text for text in _texts(shown))


def failure_fits(query: Query) -> Callable[[bytes], bool]:
    """Return what tells by the line of a failure whether it is looked for."""
    wanted = query.text.casefold()
    maybe = _sieve(wanted)

    def fits(line: bytes) -> bool:
        if wanted and not maybe(line):
            return False
        failure = failure_of(line)
        if query.code and failure.get("code") != query.code:
            return False
        return not wanted or any(wanted in text for text in _texts(failure))

    return fits


def _sieve(wanted: str) -> Callable[[bytes], bool]:
    """Return what tells from a line's bytes that a text is not in it; most lines fall through."""
    plain = orjson.dumps(wanted)[1:-1]
    if not wanted.isascii() or b"\\" in plain:
        return lambda _: True
    folded = _folded_to_ascii()

    def maybe(line: bytes) -> bool:
        if plain in line.lower() or b"\\u" in line or b"\\/" in line:
            return True
        return not line.isascii() and folded.search(line) is not None

    return maybe


@functools.cache
def _folded_to_ascii() -> re.Pattern[bytes]:
    """Return a pattern of the characters that are ASCII where case does not matter."""
    found = [chr(n) for n in range(0x80, 0xD800) if any(map(str.isascii, chr(n).casefold()))]
    found += [chr(n) for n in range(0xE000, 0x10000) if any(map(str.isascii, chr(n).casefold()))]
    return re.compile(b"|".join(re.escape(one.encode()) for one in found))


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts inside a JSON value, as they are compared."""
    if isinstance(value, str):
        if len(value) <= LONGEST_TEXT or " " in value[:LONGEST_TEXT]:  # else an image's base64
            yield value.casefold()
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def failure_of(line: bytes) -> dict[str, Any]:
    """Return a failure from its line; of one that cannot be read, that."""
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {"message": "this line cannot be read"}
    return found if isinstance(found, dict) else {}


def flags_of(row: Mapping[str, Any], fields: Sequence[str]) -> list[str]:
    """Return the flags that a row's captions carry."""
    found = [row.get(f"{name}_{FLAG}") for name in fields]
    return [
        str(one) for flag in found for one in (flag if isinstance(flag, list) else [flag]) if one
    ]


def editable(value: Any) -> str:
    """Return a caption as a person sees and edits it: an object as JSON."""
    return value if isinstance(value, str) else dumped(value).decode()
