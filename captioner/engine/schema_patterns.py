"""Keywords of JSON Schema whose usual implementation takes endless time on some replies.

Patterns are matched by RE2, in time proportional to the text. RE2 lacks lookaheads and may not be
installed: what it cannot match is matched by `re` if the pattern cannot backtrack for long. All
other patterns are refused.
"""

from __future__ import annotations

import re
from functools import lru_cache
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LONG_REPEAT = 100
_UNICODE_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u([0-9a-fA-F]{4})")
_NO_SCHEMAS = frozenset({"const", "default", "enum", "examples"})


def with_safe_keywords(kind: Any, schema: dict[str, Any]) -> Any:
    """Return the class of a validator of jsonschema with other keywords in place of slow ones.

    Args:
        kind: The class.
        schema: The schema that it is for.

    Raises:
        SettingsError: A pattern is wrong, or could take endless time.
    """
    import jsonschema

    names = _check(schema)
    if {"patternProperties", "unevaluatedProperties"} <= names:
        raise SettingsError("schema: unevaluatedProperties beside patternProperties is not allowed")
    keywords = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "uniqueItems": _unique_items,
    }
    if "patternProperties" in names:
        keywords["additionalProperties"] = _additional_properties
    return jsonschema.validators.extend(kind, keywords)  # type: ignore[no-untyped-call]


def _check(schema: Any) -> set[str]:
    """Compile all patterns in a schema, and return the keywords in it."""
    names: set[str] = set()
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        elif isinstance(part, dict):
            names |= part.keys()
            left += [value for name, value in part.items() if name not in _NO_SCHEMAS]
            patterns = part.get("patternProperties")
            for pattern in patterns if isinstance(patterns, dict) else ():
                matcher(pattern)
            if isinstance(part.get("pattern"), str):
                matcher(part["pattern"])
    return names


@lru_cache(maxsize=1_000)
def matcher(pattern: str) -> Callable[[str], object]:
    """Return a function that searches a text for a pattern.

    Raises:
        SettingsError: The pattern is wrong, or could take endless time.
    """
    return linear(pattern, "schema").search  # type: ignore[no-any-return]


def linear(pattern: str, option: str) -> Any:
    """Return a compiled pattern, of RE2 or `re`, that takes time in proportion to the text.

    Raises:
        SettingsError: The pattern is wrong, or could take endless time; the message names the
            option that it comes from.
    """
    try:
        import re2
    except ImportError:
        pass  # there is none for this Python or processor
    else:
        options = re2.Options()
        options.log_errors = False
        try:
            return re2.compile(_UNICODE_ESCAPE.sub(r"\1\\x{\2}", pattern), options)
        except re2.error:
            pass  # a lookahead, for example
    try:
        tree = _parser.parse(pattern)
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise SettingsError(f"{option}: the pattern {pattern!r} is wrong: {error}") from None
    if _long_repeats(tree) > 1:
        raise SettingsError(
            f"{option}: the pattern {pattern!r} may take endless time on some replies: RE2 cannot "
            "match it. Use one repetition such as * or + at most, without groups in it"
        )
    return compiled


def _long_repeats(tree: Any, *, is_repeated: bool = False) -> int:
    """Return how many parts of a pattern may try many lengths; 2 for one within another."""
    found = 0
    for what, value in tree:
        if what in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            least, most, part = value
            if is_repeated:
                return 2
            found += most - least > _LONG_REPEAT
            found += _long_repeats(part, is_repeated=most > 1)
        elif what is _constants.GROUPREF:
            return 2
        elif what is _constants.BRANCH:
            if is_repeated:
                return 2
            found += sum(_long_repeats(part) for part in value[1])
        else:
            for part in value if isinstance(value, tuple) else ():
                if isinstance(part, _parser.SubPattern):
                    found += _long_repeats(part, is_repeated=is_repeated)
    return found


def _pattern(validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not matcher(pattern)(instance):
        yield _error(f"{instance!r:.100} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: dict[str, Any], instance: Any, _: Any
) -> Iterator[Any]:
    if validator.is_type(instance, "object"):
        for pattern, part in patterns.items():
            search = matcher(pattern)
            for name, value in instance.items():
                if search(name):
                    yield from validator.descend(value, part, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, others: Any, instance: Any, schema: dict[str, Any]
) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    named = schema.get("properties", {})
    searches = [matcher(pattern) for pattern in schema.get("patternProperties", {})]
    for name, value in instance.items():
        if name in named or any(search(name) for search in searches):
            continue
        if validator.is_type(others, "object"):
            yield from validator.descend(value, others, path=name)
        elif not others:
            yield _error(f"additional properties are not allowed, such as {name!r:.100}")


def _unique_items(validator: Any, wanted: Any, instance: Any, _: Any) -> Iterator[Any]:
    if wanted and validator.is_type(instance, "array"):
        seen = {orjson.dumps(_comparable(one), option=orjson.OPT_SORT_KEYS) for one in instance}
        if len(seen) < len(instance):
            yield _error(f"{instance!r:.100} has non-unique elements")


def _comparable(value: Any) -> Any:
    """Return a JSON value in which equal numbers have one spelling."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    if isinstance(value, list):
        return [_comparable(one) for one in value]
    if isinstance(value, dict):
        return {name: _comparable(one) for name, one in value.items()}
    return value


def _error(message: str) -> Any:
    import jsonschema

    return jsonschema.ValidationError(message)
