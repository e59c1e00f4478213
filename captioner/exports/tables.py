"""Captions as tables: CSV and TSV, Parquet, SQLite."""

from __future__ import annotations

import csv
import itertools
import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from captioner.answers import member_names
from captioner.exports.book import parsed
from captioner.exports.partial import replacing
from captioner.extras import needed
from captioner.sources.rows import dumped, line_of
from captioner.sources.tables import ArrowSource, read_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from captioner.exports.book import Book

BATCH = 5_000
"""Rows of a table that are in memory at once."""


def columns_of(book: Book) -> list[str]:
    """Return the members of all rows, in the order they are met."""
    return list(dict.fromkeys(name for row in book.rows() for name in row))


def write_csv(book: Book, target: Path, *, delimiter: str = ",") -> None:
    """Write a CSV file (RFC 4180); what is no text or number is JSON in its cell."""
    columns = columns_of(book)
    with replacing(target) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(columns)
        for row in book.rows():
            table.writerow([cell(row.get(name)) for name in columns])


def write_tsv(book: Book, target: Path) -> None:
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


def write_sqlite(book: Book, target: Path) -> None:
    """Write a table ``captions`` with a column for each member."""
    columns = columns_of(book)
    with replacing(target) as partial:
        partial.unlink(missing_ok=True)
        with closing(sqlite3.connect(partial)) as database, database:
            names = ", ".join(_quoted(name) for name in _distinct(columns))
            database.execute(f"CREATE TABLE captions ({names})")
            places = ", ".join("?" * len(columns))
            database.executemany(
                f"INSERT INTO captions VALUES ({places})",  # noqa: S608 - nothing but marks
                ([_value(row.get(name)) for name in columns] for row in book.rows()),
            )


def _quoted(name: str) -> str:
    return '"' + name.replace("\0", "").replace('"', '""') + '"'


def _distinct(columns: list[str]) -> list[str]:
    """Return names that SQLite can tell apart: it knows no case."""
    seen: set[str] = set()
    found = []
    for name in columns:
        number = 1
        other = name
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


def write_parquet(book: Book, target: Path) -> None:
    """Write a Parquet file.

    Where the input is a table its columns keep their types, and the captions come beside them.
    Else types are found in all rows; a column whose rows differ too much becomes JSON.
    """
    needed("pyarrow.parquet", "parquet")
    source = book.input.source if book.input else None
    if isinstance(source, ArrowSource):
        _write_beside(book, source, target)
    else:
        write_rows(book.rows, columns_of(book), target)


def write_rows(
    make_rows: Callable[[], Iterator[dict[str, Any]]], columns: list[str], target: Path
) -> None:
    """Write rows as a Parquet file; they are made twice, first to find the types."""
    arrow, parquet = needed("pyarrow", "parquet"), needed("pyarrow.parquet", "parquet")
    types: dict[str, Any] = {}
    for rows in _batches(make_rows()):
        for name in columns:
            types[name] = _type(arrow, [row.get(name) for row in rows], types.get(name))
    schema = arrow.schema([(name, _settled(arrow, types.get(name))) for name in columns])
    with replacing(target) as partial, parquet.ParquetWriter(partial, schema) as writer:
        for rows in _batches(make_rows()):
            writer.write_batch(
                arrow.record_batch(
                    [
                        _array(arrow, [row.get(f.name) for row in rows], f.type, types[f.name])
                        for f in schema
                    ],
                    schema=schema,
                )
            )


def _write_beside(book: Book, source: ArrowSource, target: Path) -> None:
    arrow, parquet = needed("pyarrow", "parquet"), needed("pyarrow.parquet", "parquet")
    ours = member_names(book.fields)
    added = [name for name in columns_of(book) if name in ours]
    types: dict[str, Any] = {}
    for rows in _batches(book.rows()):
        for name in added:
            types[name] = _type(arrow, [row.get(name) for row in rows], types.get(name))
    places = book.places()
    writer: Any = None
    with replacing(target) as partial, book.journal.open("rb") as journal:
        try:
            for path in source.paths:
                for _, batch in read_tables(path):
                    if isinstance(batch, str):
                        continue  # it failed, and is told there
                    batch = batch.drop_columns([n for n in added if n in batch.schema.names])  # noqa: PLW2901
                    mask, found = [], []
                    for row in batch.to_pylist():
                        line = line_of(0, row, 0, source.image_columns)
                        place = places.take(book.identity.of_input(line.raw))
                        mask.append(place is not None)
                        if place is not None:
                            journal.seek(place)
                            found.append(parsed(journal.readline()))
                    kept = batch.filter(arrow.array(mask, arrow.bool_()))
                    columns = [
                        _array(
                            arrow,
                            [row.get(name) for row in found],
                            _settled(arrow, types[name]),
                            types[name],
                        )
                        for name in added
                    ]
                    if writer is None:
                        schema = _with_columns(arrow, batch.schema, added, columns)
                        writer = parquet.ParquetWriter(partial, schema)
                    writer.write_batch(arrow.record_batch([*kept.columns, *columns], schema=schema))
            if writer is None:
                parquet.write_table(arrow.table({name: [] for name in added}), partial)
        finally:
            if writer is not None:
                writer.close()


def _with_columns(arrow: Any, schema: Any, names: list[str], columns: list[Any]) -> Any:
    """Return a schema with further columns, in what `datasets` notes about it, too."""
    for name, column in zip(names, columns, strict=True):
        schema = schema.append(arrow.field(name, column.type))
    metadata = schema.metadata or {}
    if b"huggingface" in metadata:
        noted = json.loads(metadata[b"huggingface"])
        features = noted.get("info", {}).get("features")
        if isinstance(features, dict):
            for name, column in zip(names, columns, strict=True):
                features[name] = _feature(arrow, column.type)
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
    if kind is None:
        return arrow.string()
    empty = kind != _JSON and (
        arrow.types.is_null(kind) or (arrow.types.is_struct(kind) and not kind.num_fields)
    )
    return arrow.string() if kind == _JSON or empty else kind


def _array(arrow: Any, values: list[Any], kind: Any, noted: Any) -> Any:
    if noted == _JSON:
        values = [None if value is None else dumped(value).decode() for value in values]
    elif kind == arrow.string():
        values = [
            one if one is None or isinstance(one, str) else dumped(one).decode() for one in values
        ]
    return arrow.array(values, kind)


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch
