"""Captions as tables: CSV and TSV, SQLite, Parquet."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import re
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from captioner.core.errors import DiskError
from captioner.core.extras import needed
from captioner.core.humanize import counted
from captioner.core.regular import reading, writing
from captioner.core.row import field_names
from captioner.journal.disk import replacing
from captioner.readers.rows import dumped
from captioner.readers.tables import ArrowSource, python_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from captioner.outputs.reader import OutputReader

logger = logging.getLogger(__name__)

BATCH = 5_000
"""Rows of a table that are in memory at once."""

MOST_COLUMNS = 1_000
"""SQLite allows 2,000 columns; further fields go into one column as JSON."""


def column_names(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the fields of all rows in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


LEFT_OUT = ("caption is left out", "captions are left out")


def warn_count(count: int, one: str, several: str, reason: str) -> None:
    """Log what happened to a number of captions or files, and why, unless the number is 0.

    Args:
        count: The number.
        one: What follows 1.
        several: What follows any other number.
        reason: The reason, which fits both.
    """
    if count:
        logger.warning("%s: %s", counted(count, one, several), reason)


def write_lines(lines: Iterable[bytes], target: Path) -> None:
    """Write lines, given without their ends, as a file."""
    with replacing(target) as partial, writing(partial) as file:
        file.writelines(line + b"\n" for line in lines)


def write_csv(
    reader: OutputReader, target: Path, *, delimiter: str = ",", safe: bool = False
) -> None:
    """Write a CSV file with the captions; ``safe`` as in `write_csv_rows`."""
    columns = column_names(reader.rows())
    write_csv_rows(reader.rows(), columns, target, delimiter=delimiter, safe=safe)


def write_csv_rows(
    rows: Iterable[dict[str, Any]],
    columns: list[str],
    target: Path,
    *,
    delimiter: str = ",",
    safe: bool = False,
) -> None:
    """Write rows as a CSV file (RFC 4180). Values other than text and numbers become JSON.

    With ``safe``, text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    cell = _safe_cell if safe else _cell
    with (
        replacing(target) as partial,
        io.TextIOWrapper(writing(partial), "utf-8", newline="") as file,
    ):
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(map(cell, columns))
        table.writerows([cell(row.get(name)) for name in columns] for row in rows)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | float) else dumped(value).decode()


def _safe_cell(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return _cell(value)
    found = str(_cell(value))
    return f"'{found}" if _FORMULA.match(found) else found


_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n\0]")  # wide forms as well


# -- SQLite ------------------------------------------------------------------------------------


def write_sqlite(reader: OutputReader, target: Path) -> None:
    """Write a table ``captions`` with a column for each field.

    Raises:
        DiskError: The database cannot be written.
    """
    fields = column_names(reader.rows()) or [reader.fields[0]]
    columns, rest = fields[:MOST_COLUMNS], fields[MOST_COLUMNS:]
    names = [*columns, *(["more"] if rest else [])]

    def values(row: dict[str, Any]) -> list[Any]:
        found = [_sqlite_value(row.get(name)) for name in columns]
        more = {name: row[name] for name in rest if name in row}
        return [*found, dumped(more).decode()] if rest else found

    try:
        with replacing(target) as partial, closing(sqlite3.connect(partial)) as database, database:
            quoted = ('"' + name.replace('"', '""') + '"' for name in _distinct(names))
            database.execute(f"CREATE TABLE captions ({', '.join(quoted)})")
            insert = f"INSERT INTO captions VALUES ({', '.join('?' * len(names))})"  # noqa: S608
            database.executemany(insert, map(values, reader.rows()))
    except sqlite3.Error as error:
        raise DiskError(f"{target.name} cannot be written: {error}") from None


def _sqlite_value(value: Any) -> Any:
    fits = isinstance(value, int) and -(1 << 63) <= value < 1 << 63
    return value if fits else _cell(value)


