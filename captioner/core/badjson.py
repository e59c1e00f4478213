"""Why a text is no JSON, in words that name the cure."""

from __future__ import annotations

import re

from captioner.core.jsonbytes import STRING

_TOKEN = re.compile(STRING + rb"|-?Infinity\b|\bNaN\b", re.DOTALL)
_HALF = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_LOOKED_AT = 1 << 18
"""Bytes of a record in which the reason is looked for."""

_DICT = re.compile(rb"\s*\{\s*'")


def why_no_json(raw: bytes, error: Exception) -> str:
    """Return why a record is not valid JSON.

    Args:
        raw: The record.
        error: What the parser says about it.
    """
    for token in _TOKEN.finditer(raw, 0, _LOOKED_AT):
        text = token[0]
        if text[:1] != b'"':
            return f"JSON has no {text.decode()}: write null, as pandas' to_json does"
        if half := _HALF.search(text.replace(rb"\\", b"  ")):
            return (
                f"{half[0].decode()} is half of a character, as of a text that was cut in the "
                "middle of one: remove it"
            )
    if _DICT.match(raw):
        return "it is a Python dict, not JSON: write it with json.dumps"
    return f"the line is not valid JSON: {error}"
