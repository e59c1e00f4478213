"""What is given to a command: its words, its environment and its TOML file, read.

What is typed goes before the environment, that before the file, and that before the default.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from captioner.cli.params import (
    ALONE,
    HELP,
    NEEDED,
    PREFIX,
    Taken,
    file_keys,
    taken_by,
    variable_of,
)
from captioner.core.errors import SettingsError
from captioner.settings.validation import PRIVATE, choices_of, did_you_mean, flag_name, typed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

NOT_OPTIONS = frozenset({"CAPTIONER_API_KEY"})
"""Variables with our prefix that hold something else than an option."""

_WORDS = dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True)
_WORDS |= dict.fromkeys(("false", "f", "no", "n", "off", "0"), False)


def is_on(text: str) -> bool:
    """Tell whether a variable switches something on."""
    return _WORDS.get(text.lower(), False)


class Reader:
    """Reads what one command is given.

    Args:
        program: The command as it is typed.
        function: What it calls.
        commands: First words that would have meant another command.
    """

    def __init__(
        self, program: str, function: Callable[..., int], commands: Collection[str] = ()
    ) -> None:
        self._program = program
        self._commands = commands
        self._taken = list(taken_by(function))
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
            if one.default is NEEDED and one.name not in found:
                raise SettingsError(f"which {one.flag}? See {self._program} --help")
        if self._has_options:
            self._from_file(found, found.pop("config", None))
        return found

    # -- the command line ------------------------------------------------------------------

    def _typed(self, words: Sequence[str], more: Sequence[str]) -> dict[str, Any]:
        """Return what is typed; ``more`` are words that are no flags, whatever they look like."""
        texts: dict[str, list[str]] = {}
        plain: list[str] = []
        waiting: Taken | None = None
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

    def _find(self, word: str) -> tuple[Taken, str | None] | None:
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

    def _refuse(self, word: str) -> tuple[Taken, str | None]:
        flag = word.partition("=")[0].replace("_", "-")
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
        if PRIVATE & {word.partition("=")[0].replace("_", "-")[2:] for word in words}:
            return "there is a word too many; a value with spaces in it needs quotes"
        for before, word in pairwise(words):
            one = self._flags.get(before)
            if one is None or word not in plain:
                continue
            if one.name in ALONE or (one.hint is bool and word.lower() in _WORDS):
                return f"{word!r} is one word too many; is {before}={word} meant?"
        word = plain[len(self._words)]
        return f"{word!r} is one word too many; see {self._program} --help"

    # -- the environment and the file ----------------------------------------------------------

    def _from_environment(self, found: dict[str, Any]) -> None:
        """Take what variables say. An empty one counts as unset."""
        known = NOT_OPTIONS | {variable_of(key) for key in (*file_keys(), "config", "host", "port")}
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
        known = file_keys()
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
            if one.name in ALONE and isinstance(value, bool):
                value = one.alone if value else one.default  # noqa: PLW2901 - as when it is typed
            try:
                value = typed(name, value, one.hint)  # noqa: PLW2901 - in its own type
            except SettingsError as error:
                raise SettingsError(f"{path}: {error}") from None
            found.setdefault(one.name, value)
        if tables:
            said = {key.replace("-", "_") for table in tables for key in table}
            for key in map(flag_name, sorted(said & given)):
                raise SettingsError(
                    f"--{key} (or {variable_of(key)}) is given, and so it is by an [[endpoint]] "
                    f"table of {path}: leave one out"
                )
            found["endpoints"] = tables


def _value(one: Taken, source: str, texts: Sequence[str]) -> Any:
    """Return what texts mean; ``source`` is where they are from."""
    if len(texts) > 1 and not one.several:
        shown = "" if one.flag[2:] in PRIVATE else f": {texts[0]!r} and {texts[1]!r}"
        raise SettingsError(f"{source} is given twice{shown}")
    if one.name in ALONE and texts[0].lower() in _WORDS:
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


def _load(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"--config: cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--config: {path} is no TOML: {error}") from None
