"""Captions as tables: CSV and TSV, Parquet, SQLite."""

from __future__ import annotations

import csv
import itertools
import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from captioner.core.errors import DiskError
from captioner.core.extras import needed
from captioner.core.row import field_names
from captioner.journal.disk import replacing
from captioner.outputs.reader import parsed
from captioner.readers.rows import dumped, line_of
from captioner.readers.tables import ArrowSource, python_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from captioner.outputs.reader import OutputReader

BATCH = 5_000
"""Rows of a table that are in memory at once."""


def columns_of(book: OutputReader) -> list[str]:
    """Return the members of all rows, in the order they are met."""
    return list(dict.fromkeys(name for row in book.rows() for name in row))


def write_csv(book: OutputReader, target: Path, *, delimiter: str = ",") -> None:
    """Write a CSV file (RFC 4180); what is no text or number is JSON in its cell."""
    columns = columns_of(book)
    with replacing(target) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(columns)
        for row in book.rows():
            table.writerow([cell(row.get(name)) for name in columns])


def write_tsv(book: OutputReader, target: Path) -> None:
    """Write a TSV file, quoted as CSV is."""
    write_csv(book, target, delimiter="\t")


def cell(value: Any) -> Any:
    """Return a value as it stands in a CSV file."""
    if value is None:
        return ""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    return dumped(value).decode()


# -- SQLite ------------------------------------------------------------------------------------


def write_sqlite(book: OutputReader, target: Path) -> None:
    """Write a table ``captions`` with a column for each member.

    Raises:
        DiskError: The database cannot be written.
    """
    members = columns_of(book) or [book.fields[0]]
    columns, rest = members[:MOST_COLUMNS], members[MOST_COLUMNS:]
    names = [*columns, *(["more"] if rest else [])]
    try:
        with (
            replacing(target) as partial,
            closing(sqlite3.connect(partial)) as database,
            database,
        ):
            quoted = ", ".join(_quoted(name) for name in _distinct(names))
            database.execute(f"CREATE TABLE captions ({quoted})")
            places = ", ".join("?" * len(names))
            database.executemany(
                f"INSERT INTO captions VALUES ({places})",  # noqa: S608 - nothing but marks
                (_values(row, columns, rest) for row in book.rows()),
            )
    except sqlite3.Error as error:
        raise DiskError(f"{target.name} cannot be written: {error}") from None


MOST_COLUMNS = 1_000
"""SQLite has 2,000; what is more goes into one, as JSON."""


def _values(row: dict[str, Any], columns: list[str], rest: list[str]) -> list[Any]:
    values = [_value(row.get(name)) for name in columns]
    if rest:
        values.append(dumped({name: row[name] for name in rest if name in row}).decode())
    return values


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _distinct(columns: list[str]) -> list[str]:
    """Return names that SQLite can tell apart: it knows no case, and no NUL."""
    seen: set[str] = set()
    found = []
    for column in columns:
        name = other = column.replace("\0", "")
        number = 1
        while other.lower() in seen:
            number += 1
            other = f"{name}_{number}"
        seen.add(other.lower())
        found.append(other)
    return found


def _value(value: Any) -> Any:
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return str(value)  # SQLite has 64 bits
    if value is None or isinstance(value, str | int | float):
        return value
    return dumped(value).decode()


# -- Parquet -----------------------------------------------------------------------------------


def write_parquet(book: OutputReader, target: Path) -> None:
    """Write a Parquet file.

    Where the input is a table its columns keep their types, and the captions come beside them.
    Else types are found in all rows; a column whose rows differ too much becomes JSON.
    """
    arrow = needed("pyarrow", "parquet")
    needed("pyarrow.parquet", "parquet")
    source = book.input.source if book.input else None
    if isinstance(source, ArrowSource) and (schema := _common_schema(arrow, source)) is not None:
        _write_beside(book, source, schema, target)
    else:
        write_rows(book.rows, columns_of(book), target)


class _MisfitError(Exception):
    """A value does not fit the type of its column."""


def write_rows(
    make_rows: Callable[[], Iterator[dict[str, Any]]], columns: list[str], target: Path
) -> None:
    """Write rows as a Parquet file; they are made twice, first to find the types."""
    arrow = needed("pyarrow", "parquet")
    types = _types(arrow, make_rows, columns)
    while True:
        try:
            _write_typed(arrow, make_rows, types, target)
        except _MisfitError as misfit:  # 2**53 + 1 and 1.5, say, far from each other
            types[str(misfit)] = _JSON
        else:
            return


def _types(
    arrow: Any, make_rows: Callable[[], Iterator[dict[str, Any]]], columns: list[str]
) -> dict[str, Any]:
    types: dict[str, Any] = dict.fromkeys(columns)
    for rows in _batches(make_rows()):
        for name in columns:
            types[name] = _type(arrow, [row.get(name) for row in rows], types[name])
    return types


def _write_typed(
    arrow: Any,
    make_rows: Callable[[], Iterator[dict[str, Any]]],
    types: dict[str, Any],
    target: Path,
) -> None:
    parquet = needed("pyarrow.parquet", "parquet")
    schema = arrow.schema([(name, _settled(arrow, kind)) for name, kind in types.items()])
    with replacing(target) as partial, parquet.ParquetWriter(partial, schema) as writer:
        for rows in _batches(make_rows()):
            columns = [_column(arrow, rows, f.name, f.type, types[f.name]) for f in schema]
            writer.write_batch(arrow.record_batch(columns, schema=schema))


