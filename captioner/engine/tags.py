"""Captions that are lists of tags, as image boards write them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

_BETWEEN = re.compile(r"[,;\n]")
_WORD = re.compile(r"\w{2}")


class Tags:
    """Normalises lists of tags.

    Tags are in lower case with spaces for underscores, once each. Emoticons such as ``^_^`` stay.

    Args:
        order: ``given`` keeps the order, ``sorted`` sorts by name.
        blacklist: Tags that are left out.
    """

    def __init__(self, order: Literal["given", "sorted"], blacklist: Sequence[str] = ()) -> None:
        self._sorted = order == "sorted"
        self._left_out = {_normal(tag) for tag in blacklist}

    def of(self, text: str) -> list[str]:
        """Return the tags in a text, in which commas or line ends are between them."""
        tags = dict.fromkeys(map(_normal, _BETWEEN.split(text)))
        found = [tag for tag in tags if tag and tag not in self._left_out]
        return sorted(found) if self._sorted else found


def _normal(tag: str) -> str:
    tag = " ".join(tag.strip(" \t-*•#").lower().split())
    if not _WORD.search(tag.replace("_", " ")):
        return tag
    return " ".join(tag.rstrip(".").replace("_", " ").split())
