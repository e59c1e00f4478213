"""Options that an output remembers, so that a run that continues it may leave them out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.seal import is_sealed, seal
from captioner.core.secrets import without_secrets
from captioner.settings.options import GROUPS
from captioner.settings.stages import stages_of
from captioner.settings.validation import flag_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from captioner.settings.settings import Settings

_GROUPS = ("endpoint", "prompt", "records", "captions", "images")
_OF_A_RUN = frozenset({"where", "sample", "seed", "limit"})
_KEPT = frozenset({
    "concurrency", "processes", "budget", "budget_tokens", "renew_budget", "prices", "max_attempts",
    "stop_after", "probe", "dedup", "cache", "cache_size", "csv_safe", "order",
})  # fmt: skip
"""Options of the group ``run`` that are kept."""

_BUDGET = frozenset({"budget", "budget_tokens", "renew_budget"})
_TOGETHER = (
    frozenset({"stages", "pick", "samples"}),
    frozenset({"preset", "schema", "ask", "prompt", "prompt_mix", "prompt_file_in_folder"}),
    frozenset({"max_side", "size_for"}),
    _BUDGET,
    frozenset({"conversation_field", "prompt_field"}),
)
"""Options of which one that is given replaces the others."""

SEAL = "seal"
"""The key of the seal among the options of a checkpoint; no option has this name."""


LOST = "not_remembered"
"""What a checkpoint has beside the options: the flags of those that a later run must be given."""

UPLOAD = "upload"
"""What a checkpoint has beside the options: the address to which the output is uploaded."""


def _changed(settings: Settings) -> dict[str, Any]:
    """Return the options that are not the default and that a later run wants as well."""
    found: dict[str, Any] = {}
    for group in (*_GROUPS, "run"):
        values = getattr(settings, group)
        for one in fields(GROUPS[group]):
            value = getattr(values, one.name)
            wanted = one.name in _KEPT if group == "run" else one.name not in _OF_A_RUN
            wanted = wanted or (one.name == "seed" and bool(settings.prompt.prompt_mix))
            if wanted and value != one.default:
                found[one.name] = value
    return found


def _is_secret(name: str, value: Any) -> bool:
    if name == "base_url":
        return any(without_secrets(url) != url for url in value)
    if name == "fallback":
        return any(model.startswith("{") for model in value)
    return name in ("header", "extra_body", "serve_args")


def remembered(settings: Settings) -> dict[str, Any]:
    """Return the options to remember, ready for JSON: nothing that may hold a secret."""
    found = {}
    for name, value in _changed(settings).items():
        if not _is_secret(name, value):
            found[name] = str(value.absolute()) if isinstance(value, Path) else value
    if lost := not_remembered(settings):
        found[LOST] = lost
    if settings.upload is not None:
        found[UPLOAD] = without_secrets(settings.upload)
    return found


def not_remembered(settings: Settings) -> list[str]:
    """Return the flags of options that a later run must be given again."""
    doubt = "doubt" in settings.captions.with_
    by_options = stages_of(settings.prompt, settings.records.output_field, doubt=doubt)
    tables = ["--config"] if settings.endpoints or settings.stages != by_options else []
    changed = _changed(settings)
    lost = [name for name, value in changed.items() if not seal(b"") or _is_secret(name, value)]
    return [*tables, *(f"--{flag_name(name)}" for name in lost)]


def sealed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options for a checkpoint, with the seal of this user."""
    return {**options, SEAL: seal(_spelt(options))}


def unsealed(kept: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the options of a checkpoint, or None if this user did not seal them here.

    They name where records and keys are sent, files that are read, and programs that are started. A
    checkpoint may have come with the data set.
    """
    options = {name: value for name, value in kept.items() if name != SEAL}
    return options if is_sealed(_spelt(options), str(kept.get(SEAL, ""))) else None


def _spelt(options: Mapping[str, Any]) -> bytes:
    return orjson.dumps(dict(options), option=orjson.OPT_SORT_KEYS)


def recalled(kept: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options for a run: those given, and those of its output that it leaves out.

    An address that is given gets no key that belonged to another one. With ``accept_changes`` the
    given options are complete.
    """
    if given.get("accept_changes") and not given.get("accept_edits"):
        return dict(given)
    known = {one.name: group for group, made in GROUPS.items() for one in fields(made)}
    left = {name: value for name, value in kept.items() if name in known}
    for together in _TOGETHER:
        if together & given.keys():
            left = {name: value for name, value in left.items() if name not in together}
    dropped = {"cache"} if {"redo", "retry"} & given.keys() else set()
    if any(known.get(name) == "batch" for name in given):
        dropped |= {"processes", *_BUDGET}
    left = {name: value for name, value in left.items() if name not in dropped}
    if left.pop("renew_budget", False):
        usd, tokens = left.pop("budget", None), left.pop("budget_tokens", None)
        amounts = [f"{usd}usd"] if usd is not None else []
        amounts += [f"{tokens:.0f}tok"] if tokens is not None else []
        left["budget_per_run"] = ",".join(amounts)
    if {"base_url", "offline", "endpoints", "serve"} & given.keys():
        own = {one.name for one in fields(GROUPS["endpoint"])}
        own -= {"model"} if "base_url" in given else set()
        left = {name: value for name, value in left.items() if name not in own}
    return {**left, **given}
