"""The options of a run: defined once, checked when they are made, and frozen."""

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
    "CONVERSATION_FIELDS", "GROUPS", "IMAGE_FIELDS", "BatchSettings", "CaptionSettings",
    "ClusterSettings", "EndpointSettings", "ImageSettings", "PromptSettings", "RecordSettings",
    "RunSettings", "Settings", "option_groups",
]  # fmt: skip
