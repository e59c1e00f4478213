"""Formatting of numbers and text for people."""

from __future__ import annotations

import json
import re
import textwrap


def printable(text: str) -> str:
    """Return text with control characters escaped, so that it is safe on a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Return text as `printable` does, but with its line ends."""
    return "\n".join(map(printable, text.split("\n")))


def wrapped(text: str, columns: int) -> str:
    """Return text whose long lines end between words.

    Lines with a command stay whole, so that it can be copied, and so do lines of tables, which
    begin with two blanks.

    Args:
        text: The text.
        columns: The width of the terminal.
    """
    return "\n".join(
        line
        if len(line) <= columns or _WHOLE.search(line)
        else textwrap.fill(line, columns, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


_WHOLE = re.compile(r"^  |: (?:captioner|python -m captioner) ")


def printable_json(text: str) -> str:
    """Return JSON with control characters escaped, so that it is safe on a terminal, too.

    JSON allows those from U+007F on as they are, and those that change the direction of text.
    """
    return _UNPRINTABLE.sub(_json_escape, text)


_UNPRINTABLE = re.compile(r"[^\n\x20-\x7e\xa1-\xac\xae-\u02ff\u0370-\u03ff\u3041-\ud7ff]")
"""What may be unprintable: all but the most frequent letters."""


def _json_escape(found: re.Match[str]) -> str:
    char = found[0]
    if char.isprintable():
        return char
    return json.dumps(char)[1:-1]


def sentence(text: str) -> str:
    """Return a text as a sentence: with a capital letter and a full stop, if it has no ending."""
    text = text.strip()
    ended = text.rstrip("\"')]}").endswith((".", "!", "?", "…", "。", "\uff01", "\uff1f"))
    return text[:1].upper() + text[1:] + ("" if ended else ".")


def counted(number: int, one: str, several: str = "") -> str:
    """Return a count with its noun: ``1 record``, ``2,000 records``.

    Args:
        number: The count.
        one: What follows 1.
        several: What follows any other number. Default: ``one`` with an s.
    """
    return f"{number:,} {_noun(number, one, several)}"


def exactly(number: int, one: str, several: str = "") -> str:
    """Return a count as `counted` does, but so that it can be pasted: ``2000 records``."""
    return f"{number} {_noun(number, one, several)}"


def _noun(number: int, one: str, several: str) -> str:
    return one if number == 1 else several or one + "s"


def duration(seconds: float) -> str:
    """Return seconds in words: ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"


def short(number: int) -> str:
    """Return a count in few characters: ``950``, ``12.3k``, ``4.5M``."""
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if number >= size - size // 20_000:  # 999,950 is 1.0M, not 1000.0k
            return f"{number / size:.1f}{unit}"
    return str(number)


def money(dollars: float) -> str:
    """Return US dollars: ``$25.00``; amounts below one with more digits: ``$0.0012``."""
    if dollars >= 1 or dollars == 0:
        return f"${dollars:,.2f}"
    return f"${dollars:.4f}" if dollars >= 0.0001 else f"${dollars:.2g}"
