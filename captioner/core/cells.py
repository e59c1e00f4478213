"""Lists and objects in the cells of tables of text."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

import orjson

_TEXT = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_LIST_OF_TEXTS = re.compile(rf"\[\s*(?:{_TEXT.pattern})(?:[\s,]+(?:{_TEXT.pattern}))*[\s,]*\]")

_LONGEST_LITERAL = 1 << 17
"""Characters of a Python list in a cell; the parser takes a hundred times as many bytes."""


def from_cell(text: str) -> Any:
    """Return the list or object that a cell of a table holds, as JSON or as Python writes it.

    Other text is returned unchanged.
    """
    cell = text.strip()
    if cell[:1] not in ("[", "{") or cell[-1:] not in ("]", "}"):
        return text
    try:
        return orjson.loads(cell)
    except orjson.JSONDecodeError:
        pass
    if len(cell) > _LONGEST_LITERAL:
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes
            if _LIST_OF_TEXTS.fullmatch(cell):  # NumPy writes no commas, which joins the texts
                value = [ast.literal_eval(found) for found in _TEXT.findall(cell)]
            else:
                value = ast.literal_eval(cell)
        return orjson.loads(orjson.dumps(value))  # JSON has no sets and no bytes
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text