def _distinct(columns: list[str]) -> list[str]:
    """Return column names that differ for SQLite, which ignores case and allows no NUL."""
    found: dict[str, str] = {}
    for column in columns:
        name = unique = column.replace("\0", "")
        number = 1
        while unique.lower() in found:
            number += 1
            unique = f"{name}_{number}"
        found[unique.lower()] = unique
    return list(found.values())


# -- Parquet -----------------------------------------------------------------------------------


def write_parquet(reader: OutputReader, target: Path) -> None:
    """Write a Parquet file.

    If the input is a table, its columns keep their types and the captions are added to them.
    Else the types are inferred from all rows.
    """
    source = reader.input.source if reader.input else None
    schema = _common_schema(source) if isinstance(source, ArrowSource) else None
    if isinstance(source, ArrowSource) and schema is not None:
        _add_to_table(reader, source, schema, target)
    else:
        write_rows(reader.rows, column_names(reader.rows()), target)


def write_rows(
    make_rows: Callable[[], Iterator[dict[str, Any]]], columns: list[str], target: Path
) -> None:
    """Write rows as a Parquet file. ``make_rows`` is called twice, first to infer the types."""
    _write_batches(
        target,
        needed("pyarrow").schema([]),
        InferredColumns(columns, make_rows()),
        lambda: (([], rows) for rows in _batches(make_rows())),
    )


def _write_batches(
    target: Path,
    schema: Any,
    columns: InferredColumns,
    make_batches: Callable[[], Iterator[tuple[list[Any], list[dict[str, Any]]]]],
) -> None:
    """Write batches: each has the arrays of the schema, and the rows of the further columns."""
    arrow, parquet = needed("pyarrow"), needed("pyarrow.parquet")
    while True:
        whole = with_fields(schema, columns.fields())
        try:
            with (
                replacing(target) as partial,
                writing(partial) as file,
                parquet.ParquetWriter(file, whole) as writer,
            ):
                for arrays, rows in make_batches():
                    all_arrays = [*arrays, *columns.arrays(rows)]
                    writer.write_batch(arrow.record_batch(all_arrays, schema=whole))
        except _TypeMismatchError as mismatch:  # for example 2**53 + 1, and 1.5 in a later row
            columns.use_json(str(mismatch))
        else:
            return


def _common_schema(source: ArrowSource) -> Any:
    """Return the schema that all files of a source share; None if there is none."""
    arrow = needed("pyarrow")
    schemas = [schema for schema in map(source.schema, source.paths) if schema is not None]
    with suppress(arrow.ArrowException):
        return arrow.unify_schemas(schemas, promote_options="permissive") if schemas else None
    return None


def _add_to_table(reader: OutputReader, source: ArrowSource, schema: Any, target: Path) -> None:
    arrow = needed("pyarrow")
    ours = field_names(reader.fields)
    added = [name for name in column_names(reader.rows()) if name in ours]
    kept = [field for field in schema if field.name not in added]
    offsets = reader.offsets()

    def batches() -> Iterator[tuple[list[Any], list[dict[str, Any]]]]:
        nonlocal offsets
        offsets = reader.offsets()
        with reading(reader.journal) as journal:
            for path in source.paths:
                for _, batch in source.tables(path):
                    if isinstance(batch, str):
                        continue  # unreadable: the failures file reports it
                    found: list[dict[str, Any] | None] = []
                    for row in python_rows(batch):
                        if isinstance(row, str):
                            found.append(None)  # as above
                            continue
                        record = source.record(0, row, 0)
                        found.append(reader.take_row(journal, offsets, record))
                    mask = arrow.array([row is not None for row in found], arrow.bool_())
                    table = batch.filter(mask)
                    arrays = []
                    for field in kept:
                        if field.name in table.schema.names:
                            arrays.append(table.column(field.name).cast(field.type))
                        else:
                            arrays.append(arrow.nulls(table.num_rows, field.type))
                    yield arrays, list(filter(None, found))

    columns = InferredColumns(added, reader.rows())
    _write_batches(target, arrow.schema(kept, schema.metadata), columns, batches)
    warn_count(len(offsets), *LEFT_OUT, "the row is no longer in the input")


