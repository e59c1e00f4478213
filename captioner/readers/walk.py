"""Walks over folders."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from typing import TYPE_CHECKING

from captioner.core.filenames import escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

_OUTPUT = ".jsonl.ckpt"
_COMPANIONS = r"(?:\.jsonl(?:\..+)?|\.failed\.jsonl|\.review\.jsonl|\.page)?"
_SHOWN = 5


def is_data(name: str) -> bool:
    """Return whether a table may have this name, as Spark and pyarrow do."""
    return name[0] not in "._"


def is_visible(name: str) -> bool:
    """Return whether an image may have this name, or a folder of images."""
    return name[0] != "." and name != "__MACOSX"


def without_outputs(names: list[str]) -> list[str]:
    """Return file names without those of outputs, which have a checkpoint next to them."""
    outputs = [name.removesuffix(_OUTPUT) for name in names if name.endswith(_OUTPUT)]
    patterns = [
        re.compile(re.sub(r"%0?\\?\d*d", r"\\d+", re.escape(name)) + _COMPANIONS)
        for name in outputs
    ]
    return [name for name in names if not any(one.fullmatch(name) for one in patterns)]


class SkippedFiles:
    """Counts files that are not read, and warns of them.

    Attributes:
        kinds: How many there are, by suffix.
    """

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, inside: str, names: Iterable[str]) -> None:
        """Count files of a folder."""
        for name in names:
            kind = os.path.splitext(name)[1].lower() or "without a suffix"  # noqa: PTH122
            self.kinds[kind] += 1
            if len(self._examples) < _SHOWN:
                self._examples.setdefault(kind, escaped(os.path.join(inside, name)))  # noqa: PTH118

    def __str__(self) -> str:
        several = self.kinds.most_common()
        counts = [f"{count} {kind}" for kind, count in several[:_SHOWN]]
        if rest := sum(count for _, count in several[_SHOWN:]):
            counts.append(f"{rest} others")
        return f"{', '.join(counts)} (such as {', '.join(self._examples.values())})"


class Circles:
    """Says of paths, by ``in``, whether one of their folders contains itself through a link."""

    def __init__(self) -> None:
        self._ways: dict[str, frozenset[tuple[int, int]] | None] = {"": frozenset()}

    def __contains__(self, path: str) -> bool:
        return self._way(os.path.dirname(path)) is None  # noqa: PTH120 - for many names

    def _way(self, folder: str) -> frozenset[tuple[int, int]] | None:
        """Return the folders on the way to a folder and itself; None if one is there twice."""
        if folder not in self._ways:
            above = os.path.dirname(folder)  # noqa: PTH120
            way = self._way(above) if above != folder else frozenset()
            info = os.stat(folder)  # noqa: PTH116
            identity = info.st_dev, info.st_ino
            twice = way is None or (identity in way and os.path.islink(folder))  # noqa: PTH114
            self._ways[folder] = None if twice or way is None else way | {identity}
        return self._ways[folder]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


class Walk:
    """Walks over the files below a folder; follows links to folders, but in no circle.

    Args:
        root: The folder.
        counts: Returns by its name whether a file or folder counts.

    Attributes:
        linked: Links to folders that were followed.
        circles: Links to a folder that contains them, which were not.
        unreadable: Folders that cannot be read, each with the reason.
    """

    def __init__(self, root: Path, counts: Callable[[str], bool]) -> None:
        self._root = os.fspath(root)
        self._counts = counts
        self.linked = 0
        self.circles = 0
        self.unreadable: list[str] = []

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each folder, relative to the first or empty, and its sorted file names."""
        info = os.stat(self._root)  # noqa: PTH116 - for folders of millions of files
        return self._below(self._root, "", frozenset({(info.st_dev, info.st_ino)}))

    def _below(
        self, folder: str, inside: str, above: frozenset[tuple[int, int]]
    ) -> Iterator[tuple[str, list[str]]]:
        names: list[str] = []
        folders: list[os.DirEntry[str]] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if self._counts(entry.name):
                        folders.append(entry) if _is_folder(entry) else names.append(entry.name)
        except OSError as error:
            self.unreadable.append(f"{escaped(folder)} ({error.strerror})")
        names.sort()
        yield inside, names
        for entry in sorted(folders, key=lambda one: one.name):
            info = entry.stat()
            identity = info.st_dev, info.st_ino
            if entry.is_symlink():
                self.circles += identity in above
                self.linked += identity not in above
            if identity not in above:
                yield from self._below(
                    entry.path,
                    os.path.join(inside, entry.name),  # noqa: PTH118
                    above | {identity},
                )

    def warn(self) -> None:
        """Log what a walk over all folders met."""
        if self.linked:
            logger.warning("links to folders that were followed: %d", self.linked)
        if self.circles:
            logger.warning("links to a folder that contains them, skipped: %d", self.circles)
        for folder in self.unreadable:
            logger.warning("the folder %s cannot be read", folder)
