"""Records from tables: Parquet and Arrow."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any

from captioner.core.descriptors import patiently
from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.readers.disguises import HEAD, not_itself
from captioner.readers.rows import (
    RecordSource,
    broken_input,
    fault_record,
    one_line,
    record_of,
)
from captioner.readers.table_process import TableReader, UnreadableRow
from captioner.settings import IMAGE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from captioner.core.types import InputRecord

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = frozenset(
    {"image", "images", "jpg", "jpeg", "png", "webp", "video", "videos", "mp4", "webm"}
)
"""Binary columns that hold images or videos unless an option names one."""


class ArrowSource(RecordSource):
    """The rows of Parquet or Arrow files, one file after the other.

    Args:
        paths: The files.
        image_field: Column that holds images; by default one of `IMAGE_COLUMNS`.
        kind: ``parquet`` or ``arrow``; by default decided by each file's suffix.

    Attributes:
        image_columns: Columns whose bytes are images.
    """

    def __init__(
        self, paths: Sequence[Path], image_field: str | None = None, *, kind: str = ""
    ) -> None:
        needed("pyarrow")
        self._kind = kind
        self._told = False
        self._reader = TableReader()
        self.paths = paths
        self.image_columns = frozenset({image_field}) if image_field else IMAGE_COLUMNS

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)

    def tables(self, path: Path) -> Iterator[tuple[float, Any]]:
        """Yield the record batches of a file; see `read_tables`."""
        return read_tables(path, self._kind, self._reader)

    def schema(self, path: Path) -> Any:
        """Return the schema of a file; None if it cannot be read."""
        return self._reader.schema(path, self._kind or _kind_of(path))

    def record(self, number: int, row: dict[str, Any], end: int) -> InputRecord:
        """Return a row as a record."""
        return record_of(number, row, end, self.image_columns)

    def stop(self) -> None:
        """End the process that reads, while a thread waits for it."""
        self._reader.stop()

    def _records(self) -> Generator[InputRecord, None, None]:
        numbers = itertools.count(1)
        before = 0
        for path in self.paths:
            size = path.stat().st_size
            place = {"file": path.name}
            self._compare(path)
            for share, batch in self.tables(path):
                end = before + int(share * size)
                if isinstance(batch, UnreadableRow):
                    yield _bad_row(next(numbers), place, end, batch)
                    continue
                if isinstance(batch, str):
                    message = f"{path.name} cannot be read: {batch}"
                    yield broken_input(next(numbers), place, end, "bad_table", message)
                    continue
                if twice := name_twice(batch.schema.names):
                    message = f"{path.name} has two columns of the name {twice!r}"
                    yield broken_input(next(numbers), place, end, "bad_table", message)
                    break
                for row in python_rows(batch):
                    if isinstance(row, str):
                        yield _bad_row(next(numbers), place, end, row)
                    else:
                        yield self.record(next(numbers), row, end)
            before += size
        self._reader.end()

    def _compare(self, path: Path) -> None:
        """Warn of the first file whose columns are not those of the first of all."""
        if self._told or path == self.paths[0]:
            return
        own, first = (
            set(columns_of(one, self._kind, self._reader)) for one in (path, self.paths[0])
        )
        if own and first and own != first:
            self._told = True
            lacks = [
                f"{one.name} lacks {', '.join(sorted(names))}"
                for one, names in ((path, first - own), (self.paths[0], own - first))
                if names
            ]
            logger.warning("the tables have different columns: %s", "; ".join(lacks))


def _bad_row(number: int, place: dict[str, str], end: int, reason: str) -> InputRecord:
    message = f"row {number} of the input, in {place['file']}, cannot be read: {reason}"
    return fault_record(number, {**place, "row": number}, end, "bad_row", message)


def name_twice(names: Sequence[str]) -> str:
    """Return a name that is there twice; empty if there is none."""
    return next((name for name in names if names.count(name) > 1), "")


def python_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of a record batch; for a row that Python cannot represent, the reason."""
    try:
        yield from batch.to_pylist()
    except Exception:  # noqa: BLE001 - invalid text, dates after the year 9999 and more
        for number in range(batch.num_rows):
            try:
                (row,) = batch.slice(number, 1).to_pylist()
            except Exception as error:  # noqa: BLE001 - as above
                yield one_line(error)
            else:
                yield row


def read_tables(
    path: Path, kind: str = "", reader: TableReader | None = None
) -> Iterator[tuple[float, Any]]:
    """Yield record batches of a Parquet or Arrow file, each with the share of the file read so far.

    For rows that cannot be read, the reason takes the place of the batch; see `TableReader`.
    """
    needed("pyarrow")
    try:
        with patiently(lambda: path.open("rb")) as file:
            why = not_itself(file.read(HEAD))
    except OSError as error:
        yield 1.0, one_line(error)
        return
    if why:
        yield 1.0, f"it {why}"
        return
    yield from (reader or TableReader()).tables(path, kind or _kind_of(path))


def columns_of(path: Path, kind: str = "", reader: TableReader | None = None) -> list[str]:
    """Return the names of a table's columns; an empty list if it cannot be read."""
    needed("pyarrow")
    schema = (reader or TableReader()).schema(path, kind or _kind_of(path))
    return [] if schema is None else list(schema.names)


def image_column(file: Path, kind: str) -> str | None:
    """Return the column of images of a table unless it has a default name.

    Raises:
        SettingsError: The table has two columns of one name.
    """
    needed("pyarrow")
    schema = TableReader().schema(file, kind)
    names = [] if schema is None else list(schema.names)
    if twice := name_twice(names):
        raise SettingsError(f"{file.name} has two columns of the name {twice!r}")
    if "image" in names or "images" in names:
        return None
    others = IMAGE_COLUMNS.difference(IMAGE_FIELDS)
    found = next((name for name in names if name in others), None)
    if found or not names or not IMAGE_COLUMNS.isdisjoint(names):
        return found
    return next((field.name for field in schema if _holds_images(field.type)), None)


def _holds_images(kind: Any) -> bool:
    """Return whether a column has images as `datasets` keeps them, or lists of such."""
    if hasattr(kind, "value_type"):
        return _holds_images(kind.value_type)
    fields = range(getattr(kind, "num_fields", 0))
    return {kind.field(at).name for at in fields} == {"bytes", "path"}


def _kind_of(path: Path) -> str:
    return "parquet" if path.suffix.lower() == ".parquet" else "arrow"
