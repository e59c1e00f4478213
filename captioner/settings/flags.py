"""All options as users give them: those of the groups, and names that stand for several of them."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_origin, get_type_hints

from captioner.core.errors import SettingsError
from captioner.settings.options import GROUPS
from captioner.settings.validation import choices_of, did_you_mean, flag_name, typed, words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Option(NamedTuple):
    """An option as users give it.

    Attributes:
        name: The name in Python.
        hint: The type, as annotated.
        group: The title of the group.
        unit: Unit of a number: bytes, seconds or hours.
        alone: The value of the flag without one, and the name of the value that it may have.
        common: `captioner --help` shows the option.
        tuning: The TOML table ``[tuning]`` may hold the option.
        hidden: No help shows the option, because another one replaces it.
        zero: 0 is allowed.
        replaces: Names of the stored options that the option stands for, if it is not stored.
        split: Returns the stored options for a value.
    """

    name: str
    hint: Any
    default: Any
    help: str
    group: str = ""
    unit: str = ""
    alone: tuple[str, str] | None = None
    common: bool = False
    tuning: bool = False
    hidden: bool = False
    zero: bool = False
    replaces: tuple[str, ...] = ()
    split: Callable[[Any], dict[str, Any]] | None = None

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


def _budget(value: float | str | None, *, per_run: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {"renew_budget": per_run}
    if not isinstance(value, str):
        return {**found, "budget": value}
    for word in words(value.lower()):
        amount = re.fullmatch(r"\$?(\d+(?:\.\d+)?)(usd|[kmg]?tok)?", word)
        name = "budget_tokens" if word.endswith("tok") else "budget"
        if amount is None or name in found:
            raise SettingsError(f"budget: {value!r} is not an amount; write 25usd or 3Mtok")
        factor = {"k": 10**3, "m": 10**6, "g": 10**9}.get((amount[2] or "")[:1], 1)
        found[name] = round(float(amount[1]) * factor) if name != "budget" else float(amount[1])
    return found


_common = partial(Option, common=True)
_MERGED = (
    _common(
        "retry",
        tuple[str, ...],
        (),
        "Caption again: failed, rejected or a CODE. Rejected are those whose caption a "
        "reviewer rejected in captioner view; a CODE stands for those that failed with it. "
        "Separate several by commas, such as http_400,rejected.",
        replaces=("retry_failed", "retry_rejected"),
        split=_retry,
    ),
    _common(
        "accept_changes",
        bool | str,
        False,  # noqa: FBT003 - the default
        "Continue though model or prompt changed. With =edits, also accept "
        "an output that was edited by hand, and caption what it lacks.",
        alone=("true", "edits"),
        replaces=("accept_changes", "accept_edits"),
        split=_accept_changes,
    ),
    Option(
        "equal_records",
        Literal["keep", "skip", "error"],
        "keep",
        "What to do with equal records: keep (each gets its row), skip (only the first gets one) "
        "or error (do not start).",
        replaces=("duplicates",),
        split=lambda value: {"duplicates": value},
    ),
    _common(
        "ray",
        bool | str,
        False,  # noqa: FBT003 - the default
        "Run on a Ray cluster, such as auto or ray://head:10001. Input and output must be "
        "reachable from all its machines. Default address: RAY_ADDRESS, else a local cluster.",
        alone=("true", "ADDRESS"),
        replaces=("engine", "ray_address"),
        split=_ray,
    ),
    _common(
        "resize",
        int | str | None,
        None,
        "Make larger images smaller: to N pixels on the longer side, or by the rule of MODEL. "
        "Providers publish these rules and apply them anyway; it costs less and loses nothing. "
        "Default: 2048.",
        replaces=("max_side", "size_for"),
        split=_resize,
    ),
    _common(
        "budget",
        float | str | None,
        None,
        "Maximum to spend: dollars (25 or 25usd), tokens (3Mtok) or both (25usd,3Mtok). The "
        "run ends with exit code 8 before it spends more. What earlier runs of the same output "
        "have spent counts.",
        replaces=("budget", "budget_tokens"),
        split=_budget,
    ),
    Option(
        "budget_per_run",
        float | str | None,
        None,
        "The same as --budget, but what earlier runs have spent does not count.",
        replaces=("renew_budget",),
        split=partial(_budget, per_run=True),
    ),
)


@cache
def all_options() -> dict[str, Option]:
    """Return all options by name, in the order of the groups."""
    found: dict[str, Option] = {}
    merged = {old: one for one in _MERGED for old in one.replaces}
    for kind in GROUPS.values():
        hints, group = get_type_hints(kind), kind.__doc__.rstrip(".")
        for stored in fields(kind):
            one = merged.get(stored.name)
            if one is not None:
                found.setdefault(one.name, one._replace(group=group))
            if stored.name in found:
                continue
            hint, text = hints[stored.name], stored.metadata["help"]
            if not all(choice in text for choice in choices_of(hint)):
                text += f" One of {', '.join(choices_of(hint))}."
            facts = {"group": group, "hidden": one is not None, **stored.metadata, "help": text}
            if hint is bool:
                facts.setdefault("alone", ("true", ""))
            found[stored.name] = Option(stored.name, hint, stored.default, **facts)
    return found


def stored_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored options that the given ones stand for.

    Raises:
        SettingsError: An option does not exist, has a wrong value, or contradicts another one.
    """
    options, found = all_options(), dict[str, Any]()
    origin: dict[str, str] = {}
    for name, value in given.items():
        if name not in options:
            raise SettingsError(f"there is no option {name!r}.{did_you_mean(name, options)}")
        option = options[name]
        own = option.typed(value)
        for stored, part in (option.split(own) if option.split else {name: own}).items():
            if stored in found and found[stored] != part:
                raise SettingsError(
                    f"{flag_name(name)}: it contradicts {flag_name(origin[stored])}; give one"
                )
            found[stored], origin[stored] = part, name
    return found
