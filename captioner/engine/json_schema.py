"""Answers that follow a JSON Schema: found in the reply, validated, and what to say if they do not.

Validation is jsonschema's (the extra ``schema``), imported when a schema is used.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import BadReplyError, SettingsError
from captioner.engine.schema_patterns import with_safe_keywords

if TYPE_CHECKING:
    from collections.abc import Callable

_FENCED = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL | re.IGNORECASE)

_MOST_ERRORS = 20
"""Errors of a reply that are compared to choose the one to report."""


def read_schema(text: str, place: str) -> dict[str, Any]:
    """Return a JSON Schema.

    Args:
        text: The schema as JSON.
        place: Where it comes from, for messages.

    Raises:
        SettingsError: It is no JSON Schema of an object, or jsonschema is not installed.
    """
    try:
        schema = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise SettingsError(f"schema: {place} is not valid JSON: {error}") from None
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise SettingsError(f'schema: {place} must describe an object ("type": "object")')
    validator(schema)
    return schema


def validator(schema: dict[str, Any]) -> Callable[[str], Any]:
    """Return a function from the text of a reply to the object in it.

    It raises `BadReplyError` with code ``schema`` where the text is no JSON or breaks the schema.

    Raises:
        SettingsError: The schema itself is none.
    """
    import jsonschema

    kind = jsonschema.validators.validator_for(schema)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise SettingsError(f"schema: it is not a JSON Schema: {error.message}") from None
    _resolve_references(schema)
    checker = with_safe_keywords(kind, schema)(schema)

    def parse(text: str) -> Any:
        fenced = _FENCED.match(text)
        try:
            value = orjson.loads(fenced[1] if fenced else text)
        except orjson.JSONDecodeError as error:
            reason = f"it is not valid JSON ({error})"
        else:
            errors = itertools.islice(checker.iter_errors(value), _MOST_ERRORS)
            broken = jsonschema.exceptions.best_match(errors)
            if broken is None:
                return value
            reason = f"at {broken.json_path} {broken.message[:200]}"
        raise BadReplyError("schema", f"the answer does not follow the JSON Schema: {reason}")

    return parse


def _resolve_references(schema: dict[str, Any]) -> None:
    from referencing import Registry, Resource, exceptions
    from referencing.jsonschema import DRAFT202012

    resource = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry().with_resource("", resource).resolver()
    left: list[Any] = [schema]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        elif isinstance(part, dict):
            left += part.values()
            reference = part.get("$ref")
            try:
                if isinstance(reference, str):
                    resolver.lookup(reference)
            except exceptions.Unresolvable:
                raise SettingsError(f"schema: there is nothing at {reference!r}") from None
