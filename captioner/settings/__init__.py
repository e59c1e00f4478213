"""The options of a run: defined once, checked when they are made, and frozen.

The names below are imported when first used, so that importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.settings.options import (
        CONVERSATION_FIELDS,
        GROUPS,
        IMAGE_FIELDS,
        BatchSettings,
        CaptionSettings,
        ClusterSettings,
        EndpointSettings,
        ImageSettings,
        PromptSettings,
        RecordSettings,
        RunSettings,
        option_groups,
    )
    from captioner.settings.settings import Settings

__all__ = [
    "CONVERSATION_FIELDS",
    "GROUPS",
    "IMAGE_FIELDS",
    "BatchSettings",
    "CaptionSettings",
    "ClusterSettings",
    "EndpointSettings",
    "ImageSettings",
    "PromptSettings",
    "RecordSettings",
    "RunSettings",
    "Settings",
    "option_groups",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "settings" if name == "Settings" else "options"
    return getattr(import_module(f"{__name__}.{home}"), name)
