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
_TOKEN = re.compile(STRING + rb'|[{}\[\],:"]', re.DOTALL)
_SPACE = b" \t\r\n"


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
    """Return the top-level fields of an object, in order; none if it is incomplete."""
    found: list[Field] = []
    depth = 0
    start = 0
    name: bytes | None = None
    value_start = -1

    def close(end: int) -> None:
        if name is not None and value_start >= 0:
            value = raw[value_start:end]
            lead = len(value) - len(value.lstrip(_SPACE))
            found.append(
                Field(name, start, value_start + lead, value_start + len(value.rstrip(_SPACE)))
            )

    for token in _TOKEN.finditer(raw):
        at = token.start()
        char = raw[at : at + 1]
        if char == b'"':
            if len(token.group()) == 1:
                break  # an unterminated string: the object is incomplete
            if depth == 1 and name is None:
                name = token.group()
                start = start if found else at
        elif char in b"{[":
            depth += 1
        elif char in b"}]":
            depth -= 1
            if depth == 0:
                close(at)
                return found
        elif depth == 1:
            if char == b":":
                value_start = at + 1 if value_start < 0 else value_start
            else:
                close(at)
                start, name, value_start = at, None, -1
    return []


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
