"""Click parameters. Those of a run are made from the definition of its options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from captioner.core.errors import SettingsError
from captioner.settings.flags import Option, all_options
from captioner.settings.validation import choices_of, kinds_of, quantity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click.shell_completion import CompletionItem

    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic since click 8.3 only

_BOOLS = dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True)
_BOOLS |= dict.fromkeys(("false", "f", "no", "n", "off", "0"), False)


def as_bool(text: str) -> bool | None:
    """Return the truth value that a text means; None if it means neither."""
    return _BOOLS.get(text.lower())


class Value(_ParamType):
    """A value of a type that an option's annotation allows.

    Options that may hold a secret accept every text, so no error here shows their values.
    """

    name = "value"

    def __init__(self, hint: Any, option: Option | None = None) -> None:
        self.hint = hint
        self._option = option

    def split_envvar_value(self, rv: str) -> list[str]:
        """Return the values of a variable for an option that may be repeated, one per line."""
        return [line for line in rv.splitlines() if line]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value of a text; anything else is from a TOML file and has its type."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            raise SettingsError(f"{_source(param, ctx)}: {error}") from None

    def _read(self, text: str) -> Any:
        kinds, choices, switch = kinds_of(self.hint), choices_of(self.hint), as_bool(text)
        if choices and text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        if self._option is not None and self._option.unit:
            return quantity(text, self._option.unit)
        if self._option is not None and self._option.alone is not None and switch is not None:
            return self._option.typed(switch)
        if choices or str in kinds:
            if text.encode(errors="replace").decode() != text:
                raise ValueError(f"{text!r} is not UTF-8 text")
            return text
        if bool in kinds:
            if switch is None:
                raise ValueError(f"{text!r} is neither true nor false")
            return switch
        for kind, name in ((int, "a whole number"), (float, "a number")):
            if kind in kinds:
                try:
                    return kind(text)
                except ValueError:
                    raise ValueError(f"{text!r} is not {name}") from None
        if not text:
            raise ValueError("it is empty")
        return Path(text)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return choices, files or commands for the shell's completion."""
        from click.shell_completion import CompletionItem as Item

        if isinstance(param, Word) and param.name == "input":
            names = getattr(ctx.command, "other_commands", {})
            found = [Item(name) for name in names if name.startswith(incomplete)]
            return [*found, Item(incomplete, type="file")]
        if Path in kinds_of(self.hint):
            return [Item(incomplete, type="file")]
        return [Item(c) for c in choices_of(self.hint) if c.startswith(incomplete)]


def _source(param: click.Parameter | None, ctx: click.Context | None) -> str:
    """Return the flag, variable or word that a value comes from."""
    if param is None or ctx is None:
        return "value"
    if ctx.get_parameter_source(str(param.name)) is ParameterSource.ENVIRONMENT:
        return str(param.envvar)
    return param.opts[-1] if isinstance(param, click.Option) else param.human_readable_name


class Flag(click.Option):
    """A flag, with the type of its value and the option of a run that it sets, if any.

    Attributes:
        alone: The value of the flag without one; None if it needs a value.
        usage: The flag in the help, with its value.
    """

    def __init__(
        self, names: Sequence[str], *, hint: Any, option: Option | None = None, **kwargs: Any
    ) -> None:
        super().__init__(names, type=Value(hint, option), **kwargs)
        self.option = option
        alone = option.alone if option is not None else ("true", "") if hint is bool else None
        self.alone = alone[0] if alone is not None else None
        self.hint = hint
        self.usage = ", ".join(self.opts)
        if alone is None:
            self.usage += f" {self.metavar or _metavar(hint)}"
        elif alone[1]:
            self.usage += f"[={alone[1]}]"
        elif option is not None and option.default is True:
            self.usage += f", --no-{option.key}"


class Word(click.Argument):
    """An argument without a flag, with a description."""

    def __init__(self, names: Sequence[str], *, hint: Any, about: str, **kwargs: Any) -> None:
        super().__init__(names, type=Value(hint), metavar=names[0].upper(), **kwargs)
        self.about = about


def _metavar(hint: Any) -> str:
    if choices_of(hint):
        return "CHOICE"
    kinds = kinds_of(hint)
    names = {int: "N", float: "NUMBER", Path: "PATH"}
    return next((names[kind] for kind in kinds if kind in names and str not in kinds), "TEXT")


def run_flags() -> list[click.Parameter]:
    """Return a flag for each option of a run."""
    metavars = {"resize": "N|MODEL", "retry": "WHICH"}
    metavars |= dict.fromkeys(("budget", "budget_per_run"), "AMOUNT")
    return [
        Flag(
            [f"--{option.key}", option.name],
            hint=option.hint,
            option=option,
            envvar=option.variable,
            multiple=option.repeated,
            help=option.help,
            hidden=option.hidden,
            metavar=metavars.get(name),
        )
        for name, option in all_options().items()
    ]
