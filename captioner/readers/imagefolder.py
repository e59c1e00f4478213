"""Records from Hugging Face's imagefolder: tables of the images beside them."""

from __future__ import annotations

import os
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

import orjson

from captioner.core.badjson import why_no_json
from captioner.core.descriptors import patiently
from captioner.core.filenames import escaped
from captioner.core.jsonbytes import quoted, replace_values
from captioner.core.keys import digest
from captioner.core.types import InputRecord
from captioner.readers.rows import SHOWN
from captioner.readers.tables import columns_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from pathlib import Path

    from captioner.core.protocols import Source

FILE_NAME = "file_name"
_BEGINNING = 1 << 16
"""Bytes of a text table in which its columns are named."""


class Part(NamedTuple):
    """One of the tables of an imagefolder.

    Attributes:
        source: Its rows.
        name: The table, relative to the imagefolder.
    """

    source: Source
    name: Path


def has_file_names(path: Path) -> bool:
    """Tell whether a table has a column ``file_name``, as that of an imagefolder has."""
    if path.suffix == ".parquet":
        return FILE_NAME in columns_of(path, "parquet")
    try:
        with patiently(lambda: path.open("rb")) as file:
            return FILE_NAME.encode() in file.read(_BEGINNING)
    except OSError:
        return False


class ImageFolderSource:
    """The rows of several tables; in each, file names are relative to the table's own folder.

    Args:
        parts: The tables.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self.paths = [part.name for part in parts]

    @property
    def size(self) -> int:
        """Bytes of all tables."""
        return sum(part.source.size for part in self._parts)

    async def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the rows in order, table after table."""
        number = before = 0
        for part in self._parts:
            batches: AsyncGenerator[list[InputRecord], None] = part.source.batches()  # type: ignore[assignment]
            async with aclosing(batches) as several:
                async for batch in several:
                    found = [
                        _moved(record, part.name, number + count, before)
                        for count, record in enumerate(batch, 1)
                    ]
                    number += len(batch)
                    yield found
            before += part.source.size


def _moved(record: InputRecord, table: Path, number: int, before: int) -> InputRecord:
    """Return a row with its file name relative to the imagefolder, not to the table."""
    end = before + record.end
    unit = "line" if table.suffix == ".jsonl" else "row"
    place = f"{escaped(str(table))}, {unit} {record.number}"
    if record.fault is not None:
        code, message = record.fault
        key = None if record.key is None else digest(record.key + os.fsencode(table))
        return record._replace(number=number, end=end, fault=(code, f"{place}: {message}"), key=key)
    try:
        row = orjson.loads(record.raw)
    except orjson.JSONDecodeError as error:
        fault = "bad_json", f"{place}: {why_no_json(record.raw, error)}"
        key = digest(record.raw + os.fsencode(table))
        return InputRecord(number, record.raw[:SHOWN], end, fault, key)
    name = row.get(FILE_NAME) if isinstance(row, dict) else None
    raw = record.raw
    if isinstance(name, str) and name and table.parent.name and not _is_elsewhere(name):
        inside = escaped((table.parent / name).as_posix())
        raw = replace_values(raw, quoted(FILE_NAME), quoted(inside))
    return record._replace(number=number, end=end, raw=raw)


def _is_elsewhere(name: str) -> bool:
    return name.startswith(("/", "data:")) or "://" in name
