"""Records from images that lie about: a folder of them, or what a pattern matches."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.readers.bytestreams import from_thread
from captioner.readers.rows import Batching, line_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from captioner.core.types import InputRecord

IMAGES = frozenset(
    [
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
        ".avif", ".heic", ".heif", ".jp2", ".ico", ".ppm", ".tga",
    ]
)  # fmt: skip
"""Suffixes of files that are taken for images; what a file is, its content says."""


def is_image(name: str) -> bool:
    """Tell whether a file's name is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGES  # noqa: PTH122 - for millions of names


class ImageFilesSource:
    """The images of a folder and those below it, by name; ``{"image": path}`` each.

    Args:
        folder: The folder; paths are relative to it.
        pattern: A glob pattern in place of a folder; paths are as it matches them.
    """

    size = 0

    def __init__(self, folder: Path | None = None, pattern: str = "") -> None:
        self._folder = folder
        self._pattern = pattern

    @property
    def is_empty(self) -> bool:
        """There is no image."""
        return next(self._names(), None) is None

    def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the images in order."""
        return from_thread(self._images)

    def _images(self) -> Iterator[list[InputRecord]]:
        batching = Batching()
        for number, name in enumerate(self._names(), 1):
            if found := batching.add(line_of(number, {"image": name}, 0)):
                yield found
        if found := batching.rest():
            yield found

    def _names(self) -> Iterator[str]:
        if self._folder is None:
            single = Path(self._pattern)
            yield from [single.name] if single.is_file() else matches(self._pattern)
            return
        root = os.fspath(self._folder)
        for folder, below, files in os.walk(root):
            below[:] = sorted(name for name in below if not name.startswith("."))
            inside = os.path.relpath(folder, root)
            for name in sorted(files):
                if is_image(name) and not name.startswith("."):
                    yield name if inside == "." else os.path.join(inside, name)  # noqa: PTH118


def matches(pattern: str) -> list[str]:
    """Return the files that a glob pattern matches, in order; a file's own name matches it."""
    if Path(pattern).is_file():
        return [pattern]
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - a whole pattern, absolute or not
    return sorted(name for name in found if Path(name).is_file())
