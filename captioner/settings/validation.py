"""Conversion and checks of single values. Errors name the option."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from captioner.core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

PRIVATE = frozenset({"header", "extra-body", "api-key-env", "base-url", "ray", "ray-address"})
"""Options whose values may hold a secret. Error messages do not show them."""

_MOST = 1 << 63

_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
}

_SIZES: dict[str, float] = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_TIMES: dict[str, float] = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}
_UNITS: dict[str, tuple[dict[str, float], str]] = {
    "bytes": (_SIZES, "256MB, 1.5GiB or a number of bytes"),
    "seconds": (_TIMES, "30s, 5m, 2h or a number of seconds"),
    "hours": (
        {name: factor / 3_600 for name, factor in _TIMES.items()},
        "30m, 2h, 1d or a number of hours",
    ),
}


def flag_name(name: str) -> str:
    """Return an option's name as users type it. ``with_`` is ``with``, a Python keyword."""
    return name.rstrip("_").replace("_", "-")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean ...?" with the nearest known name; empty if no name is near."""
    from difflib import SequenceMatcher

    def edits(other: str) -> int:
        blocks = SequenceMatcher(None, name, other, autojunk=False).get_opcodes()
        return sum(max(b - a, d - c) for tag, a, b, c, d in blocks if tag != "equal")

    most = 1 if len(name.strip("-")) <= 4 else 2
    near = sorted((edits(other), other) for other in known)
    return f" Did you mean {near[0][1]}?" if near and near[0][0] <= most else ""


def words(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the words of an option that is repeated or holds several words."""
    several = (value,) if isinstance(value, str) else value or ()
    return tuple(word for one in several for word in re.split(r"[\s,]+", one) if word)


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """Return the types that a hint allows."""
    return get_args(hint) or (hint,)


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the values that a hint lists; empty if it lists none."""
    several = (hint, *get_args(hint))
    return next((get_args(kind) for kind in several if get_origin(kind) is Literal), ())


def quantity(text: str, unit: str) -> float:
    """Return the number of bytes, seconds or hours in a text such as ``256MB``, ``5m`` or ``30``.

    Raises:
        ValueError: The text is not a quantity.
    """
    with contextlib.suppress(ValueError):
        return int(text) if unit == "bytes" else float(text)
    found = re.fullmatch(r"\s*([-+]?\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
    factors, examples = _UNITS[unit]
    if found is None or found[2] not in factors:
        raise ValueError(f"{text!r} is not a quantity; write {examples}")
    number = float(found[1]) * factors[found[2]]
    return round(number) if unit == "bytes" else number


def typed(name: str, value: Any, hint: Any, unit: str = "") -> Any:
    """Return a value from Python or TOML, converted to the type of its option.

    Raises:
        SettingsError: The value has another type.
    """
    shown, kinds = flag_name(name), kinds_of(hint)
    if unit and isinstance(value, str):
        try:
            return quantity(value, unit)
        except ValueError as error:
            raise SettingsError(f"{shown}: {error}") from None
    if Path in kinds and isinstance(value, str):
        if not value:
            raise SettingsError(f"{shown}: must not be empty")
        if "\0" in value:
            raise SettingsError(f"{shown}: a path cannot contain a NUL character")
        value = Path(value)
    if shown == "extra-body" and isinstance(value, dict):
        value = _json(shown, value)
    if get_origin(hint) is tuple:
        several = (value,) if isinstance(value, str) else value
        if shown == "fallback" and isinstance(several, list | tuple):
            several = [_json(shown, one) if isinstance(one, dict) else one for one in several]
        if several is None:
            return ()
        if not isinstance(several, list | tuple) or not all(isinstance(v, str) for v in several):
            raise SettingsError(f"{shown}: must be text or a list of texts")
        return tuple(several)
    _check_type(shown, value, hint)
    return float(value) if type(value) is int and float in kinds else value


def _json(name: str, value: dict[str, Any]) -> str:
    import json

    try:
        return json.dumps(value)
    except TypeError as error:
        raise SettingsError(f"{name}: {error}") from None


def _check_type(name: str, value: Any, hint: Any) -> None:
    if choices := choices_of(hint):
        if value not in choices and not (value is None and type(None) in get_args(hint)):
            raise SettingsError(f"{name}: {value!r} is not one of {', '.join(choices)}")
        return
    if type(value) is int and abs(value) >= _MOST:
        raise SettingsError(f"{name}: {value} is too large")
    kinds = [kind for kind in kinds_of(hint) if isinstance(kind, type)]
    fits = isinstance(value, (*kinds, int) if float in kinds else tuple(kinds))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_KINDS[kind] for kind in kinds if kind in _KINDS)
        shown = "" if name in PRIVATE else f", not {value!r}"
        raise SettingsError(f"{name}: must be {wanted}{shown}")


def check_url(name: str, url: str) -> None:
    """Refuse a text that is not an http(s) URL. The error does not show it: it may hold a key."""
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"{flag_name(name)}: must begin with http:// or https://")
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        fine = bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise SettingsError(f"{flag_name(name)}: the URL has no host, or an invalid port")


def text_of(name: str, value: str) -> str:
    """Return a text, read from its file if it is ``@FILE``."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{flag_name(name)}: cannot read {value[1:]}: {reason}") from None
