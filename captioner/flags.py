"""A command's words, its environment and its TOML file: what each gives to a function's parameters.

A positional parameter is a word, a keyword one a flag; ``**options`` takes all options of a run.
What is typed goes before the environment, that before the file, and that before the default.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin

from captioner.errors import SettingsError
from captioner.options import GROUPS
from captioner.values import choices_of, did_you_mean, flag_name, hints_of, masked, typed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

PREFIX = "CAPTIONER_"
NOT_OPTIONS = frozenset({"CAPTIONER_API_KEY"})
"""Variables with our prefix that hold something else than an option."""

HELP = frozenset({"-h", "--help"})
NARROWEST, WIDEST = 40, 100
"""Columns of a help text, where the terminal has fewer or more."""

EVERYWHERE = (
    "Each option of a run may be given by an environment variable, too, CAPTIONER_MAX_SIDE for "
    "--max-side, "
    "or in the TOML file of --config. The command line goes before the environment, and that "
    "before the file."
)

_NEEDED = inspect.Parameter.empty
_PARAMETERS = "Parameters"
_ALONE = {"retry_failed": ("all", "CODE")}
"""Options that may stand without a value: what they then mean, and what else may follow a =."""

_WORDS = dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True)
_WORDS |= dict.fromkeys(("false", "f", "no", "n", "off", "0"), False)


class Flag(NamedTuple):
    """What an annotation says of a parameter.

    Attributes:
        help: A sentence or more.
        name: Its flag without the dashes; by default the parameter's name.
        short: Its flag of one letter, dash included.
        variable: The environment may give it, too.
        hidden: Help leaves it out.
    """

    help: str
    name: str = ""
    short: str = ""
    variable: bool = False
    hidden: bool = False


class _Taken(NamedTuple):
    """A parameter, or an option of a run."""

    name: str
    flag: str  # of a word: its name in capitals
    hint: Any
    default: Any  # `_NEEDED`: it has to be given
    said: Flag
    group: str = _PARAMETERS

    @property
    def word(self) -> bool:
        """It has no flag."""
        return not self.flag.startswith("-")

    @property
    def several(self) -> bool:
        """It may be given more than once."""
        return get_origin(self.hint) is tuple

    @property
    def alone(self) -> str | None:
        """What it means without a value; None where it needs one."""
        return "true" if self.hint is bool else _ALONE.get(self.name, (None,))[0]

    @property
    def off(self) -> str:
        """The flag that switches off what is on by default; empty for others."""
        return f"--no-{self.flag[2:]}" if self.hint is bool and self.default is True else ""

    @property
    def variable(self) -> str:
        """The environment variable that gives it; empty where none does."""
        return _variable(self.flag[2:]) if self.said.variable else ""


class Reader:
    """Reads what one command is given.

    Args:
        program: The command as it is typed.
        function: What it calls; its docstring is the help's beginning.
        commands: First words that would have meant another command.
    """

    def __init__(
        self, program: str, function: Callable[..., int], commands: Collection[str] = ()
    ) -> None:
        self._program = program
        self._function = function
        self._commands = commands
        self._taken = list(_taken(function))
        self._words = [one for one in self._taken if one.word]
        self._flags = {one.flag: one for one in self._taken if not one.word}
        self._flags |= {one.said.short: one for one in self._taken if one.said.short}
        self._offs = {one.off: one for one in self._taken if one.off}
        self._has_options = "--config" in self._flags

    def read(self, words: Sequence[str]) -> dict[str, Any] | None:
        """Return the arguments that are given; None where help is asked for.

        Raises:
            SettingsError: Something cannot be meant so; it says what.
        """
        end = list(words).index("--") if "--" in words else len(words)
        if not HELP.isdisjoint(words[:end]):
            return None
        found = self._typed(words[:end], words[end + 1 :])
        self._from_environment(found)
        for one in self._taken:
            if one.default is _NEEDED and one.name not in found:
                raise SettingsError(f"which {one.flag}? See {self._program} --help")
        if self._has_options:
            self._from_file(found, found.pop("config", None))
        return found

    # -- the command line ------------------------------------------------------------------

    def _typed(self, words: Sequence[str], more: Sequence[str]) -> dict[str, Any]:
        """Return what is typed; ``more`` are words that are no flags, whatever they look like."""
        texts: dict[str, list[str]] = {}
        plain: list[str] = []
        waiting: _Taken | None = None
        for word in words:
            if waiting is not None:
                if word.startswith("--") or word in self._flags:
                    break
                texts.setdefault(waiting.name, []).append(word)
                waiting = None
            elif word == "-" or not word.startswith("-"):
                plain.append(word)
            else:
                one, text = self._find(word) or self._refuse(word)
                if text is None:
                    waiting = one
                else:
                    texts.setdefault(one.name, []).append(text)
        if waiting is not None:
            raise SettingsError(
                f"{waiting.flag} needs a value; for one that begins with -- write {waiting.flag}=…"
            )
        plain += more
        if len(plain) > len(self._words):
            raise SettingsError(self._too_many(plain, words))
        for one, word in zip(self._words, plain, strict=False):
            texts[one.name] = [word]
        return {
            one.name: _value(one, one.flag, texts[one.name])
            for one in self._taken
            if one.name in texts
        }

    def _find(self, word: str) -> tuple[_Taken, str | None] | None:
        """Return the flag that a word is, and the value that it brings along or means alone."""
        flag, equals, text = word.partition("=")
        flag = flag.replace("_", "-")  # as in Python
        if one := self._flags.get(flag):
            return one, text if equals else one.alone
        if (one := self._offs.get(flag)) and not equals:
            return one, "false"
        if f"-{flag}" in self._flags:
            raise SettingsError(f"there is no {flag}. Did you mean -{flag}?")
        if one := self._flags.get(word[:2]):  # -oFILE
            return one, word[2:]
        return None

    def _refuse(self, word: str) -> tuple[_Taken, str | None]:
        flag = word.partition("=")[0]
        if flag in self._offs or flag in (*HELP, "--version"):
            raise SettingsError(f"{flag} takes no value")
        on = self._flags.get(f"--{flag[5:]}") if flag.startswith("--no-") else None
        if on is not None and on.hint is bool:
            raise SettingsError(f"there is no {flag}; write {on.flag}=false")
        for one in self._words:
            if flag == f"--{flag_name(one.name)}":
                raise SettingsError(f"{one.flag} goes without a flag; see {self._program} --help")
        near = did_you_mean(flag, [*self._flags, *self._offs, "--help", "--version"])
        raise SettingsError(f"there is no {flag}.{near}")

    def _too_many(self, plain: Sequence[str], words: Sequence[str]) -> str:
        if plain[0] in self._commands:
            return f"{plain[0]} is a command: it comes first"
        for before, word in pairwise(words):
            one = self._flags.get(before)
            if one is None or word not in plain:
                continue
            if one.name in _ALONE or (one.hint is bool and word.lower() in _WORDS):
                return f"{word!r} is one word too many; is {before}={word} meant?"
        word = plain[len(self._words)]
        return f"{word!r} is one word too many; see {self._program} --help"

    # -- the environment and the file ----------------------------------------------------------

    def _from_environment(self, found: dict[str, Any]) -> None:
        """Take what variables say. An empty one counts as unset."""
        known = NOT_OPTIONS | {_variable(key) for key in (*_file_keys(), "config", "host", "port")}
        for name in os.environ:
            if name.startswith(PREFIX) and name not in known:
                raise SettingsError(
                    f"unknown environment variable {name}.{did_you_mean(name, known)}"
                )
        for one in self._taken:
            if one.name not in found and (text := os.environ.get(one.variable)):
                texts = list(filter(None, text.splitlines())) if one.several else [text]
                found[one.name] = _value(one, one.variable, texts)

    def _from_file(self, found: dict[str, Any], path: Path | None) -> None:
        """Take what a TOML file says; its tables of endpoints are taken as they are."""
        if path is None:
            return
        given = set(found)
        data = _load(path)
        tables = data.pop("endpoint", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise SettingsError(f"{path}: write each endpoint as a table [[endpoint]]")
        known = _file_keys()
        seen: set[str] = set()
        for key, value in data.items():
            name = key.replace("_", "-")
            if name not in known:
                raise SettingsError(f"{path}: unknown option {key!r}.{did_you_mean(name, known)}")
            if name in seen:
                raise SettingsError(f"{path}: the option {name!r} is given twice")
            seen.add(name)
            one = self._flags.get(f"--{name}")
            if one is None:
                continue
            if one.name in _ALONE and isinstance(value, bool):
                value = one.alone if value else one.default  # noqa: PLW2901 - as when it is typed
            try:
                value = typed(name, value, one.hint)  # noqa: PLW2901 - in its own type
            except SettingsError as error:
                raise SettingsError(f"{path}: {error}") from None
            found.setdefault(one.name, value)
        if tables:
            for name in {key.replace("-", "_") for table in tables for key in table} & given:
                raise SettingsError(
                    f"--{flag_name(name)} (or {_variable(flag_name(name))}) is given, and so it is "
                    f"by an [[endpoint]] table of {path}: leave one out"
                )
            found["endpoints"] = tables

    # -- help ------------------------------------------------------------------------------

    def help(self, more: str = "") -> str:
        """Return what --help says, with ``more`` before the flags."""
        wanted = [one for one in self._taken if not one.word and one.default is _NEEDED]
        words = [one.flag if one.default is _NEEDED else f"[{one.flag}]" for one in self._words]
        usage = [self._program, *map(_left, wanted), "[OPTIONS]", *words]
        parts = [f"usage: {' '.join(usage)}", _filled(inspect.getdoc(self._function) or "")]
        parts += [more] if more else []
        groups: dict[str, dict[str, str]] = {}
        for one in self._taken:
            if not one.said.hidden:
                text = _explained(one)
                if one.variable and not self._has_options:
                    text += f" Variable: {one.variable}."
                groups.setdefault(one.group, {})[_left(one)] = text
        own = groups.setdefault(_PARAMETERS, {})
        own["-h, --help"] = "Show this, and end."
        if self._has_options:
            own["--version"] = "Show the version, and end."
        parts += [listed(group, rows) for group, rows in groups.items()]
        if self._has_options:
            parts.append(_filled(EVERYWHERE))
        return "\n\n".join(parts) + "\n"


def _taken(function: Callable[..., int]) -> Iterator[_Taken]:
    """Yield what a function takes."""
    hints = inspect.get_annotations(function, eval_str=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            config = Flag("TOML file with options, named as here without the dashes.", "config")
            yield _Taken("config", "--config", Path | None, None, config._replace(variable=True))
            yield from _options()
            continue
        hint, said = get_args(hints[name])
        word = parameter.kind is not parameter.KEYWORD_ONLY
        flag = name.upper() if word else f"--{said.name or flag_name(name)}"
        yield _Taken(name, flag, hint, parameter.default, said)


def _options() -> Iterator[_Taken]:
    """Yield all options of a run, from their own definition."""
    for kind in GROUPS.values():
        hints = hints_of(kind)
        group = kind.__doc__.rstrip(".")
        for option in fields(kind):
            said = Flag(option.metadata["help"], variable=True)
            flag = f"--{flag_name(option.name)}"
            yield _Taken(option.name, flag, hints[option.name], option.default, said, group)


def _value(one: _Taken, source: str, texts: Sequence[str]) -> Any:
    """Return what texts mean; ``source`` is where they are from."""
    if len(texts) > 1 and not one.several:
        shown = [masked(text) for text in texts]
        raise SettingsError(f"{source} is given twice: {shown[0]!r} and {shown[1]!r}")
    if one.name in _ALONE and texts[0].lower() in _WORDS:
        return one.alone if _WORDS[texts[0].lower()] else one.default
    try:
        values = [_read(text, one.hint) for text in texts]
    except ValueError as error:
        raise SettingsError(f"{source}: {error}") from None
    return tuple(values) if one.several else values[0]


def _read(text: str, hint: Any) -> Any:
    """Return what a text means.

    Raises:
        ValueError: It means nothing that can be given there.
    """
    kinds = get_args(hint) or (hint,)
    if choices := choices_of(hint):
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text
    if bool in kinds:
        if text.lower() not in _WORDS:
            raise ValueError(f"{text!r} is neither true nor false")
        return _WORDS[text.lower()]
    for kind, called in ((int, "whole number"), (float, "number")):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                raise ValueError(f"{text!r} is no {called}") from None
    if Path in kinds:
        if not text:
            raise ValueError("it is empty")
        return Path(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is no UTF-8 text") from None
    return text


def _file_keys() -> set[str]:
    """Return the names that may stand in a TOML file."""
    options = {flag_name(option.name) for kind in GROUPS.values() for option in fields(kind)}
    return options | {"output", "debug", "dry-run", "json"}


def _variable(key: str) -> str:
    return PREFIX + key.upper().replace("-", "_")


def _load(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"--config: cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--config: {path} is no TOML: {error}") from None


# -- how help looks ------------------------------------------------------------------------------


def summary(function: Callable[..., int]) -> str:
    """Return in a sentence what a command does."""
    return (inspect.getdoc(function) or "").split("\n", 1)[0]


def listed(title: str, about: dict[str, str]) -> str:
    """Return words and what each is, under each other."""
    columns = _columns()
    wide = min(4 + max(map(len, about)), 26 if columns >= 60 else 12)
    return "\n".join([f"{title}:", *_rows(about, wide, columns)])


def _rows(about: dict[str, str], wide: int, columns: int) -> Iterable[str]:
    import textwrap

    for word, text in about.items():
        beside = f"  {word}".ljust(wide)
        if len(beside) > wide or not beside.endswith("  "):
            yield beside.rstrip()
            beside = " " * wide
        yield textwrap.fill(
            text,
            columns,
            initial_indent=beside,
            subsequent_indent=" " * wide,
            break_on_hyphens=False,
        )


def _filled(text: str) -> str:
    import textwrap

    return "\n\n".join(textwrap.fill(part, _columns()) for part in text.split("\n\n"))


def _columns() -> int:
    import shutil

    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns)) - 2


def _left(one: _Taken) -> str:
    """Return how a flag is typed."""
    if one.word:
        return one.flag
    flag = f"{one.said.short}, {one.flag}" if one.said.short else one.flag
    if one.hint is bool:
        return f"{flag}, {one.off}" if one.off else flag
    if one.name in _ALONE:
        return f"{flag}[={_ALONE[one.name][1]}]"
    kinds = get_args(one.hint) or (one.hint,)
    named = {int: "N", float: "NUMBER", Path: "PATH"}
    value = next((named[kind] for kind in kinds if kind in named), "TEXT")
    if choices_of(one.hint):
        value = "CHOICE"
    return f"{flag} {value}{' ...' if one.several else ''}"


def _explained(one: _Taken) -> str:
    """Return what help says of an option: its sentence, its choices, its default."""
    text = one.said.help
    choices = choices_of(one.hint)
    if not all(choice in text for choice in choices):
        text += f" One of {', '.join(choices)}."
    usual = "on" if one.default is True else one.default
    if "Default:" not in text and usual not in (None, (), False, _NEEDED, Path()):
        text += f" Default: {usual}"
        text += "." * (not text.endswith("."))
    return text
