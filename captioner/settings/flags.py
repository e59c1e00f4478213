"""All options as users give them: those of the groups, and names that stand for several of them."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_origin

from captioner.core.errors import SettingsError
from captioner.settings.options import GROUPS
from captioner.settings.validation import did_you_mean, flag_name, hints_of, typed, words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Option(NamedTuple):
    """An option as users give it.

    Attributes:
        name: In Python.
        hint: Its type.
        default: The default value.
        help: Its description.
        group: Title of its group.
        unit: Unit of a number: bytes, seconds or hours.
        alone: What the flag means without a value, and the name of the value that it may have.
        common: `captioner --help` shows it.
        tuning: The TOML table ``[tuning]`` may hold it, too.
        hidden: No help shows it: another option replaces it.
        zero: 0 is allowed.
    """

    name: str
    hint: Any
    default: Any
    help: str
    group: str
    unit: str = ""
    alone: tuple[str, str] | None = None
    common: bool = False
    tuning: bool = False
    hidden: bool = False
    zero: bool = False

    @property
    def key(self) -> str:
        """The name of the TOML key, and of the flag without dashes."""
        return flag_name(self.name)

    @property
    def variable(self) -> str:
        """The environment variable."""
        return variable_of(self.key)

    @property
    def repeated(self) -> bool:
        """Whether it takes several values."""
        return get_origin(self.hint) is tuple

    def typed(self, value: Any) -> Any:
        """Return a value, converted to the option's type.

        Raises:
            SettingsError: The value has another type.
        """
        if self.alone is not None and self.alone[0] != "true" and isinstance(value, bool):
            value = self.alone[0] if value else self.default
        return typed(self.name, value, self.hint, self.unit)


class _Merged(NamedTuple):
    """An option that stands for one or several stored ones."""

    hint: Any
    default: Any
    replaces: tuple[str, ...]
    split: Callable[[Any], dict[str, Any]]
    help: str
    alone: tuple[str, str] | None = None
    common: bool = True


def variable_of(key: str) -> str:
    """Return the environment variable of a TOML key."""
    return "CAPTIONER_" + key.upper().replace("-", "_")


def _retry(value: tuple[str, ...]) -> dict[str, Any]:
    given = words(value)
    codes = [word for word in given if word != "rejected"]
    found: dict[str, Any] = {"retry_rejected": True} if "rejected" in given else {}
    if codes:
        found["retry_failed"] = "all" if {"failed", "all"} & set(codes) else ",".join(codes)
    return found


def _accept_changes(value: bool | str) -> dict[str, Any]:  # noqa: FBT001 - an option's value
    if value == "edits":
        return {"accept_changes": True, "accept_edits": True}
    if not isinstance(value, bool):
        raise SettingsError("accept-changes: must be true, false or edits")
    return {"accept_changes": value}


def _ray(value: bool | str) -> dict[str, Any]:  # noqa: FBT001 - an option's value
    if value is False:
        return {}
    return {"engine": "ray"} | ({} if value is True else {"ray_address": value})


def _resize(value: int | str | None) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str) and not value.isdecimal():
        return {"size_for": value}
    if int(value) < 1:
        raise SettingsError("resize: must be more than 0")
    return {"max_side": typed("resize", int(value), int)}


def _budget(value: float | str | None) -> dict[str, Any]:
    if not isinstance(value, str):
        return {"budget": value}
    found: dict[str, Any] = {}
    for word in words(value.lower()):
        amount = re.fullmatch(r"\$?(\d+(?:\.\d+)?)(usd|[kmg]?tok)?", word)
        name = "budget_tokens" if word.endswith("tok") else "budget"
        if amount is None or name in found:
            raise SettingsError(f"budget: {value!r} is not an amount; write 25usd or 3Mtok")
        factor = {"k": 10**3, "m": 10**6, "g": 10**9}.get((amount[2] or "")[:1], 1)
        found[name] = round(float(amount[1]) * factor) if name != "budget" else float(amount[1])
    return found


_MERGED = {
    "retry": _Merged(
        tuple[str, ...],
        (),
        ("retry_failed", "retry_rejected"),
        _retry,
        "Caption again: failed records, those with a failure CODE such as http_400, or rejected "
        "captions. Separate several by commas. Captions are rejected by reviewers in captioner "
        "view; they are kept beside the output in a file whose name ends in .rejected-1 and so on.",
    ),
    "accept_changes": _Merged(
        bool | str,
        False,  # noqa: FBT003 - a default
        ("accept_changes", "accept_edits"),
        _accept_changes,
        "Continue although model or prompt changed since the run began. With =edits, also accept "
        "an output that was edited by hand, and caption what it lacks.",
        ("true", "edits"),
    ),
    "equal_records": _Merged(
        Literal["keep", "skip", "error"],
        "keep",
        ("duplicates",),
        lambda value: {"duplicates": value},
        "Equal records: keep gives each its row, skip captions the first only, error refuses to "
        "start.",
        common=False,
    ),
    "ray": _Merged(
        bool | str,
        False,  # noqa: FBT003 - a default
        ("engine", "ray_address"),
        _ray,
        "Run on a Ray cluster, such as auto or ray://head:10001. Input and output must be "
        "reachable from all its machines. Default address: RAY_ADDRESS, else a local cluster.",
        ("true", "ADDRESS"),
    ),
    "resize": _Merged(
        int | str | None,
        None,
        ("max_side", "size_for"),
        _resize,
        "Make larger images smaller: to N pixels on the longer side, or by the rule of MODEL. "
        "Providers publish these rules and apply them anyway; it costs less and loses nothing. "
        "Default: 2048.",
    ),
    "budget": _Merged(
        float | str | None,
        None,
        ("budget", "budget_tokens"),
        _budget,
        "Maximum to spend: dollars (25 or 25usd), tokens (3Mtok) or both (25usd,3Mtok). The "
        "run ends with exit code 8 before it spends more; requests in flight finish.",
    ),
}


@cache
def all_options() -> dict[str, Option]:
    """Return all options by name, in the order of the groups."""
    found: dict[str, Option] = {}
    merged = {old: name for name, one in _MERGED.items() for old in one.replaces}
    for kind in GROUPS.values():
        hints, group = hints_of(kind), kind.__doc__.rstrip(".")
        for stored in fields(kind):
            name = merged.get(stored.name)
            if name is not None and name not in found:
                one = _MERGED[name]
                found[name] = Option(
                    name, one.hint, one.default, one.help, group, alone=one.alone, common=one.common
                )
            if stored.name not in found:
                alone = ("true", "") if hints[stored.name] is bool else None
                found[stored.name] = Option(
                    stored.name,
                    hints[stored.name],
                    stored.default,
                    group=group,
                    hidden=name is not None,
                    **{"alone": alone, **stored.metadata},
                )
    return found


def stored_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored options that given ones, by the name in Python, stand for.

    Raises:
        SettingsError: An option does not exist, has a wrong value, or contradicts another one.
    """
    options, found = all_options(), dict[str, Any]()
    origin: dict[str, str] = {}
    for name, value in given.items():
        if name not in options:
            raise SettingsError(f"there is no option {name!r}.{did_you_mean(name, options)}")
        value = options[name].typed(value)  # noqa: PLW2901 - in its own type
        for stored, part in (
            _MERGED[name].split(value) if name in _MERGED else {name: value}
        ).items():
            if stored in found and found[stored] != part:
                raise SettingsError(
                    f"{flag_name(name)}: it contradicts {flag_name(origin[stored])}; give one"
                )
            found[stored], origin[stored] = part, name
    return found
