"""The settings that an output was begun with, compared with those of the run that continues it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import SettingsError
from captioner.core.secrets import SEALED, sealed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

REMEMBERED = frozenset({"folder_of", "accepted"})
"""Kept among the settings of a checkpoint, but allowed to change."""

IDENTITY_SETTINGS = frozenset({"output_field", "id_field"})
"""Settings that a record's key depends on: they can never change for an output."""


def differ(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that differ, without those that may."""
    names = (before.keys() | now.keys()) - REMEMBERED
    return [name for name in sorted(names) if before.get(name) != now.get(name)]


def continued(
    before: Mapping[str, Any], now: Mapping[str, Any], output: Path, *, accept: bool
) -> dict[str, Any]:
    """Return the settings to note for an output that a run continues.

    Args:
        before: Those in its checkpoint.
        now: Those of the run.
        output: The output.
        accept: Continue although they differ.

    Raises:
        SettingsError: They differ, and that is not accepted or not possible.
    """
    before = sealed(before)  # earlier versions wrote secrets as they are
    settings = {**{name: before[name] for name in REMEMBERED & before.keys()}, **now}
    changed = differ(before, now)
    if not changed:
        return settings
    fatal = IDENTITY_SETTINGS.intersection(changed)
    if accept and not fatal:
        # So that later readers know that the captions were not all made with these settings.
        return {**settings, "accepted": sorted({*before.get("accepted", ()), *changed})}
    advice = (
        "choose another output with -o"
        if fatal
        else "restore the old settings, choose another output with -o, caption all again with "
        "--redo, or caption the rest with the new settings with --accept-changes"
    )
    changes = "; ".join(_change(name, before.get(name), now.get(name)) for name in changed)
    raise SettingsError(f"{output.name} was begun with other settings: {changes}; {advice}")


def _change(name: str, before: Any, now: Any) -> str:
    shown = name.replace("_", "-")
    if name in SEALED:
        return f"{shown} differs"
    if name == "stages" and before and now:
        return f"stages: {', '.join(_changed_stages(before, now))} differs"
    return f"{shown} was {_short(before)}, now {_short(now)}"


def _changed_stages(before: Sequence[Any], now: Sequence[Any]) -> list[str]:
    """Return the names of the stages that differ, of all if just their order does."""
    each = [{stage.get("name"): stage for stage in stages} for stages in (before, now)]
    names = [str(name) for name in each[0] | each[1]]
    return [one for one in names if each[0].get(one) != each[1].get(one)] or names


def _short(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return repr(text if len(text) <= 60 else text[:57] + "…")
