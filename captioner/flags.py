"""A command's words, its environment and its TOML file: what each gives to a function's parameters.

A positional parameter is a word, a keyword one a flag; ``**options`` takes all options of a run.
What is typed goes before the environment, that before the file, and that before the default.
"""

from __future__ import annotations

import argparse
import inspect
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Never, get_args, get_origin

from captioner.errors import SettingsError
from captioner.options import GROUPS
from captioner.values import did_you_mean, flag_name, hints_of, typed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

PREFIX = "CAPTIONER_"
NOT_OPTIONS = frozenset({"CAPTIONER_API_KEY"})
"""Variables with our prefix that hold something else than an option."""

NARROWEST, WIDEST = 40, 100
"""Columns of a help text, where the terminal has fewer or more."""

_NEEDED = inspect.Parameter.empty

ALONE = {"retry_failed": "all"}
"""Options that may stand without a value, and what they then mean."""

EVERYWHERE = (
    "Each option may be given by an environment variable, too, CAPTIONER_MAX_SIDE for --max-side, "
    "or in the TOML file of --config. The command line goes before the environment, and that "
    "before the file."
)

_WORDS = {"true": True, "yes": True, "on": True, "1": True}
_WORDS |= {"false": False, "no": False, "off": False, "0": False}


class Flag(NamedTuple):
    """What an annotation says of a parameter.

    Attributes:
        help: A sentence or more.
        name: Its flag without the dashes; by default the parameter's name.
        short: Its flag of one letter.
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
    flag: str  # a positional one's name in capitals
    hint: Any
    default: Any  # `_NEEDED`: it has to be given
    help: str
    group: str
    short: str = ""
    variable: bool = False
    hidden: bool = False

    @property
    def word(self) -> bool:
        """It has no flag."""
        return not self.flag.startswith("-")

    @property
    def several(self) -> bool:
        """It may be given more than once."""
        return get_origin(self.hint) is tuple

    @property
    def alone(self) -> str:
        """What it means without a value; empty where it needs one."""
        return "true" if self.hint is bool else ALONE.get(self.name, "")

    @property
    def off(self) -> str:
        """The flag that switches off what is on by default."""
        return f"--no-{self.flag[2:]}" if self.hint is bool and self.default is True else ""


class Reader:
    """Reads what one command is given.

    Args:
        program: The command as it is typed.
        function: What it calls; its docstring is the help's beginning.
    """

    def __init__(self, program: str, function: Callable[..., int]) -> None:
        self._program = program
        self._function = function
        self._taken = list(_taken(function))

    def read(self, words: Sequence[str]) -> dict[str, Any] | None:
        """Return the arguments that are given; None where help is asked for.

        Raises:
            SettingsError: Something cannot be meant so; it says what.
        """
        given, unknown = self._parse(words)
        if given.pop("help") is not None:
            return None
        for word in unknown:
            if word.startswith("-"):
                flag = word.partition("=")[0]
                flags = [each for one in self._taken for each in (one.flag, one.off) if each]
                raise SettingsError(f"there is no {flag}.{did_you_mean(flag, flags)}")
        if unknown:
            raise SettingsError(self._too_many(unknown[0], words))
        found: dict[str, Any] = {}
        for one in self._taken:
            if texts := given[one.name]:
                found[one.name] = _value(one, one.flag, [texts] if one.word else texts)
        for one in self._taken:
            if one.name not in found and one.default is _NEEDED and one.word:
                raise SettingsError(f"which {one.flag}? See {self._program} --help")
        self._from_environment(found)
        if "config" in self._names():
            self._from_file(found, found.pop("config", None))
        for one in self._taken:
            if one.name not in found and one.default is _NEEDED:
                raise SettingsError(f"which {one.flag}? See {self._program} --help")
        return found

    def _too_many(self, word: str, words: Sequence[str]) -> str:
        for one in self._taken:
            if one.name in ALONE and one.flag in words:
                return f"{word!r} is one word too many; is {one.flag}={word} meant?"
        return f"{word!r} is one word too many; see {self._program} --help"

    def _names(self) -> set[str]:
        return {one.name for one in self._taken}

    # -- the command line ------------------------------------------------------------------

    def _parse(self, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        parser = self._parser()
        try:
            given, unknown = parser.parse_known_args(self._spelled_out(words))
        except argparse.ArgumentError as error:
            raise SettingsError(f"{error.argument_name}: {error.message}") from None
        return vars(given), unknown

    def _spelled_out(self, words: Sequence[str]) -> list[str]:
        """Return the words with what may stand without a value given the one it then means."""
        short: dict[str, str] = {}
        for one in self._taken:
            if one.alone:
                short[one.flag] = f"{one.flag}={one.alone}"
            if one.off:
                short[one.off] = f"{one.flag}=false"
        end = list(words).index("--") if "--" in words else len(words)
        return [short.get(word, word) if at < end else word for at, word in enumerate(words)]

    def _parser(self) -> _Parser:
        """Return what splits words into flags and values; all of them are texts to it."""
        parser = _Parser(
            prog=self._program,
            usage=self._usage(),
            formatter_class=_Help,
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
        )
        parser.add_argument(
            "-h", "--help", action="store_const", const=True, help=argparse.SUPPRESS
        )
        groups: dict[str, Any] = {}
        for one in self._taken:
            group = groups.get(one.group)
            if group is None:
                group = groups[one.group] = parser.add_argument_group(one.group)
            text = argparse.SUPPRESS if one.hidden else _explained(one).replace("%", "%%")
            if one.word:
                group.add_argument(one.name, nargs="?", metavar=one.flag, help=text)
            else:
                names = [name for name in (one.short, one.flag) if name]
                group.add_argument(
                    *names, dest=one.name, action="append", metavar=_metavar(one), help=text
                )
        return parser

    # -- the environment and the file ----------------------------------------------------------

    def _from_environment(self, found: dict[str, Any]) -> None:
        """Take what variables say. An empty one counts as unset."""
        for one in self._taken:
            if one.variable and one.name not in found and (text := os.environ.get(_variable(one))):
                texts = list(filter(None, text.splitlines())) if one.several else [text]
                found[one.name] = _value(one, _variable(one), texts)
        known = NOT_OPTIONS | {_variable_of(key) for key in _all_keys()}
        for name in os.environ:
            if name.startswith(PREFIX) and name not in known:
                raise SettingsError(
                    f"unknown environment variable {name}.{did_you_mean(name, known)}"
                )

    def _from_file(self, found: dict[str, Any], path: Path | None) -> None:
        """Take what a TOML file says; its tables of endpoints are taken as they are."""
        if path is None:
            return
        data = _load(path)
        tables = data.pop("endpoint", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise SettingsError(f"{path}: write each endpoint as a table [[endpoint]]")
        known = _all_keys()
        mine = {one.flag[2:]: one for one in self._taken if not one.word}
        seen: set[str] = set()
        for key, value in data.items():
            flag = key.replace("_", "-")
            if flag not in known:
                raise SettingsError(f"{path}: unknown option {key!r}.{did_you_mean(flag, known)}")
            if flag in seen:
                raise SettingsError(f"{path}: the option {flag!r} is given twice")
            seen.add(flag)
            one = mine.get(flag)
            if one is None or one.name in found:
                continue
            try:
                found[one.name] = typed(one.name, value, one.hint)
            except SettingsError as error:
                raise SettingsError(f"{path}: {error}") from None
        if tables:
            found["endpoints"] = tables

    # -- help ------------------------------------------------------------------------------

    def help(self, more: str = "") -> str:
        """Return what --help says, with ``more`` before the flags."""
        parser = self._parser()
        about = _filled(inspect.getdoc(self._function) or "")
        parser.description = f"{about}\n\n{more}".rstrip()
        if "config" in self._names():
            parser.epilog = _filled(EVERYWHERE)
        return parser.format_help()

    def _usage(self) -> str:
        needed = [
            f"{one.flag} {_metavar(one)}"
            for one in self._taken
            if not one.word and one.default is _NEEDED
        ]
        words = [
            one.flag if one.default is _NEEDED else f"[{one.flag}]"
            for one in self._taken
            if one.word
        ]
        return " ".join([self._program, *needed, "[OPTIONS]", *words])


def _taken(function: Callable[..., int]) -> Iterable[_Taken]:
    """Yield what a function takes."""
    hints = inspect.get_annotations(function, eval_str=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            config = Flag("TOML file with options, named as here without the dashes.")
            yield _Taken(
                "config", "--config", Path | None, None, config.help, "Parameters", variable=True
            )
            yield from _options()
            continue
        hint, said = get_args(hints[name])
        word = parameter.kind is not parameter.KEYWORD_ONLY
        yield _Taken(
            name,
            name.upper() if word else f"--{said.name or flag_name(name)}",
            hint,
            parameter.default,
            said.help,
            "Parameters",
            said.short,
            said.variable,
            said.hidden,
        )


def _options() -> Iterable[_Taken]:
    """Yield all options of a run, from their own definition."""
    for kind in GROUPS.values():
        hints = hints_of(kind)
        group = kind.__doc__.rstrip(".")
        for option in fields(kind):
            yield _Taken(
                option.name,
                f"--{flag_name(option.name)}",
                hints[option.name],
                option.default,
                option.metadata["help"],
                group,
                variable=True,
            )


def _value(one: _Taken, source: str, texts: Sequence[str]) -> Any:
    """Return what texts mean; ``source`` is where they are from."""
    if one.several:
        return tuple(texts)
    if len(texts) > 1:
        raise SettingsError(f"{source}: it is given twice: {texts[0]!r} and {texts[1]!r}")
    (text,) = texts
    try:
        return _read(text, one)
    except ValueError as error:
        raise SettingsError(f"{source}: {error}") from None


def _read(text: str, one: _Taken) -> Any:
    """Return what a text means.

    Raises:
        ValueError: It means nothing that can be given there.
    """
    kinds = _kinds(one.hint)
    if choices := _choices(one.hint):
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
    return Path(text) if Path in kinds else text


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return the types that a value may have."""
    return get_args(hint) if not isinstance(hint, type) and get_args(hint) else (hint,)


