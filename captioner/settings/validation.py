"""Checks of single values, whichever option they belong to: what is wrong is said in its name."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from captioner.core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable


def flag_name(name: str) -> str:
    """Return an option's name as it is typed; ``with_`` is ``with``, a word that Python keeps."""
    return name.rstrip("_").replace("_", "-")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question that names what is nearly called so; empty if nothing is."""
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(known), 1)
    return f" Did you mean {near[0]}?" if near else ""


def words(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the words of an option that may be given several times, or once with several."""
    several = (value,) if isinstance(value, str) else value or ()
    return tuple(word for one in several for word in re.split(r"[\s,]+", one) if word)


@cache
def hints_of(group: Any) -> dict[str, Any]:
    """Return the types of a group's options by name."""
    return get_type_hints(group)


def typed(name: str, value: Any, hint: Any) -> Any:
    """Return an option's value in its own type, where a near one was given."""
    kinds = get_args(hint) or (hint,)
    if Path in kinds and isinstance(value, str):
        if not value:
            raise SettingsError(f"{flag_name(name)}: must not be empty")
        if "\0" in value:
            raise SettingsError(f"{flag_name(name)}: a path has no NUL character in it")
        value = Path(value)
    if flag_name(name) == "extra-body" and isinstance(value, dict):
        try:
            value = json.dumps(value)
        except TypeError as error:
            raise SettingsError(f"{flag_name(name)}: {error}") from None
    if get_origin(hint) is tuple:
        several = (value,) if isinstance(value, str) else value
        if several is None:
            return ()
        if not isinstance(several, list | tuple) or not all(isinstance(v, str) for v in several):
            raise SettingsError(f"{flag_name(name)}: must be text or a list of texts")
        return tuple(several)
    _check_type(name, value, hint)
    return float(value) if type(value) is int and float in kinds else value


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the words that a value may be; none where it may be any."""
    several = (hint, *get_args(hint))
    return next((get_args(kind) for kind in several if get_origin(kind) is Literal), ())


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Refuse a value of a wrong type; what an option may be, its annotation says."""
    if choices := choices_of(hint):
        if value not in choices and not (value is None and type(None) in get_args(hint)):
            raise SettingsError(f"{flag_name(name)}: {value!r} is none of {', '.join(choices)}")
        return
    if type(value) is int and abs(value) >= _MOST:
        raise SettingsError(f"{flag_name(name)}: {value} is too large")
    kinds = [kind for kind in get_args(hint) or (hint,) if isinstance(kind, type)]
    fits = isinstance(value, (*kinds, int) if float in kinds else tuple(kinds))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_KINDS[kind] for kind in kinds if kind in _KINDS)
        shown = "" if flag_name(name) in PRIVATE else f", not {value!r}"
        raise SettingsError(f"{flag_name(name)}: must be {wanted}{shown}")


PRIVATE = frozenset({"header", "extra-body", "api-key-env", "base-url", "ray-address"})
"""Options whose values may hold a secret, in the wrong place perhaps: they are not shown."""

_MOST = 1 << 63

_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
}


def check_positive(name: str, value: float | None) -> None:
    """Refuse what is not more than 0; None is unset."""
    if value is not None and not value > 0:  # NaN, too
        raise SettingsError(f"{flag_name(name)}: must be more than 0")


def check_colour(name: str, value: str) -> None:
    """Refuse what is no colour."""
    from PIL import ImageColor

    try:
        ImageColor.getrgb(value)
    except ValueError:
        raise SettingsError(f"{flag_name(name)}: {value!r} is no colour") from None


def check_url(name: str, url: str) -> None:
    """Refuse what is no http(s) URL. It may hold a password wherever, and is not shown."""
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"{flag_name(name)}: it does not begin with http:// or https://")
    try:
        parts = urlsplit(url)
        fine = bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise SettingsError(f"{flag_name(name)}: it has no host, or a port that cannot be")


def text_of(name: str, value: str) -> str:
    """Return a text, read from its file where it is written ``@FILE``."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"{flag_name(name)}: cannot read {value[1:]}: {reason}") from None
