"""Names of video files."""

from __future__ import annotations

import os

VIDEOS = frozenset([".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"])
"""Suffixes of video files. The content decides how a file is decoded."""


def is_video(name: str) -> bool:
    """Tell whether a file name has the suffix of a video."""
    return os.path.splitext(name)[1].lower() in VIDEOS  # noqa: PTH122 - for millions of names
