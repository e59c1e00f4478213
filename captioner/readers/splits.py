"""Splits of a data set by the names of its files and folders, as `datasets` finds them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from captioner.core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import PurePath

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""The split that each word in a name stands for."""

_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\..+")
_BETWEEN = re.compile(r"[-._ 0-9]+")


def split_of(path: PurePath) -> str:
    """Return the split of a file as its name or a folder says it; empty if they name none.

    Args:
        path: Relative to the data set.
    """
    if found := _SHARD.fullmatch(path.name):
        return found[1]
    for part in path.parts:
        for word in _BETWEEN.split(part):
            if word.lower() in _WORDS:
                return word
    return ""


def is_in(path: PurePath, split: str) -> bool:
    """Return whether a file is of a split: its name says so, or that of its topmost folder."""
    return _canonical(split_of(path)) == _canonical(split) or split in path.parts[:-1][:1]


def no_split(split: str, splits: Iterable[str]) -> SettingsError:
    """Return the error of a split that an input does not have."""
    names = ", ".join(dict.fromkeys(filter(None, splits)))
    there = f"the input has {names}" if names else "the input has no splits"
    return SettingsError(f"split: there is no split {split!r}; {there}")


def _canonical(split: str) -> str:
    return _WORDS.get(split.lower(), split)
