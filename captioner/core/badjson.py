"""Why a text is no JSON, in words that name the cure."""

from __future__ import annotations

import re

from captioner.core.jsonbytes import STRING

_TOKEN = re.compile(STRING + rb"|-?Infinity\b|\bNaN\b", re.DOTALL)
_HALF = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_CONTROLS = bytes({*range(1, 9), *range(14, 27), *range(28, 32), 127})
_MOST_CONTROLS = 0.05
_MOST_IF_INVALID = 0.005
"""Shares of control characters above which bytes are no text: if they are UTF-8, and if not."""

_DICT = re.compile(rb"\s*\{\s*'")


def is_binary(data: bytes) -> bool:
    """Tell whether bytes are no text in any encoding: they have many control characters.

    Zeros do not count, because a hole in a text file consists of them.
    """
    written = data.replace(b"\0", b"")
    controls = len(written) - len(written.translate(None, _CONTROLS))
    if controls <= _MOST_IF_INVALID * len(written):
        return False
    return controls > _MOST_CONTROLS * len(written) or "\ufffd" in written.decode(errors="replace")


def why_no_json(raw: bytes, error: Exception) -> str:
    """Return why a record is not valid JSON.

    Args:
        raw: The record.
        error: What the parser says about it.
    """
    if is_binary(raw):
        return "the line is binary data, not JSON"
    for token in _TOKEN.finditer(raw):
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
