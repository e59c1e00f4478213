"""Records from image and video files: those in a folder, or those that match a pattern."""

from __future__ import annotations

import glob
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.core.filenames import escaped
from captioner.core.media import VIDEOS, is_video
from captioner.readers.rows import RecordSource, fault_record, record_of
from captioner.readers.splits import is_in, split_of
from captioner.readers.walk import Circles, SkippedFiles, Walk, is_visible, without_outputs

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from captioner.core.types import InputRecord

logger = logging.getLogger(__name__)

_SIDECARS = (".txt", ".caption", ".json")
"""Suffixes of texts that stand beside an image under its name."""

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
    """Return whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGES  # noqa: PTH122 - for millions of names


MEDIA = IMAGES | VIDEOS
"""Suffixes of images and videos."""


def is_media(name: str) -> bool:
    """Return whether a file name has the suffix of an image or a video."""
    return is_image(name) or is_video(name)


class ImageFilesSource(RecordSource):
    """The images and videos in a folder and its subfolders, by name.

    Each record is ``{"image": path}`` or ``{"video": path}``.

    Bytes of a name that are not UTF-8 are written as `escaped` does. Links to folders are followed.

    Args:
        folder: The folder; the paths in records are relative to it.
        pattern: Without a folder, a glob pattern; the paths in records are those it matches.
        split: Read only the folders of this split.
        files: Without a folder and a pattern, the files.

    Attributes:
        skipped: The other files of the folder, as far as the last walk came.
        splits: Splits that folders name, likewise.
    """

    def __init__(
        self,
        folder: Path | None = None,
        pattern: str = "",
        split: str | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        self._folder = folder
        self._pattern = pattern
        self._split = split
        self._files = files
        self.skipped = SkippedFiles()
        self.splits: set[str] = set()
        self._walk: Walk | None = None
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
        if not self._told:
            self._told = True
            if self._walk is not None:
                self._walk.warn()
            if self.skipped.kinds:
                logger.warning(
                    "files that are neither images nor videos, skipped: %s", self.skipped
                )

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
        self._walk = Walk(self._folder, is_visible)
        self.skipped = SkippedFiles()
        for inside, names in self._walk:
            if self._split is not None and not is_in(Path(inside, "*"), self._split):
                self.splits.add(split_of(Path(inside)))
                continue
            media = list(filter(is_media, names))
            yield from (os.path.join(inside, name) for name in media)  # noqa: PTH118
            if len(media) < len(names):
                self.skipped.add(inside, _others(names, media))


def _others(names: list[str], media: list[str]) -> Iterator[str]:
    """Yield the files that are neither media nor what belongs to media or to an output."""
    stems = {os.path.splitext(name)[0] for name in media}  # noqa: PTH122 - for millions of names
    for name in without_outputs(names):
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if not (is_media(name) or (suffix in _SIDECARS and stem in stems)):
            yield name


def matches(pattern: str) -> list[str]:
    """Return what a glob pattern matches except folders, sorted; a path of a file matches itself.

    A link to nothing is among it, so that its record fails and does not vanish.
    """
    if Path(pattern).is_file():
        return [pattern]
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
    circles = Circles()
    return sorted(name for name in found if not Path(name).is_dir() and name not in circles)
