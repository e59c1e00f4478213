"""What may be given to a command: words, flags and options, from the signature of its function.

A positional parameter is a word, a keyword one a flag; ``**options`` takes all options of a run.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin

from captioner.settings.options import GROUPS
from captioner.settings.validation import flag_name, hints_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PREFIX = "CAPTIONER_"
HELP = frozenset({"-h", "--help"})
NEEDED = inspect.Parameter.empty
"""The default of what has to be given."""

PARAMETERS = "Parameters"
ALONE = {"retry_failed": ("all", "CODE")}
"""Options that may stand without a value: what they then mean, and what else may follow a =."""


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


class Taken(NamedTuple):
    """A parameter, or an option of a run."""

    name: str
    flag: str  # of a word: its name in capitals
    hint: Any
    default: Any  # `NEEDED`: it has to be given
    said: Flag
    group: str = PARAMETERS

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
        return "true" if self.hint is bool else ALONE.get(self.name, (None,))[0]

    @property
    def off(self) -> str:
        """The flag that switches off what is on by default; empty for others."""
        return f"--no-{self.flag[2:]}" if self.hint is bool and self.default is True else ""

    @property
    def variable(self) -> str:
        """The environment variable that gives it; empty where none does."""
        return variable_of(self.flag[2:]) if self.said.variable else ""


def taken_by(function: Callable[..., int]) -> Iterator[Taken]:
    """Yield what a function takes."""
    hints = inspect.get_annotations(function, eval_str=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            config = Flag("TOML file with options, named as here without the dashes.", "config")
            yield Taken("config", "--config", Path | None, None, config._replace(variable=True))
            yield from _options()
            continue
        hint, said = get_args(hints[name])
        word = parameter.kind is not parameter.KEYWORD_ONLY
        flag = name.upper() if word else f"--{said.name or flag_name(name)}"
        yield Taken(name, flag, hint, parameter.default, said)


def _options() -> Iterator[Taken]:
    """Yield all options of a run, from their own definition."""
    for kind in GROUPS.values():
        hints = hints_of(kind)
        group = kind.__doc__.rstrip(".")
        for option in fields(kind):
            said = Flag(option.metadata["help"], variable=True)
            flag = f"--{flag_name(option.name)}"
            yield Taken(option.name, flag, hints[option.name], option.default, said, group)


def file_keys() -> set[str]:
    """Return the names that may stand in a TOML file."""
    options = {flag_name(option.name) for kind in GROUPS.values() for option in fields(kind)}
    return options | {"output", "debug", "dry-run", "json"}


def variable_of(key: str) -> str:
    """Return the environment variable of an option by its name in a TOML file."""
    return PREFIX + key.upper().replace("-", "_")
