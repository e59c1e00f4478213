"""The options. Each is defined once: flags, variables, TOML keys and keywords derive from here.

Each module has the options under one title of the help. Option names are unique across the groups,
so users never name a group.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

from captioner.settings.options.batch import BatchSettings
from captioner.settings.options.captions import CODES, SHAPE, CaptionSettings
from captioner.settings.options.cluster import ClusterSettings
from captioner.settings.options.endpoint import EndpointSettings
from captioner.settings.options.images import MAX_SIDE, ImageSettings
from captioner.settings.options.prompt import (
    DEFAULT_PROMPT,
    DEFAULT_SYSTEM_PROMPT,
    PromptSettings,
)
from captioner.settings.options.records import (
    CONVERSATION_FIELDS,
    IMAGE_FIELDS,
    InputFormat,
    RecordSettings,
)
from captioner.settings.options.run import CSV_SAFE, OutputFormat, RunSettings

__all__ = [
    "CODES", "CONVERSATION_FIELDS", "CSV_SAFE", "DEFAULT_PROMPT", "DEFAULT_SYSTEM_PROMPT",
    "GROUPS", "IMAGE_FIELDS", "MAX_SIDE", "SHAPE", "BatchSettings", "CaptionSettings",
    "ClusterSettings", "EndpointSettings", "ImageSettings", "InputFormat", "OutputFormat",
    "PromptSettings", "RecordSettings", "RunSettings", "option_groups",
]  # fmt: skip

GROUPS: dict[str, Any] = {
    "endpoint": EndpointSettings,
    "prompt": PromptSettings,
    "records": RecordSettings,
    "captions": CaptionSettings,
    "images": ImageSettings,
    "run": RunSettings,
    "batch": BatchSettings,
    "cluster": ClusterSettings,
}


@cache
def option_groups() -> dict[str, str]:
    """Return the name of every option with the name of its group."""
    return {option.name: group for group, kind in GROUPS.items() for option in fields(kind)}
