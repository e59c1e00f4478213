"""How the help of a command looks: plain text that fits the terminal."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from captioner.cli.params import ALONE, NEEDED, PARAMETERS, Taken, taken_by
from captioner.settings.validation import choices_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NARROWEST, WIDEST = 40, 100
"""Columns of a help text, where the terminal has fewer or more."""

EVERYWHERE = (
    "Each option of a run may be given by an environment variable, too, CAPTIONER_MAX_SIDE for "
    "--max-side, or in the TOML file of --config. The command line goes before the environment, "
    "and that before the file."
)


def help_of(program: str, function: Callable[..., int], more: str = "") -> str:
    """Return what --help says of a command, with ``more`` before its flags."""
    taken = list(taken_by(function))
    has_options = any(one.flag == "--config" for one in taken)
    wanted = [one for one in taken if not one.word and one.default is NEEDED]
    words = [one.flag if one.default is NEEDED else f"[{one.flag}]" for one in taken if one.word]
    usage = [program, *map(_left, wanted), "[OPTIONS]", *words]
    parts = [f"usage: {' '.join(usage)}", _filled(inspect.getdoc(function) or "")]
    parts += [more] if more else []
    groups: dict[str, dict[str, str]] = {}
    for one in taken:
        if not one.said.hidden:
            text = _explained(one)
            if one.variable and not has_options:
                text += f" Variable: {one.variable}."
            groups.setdefault(one.group, {})[_left(one)] = text
    own = groups.setdefault(PARAMETERS, {})
    own["-h, --help"] = "Show this, and end."
    if has_options:
        own["--version"] = "Show the version, and end."
    parts += [listed(group, rows) for group, rows in groups.items()]
    if has_options:
        parts.append(_filled(EVERYWHERE))
    return "\n\n".join(parts) + "\n"


def summary(function: Callable[..., int]) -> str:
    """Return in a sentence what a command does."""
    return (inspect.getdoc(function) or "").split("\n", 1)[0]


def listed(title: str, about: dict[str, str]) -> str:
    """Return words and what each is, under each other."""
    columns = _columns()
    wide = min(4 + max(map(len, about)), 26 if columns >= 60 else 12)
    return "\n".join([f"{title}:", *_rows(about, wide, columns)])


def _rows(about: dict[str, str], wide: int, columns: int) -> Iterable[str]:
    for word, text in about.items():
        companion = f"  {word}".ljust(wide)
        if len(companion) > wide or not companion.endswith("  "):
            yield companion.rstrip()
            companion = " " * wide
        yield textwrap.fill(
            text,
            columns,
            initial_indent=companion,
            subsequent_indent=" " * wide,
            break_on_hyphens=False,
        )


def _filled(text: str) -> str:
    return "\n\n".join(textwrap.fill(part, _columns()) for part in text.split("\n\n"))


def _columns() -> int:
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns)) - 2


def _left(one: Taken) -> str:
    """Return how a flag is typed."""
    if one.word:
        return one.flag
    flag = f"{one.said.short}, {one.flag}" if one.said.short else one.flag
    if one.hint is bool:
        return f"{flag}, {one.off}" if one.off else flag
    if one.name in ALONE:
        return f"{flag}[={ALONE[one.name][1]}]"
    kinds = get_args(one.hint) or (one.hint,)
    named = {int: "N", float: "NUMBER", Path: "PATH"}
    value = next((named[kind] for kind in kinds if kind in named), "TEXT")
    if choices_of(one.hint):
        value = "CHOICE"
    return f"{flag} {value}{' ...' if one.several else ''}"


def _explained(one: Taken) -> str:
    """Return what help says of an option: its sentence, its choices, its default."""
    text = one.said.help
    choices = choices_of(one.hint)
    if not all(choice in text for choice in choices):
        text += f" One of {', '.join(choices)}."
    usual = "on" if one.default is True else one.default
    if "Default:" not in text and usual not in (None, (), False, NEEDED, Path()):
        text += f" Default: {usual}"
        text += "." * (not text.endswith("."))
    return text
