"""Records from tables: CSV and TSV, Parquet, Arrow."""

from __future__ import annotations

import csv
import io
import itertools
import re
from typing import TYPE_CHECKING, Any

from captioner.core.descriptors import patiently
from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.core.humanize import counted
from captioner.readers.bytestreams import FILE_ERRORS, open_binary, position
from captioner.readers.rows import (
    BATCH_BYTES,
    BATCH_ROWS,
    RecordSource,
    broken_input,
    fault_record,
    one_line,
    record_of,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from captioner.core.types import InputRecord

IMAGE_COLUMNS = frozenset(
    {"image", "images", "jpg", "jpeg", "png", "webp", "video", "videos", "mp4", "webm"}
)
"""Binary columns that hold images or videos unless an option names one."""

_NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""Surrogates that stand for bytes that are not UTF-8."""


class CsvSource(RecordSource):
    """The rows of a CSV or TSV file (RFC 4180); all values are text.

    Args:
        path: The file: UTF-8, possibly compressed.
        delimiter: The character between two values.
        max_line: Length limit of a value in characters.
    """

    def __init__(self, path: Path, delimiter: str, *, max_line: int) -> None:
        self._path = path
        self._delimiter = delimiter
        csv.field_size_limit(max_line)

    @property
    def size(self) -> int:
        """Bytes of the file on disk."""
        return self._path.stat().st_size

    def _records(self) -> Generator[InputRecord, None, None]:
        number = 0
        header: list[str] | None = None
        with open_binary(self._path) as raw:
            text = io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="")
            rows = csv.reader(text, delimiter=self._delimiter, strict=True)
            while True:
                try:
                    row = next(rows, None)
                except csv.Error as error:  # the reader continues with the next line
                    number += 1
                    place = {"file": self._path.name, "line": rows.line_num}
                    yield fault_record(number, place, 0, "bad_row", f"the row is broken: {error}")
                    continue
                except FILE_ERRORS as error:
                    place = {"file": self._path.name, "line": rows.line_num}
                    message = f"the file breaks off: {error}"
                    yield fault_record(number + 1, place, self.size, "bad_input", message)
                    return
                if row is None:
                    return
                if header is None and row:
                    header = row
                    if twice := [name for name in row if row.count(name) > 1]:
                        raise SettingsError(
                            f"{self._path.name}: the header names {twice[0]!r} twice"
                        )
                elif header is not None and row:
                    number += 1
                    yield self._record(number, row, header, position(raw))

    def _record(self, number: int, row: list[str], header: list[str], end: int) -> InputRecord:
        if len(row) != len(header):
            message = f"the row has {counted(len(row), 'value')}, the header {len(header)}"
            return fault_record(number, {"row": list(map(_text, row))}, end, "bad_row", message)
        if any(not value.isascii() and _NOT_UTF8.search(value) for value in row):
            values = dict(zip(header, map(_text, row), strict=True))
            return fault_record(number, values, end, "bad_encoding", "the row is not UTF-8")
        return record_of(number, dict(zip(header, row, strict=True)), end)


def _text(value: str) -> str:
    return value.encode(errors="surrogateescape").decode(errors="replace")


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
        needed("pyarrow", "parquet")
        self._kind = kind
        self.paths = paths
        self.image_columns = frozenset({image_field}) if image_field else IMAGE_COLUMNS

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)

    def tables(self, path: Path) -> Iterator[tuple[float, Any]]:
        """Yield the record batches of a file; see `read_tables`."""
        return read_tables(path, self._kind)

    def _records(self) -> Generator[InputRecord, None, None]:
        numbers = itertools.count(1)
        before = 0
        for path in self.paths:
            size = path.stat().st_size
            place = {"file": path.name}
            for share, batch in self.tables(path):
                end = before + int(share * size)
                if isinstance(batch, str):
                    message = f"{path.name} cannot be read: {batch}"
                    yield broken_input(next(numbers), place, end, "bad_table", message)
                    continue
                for row in python_rows(batch):
                    number = next(numbers)
                    if isinstance(row, str):
                        message = f"the row cannot be read: {row}"
                        content = {**place, "row": number}
                        yield fault_record(number, content, end, "bad_row", message)
                    else:
                        yield record_of(number, row, end, self.image_columns)
            before += size


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


def read_tables(path: Path, kind: str = "") -> Iterator[tuple[float, Any]]:
    """Yield record batches of a Parquet or Arrow file, each with the share of the file read so far.

    For a group of rows that cannot be read, the reason takes the place of the batch.
    """
    arrow = needed("pyarrow", "parquet")
    kind = kind or ("parquet" if path.suffix.lower() == ".parquet" else "arrow")
    try:
        if kind == "parquet":
            yield from _parquet_batches(path, arrow)
        else:
            for batch in _arrow_batches(path, arrow):
                yield 1.0, batch
    except (arrow.ArrowException, OSError) as error:
        yield 1.0, one_line(error)


def _parquet_batches(path: Path, arrow: Any) -> Iterator[tuple[float, Any]]:
    parquet = needed("pyarrow.parquet", "parquet")
    with patiently(lambda: parquet.ParquetFile(path, pre_buffer=False)) as file:
        groups = file.num_row_groups
        for group in range(groups):
            share = (group + 1) / groups
            try:
                size = file.metadata.row_group(group)
                row_bytes = max(1, size.total_byte_size // max(1, size.num_rows))
                count = max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))
                for batch in file.iter_batches(batch_size=count, row_groups=[group]):
                    yield share, batch
            except (arrow.ArrowException, OSError) as error:
                yield share, one_line(error)


def _arrow_batches(path: Path, arrow: Any) -> Iterator[Any]:
    with patiently(lambda: arrow.memory_map(str(path))) as mapped:
        try:
            file = arrow.ipc.open_file(mapped)
        except arrow.ArrowInvalid:  # the streaming format, as `datasets` writes it
            mapped.seek(0)
            yield from arrow.ipc.open_stream(mapped)
        else:
            yield from map(file.get_batch, range(file.num_record_batches))


def columns_of(path: Path, kind: str) -> list[str]:
    """Return the names of a table's columns; an empty list if it cannot be read."""
    for _, batch in read_tables(path, kind):
        return [] if isinstance(batch, str) else list(batch.schema.names)
    return []