def _choices(hint: Any) -> tuple[str, ...]:
    """Return the words that a value may be; none where it may be any."""
    for kind in (hint, *_kinds(hint)):
        if get_origin(kind) is Literal:
            return get_args(kind)
    return ()


def _all_keys() -> set[str]:
    """Return the names of all options of all commands, without dashes in front."""
    names = {"config", "output", "host", "port", "debug", "dry-run", "json"}
    return names | {flag_name(option.name) for kind in GROUPS.values() for option in fields(kind)}


def _variable_of(key: str) -> str:
    return PREFIX + key.upper().replace("-", "_")


def _variable(one: _Taken) -> str:
    return _variable_of(one.flag[2:])


def _load(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"--config: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"--config: {path} is no TOML: {error}") from None


def summary(function: Callable[..., int]) -> str:
    """Return in a sentence what a command does."""
    return (inspect.getdoc(function) or "").split("\n", 1)[0]


def listed(title: str, about: dict[str, str]) -> str:
    """Return words and what each is, under each other."""
    import textwrap

    wide = 4 + max(map(len, about))
    lines = [
        textwrap.fill(
            text,
            _columns(),
            initial_indent=f"  {word}".ljust(wide),
            subsequent_indent=" " * wide,
        )
        for word, text in about.items()
    ]
    return "\n".join([f"{title}:", *lines, ""])


# -- how help looks ------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """What is wrong is told by us, in our words."""

    def error(self, message: str) -> Never:
        raise SettingsError(message)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Flags on the left, what they mean on the right."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=_columns())

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(action.option_strings)
        return f"{names} {action.metavar}".strip()


def _columns() -> int:
    import shutil

    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns)) - 2


def _filled(text: str) -> str:
    import textwrap

    return "\n\n".join(textwrap.fill(part, _columns()) for part in text.split("\n\n"))


def _metavar(one: _Taken) -> str:
    if one.alone:
        return f", {one.off}" if one.off else f"[={one.name.upper()}]" * (one.hint is not bool)
    if _choices(one.hint):
        return "CHOICE"
    if one.several:
        return "TEXT ..."
    kinds = _kinds(one.hint)
    return next(
        word
        for kind, word in ((int, "N"), (float, "NUMBER"), (Path, "PATH"), (object, "TEXT"))
        if kind in kinds or kind is object
    )


def _explained(one: _Taken) -> str:
    """Return what help says of an option: its sentence, its choices, its default."""
    text = one.help
    if choices := _choices(one.hint):
        text += f" One of {', '.join(choices)}."
    usual = one.default
    if usual not in (None, (), True, False, _NEEDED, Path()) and "Default:" not in text:
        text += f" Default: {usual}"
        text += "." * (not text.endswith("."))
    return text
