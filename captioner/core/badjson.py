"""Why a text is not JSON, and how to correct it."""

from __future__ import annotations

import re

import orjson

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

_MEDIA = re.compile(
    rb"^[^{\[-].*\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic|avif|mp4|mov|webm|mkv|avi)(?:\?\S*)?$",
    re.IGNORECASE,
)
_CR_ALONE = re.compile(rb"\}\s*\r\s*\{")
_LOOKED_AT = 1 << 18
"""Bytes of a record in which the reason is looked for."""

_DICT = re.compile(rb"\s*\{\s*'")


def is_binary(data: bytes) -> bool:
    """Return whether bytes are no text in any encoding: they have many control characters.

    Zeros do not count, because a hole in a text file consists of them.
    """
    written = data.replace(b"\0", b"")
    controls = len(written) - len(written.translate(None, _CONTROLS))
    if controls <= _MOST_IF_INVALID * len(written):
        return False
    return controls > _MOST_CONTROLS * len(written) or "\ufffd" in written.decode(errors="replace")


def why_no_lines(head: bytes) -> str:  # noqa: PLR0911 - one return for each cause
    """Return why a text is not JSON Lines, in a way that is the same for all lines, and the cure.

    Args:
        head: The beginning of the text. What follows its last line end does not count.
    """
    if b"\n" not in head and _CR_ALONE.search(head):
        return "has carriage returns in place of line ends: convert it, as with tr '\\r' '\\n'"
    lines = [line.strip() for line in head.split(b"\n")[:-1] if line.strip()]
    if not lines:
        return ""
    second = lines[1] if len(lines) > 1 else b""
    if lines[0].startswith(b"{") and not is_json(lines[0]):
        if lines[0] == b"{" or (second.startswith(b'"') and lines[0].endswith((b",", b"{", b"["))):
            return "has objects over several lines: write one a line, as with jq -c ."
        if all(line.endswith(b",") and is_json(line[:-1]) for line in (lines[0], second)):
            return "has lines that end in commas: remove those, as with sed 's/,$//'"
    if lines[0].startswith(b"<"):
        return "is a web page or XML, not JSON Lines: fetch or export the data itself"
    if all(map(_MEDIA.search, lines)):
        return "is a list of files, not JSON Lines: put a first line `image` and name it .csv"
    return ""


def is_json(text: bytes) -> bool:
    """Return whether a text is valid JSON."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def why_no_json(raw: bytes, error: Exception) -> str:  # noqa: PLR0911 - as above
    """Return why a record is not valid JSON.

    Args:
        raw: The record.
        error: What the parser says about it.
    """
    if is_binary(raw):
        return "the line is binary data, not JSON"
    if raw and not raw.strip(b"\0"):
        return "it is only zeros, as in a file that was not written completely: remove them"
    for token in _TOKEN.finditer(raw, 0, _LOOKED_AT):
        text = token[0]
        if text[:1] != b'"':
            return f"JSON has no {text.decode()}: write null, as pandas' to_json does"
        if half := _HALF.search(text.replace(rb"\\", b"  ")):
            return (
                f"{half[0].decode()} is half of a character, as of a text that was cut in the "
                "middle of one: remove it"
            )
    if raw.endswith(b",") and raw.startswith(b"{") and is_json(raw[:-1]):
        return "the line ends in a comma: remove it"
    if _DICT.match(raw):
        return "it is a Python dict, not JSON: write it with json.dumps"
    return f"the line is not valid JSON: {error}"
