"""Records from tables: Parquet and Arrow."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any

from captioner.core.descriptors import patiently
from captioner.core.extras import needed
from captioner.readers.disguises import HEAD, not_itself
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
        needed("pyarrow", "parquet")
        self._kind = kind
        self._told = False
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
            self._compare(path)
            for share, batch in self.tables(path):
                end = before + int(share * size)
                if isinstance(batch, str):
                    message = f"{path.name} cannot be read: {batch}"
                    yield broken_input(next(numbers), place, end, "bad_table", message)
                    continue
                if twice := name_twice(batch.schema.names):
                    message = f"{path.name} has two columns of the name {twice!r}"
                    yield broken_input(next(numbers), place, end, "bad_table", message)
                    break
                for row in python_rows(batch):
                    number = next(numbers)
                    if isinstance(row, str):
                        message = (
                            f"row {number} of the input, in {path.name}, cannot be read: {row}"
                        )
                        content = {**place, "row": number}
                        yield fault_record(number, content, end, "bad_row", message)
                    else:
                        yield record_of(number, row, end, self.image_columns)
            before += size

    def _compare(self, path: Path) -> None:
        """Tell of the first file whose columns are not those of the first of all."""
        if self._told or path == self.paths[0]:
            return
        own, first = (set(columns_of(one, self._kind)) for one in (path, self.paths[0]))
        if own and first and own != first:
            self._told = True
            lacks = [
                f"{one.name} lacks {', '.join(sorted(names))}"
                for one, names in ((path, first - own), (self.paths[0], own - first))
                if names
            ]
            logger.warning("the tables have different columns: %s", "; ".join(lacks))


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


def read_tables(path: Path, kind: str = "") -> Iterator[tuple[float, Any]]:
    """Yield record batches of a Parquet or Arrow file, each with the share of the file read so far.

    For a group of rows that cannot be read, the reason takes the place of the batch.
    """
    arrow = needed("pyarrow", "parquet")
    try:
        with patiently(lambda: path.open("rb")) as file:
            why = not_itself(file.read(HEAD))
        if why:
            yield 1.0, f"it {why}"
        elif (kind or _kind_of(path)) == "parquet":
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
        file = _opened(mapped, arrow)
        streamed = not hasattr(file, "num_record_batches")
        batches = file if streamed else map(file.get_batch, range(file.num_record_batches))
        for batch in batches:
            row_bytes = max(1, batch.nbytes // max(1, batch.num_rows))
            count = max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))
            for first in range(0, batch.num_rows, count):
                yield batch.slice(first, count)


def _opened(mapped: Any, arrow: Any) -> Any:
    """Return the reader of an Arrow file, or of the streaming format that `datasets` writes."""
    try:
        return arrow.ipc.open_file(mapped)
    except arrow.ArrowInvalid:
        mapped.seek(0)
        return arrow.ipc.open_stream(mapped)


def columns_of(path: Path, kind: str = "") -> list[str]:
    """Return the names of a table's columns; an empty list if it cannot be read."""
    arrow = needed("pyarrow", "parquet")
    try:
        if (kind or _kind_of(path)) == "parquet":
            with needed("pyarrow.parquet", "parquet").ParquetFile(path) as file:
                return list(file.schema_arrow.names)
        with arrow.memory_map(str(path)) as mapped:
            return list(_opened(mapped, arrow).schema.names)
    except (arrow.ArrowException, OSError):
        return []


def _kind_of(path: Path) -> str:
    return "parquet" if path.suffix.lower() == ".parquet" else "arrow"
