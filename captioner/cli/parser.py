"""Commands on click, with what it lacks: a strict TOML file, strict variables, clear errors.

The command line takes precedence over the environment, that over the TOML file, and that over
the defaults.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from captioner.cli.params import Flag, Word, as_bool
from captioner.core.errors import SettingsError
from captioner.settings.flags import all_options, stored_options, variable_of
from captioner.settings.validation import PRIVATE, did_you_mean, flag_name, typed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HELP = ("-h", "--help", "--help-all")

_OTHER_KEYS: dict[str, Any] = {"output": Path, "debug": bool, "dry-run": bool, "json": bool}
"""TOML keys that are not options of a run, with their types."""

_NOT_OPTIONS = frozenset({"CAPTIONER_API_KEY"})
"""Variables with our prefix that do not hold an option."""

_SYNONYMS = {
    "api-base": "--base-url",
    "api-key": "--api-key-env, with the name of the environment variable that holds the key",
    "batch-size": "--concurrency",
    "endpoint": "--base-url",
    "force": "--overwrite",
    "format": "--output-format",
    "jobs": "--concurrency",
    "num-samples": "--limit",
    "num-workers": "--concurrency",
    "out": "-o",
    "parallel": "--concurrency",
    "question": "--prompt",
    "resume": "running the same command again resumes the run",
    "retries": "--max-attempts",
    "system": "--system-prompt",
    "threads": "--concurrency",
    "url": "--base-url",
    "worker": "--concurrency",
}
"""Flags of other programs, with what to use here."""


class Command(click.Command):
    """A command that takes flags anywhere, and whose errors say what to write instead."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["add_help_option"] = False
        super().__init__(*args, **kwargs)
        self.context_settings = {"allow_extra_args": True}
        self.takes_files = False  # a list of images and videos instead of the input
        self.other_commands: Mapping[str, click.Command] = {}
        self._flags = {
            name: param for param in self.params if isinstance(param, Flag) for name in param.opts
        }

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line.

        Raises:
            SettingsError: It cannot be understood; the message says why.
        """
        if ctx.resilient_parsing:  # for the shell's completion
            return super().parse_args(ctx, args)
        end = args.index("--") if "--" in args else len(args)
        if wanted := [word for word in args[:end] if word in HELP]:
            from captioner.cli.help import help_of

            click.echo(help_of(self, ctx, everything="--help-all" in wanted))
            ctx.exit()
        _check_variables()
        given = [*self._normalised(ctx, args[:end]), *args[end:]]
        try:
            rest = super().parse_args(ctx, given)
        except click.MissingParameter as error:
            param = error.param
            name = param.usage if isinstance(param, Flag) else getattr(param, "metavar", None)
            raise SettingsError(f"{name} is missing. See {ctx.command_path} --help") from None
        if rest and not (self.takes_files and _are_media([str(ctx.params["input"]), *rest])):
            raise SettingsError(self._too_many(ctx, args, rest))
        return rest

    def _normalised(self, ctx: click.Context, words: Sequence[str]) -> Iterator[str]:
        """Yield the words for click: ``--no-x`` and flags without a value get ``=value``."""
        seen: set[str] = set()
        needing: Flag | None = None
        for word in words:
            if needing is not None:
                if word.startswith("--") or word in self._flags:
                    break
                needing = None
                yield word
            elif word == "-" or not word.startswith("-"):
                yield word
            else:
                name, flag, value = self._flag_of(ctx, word)
                if flag.opts[-1] in seen and not flag.multiple:
                    raise SettingsError(f"{flag.opts[-1]} is given twice")
                seen.add(flag.opts[-1])
                value = flag.alone if value is None else value
                needing = flag if value is None else None
                equals = "=" if value is not None and name.startswith("--") else ""
                yield f"{name}{equals}{value or ''}"
        if needing is not None:
            flag_text = needing.opts[-1]
            raise SettingsError(
                f"{flag_text} needs a value; if it begins with -- write {flag_text}=VALUE"
            )

    def _flag_of(self, ctx: click.Context, word: str) -> tuple[str, Flag, str | None]:
        """Return the name of a flag as it is typed, the flag, and its value in the same word."""
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name in self._flags:
            return name, self._flags[name], value if equals else None
        switch = self._flags.get(f"--{name[5:]}") if name.startswith("--no-") else None
        if switch is not None and switch.alone == "true":
            if equals:
                raise SettingsError(f"{name} takes no value")
            return switch.opts[-1], switch, "false"
        if f"-{name}" in self._flags:
            raise SettingsError(f"there is no {name}. Did you mean -{name}?")
        if word[:2] in self._flags:  # -oFILE
            return word[:2], self._flags[word[:2]], word[2:]
        raise SettingsError(self._unknown(ctx, name))

    def _unknown(self, ctx: click.Context, name: str) -> str:
        """Return the message for a flag that does not exist."""
        if name in (*HELP, "--version"):
            return f"{name} takes no value"
        for one in self.params:
            if isinstance(one, Word) and name == f"--{flag_name(str(one.name))}":
                return f"{one.metavar} goes without a flag. See {ctx.command_path} --help"
        replacement = _SYNONYMS.get(name.lstrip("-"))
        if replacement is not None and (
            replacement[0] != "-" or replacement.split(",")[0] in self._flags
        ):
            return f"there is no {name}{'. Use ' if replacement[0] == '-' else ': '}{replacement}"
        offs = [f"--no-{one[2:]}" for one, flag in self._flags.items() if flag.alone == "true"]
        return f"there is no {name}.{did_you_mean(name, [*self._flags, *offs, *HELP, '--version'])}"

    def _too_many(self, ctx: click.Context, words: Sequence[str], rest: Sequence[str]) -> str:
        """Return the message for words that no argument takes."""
        arguments = [str(ctx.params[one.name]) for one in self.params if isinstance(one, Word)]
        if arguments and arguments[0] in self.other_commands:
            return f"{arguments[0]} is a command: it comes first"
        if PRIVATE & {word.partition("=")[0].replace("_", "-")[2:] for word in words}:
            return "there is a word too many; a value with spaces needs quotes"
        for before, word in pairwise(words):
            flag = self._flags.get(before)
            if flag is None or flag.alone is None or word not in (*arguments, *rest):
                continue
            if (
                flag.alone != "true"
                or (flag.option and flag.option.alone and flag.option.alone[1])
                or as_bool(word) is not None
            ):
                return f"{word!r} is one word too many. Did you mean {quote(f'{before}={word}')}?"
        return f"{rest[0]!r} is one word too many. See {ctx.command_path} --help"


class Group(click.Group):
    """Commands under one word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show the help if it is asked for or no command is named."""
        if not ctx.resilient_parsing and (not args or args[0] in HELP):
            from captioner.cli.help import help_of_group

            click.echo(help_of_group(self, ctx))
            ctx.exit()
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is named."""
        if args[0] not in self.commands and not ctx.resilient_parsing:
            hint = did_you_mean(args[0], self.commands) or f" It has {', '.join(self.commands)}."
            raise SettingsError(f"{ctx.command_path} has no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


# -- the environment and the TOML file ---------------------------------------------------------


def _check_variables() -> None:
    """Refuse variables that look like ours and are not."""
    keys = (*(option.key for option in all_options().values()), *_OTHER_KEYS)
    known = _NOT_OPTIONS | {variable_of(key) for key in (*keys, "config", "host", "port")}
    for name in os.environ:
        if name.startswith("CAPTIONER_") and name not in known:
            raise SettingsError(f"unknown environment variable {name}.{did_you_mean(name, known)}")


def _are_media(words: Sequence[str]) -> bool:
    """Return whether words are names of images and videos, as a shell writes for a pattern."""
    from captioner.readers.imagefiles import is_media

    return all(map(is_media, words))


def read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Take the values of a TOML file as defaults; click calls this for ``--config``."""
    if path is None or ctx.resilient_parsing:
        return
    data = _load(path)
    tables = data.pop("endpoint", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SettingsError(f"{path}: write each endpoint as a table [[endpoint]]")
    if isinstance(data.get("prompt"), list):
        data["prompt-mix"] = [_weighted(path, table) for table in data.pop("prompt")]
    stages = data.pop("stage", [])
    if not isinstance(stages, list) or not all(isinstance(table, dict) for table in stages):
        raise SettingsError(f"{path}: write each stage as a table [[stage]]")
    tuning = data.pop("tuning", {})
    if not isinstance(tuning, dict):
        raise SettingsError(f"{path}: write tuning as a table [tuning]")
    options = {option.key: option for option in all_options().values()}
    names = {flag[2:]: str(param.name) for param in ctx.command.params for flag in param.opts}
    found: dict[str, Any] = {}
    seen: set[str] = set()
    for table, known in (
        (data, [*options, *_OTHER_KEYS]),
        (tuning, [key for key, option in options.items() if option.tuning]),
    ):
        where = f"{path}: [tuning]" if table is tuning else f"{path}"
        for name, value in table.items():
            key = name.replace("_", "-")
            if key not in known:
                hint = did_you_mean(key, known)
                raise SettingsError(f"{where}: unknown option {name!r}.{hint}")
            if key in seen:
                raise SettingsError(f"{where}: the option {key!r} is given twice")
            seen.add(key)
            try:
                found[names.get(key, "")] = (
                    options[key].typed(value) if key in options
                    else typed(key, value, _OTHER_KEYS[key])
                )  # fmt: skip
            except SettingsError as error:
                raise SettingsError(f"{where}: {error}") from None
    ctx.default_map = found
    ctx.meta["config"] = path, tables
    ctx.meta["stages"] = stages


def _weighted(path: Path, table: Any) -> str:
    """Return a table ``[[prompt]]`` as a value of ``--prompt-mix``."""
    known = {"text", "file", "weight"}
    if (
        not isinstance(table, dict)
        or not table.keys() <= known
        or len(table.keys() - {"weight"}) != 1
    ):
        raise SettingsError(
            f"{path}: a table [[prompt]] has a text or a file, and may have a weight"
        )
    question = table["text"] if "text" in table else f"@{table['file']}"
    return f"{table.get('weight', 1)}={question}"


def _load(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"--config: cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--config: {path} is not valid TOML: {error}") from None


def given_options(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are given in any way, as keywords of `Settings.create`.

    Raises:
        SettingsError: Two options contradict each other.
    """
    path, tables = ctx.meta.get("config", (None, []))
    typed_in: set[str] = set()
    found: dict[str, Any] = {}
    for source in (
        ParameterSource.DEFAULT_MAP,
        ParameterSource.ENVIRONMENT,
        ParameterSource.COMMANDLINE,
    ):
        given = {n: value for n, value in options.items() if ctx.get_parameter_source(n) is source}
        try:
            found |= stored_options(given)
        except SettingsError as error:
            in_file = source is ParameterSource.DEFAULT_MAP
            raise SettingsError(f"{path}: {error}" if in_file else str(error)) from None
        typed_in |= given.keys() if source is not ParameterSource.DEFAULT_MAP else set()
    for name in sorted(typed_in & {key.replace("-", "_") for table in tables for key in table}):
        raise SettingsError(
            f"--{flag_name(name)} (or {variable_of(flag_name(name))}) is given, and so it is by an "
            f"[[endpoint]] table of {path}: leave one out"
        )
    stages = ctx.meta.get("stages", [])
    return found | ({"endpoints": tables} if tables else {}) | ({"stage": stages} if stages else {})
