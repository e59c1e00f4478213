"""Records from Hugging Face's imagefolder: tables of the images beside them."""

from __future__ import annotations

import os
import re
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from captioner.core.badjson import why_no_json
from captioner.core.cells import from_cell
from captioner.core.descriptors import patiently
from captioner.core.filenames import escaped
from captioner.core.jsonbytes import quoted, replace_values
from captioner.core.keys import digest
from captioner.core.types import InputRecord
from captioner.readers.rows import SHOWN, dumped
from captioner.readers.tables import columns_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from pathlib import Path

    from captioner.core.protocols import Source

_ENDINGS = ("file_name", "file_names")
_KEY = re.compile(r'"([^"\\]+)"\s*:')
_HEADING = re.compile(r'[^,;\t|"\r\n]+')
_BEGINNING = 1 << 16
"""Bytes of a text table in which its columns are named."""


class Part(NamedTuple):
    """One of the tables of an imagefolder.

    Attributes:
        source: Its rows.
        name: The table, relative to the imagefolder.
        column: The column with names of files.
    """

    source: Source
    name: Path
    column: str


def file_column(path: Path, wanted: str | None = None) -> str | None:
    """Return the column of a table that names files, as that of an imagefolder does.

    It is ``file_name``, ``file_names`` or one that ends so, if possible one of images.

    Args:
        path: The table.
        wanted: The column to take if it is one of them.
    """
    if path.suffix == ".parquet":
        names = columns_of(path, "parquet")
    else:
        try:
            with patiently(lambda: path.open("rb")) as file:
                head = file.read(_BEGINNING).decode(errors="replace")
        except OSError:
            return None
        pattern = _KEY if path.suffix == ".jsonl" else _HEADING
        names = pattern.findall(head if path.suffix == ".jsonl" else head.partition("\n")[0])
    found = [name for name in names if name.endswith(_ENDINGS)]
    return wanted if wanted in found else min(found, key=_rank, default=None)


def _rank(name: str) -> tuple[bool, bool]:
    return name not in _ENDINGS, not name.startswith("image")


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
                        _moved(record, part, number + count, before)
                        for count, record in enumerate(batch, 1)
                    ]
                    number += len(batch)
                    yield found
            before += part.source.size


def _moved(record: InputRecord, part: Part, number: int, before: int) -> InputRecord:
    """Return a row with its file names relative to the imagefolder, not to the table."""
    table = part.name
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
    names = row.get(part.column) if isinstance(row, dict) else None
    raw = record.raw
    if names and table.parent.name:
        moved = _inside(table.parent, names)
        if moved != names:
            raw = replace_values(raw, quoted(part.column), dumped(moved))
    return record._replace(number=number, end=end, raw=raw)


def _inside(folder: Path, names: Any) -> Any:
    """Return file names relative to what contains the folder."""
    if isinstance(names, str):
        names = from_cell(names)
    if isinstance(names, list):
        return [_inside(folder, name) for name in names]
    if not isinstance(names, str) or not names or _is_elsewhere(names):
        return names
    return escaped((folder / names).as_posix())


def _is_elsewhere(name: str) -> bool:
    return name.startswith(("/", "data:")) or "://" in name
