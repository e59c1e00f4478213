"""Finding, adding and removing fields of a JSON object as bytes.

The rest of the object keeps its bytes: order of keys, big integers, spelling of floats, escapes.
These functions do not validate: call them with JSON that a parser has accepted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
MOST_FIELDS = 10_000
"""Most top-level fields of a record. Looking for one takes microseconds for each."""

MOST_VALUES = 300_000
"""Most lists and objects in a record; each takes up to 200 bytes of memory."""

_MOST = (
    ("lists and objects", (b"[", b"{"), MOST_VALUES),
    ("colons", (b":",), 500_000),
    ("commas", (b",",), 10_000_000),
    ("backslashes", (b"\\",), 3_000_000),
)
"""What is parsed or passed over one by one, and the most of each in a record: half a second."""

SHORT = 1 << 20
"""Bytes of a record that is parsed in the event loop, whatever is in it."""

BEYOND = slice(SHORT, SHORT + 1)
"""What only a record that is not `SHORT` has; len would be a call more."""

_SHORTEST = 5
"""Bytes of a field: two quotes, a colon, a digit and a comma."""

_SPACE = b" \t\r\n"
_LEVELS = 8
_OBJECT = re.compile(rb"\s*\{")
_NAME = re.compile(rb"\s*+(" + STRING + rb")\s*+:\s*+", re.DOTALL)
_SCALAR = re.compile(STRING + rb'|[^"{}\[\],\s]++', re.DOTALL)
_END = re.compile(rb"\s*+([,}])")


def _balanced(levels: int) -> bytes:
    """Return the pattern of a run of anything nested no deeper than so many levels."""
    flat = rb'[^"{}\[\]]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"'
    pattern = rb"(?:" + flat + rb")*+"
    for _ in range(levels):
        pattern = rb"(?:" + flat + rb"|[\[{]" + pattern + rb"[\]}])*+"
    return pattern


_NESTED = re.compile(_balanced(_LEVELS) + rb"([\[{]++|[\]}]++)", re.DOTALL)
"""A run that needs no look, and the brackets after it: openers, then, lead deeper than the run may.

A value of a megabyte takes one match, not a token for each of its brackets.
"""


class Field(NamedTuple):
    """One top-level field of an object.

    Attributes:
        name: The name with its quotes, as written.
        start: Offset of the comma before the name, or of the first name itself.
        value_start: Offset of the value.
        value_end: Offset just after the value.
    """

    name: bytes
    start: int
    value_start: int
    value_end: int


def fields_in(raw: bytes) -> list[Field]:
    """Return the top-level fields of an object, in order; none if it is incomplete or has too many.

    These are more than `MOST_FIELDS`.
    """
    found: list[Field] = []
    begin = _OBJECT.match(raw)
    at = begin.end() if begin else len(raw)
    start = 0
    while name := _NAME.match(raw, at):
        value_start = name.end()
        if raw.startswith((b"{", b"["), value_start):
            value_end = _end_of_nested(raw, value_start)
        else:
            scalar = _SCALAR.match(raw, value_start)
            value_end = scalar.end() if scalar else len(raw)
        end = _END.match(raw, value_end)
        if end is None:
            return []
        found.append(Field(name[1], start if found else name.start(1), value_start, value_end))
        if end[1] == b"}":
            return found
        if len(found) == MOST_FIELDS:
            break
        start, at = end.span(1)
    return []


def takes_long(raw: bytes) -> bool:
    """Return whether JSON has so many parts that parsing it would hold the event loop up."""
    return len(raw) > SHORT and sum(map(raw.count, (b"[", b"{", b":", b","))) > MOST_VALUES


def excess(raw: bytes, times: int = 1) -> str:
    """Return what JSON has so much of that reading it takes too long; an empty text if nothing.

    Args:
        raw: The JSON, valid or not.
        times: Allow as many times what a record may have.
    """
    if len(raw) > SHORT:
        for what, marks, most in _MOST:
            if sum(map(raw.count, marks)) > times * most:
                return f"more than {times * most:,} {what}"
    return ""


def has_too_many_fields(raw: bytes) -> bool:
    """Return whether an object has more than `MOST_FIELDS` top-level fields."""
    if len(raw) <= _SHORTEST * MOST_FIELDS or raw.count(b":") <= MOST_FIELDS:
        return False
    return not fields_in(raw)


def _end_of_nested(raw: bytes, at: int) -> int:
    """Return the offset after the array or object at an offset; the end if it is incomplete."""
    depth = 1
    at += 1
    while run := _NESTED.match(raw, at):
        first, at = run.span(1)
        if raw[first] in b"[{":
            depth += at - first
        elif at - first >= depth:
            return first + depth
        else:
            depth -= at - first
    return len(raw)


def add_fields(raw: bytes, fields: bytes) -> bytes:
    """Return the object with ``fields`` (``"name":value,...``) added at its end."""
    body = raw[: raw.rindex(b"}")]
    comma = b"" if body.rstrip(_SPACE).endswith(b"{") else b","
    return body + comma + fields + b"}"


def replace_values(raw: bytes, name: bytes, value: bytes) -> bytes:
    """Return the object with the value of every field with that quoted name replaced."""
    for field in reversed(fields_in(raw)):
        if field.name == name:
            raw = raw[: field.value_start] + value + raw[field.value_end :]
    return raw


def without_fields(raw: bytes, names: Iterable[bytes]) -> bytes:
    """Return the object without fields that were added to it.

    Fields at the end are removed, with the comma before them and the space before the closing
    brace. Fields that are followed by others become ``null``, so that records in which they have
    different positions stay different.
    """
    added = frozenset(names)
    at_end = True
    for field in reversed(fields_in(raw)):
        if field.name not in added:
            at_end = False
        elif at_end:
            raw = raw[: field.start] + b"}"
        else:
            raw = raw[: field.value_start] + b"null" + raw[field.value_end :]
    return raw


def one_line(raw: bytes) -> bytes:
    """Return valid JSON on one line: line breaks between tokens become spaces."""
    if b"\n" in raw or b"\r" in raw:
        return raw.replace(b"\r\n", b" ").replace(b"\n", b" ").replace(b"\r", b" ")
    return raw


def quoted(name: str) -> bytes:
    """Return a name or text as a JSON string."""
    return orjson.dumps(name)


def json_array(values: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the parts of a JSON array of encoded values, one value a line."""
    separator = b"[\n"
    for value in values:
        yield separator + value
        separator = b",\n"
    yield b"\n]" if separator == b",\n" else b"[]"
