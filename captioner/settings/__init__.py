"""The options of a run: defined once, checked when they are made, and frozen."""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from captioner.settings.settings import Settings

__all__ = [
    "CONVERSATION_FIELDS", "GROUPS", "IMAGE_FIELDS", "BatchSettings", "CaptionSettings",
    "ClusterSettings", "EndpointSettings", "ImageSettings", "PromptSettings", "RecordSettings",
    "RunSettings", "Settings", "option_groups",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import `Settings` when it is used first, so that the help starts fast."""
    if name != "Settings":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from captioner.settings.settings import Settings

    return Settings
