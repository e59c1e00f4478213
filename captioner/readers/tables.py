"""Records from tables: CSV and TSV, Parquet, Arrow."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.readers.bytestreams import from_thread, open_binary, position
from captioner.readers.rows import BATCH_BYTES, BATCH_ROWS, Batching, fault_line, line_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from captioner.core.types import InputRecord

IMAGE_COLUMNS = frozenset({"image", "images", "jpg", "jpeg", "png", "webp"})
"""Binary columns that hold images where no option names one."""


class CsvSource:
    """The rows of a CSV or TSV file (RFC 4180), each a record of texts.

    Args:
        path: The file, UTF-8, perhaps compressed.
        delimiter: Between the values.
        max_line: Longest value in bytes.
    """

    def __init__(self, path: Path, delimiter: str, *, max_line: int) -> None:
        self._path = path
        self._delimiter = delimiter
        csv.field_size_limit(max_line)

    @property
    def size(self) -> int:
        """Bytes of the file as it is on disk."""
        return self._path.stat().st_size

    def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the rows in order."""
        return from_thread(self._rows)

    def _rows(self) -> Iterator[list[InputRecord]]:
        batching = Batching()
        number = 0
        with open_binary(self._path) as raw:
            text = io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="")
            rows = csv.reader(text, delimiter=self._delimiter, strict=True)
            header: list[str] | None = None
            while True:
                try:
                    row = next(rows)
                except StopIteration:
                    break
                except csv.Error as error:  # the reader goes on with the next line
                    number += 1
                    what = {"file": self._path.name, "line": rows.line_num}
                    line = fault_line(number, what, 0, "bad_row", f"the row is broken: {error}")
                    if found := batching.add(line):
                        yield found
                    continue
                except (EOFError, OSError) as error:
                    number += 1
                    what = {"file": self._path.name, "line": rows.line_num}
                    message = f"the file breaks off: {error}"
                    line = fault_line(number, what, self.size, "bad_input", message)
                    yield [*batching.rest(), line]
                    return
                if not row:
                    continue
                if header is None:
                    header = _header(row, self._path)
                    continue
                number += 1
                if found := batching.add(self._line(number, row, header, position(raw))):
                    yield found
        if found := batching.rest():
            yield found

    def _line(self, number: int, row: list[str], header: list[str], end: int) -> InputRecord:
        if len(row) != len(header):
            message = f"the row has {len(row)} values, the header {len(header)}"
            return fault_line(number, {"row": list(map(_text, row))}, end, "bad_row", message)
        if any(not value.isascii() and _escaped(value) for value in row):
            values = dict(zip(header, map(_text, row), strict=True))
            return fault_line(number, values, end, "bad_encoding", "the row is not UTF-8")
        return line_of(number, dict(zip(header, row, strict=True)), end)


def _header(row: list[str], path: Path) -> list[str]:
    if len(set(row)) < len(row):
        twice = next(name for name in row if row.count(name) > 1)
        raise SettingsError(f"{path.name}: the header names {twice!r} twice")
    return row


def _escaped(value: str) -> bool:
    return any("\udc80" <= char <= "\udcff" for char in value)


def _text(value: str) -> str:
    return value.encode(errors="surrogateescape").decode(errors="replace")


class ArrowSource:
    """The rows of Parquet or Arrow files, one file after the other.

    Args:
        paths: The files.
        image_field: The column that holds images, if an option names one.
        kind: ``parquet`` or ``arrow``; by default what each file's name says.

    Attributes:
        paths: The files.
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
        """Yield the record batches of one of the files; see `read_tables`."""
        return read_tables(path, self._kind)

    def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the rows in order."""
        return from_thread(self._rows)

    def _rows(self) -> Iterator[list[InputRecord]]:
        number = before = 0
        for path in self.paths:
            size = path.stat().st_size
            batching = Batching()
            for share, rows in self.tables(path):
                end = before + int(share * size)
                if isinstance(rows, str):
                    number += 1
                    message = f"{path.name} cannot be read: {rows}"
                    what = {"file": path.name, "after": number - 1}
                    yield [*batching.rest(), fault_line(number, what, end, "bad_table", message)]
                    continue
                for row in python_rows(rows):
                    number += 1
                    if isinstance(row, str):
                        what = {"file": path.name, "row": number}
                        message = f"the row cannot be read: {row}"
                        line = fault_line(number, what, end, "bad_row", message)
                    else:
                        line = line_of(number, row, end, self.image_columns)
                    if found := batching.add(line):
                        yield found
            before += size
            if found := batching.rest():
                yield found


def python_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of a record batch; in place of one that Python cannot hold, why."""
    try:
        yield from batch.to_pylist()
    except Exception:  # noqa: BLE001 - broken text, dates beyond the year 9999 and more
        for number in range(batch.num_rows):
            try:
                (row,) = batch.slice(number, 1).to_pylist()
            except Exception as error:  # noqa: BLE001 - as above
                yield _reason(error)
            else:
                yield row


def read_tables(path: Path, kind: str = "") -> Iterator[tuple[float, Any]]:
    """Yield record batches of a Parquet or Arrow file, each with the share of it that is behind.

    A group of rows that cannot be read is the reason in words, in place of its batches.
    """
    arrow = needed("pyarrow", "parquet")
    kind = kind or ("parquet" if path.suffix.lower() == ".parquet" else "arrow")
    try:
        if kind == "parquet":
            file = needed("pyarrow.parquet", "parquet").ParquetFile(path, pre_buffer=False)
        else:
            yield from _ipc(path, arrow)
            return
    except (arrow.ArrowException, OSError) as error:
        yield 1.0, _reason(error)
        return
    with file:
        groups = file.num_row_groups
        for group in range(groups):
            try:
                size = file.metadata.row_group(group)
                each = max(1, size.total_byte_size // max(1, size.num_rows))
                count = max(1, min(BATCH_ROWS, BATCH_BYTES // each))
                for batch in file.iter_batches(batch_size=count, row_groups=[group]):
                    yield (group + 1) / groups, batch
            except (arrow.ArrowException, OSError) as error:
                yield (group + 1) / groups, _reason(error)


def _ipc(path: Path, arrow: Any) -> Iterator[tuple[float, Any]]:
    with arrow.memory_map(str(path)) as mapped:
        try:
            file = arrow.ipc.open_file(mapped)
            batches: Iterator[Any] = map(file.get_batch, range(file.num_record_batches))
        except arrow.ArrowInvalid:  # the streaming format, as `datasets` writes it
            mapped.seek(0)
            batches = iter(arrow.ipc.open_stream(mapped))
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (arrow.ArrowException, OSError) as error:
                yield 1.0, _reason(error)
                return
            yield 1.0, batch


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def columns_of(path: Path, kind: str) -> list[str]:
    """Return the names of a table's columns, none if it cannot be read."""
    for _, batch in read_tables(path, kind):
        return [] if isinstance(batch, str) else list(batch.schema.names)
    return []
