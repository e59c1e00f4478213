from __future__ import annotations

import pytest

from captioner.core.errors import BadReplyError, SettingsError
from captioner.engine.json_schema import read_schema, validator
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
