"""Names of video files."""

from __future__ import annotations

import os

VIDEOS = frozenset(
    [
        ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".webm", ".mkv", ".avi",
        ".mpg", ".mpeg", ".vob", ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".asf",
    ]
)  # fmt: skip
"""Suffixes of video files. The content decides how a file is decoded."""


def is_video(name: str) -> bool:
    """Return whether a file name has the suffix of a video."""
    return os.path.splitext(name)[1].lower() in VIDEOS  # noqa: PTH122 - for millions of names
