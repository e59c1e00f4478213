"""Records from the output of img2dataset: shards, folders or tables, and its rows of downloads."""

from __future__ import annotations

import itertools
import os
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from captioner.core.errors import BadRecordError, RecordError, SettingsError
from captioner.core.extras import needed
from captioner.core.filenames import escaped
from captioner.readers.imagefiles import is_media
from captioner.readers.rows import RecordSource, fault_record, record_of
from captioner.readers.samples import LARGEST_TEXT, Samples, split_name
from captioner.readers.tables import ArrowSource, image_column, python_rows, read_tables
from captioner.readers.walk import is_data
from captioner.readers.webdataset import ShardsSource

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from pathlib import Path

    from captioner.core.protocols import Source
    from captioner.core.types import InputRecord

_DOWNLOADED = "success"
_STATISTICS = re.compile(r"\d+_stats\.json")


def is_output(folder: Path, names: Sequence[str]) -> bool:
    """Return whether img2dataset wrote a folder; one that was interrupted may lack the statistics.

    Args:
        folder: The folder.
        names: Names of its own files.
    """
    tables = (name.removesuffix(".parquet") for name in names if name.endswith(".parquet"))
    return any(map(_STATISTICS.fullmatch, names)) or any(
        name.isdigit() and (folder / name).is_dir() for name in tables
    )


def downloads(path: Path, image_field: str | None = None) -> tuple[Source, str | None]:
    """Return the source of img2dataset's output, and the column that holds the images if one does.

    Raises:
        SettingsError: The path is no folder, or there are no images in it.
    """
    if not path.is_dir():
        raise SettingsError(f"{path} is not a folder that img2dataset wrote to")
    needed("pyarrow.parquet")
    own = sorted(one for one in path.iterdir() if is_data(one.name))
    tables = [one for one in own if one.suffix == ".parquet"]
    if any(one.suffix == ".tar" for one in own):
        shards = {one.with_suffix(".tar") for one in own if one.suffix in (".tar", ".parquet")}
        return ShardsSource(sorted(shards), path, image_field, after=_not_there), None
    if any(one.is_dir() for one in own):
        names = {one.stem for one in tables} | {one.name for one in own if one.is_dir()}
        return DownloadsSource(path, sorted(names), image_field), None
    if tables and (column := image_field or image_column(tables[0], "parquet")):
        return DownloadTables(tables, image_field, kind="parquet"), column
    raise SettingsError(
        f"img2dataset left no images in {path}: let it write them with --output_format webdataset, "
        "files or parquet"
    )


class DownloadTables(ArrowSource):
    """The tables that img2dataset writes with the images inside them."""

    def record(self, number: int, row: dict[str, Any], end: int) -> InputRecord:
        """Return a row as a record; one that was not downloaded is a fault."""
        if not _is_downloaded(row):
            return _not_downloaded(number, row, end)
        return super().record(number, row, end)


class DownloadsSource(RecordSource):
    """The files that img2dataset wrote: folders of ``key.jpg``, ``key.txt`` and ``key.json``.

    Args:
        folder: What contains the folders.
        names: Names of the folders, which are also those of the tables beside them.
        image_field: Suffix of the file that is the image, as for `ShardsSource`.
    """

    def __init__(self, folder: Path, names: Sequence[str], image_field: str | None = None) -> None:
        self._folder = folder
        self._names = names
        self._samples = Samples(image_field)

    def _records(self) -> Generator[InputRecord, None, None]:
        numbers = itertools.count(1)
        for shard in self._names:
            folder = self._folder / shard
            names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208
            own = sorted(name for name in names if not name.startswith("."))
            keys: set[str] = set()
            for key, files in itertools.groupby(own, lambda name: split_name(name)[0]):
                keys.add(key)
                yield self._record(next(numbers), shard, key, list(files))
            yield from _not_there(folder, numbers, 0, keys.__contains__)

    def _record(self, number: int, shard: str, key: str, files: list[str]) -> InputRecord:
        images: list[tuple[str, str]] = []
        texts: dict[str, Callable[[], bytes | None]] = {}
        for name in files:
            field = split_name(name)[1]
            if is_media(name):
                images.append((field, f"{shard}/{escaped(name)}"))
            else:
                texts[field] = partial(_text, self._folder / shard / name)
        try:
            return record_of(number, self._samples.record(key, files, images, texts, shard), 0)
        except RecordError as error:
            content = {"__key__": escaped(key), "folder": shard}
            return fault_record(number, content, 0, error.code, error.message)


def _text(path: Path) -> bytes | None:
    """Return the bytes of a file that may be text; None if it is too large, or no file."""
    try:
        return path.read_bytes() if path.is_file() and path.stat().st_size <= LARGEST_TEXT else None
    except OSError as error:
        message = f"cannot read {escaped(str(path))}: {error.strerror}"
        raise BadRecordError("bad_record", message) from None


def _not_there(
    shard: Path, numbers: Iterator[int], end: int, has_sample: Callable[[str], bool]
) -> Iterator[InputRecord]:
    """Yield a fault for each row of a shard's table that has no sample in the shard."""
    table = shard.with_suffix(".parquet")
    if not table.exists():
        return
    for _, batch in read_tables(table):
        for row in [batch] if isinstance(batch, str) else python_rows(batch):
            if isinstance(row, str):
                message = f"{table.name} cannot be read: {row}"
                content = {"file": table.name}
                yield fault_record(next(numbers), content, end, "bad_table", message)
            elif not _is_downloaded(row):
                yield _not_downloaded(next(numbers), row, end)
            elif not has_sample(str(row.get("key"))):
                message = (
                    f"img2dataset downloaded it, but {shard.name} has no file of the key "
                    f"{row.get('key')}: download it again"
                )
                yield fault_record(next(numbers), _shown(row), end, "image_missing", message)


def _is_downloaded(row: dict[str, Any]) -> bool:
    return bool(row.get("status", _DOWNLOADED) == _DOWNLOADED)


def _not_downloaded(number: int, row: dict[str, Any], end: int) -> InputRecord:
    """Return the fault of a row of img2dataset's table without an image."""
    message = f"img2dataset could not get it: {row.get('error_message') or row['status']}"
    return fault_record(number, _shown(row), end, "not_downloaded", message)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in ("key", "url", "status")}
