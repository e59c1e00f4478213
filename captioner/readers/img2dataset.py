"""Records from the output of img2dataset: shards or folders, and its tables of downloads."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.core.filenames import escaped
from captioner.readers.imagefiles import is_media
from captioner.readers.rows import RecordSource, fault_record, record_of
from captioner.readers.tables import python_rows, read_tables
from captioner.readers.walk import is_data
from captioner.readers.webdataset import ShardsSource, add_text, split_name

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from captioner.core.protocols import Source
    from captioner.core.types import InputRecord

_DOWNLOADED = "success"


def downloads(path: Path, image_field: str | None = None) -> Source:
    """Return the source of img2dataset's output: tar shards or folders.

    Raises:
        SettingsError: The path is no folder.
    """
    if not path.is_dir():
        raise SettingsError(f"{path} is no folder that img2dataset wrote to")
    needed("pyarrow.parquet")
    if not (shards := sorted(one for one in path.glob("*.tar") if is_data(one.name))):
        return DownloadsSource(path)
    return ShardsSource(
        shards,
        path,
        image_field,
        after=lambda shard, numbers, end: _not_downloaded(
            shard.with_suffix(".parquet"), numbers, end
        ),
    )


class DownloadsSource(RecordSource):
    """The files that img2dataset wrote: folders of ``key.jpg``, ``key.txt`` and ``key.json``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _records(self) -> Generator[InputRecord, None, None]:
        numbers = itertools.count(1)
        for table in sorted(self._folder.glob("*.parquet")):
            if not is_data(table.name):
                continue
            shard = self._folder / table.stem
            names = os.listdir(shard) if shard.is_dir() else []  # noqa: PTH208
            own = sorted(name for name in names if not name.startswith("."))
            for key, files in itertools.groupby(own, lambda name: split_name(name)[0]):
                record: dict[str, Any] = {"__key__": escaped(key)}
                image = ""
                for name in files:
                    if is_media(name):
                        image = f"{table.stem}/{escaped(name)}"
                    else:
                        add_text(record, split_name(name)[1], (shard / name).read_bytes())
                if image:
                    yield record_of(next(numbers), {**record, "image": image}, 0)
                else:
                    message = f"the files of {escaped(key)} in {table.stem} have no image"
                    content = {"__key__": escaped(key), "folder": table.stem}
                    yield fault_record(next(numbers), content, 0, "no_image", message)
            yield from _not_downloaded(table, numbers, 0)


def _not_downloaded(table: Path, numbers: Iterator[int], end: int) -> Iterator[InputRecord]:
    """Yield a fault for each row of img2dataset's table whose image was not downloaded."""
    if not table.exists():
        return
    for _, batch in read_tables(table):
        for row in [batch] if isinstance(batch, str) else python_rows(batch):
            if isinstance(row, str):
                message = f"{table.name} cannot be read: {row}"
                content = {"file": table.name}
                yield fault_record(next(numbers), content, end, "bad_table", message)
            elif row.get("status", _DOWNLOADED) != _DOWNLOADED:
                reason = row.get("error_message") or row["status"]
                message = f"img2dataset could not get it: {reason}"
                fields = {name: row.get(name) for name in ("key", "url", "status")}
                yield fault_record(next(numbers), fields, end, "not_downloaded", message)
