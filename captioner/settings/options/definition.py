"""How an option is defined, and what checks the values of a group of options."""

from __future__ import annotations

from dataclasses import field, fields
from functools import partial
from typing import Any

from captioner.core.errors import SettingsError
from captioner.settings.validation import flag_name


def option(text: str, default: Any = None, **metadata: Any) -> Any:
    """Define an option.

    Args:
        text: The description in `--help`, in the documentation and in a written TOML file.
        default: The default value.
        **metadata: ``common``: `--help` shows the option. ``tuning``: it also belongs to the
            TOML table ``[tuning]``. ``unit``: bytes, seconds or hours. ``zero``: 0 is allowed.
            ``alone``: the value that the flag has without one.
    """
    return field(default=default, metadata={"help": text, **metadata})


common = partial(option, common=True)
tuning = partial(option, tuning=True)


class OptionGroup:
    """Options whose values are checked when they are made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        """Check the numbers, then the other values."""
        for option in fields(self):  # type: ignore[arg-type]  # each group is a dataclass
            value = getattr(self, option.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            zero = option.metadata.get("zero", False)
            if not (value >= 0 if zero else value > 0):  # NaN, too
                wanted = "must not be negative" if zero else "must be more than 0"
                raise SettingsError(f"{flag_name(option.name)}: {wanted}")
        self._check()

    def _check(self) -> None:
        """Refuse other invalid values."""