def _common_schema(arrow: Any, source: ArrowSource) -> Any:
    """Return the schema of all files of a source; None if they have none in common."""
    schemas = []
    for path in source.paths:
        for _, batch in source.tables(path):
            if not isinstance(batch, str):
                schemas.append(batch.schema)
                break
    try:
        return arrow.unify_schemas(schemas, promote_options="permissive") if schemas else None
    except arrow.ArrowException:
        return None


def _write_beside(book: OutputReader, source: ArrowSource, schema: Any, target: Path) -> None:
    arrow, parquet = needed("pyarrow", "parquet"), needed("pyarrow.parquet", "parquet")
    ours = field_names(book.fields)
    added = [name for name in columns_of(book) if name in ours]
    types = _types(arrow, book.rows, added)
    kept = [field for field in schema if field.name not in added]
    kinds = [_settled(arrow, types[name]) for name in added]
    whole = _with_columns(arrow, arrow.schema(kept, schema.metadata), added, kinds)
    places = book.places()
    with (
        replacing(target) as partial,
        book.journal.open("rb") as journal,
        parquet.ParquetWriter(partial, whole) as writer,
    ):
        for path in source.paths:
            for _, batch in source.tables(path):
                if isinstance(batch, str):
                    continue  # it failed, and is told there
                mask, found = [], []
                for row in python_rows(batch):
                    place = None
                    if not isinstance(row, str):
                        line = line_of(0, row, 0, source.image_columns)
                        place = places.take(book.identity.of_input(line.raw))
                    mask.append(place is not None)
                    if place is not None:
                        journal.seek(place)
                        found.append(parsed(journal.readline()))
                rows = batch.filter(arrow.array(mask, arrow.bool_()))
                columns = [
                    rows.column(field.name).cast(field.type)
                    if field.name in rows.schema.names
                    else arrow.nulls(rows.num_rows, field.type)
                    for field in kept
                ]
                columns += [
                    _column(arrow, found, name, kind, types[name])
                    for name, kind in zip(added, kinds, strict=True)
                ]
                writer.write_batch(arrow.record_batch(columns, schema=whole))
    if len(places):
        book.warn(f"{len(places):,} captions are not in it: the input no longer has their rows")


def _with_columns(arrow: Any, schema: Any, names: list[str], kinds: list[Any]) -> Any:
    """Return a schema with further columns, in what `datasets` notes about it, too."""
    for name, kind in zip(names, kinds, strict=True):
        schema = schema.append(arrow.field(name, kind))
    metadata = schema.metadata or {}
    if b"huggingface" in metadata:
        noted = json.loads(metadata[b"huggingface"])
        features = noted.get("info", {}).get("features")
        if isinstance(features, dict):
            for name, kind in zip(names, kinds, strict=True):
                features[name] = _feature(arrow, kind)
        schema = schema.with_metadata({**metadata, b"huggingface": json.dumps(noted).encode()})
    return schema


def _feature(arrow: Any, kind: Any) -> dict[str, Any]:
    if arrow.types.is_list(kind):
        return {"feature": _feature(arrow, kind.value_type), "_type": "List"}
    return {"dtype": str(kind), "_type": "Value"}


_JSON = "json"
"""Stands for the type of a column whose values have no type in common."""


def _type(arrow: Any, values: list[Any], before: Any) -> Any:
    """Return a type for these values and those before."""
    if before == _JSON:
        return _JSON
    try:
        kind = arrow.array(values).type
        if before is None or before == kind:
            return kind
        schemas = [arrow.schema([("x", one)]) for one in (before, kind)]
        return arrow.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (arrow.ArrowException, OverflowError, TypeError, ValueError):
        return _JSON


def _settled(arrow: Any, kind: Any) -> Any:
    return arrow.string() if kind is None or kind == _JSON or _is_empty(arrow, kind) else kind


def _is_empty(arrow: Any, kind: Any) -> bool:
    """Tell whether a type, or one inside it, is of values that were never seen."""
    if arrow.types.is_struct(kind):
        inside = [kind.field(number).type for number in range(kind.num_fields)]
        return not inside or any(_is_empty(arrow, one) for one in inside)
    if arrow.types.is_list(kind):
        return _is_empty(arrow, kind.value_type)
    return bool(arrow.types.is_null(kind))


def _column(arrow: Any, rows: list[dict[str, Any]], name: str, kind: Any, noted: Any) -> Any:
    """Return a column of rows.

    Raises:
        _MisfitError: A value does not fit.
    """
    values = [row.get(name) for row in rows]
    if noted == _JSON:
        values = [None if value is None else dumped(value).decode() for value in values]
    elif kind == arrow.string():
        values = [
            one if one is None or isinstance(one, str) else dumped(one).decode() for one in values
        ]
    try:
        return arrow.array(values, kind)
    except (arrow.ArrowException, OverflowError, TypeError, ValueError):
        if noted == _JSON:
            raise
        raise _MisfitError(name) from None


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch
