"""The help of commands: `--help` with the common flags, `--help-all` with every visible one."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

import click

from captioner.cli.params import Flag, Word
from captioner.settings.validation import choices_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from captioner.cli.parser import Command, Group

NARROWEST, WIDEST = 40, 100
"""Columns of the help, for terminals with fewer or more."""

EXAMPLES = (
    ("A folder of images to text files:", "captioner photos -o texts --output-format txt"),
    ("A JSONL file; the same command again resumes:", "captioner input.jsonl -o captions.jsonl"),
    ("At most 25 dollars:", "captioner input.jsonl --model gpt-4o --budget 25usd"),
)

EVERYWHERE = (
    "Every option can also be set by an environment variable (CAPTIONER_MAX_TOKENS for "
    "--max-tokens) or in the TOML file of --config. The command line takes precedence over the "
    "environment, and that over the file."
)
UNITS = (
    "Sizes may have a unit, as in 256MB or 1.5GiB, and durations, as in 30s, 5m or 2h. The flags "
    "under Tuning may also be keys of a TOML table [tuning]."
)
COMPLETION = (
    'Shell completion: eval "$(_CAPTIONER_COMPLETE=bash_source captioner)", or zsh_source, or '
    "for fish: _CAPTIONER_COMPLETE=fish_source captioner | source"
)
PARAMETERS = "Parameters"
HELP_ROW = ("-h, --help", "Show this help.")


def help_of(command: Command, ctx: click.Context, *, everything: bool) -> str:
    """Return the help of a command, with every visible flag or with the common ones."""
    text = _formatter()
    flags = [param for param in command.params if isinstance(param, Flag) and not param.hidden]
    arguments = [param for param in command.params if isinstance(param, Word)]
    for_runs = any(flag.option for flag in flags)
    needed = [flag.usage for flag in flags if flag.required]
    words = [f"{one.metavar}" if one.required else f"[{one.metavar}]" for one in arguments]
    text.write_usage(ctx.command_path, " ".join([*needed, "[OPTIONS]", *words]))
    _write_about(text, command, *(f"{one.metavar}: {one.about}" for one in arguments))
    if command.other_commands:
        _write_examples(text)
        _write_commands(text, command.other_commands)
    for title, rows in _sections(flags, for_runs=for_runs, everything=everything).items():
        _write_rows(text, title, rows)
    last = (EVERYWHERE, UNITS, COMPLETION) if everything else (EVERYWHERE,)
    for paragraph in last if for_runs else ():
        text.write_paragraph()
        text.write_text(paragraph)
    return text.getvalue().rstrip("\n")


def help_of_group(group: Group, ctx: click.Context) -> str:
    """Return the help of commands under one word."""
    text = _formatter()
    text.write_usage(ctx.command_path, "COMMAND [OPTIONS]")
    _write_about(text, group)
    _write_commands(text, group.commands)
    _write_rows(text, PARAMETERS, [HELP_ROW])
    return text.getvalue().rstrip("\n")


def _formatter() -> click.HelpFormatter:
    import shutil

    columns = shutil.get_terminal_size().columns
    return click.HelpFormatter(width=max(NARROWEST, min(WIDEST, columns)) - 2)


def _sections(
    flags: list[Flag], *, for_runs: bool, everything: bool
) -> dict[str, list[tuple[str, str]]]:
    """Return the flags to show and their descriptions, by the title of their section."""
    found: dict[str, list[tuple[str, str]]] = {PARAMETERS: []}
    tuning = []
    for flag in flags:
        option, row = flag.option, (flag.usage, _explained(flag, short=for_runs and not everything))
        if option is None:
            found[PARAMETERS].append(row)
        elif option.tuning:
            tuning.append(row)
        elif everything or option.common:
            found.setdefault(option.group, []).append(row)
    found[PARAMETERS].append(HELP_ROW)
    if for_runs:
        found[PARAMETERS] += [("--help-all", "Show all flags."), ("--version", "Show the version.")]
    return found | ({"Tuning": tuning} if everything and tuning else {})


def _write_about(text: click.HelpFormatter, command: click.Command, *more: str) -> None:
    for paragraph in (*inspect.cleandoc(command.help or "").split("\n\n"), *more):
        text.write_paragraph()
        text.write_text(paragraph)


def _write_commands(text: click.HelpFormatter, commands: Mapping[str, click.Command]) -> None:
    rows = [(name, one.get_short_help_str(200)) for name, one in commands.items()]
    _write_rows(text, "Commands", rows)


def _write_examples(text: click.HelpFormatter) -> None:
    with text.section("Examples"):
        text.write_text("(add --base-url URL, or set OPENAI_BASE_URL)")
        for about, line in EXAMPLES:
            text.write_text(about)
            text.indent()
            text.write_text(line)
            text.dedent()


def _write_rows(text: click.HelpFormatter, title: str, rows: list[tuple[str, str]]) -> None:
    with text.section(title):
        text.write_dl(rows, col_max=26 if text.width >= 60 else 12)


def _explained(flag: Flag, *, short: bool) -> str:
    """Return the description of a flag with its choices, its default and its variable."""
    text = flag.help or ""
    default = flag.option.default if flag.option is not None else flag.default
    if flag.option is None and not all(choice in text for choice in choices_of(flag.hint)):
        text += f" One of {', '.join(choices_of(flag.hint))}."
    shown = (
        "on" if default is True else f"{default:g}" if isinstance(default, float) else str(default)
    )
    has_default = isinstance(default, str | int | float) and default not in (False, "")
    has_default = has_default and "Default:" not in text and not (short and len(shown) > 30)
    if short:
        text = re.split(r"(?<=[.])\s", text, maxsplit=1)[0]
    if has_default:
        text += f" Default: {shown}" + "." * (not shown.endswith("."))
    if flag.envvar and flag.option is None and not short:
        text += f" Variable: {flag.envvar}."
    return text
