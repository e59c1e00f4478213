"""Records from image and video files: those in a folder, or those that match a pattern."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.core.filenames import escaped
from captioner.core.media import VIDEOS, is_video
from captioner.readers.rows import RecordSource, fault_record, record_of
from captioner.readers.walk import Circles, Walk, is_visible

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from captioner.core.types import InputRecord

IMAGES = frozenset(
    [
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
        ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".ico", ".cur", ".icns",
        ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".dib", ".mpo", ".psd", ".dds", ".qoi", ".pcx",
        ".sgi", ".rgb", ".bw",
        ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf",
    ]
)  # fmt: skip
"""Suffixes of image files. The content decides how a file is decoded."""


def is_image(name: str) -> bool:
    """Tell whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGES  # noqa: PTH122 - for millions of names


MEDIA = IMAGES | VIDEOS
"""Suffixes of images and videos."""


def is_media(name: str) -> bool:
    """Tell whether a file name has the suffix of an image or a video."""
    return is_image(name) or is_video(name)


class ImageFilesSource(RecordSource):
    """The images and videos in a folder and its subfolders, by name.

    Each record is ``{"image": path}`` or ``{"video": path}``.

    Bytes of a name that are not UTF-8 are written as `escaped` does. Links to folders are followed.

    Args:
        folder: The folder; the paths in records are relative to it.
        pattern: Without a folder, a glob pattern; the paths in records are those it matches.
        files: Without both, the files.
    """

    def __init__(
        self, folder: Path | None = None, pattern: str = "", files: Sequence[Path] = ()
    ) -> None:
        self._folder = folder
        self._pattern = pattern
        self._files = files
        self._told = False

    @property
    def is_empty(self) -> bool:
        """Whether there is neither an image nor a video."""
        return next(self._names(), None) is None

    @property
    def has_only_videos(self) -> bool:
        """Whether every file is a video."""
        return all(map(is_video, self._names()))

    def _records(self) -> Generator[InputRecord, None, None]:
        for number, name in enumerate(self._names(), 1):
            shown = escaped(name)
            if shown != name and self._exists(shown):
                message = f"the bytes of the name {shown} are the letters of another file's name"
                yield fault_record(number, {"file": shown}, 0, "image_ambiguous", message)
            else:
                yield record_of(number, {"video" if is_video(name) else "image": shown}, 0)

    def _exists(self, name: str) -> bool:
        return ((self._folder or Path()) / name).exists()

    def _names(self) -> Iterator[str]:
        if self._files:
            yield from map(str, self._files)
            return
        if self._folder is None:
            single = Path(self._pattern)
            yield from [single.name] if single.is_file() else matches(self._pattern)
            return
        walk = Walk(self._folder, is_visible)
        for inside, names in walk:
            yield from (os.path.join(inside, name) for name in names if is_media(name))  # noqa: PTH118
        if not self._told:
            self._told = True
            walk.tell()


def matches(pattern: str) -> list[str]:
    """Return the files that a glob pattern matches, sorted; a path of a file matches itself."""
    if Path(pattern).is_file():
        return [pattern]
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
    circles = Circles()
    return sorted(name for name in found if Path(name).is_file() and name not in circles)