def with_fields(schema: Any, fields: list[Any]) -> Any:
    """Return an Arrow schema with further fields, also in the metadata of `datasets`."""
    for field in fields:
        schema = schema.append(field)
    metadata = schema.metadata or {}
    if b"huggingface" in metadata:
        description = json.loads(metadata[b"huggingface"])
        features = description.get("info", {}).get("features")
        if isinstance(features, dict):
            features.update({field.name: _feature(field.type) for field in fields})
        encoded = json.dumps(description).encode()
        schema = schema.with_metadata({**metadata, b"huggingface": encoded})
    return schema


def _feature(kind: Any) -> dict[str, Any]:
    types = needed("pyarrow").types
    if types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if types.is_struct(kind):
        inside = [kind.field(number) for number in range(kind.num_fields)]
        return {field.name: _feature(field.type) for field in inside}
    return {"dtype": str(kind), "_type": "Value"}


class _TypeMismatchError(Exception):
    """A value does not fit the type of the column with this name."""


class InferredColumns:
    """Columns whose types are inferred from all rows.

    A column becomes JSON text if its values have no type in common.
    """

    def __init__(self, names: list[str], rows: Iterator[dict[str, Any]]) -> None:
        self._arrow = needed("pyarrow")
        self._types: dict[str, Any] = dict.fromkeys(names, self._arrow.null())
        self._json: set[str] = set()
        for some in _batches(rows):
            for name in names:
                self._infer(name, [row.get(name) for row in some])

    def _infer(self, name: str, values: list[Any]) -> None:
        arrow = self._arrow
        if name in self._json:
            return
        try:
            kinds = self._types[name], arrow.array(values).type
            schemas = [arrow.schema([("x", kind)]) for kind in kinds]
            both = arrow.unify_schemas(schemas, promote_options="permissive")
            self._types[name] = both.field("x").type
        except (arrow.ArrowException, OverflowError, TypeError, ValueError):
            self._json.add(name)

    def use_json(self, name: str) -> None:
        """Make a column JSON."""
        self._json.add(name)

    def settle(self, rows: Iterator[dict[str, Any]]) -> None:
        """Make a column JSON if a value does not fit its type, so that all rows can be written."""
        for some in _batches(rows):
            while True:
                try:
                    self.arrays(some)
                except _TypeMismatchError as mismatch:
                    self.use_json(str(mismatch))
                else:
                    break

    def fields(self) -> list[Any]:
        """Return the columns as Arrow fields."""
        found = []
        for name, kind in self._types.items():
            is_text = name in self._json or self._is_untyped(kind)
            found.append(self._arrow.field(name, self._arrow.string() if is_text else kind))
        return found

    def _is_untyped(self, kind: Any) -> bool:
        """Return whether a type contains one without a single value, which Parquet lacks."""
        types = self._arrow.types
        if types.is_struct(kind) or types.is_list(kind):
            inside = [kind.field(number).type for number in range(kind.num_fields)]
            return not inside or any(map(self._is_untyped, inside))
        return bool(types.is_null(kind))

    def arrays(self, rows: list[dict[str, Any]]) -> list[Any]:
        """Return the columns of some rows; raise if a value does not fit its column."""
        arrays = []
        for field in self.fields():
            values = [row.get(field.name) for row in rows]
            is_json = field.name in self._json
            if field.type == self._arrow.string():
                as_is = (type(None),) if is_json else (type(None), str)
                values = [one if isinstance(one, as_is) else dumped(one).decode() for one in values]
            try:
                arrays.append(self._arrow.array(values, field.type))
            except (self._arrow.ArrowException, OverflowError, TypeError, ValueError):
                if is_json:
                    raise
                raise _TypeMismatchError(field.name) from None
        return arrays


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch
