"""Outcomes as lines of the output and of its failures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import orjson

from captioner.core.badjson import is_binary
from captioner.core.jsonbytes import (
    add_fields,
    fields_in,
    one_line,
    quoted,
    replace_values,
    takes_long,
)
from captioner.core.row import field_names
from captioner.settings import CONVERSATION_FIELDS, IMAGE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.core.keys import RecordKeys
    from captioner.core.types import Caption, Failure

_WITH_IMAGES = frozenset((*IMAGE_FIELDS, *CONVERSATION_FIELDS))
_PAYLOAD = re.compile(rb'"[A-Za-z0-9+/]{200,}={0,2}"')
"""Base64 of the values of a binary column."""


class RowEncoder:
    """Encodes outcomes as lines.

    Args:
        identity: Computes the keys of failures.
        fields: Names of the fields that hold captions, the main one first.
    """

    def __init__(self, identity: RecordKeys, fields: Sequence[str]) -> None:
        self._identity = identity
        self._name = quoted(fields[0])
        self._fields = frozenset(map(quoted, fields))
        self._stale = tuple(map(quoted, field_names(fields)[len(fields) :]))

    def caption(self, caption: Caption) -> bytes:
        """Return the input record with the caption added and nothing else changed."""
        raw = one_line(caption.record.raw)
        if caption.existing and caption.replaces:
            return raw + b"\n"
        added = [(self._name, orjson.dumps(caption.text))]
        added += [(quoted(field), orjson.dumps(value)) for field, value in caption.more]
        if caption.replaces:
            fields = fields_in(raw)
            present = {field.name for field in fields}
            # What is said of the previous caption does not apply. Without one it is the input's.
            stale = self._stale if self._fields & present else ()
            values = {**dict.fromkeys(stale, b"null"), **dict(added)}
            for field in reversed(fields):
                if field.name in values:
                    raw = raw[: field.value_start] + values[field.name] + raw[field.value_end :]
            added = [(name, new) for name, new in added if name not in present]
            if not added:
                return raw + b"\n"
        more = b",".join([name + b":" + value for name, value in added])
        return add_fields(raw, more) + b"\n"

    def failure(self, failure: Failure) -> bytes:
        """Return a failure as ``{line, key, code, message, attempts, record}``.

        The record is a string if it is no JSON, or so large that checking it takes long.
        """
        raw = failure.record.raw
        key = self._identity.of_record(failure.record)
        fields = orjson.dumps(
            {
                "line": failure.record.number,
                "key": key.hex(),
                "code": failure.code,
                # File names may contain bytes that are not text.
                "message": failure.message.encode(errors="replace").decode(),
                "attempts": failure.attempts,
            }
        )
        return fields[:-1] + b',"record":' + _shown(raw, failure.code) + b"}\n"


def _shown(raw: bytes, code: str) -> bytes:
    """Return a record as the failures file has it: without binary data, as of a table's column."""
    record = None
    if code != "bad_json" and not takes_long(raw):
        try:
            record = orjson.loads(raw)
        except orjson.JSONDecodeError:
            record = None
    if record is None:
        if is_binary(raw) or b"\0" in raw:
            return quoted(f"{len(raw)} bytes of binary data")
        return orjson.dumps(raw.decode(errors="replace"))
    try:
        for name, value in record.items() if isinstance(record, dict) else ():
            if name not in _WITH_IMAGES and _PAYLOAD.search(dumped := orjson.dumps(value)):
                raw = replace_values(raw, quoted(name), quoted(f"{len(dumped)} bytes of base64"))
    except TypeError:  # it is nested more deeply than orjson writes
        return orjson.dumps(raw.decode(errors="replace"))
    return one_line(raw)
