from __future__ import annotations

import json
import sys

import pytest

from captioner.core.errors import BadReplyError, SettingsError
from captioner.engine.json_schema import read_schema, validator
from captioner.engine.schema_patterns import matcher
from captioner.settings.presets import PRESETS

SCHEMA = {
    "type": "object",
    "properties": {"short": {"type": "string"}, "tags": {"type": "array", "maxItems": 2}},
    "required": ["short"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "text",
    [
        '{"short": "a cat"}',
        ' {"short": "a cat"}\n',
        '```json\n{"short": "a cat"}\n```',
        '```\n{"short": "a cat"}```',
    ],
)
def test_the_object_in_an_answer(text) -> None:
    """Bare or fenced, what follows the schema is taken."""
    assert validator(SCHEMA)(text.strip()) == {"short": "a cat"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a cat", "not valid JSON"),
        ('{"short": "a c', "not valid JSON"),
        ("[]", r"\$ "),
        ("{}", "'short' is a required property"),
        ('{"short": 1}', r"\$\.short 1 is not of type 'string'"),
        ('{"short": "a", "tags": [1, 2, 3]}', r"\$\.tags"),
        ('{"short": "a", "more": 1}', "more"),
    ],
)
def test_what_breaks_the_schema_is_told(text, reason) -> None:
    """The message says what is wrong, and where."""
    with pytest.raises(BadReplyError, match=reason) as caught:
        validator(SCHEMA)(text)
    assert caught.value.code == "schema"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"type": "array"}',
        '{"type": "object", "required": 1}',
        '{"type": "object", "$ref": "#/$defs/x"}',
    ],
)
def test_what_is_no_schema_is_said_before_the_run(text) -> None:
    """A schema that cannot work costs no request."""
    with pytest.raises(SettingsError, match="schema"):
        read_schema(text, "s.json")


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.schema])
def test_presets_ask_as_strict_mode_wants_it(name) -> None:
    """OpenAI's strict mode takes closed objects whose members are all required."""

    def closed(schema) -> None:
        if schema.get("type") == "object":
            assert schema["additionalProperties"] is False
            assert schema["required"] == list(schema["properties"])
            for member in schema["properties"].values():
                closed(member)
        if schema.get("type") == "array":
            closed(schema["items"])

    preset = PRESETS[name]
    closed(preset.schema)
    validator(preset.schema)
    assert "JSON" in preset.prompt
    assert all(f'"{member}"' in preset.prompt for member in preset.schema["properties"])


def of_text(**keywords):
    schema = {"type": "object", "properties": {"x": {"type": "string", **keywords}}}
    return validator(schema)


SLOW = ["^(\\w+\\s?)+$", "^(a|aa)+$", "^(a*)*$", "a*a*a*a*a*b", "^([a-z]+)*@$"]


@pytest.mark.parametrize("pattern", SLOW)
def test_patterns_that_backtrack_end_on_every_answer(pattern) -> None:
    """With `re`, the first takes longer than anybody waits."""
    parse = of_text(pattern=pattern)
    with pytest.raises(BadReplyError, match="does not match"):
        parse(json.dumps({"x": "a" * 5_000 + "!"}))


@pytest.mark.parametrize("pattern", [*SLOW, "(a)\\1*b*", "(?=(a+)+b)", "(ab?){5,}"])
def test_without_re2_such_patterns_are_refused_before_the_run(pattern, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    matcher.cache_clear()
    with pytest.raises(SettingsError, match="endless"):
        of_text(pattern=pattern)


@pytest.mark.parametrize("has_re2", [True, False])
@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^[a-z]{2,5}-[0-9]{1,3}$", "ab-12", "a-1"),
        ("^\\w+$", "word", "two words"),
        ("^(red|green)$", "red", "blue"),
        ("^(?!no).*$", "yes", "no"),
        ("^[\\u00e9e]$", "\u00e9", "a"),
        ("b", "abc", "acd"),
    ],
)
def test_plain_patterns_work_either_way(pattern, good, bad, has_re2, monkeypatch) -> None:
    if not has_re2:
        monkeypatch.setitem(sys.modules, "re2", None)
    matcher.cache_clear()
    parse = of_text(pattern=pattern)
    assert parse(json.dumps({"x": good})) == {"x": good}
    with pytest.raises(BadReplyError):
        parse(json.dumps({"x": bad}))


def test_a_wrong_pattern_is_said_before_the_run() -> None:
    with pytest.raises(SettingsError, match="regex"):
        of_text(pattern="(")


def test_names_by_pattern() -> None:
    """Those that match have their schema, the others theirs."""
    parse = validator(
        {
            "type": "object",
            "properties": {"a": {}},
            "patternProperties": {"^(n+)+$": {"type": "number"}},
            "additionalProperties": False,
        }
    )
    assert parse('{"a": "x", "nn": 1}') == {"a": "x", "nn": 1}
    for answer in ('{"nn": "x"}', '{"b": 1}', json.dumps({"n" * 5_000 + "!": 1})):
        with pytest.raises(BadReplyError):
            parse(answer)
    with pytest.raises(SettingsError, match="unevaluated"):
        validator(
            {"type": "object", "patternProperties": {"a": {}}, "unevaluatedProperties": False}
        )


@pytest.mark.parametrize(
    ("items", "unique"),
    [
        ([1, 2, "1", True, None, [1], {"a": 1}], True),
        ([1, 1.0], False),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], False),
        ([[], 1] * 2, False),
        ([[number % 7, str(number)] if number % 2 else number for number in range(9_000)], True),
    ],
)
def test_unique_items(items, unique) -> None:
    """Compared by value, in one pass: pairs of thousands of items take minutes."""
    parse = validator({"type": "object", "properties": {"x": {"uniqueItems": True}}})
    if unique:
        assert parse(json.dumps({"x": items})) == {"x": items}
    else:
        with pytest.raises(BadReplyError, match="unique"):
            parse(json.dumps({"x": items}))
