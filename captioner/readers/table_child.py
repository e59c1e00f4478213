"""The table process: reads Parquet and Arrow files with limited memory and processor time.

The bytes of a stranger's table meet Arrow's C++ code only here. If that crashes, the file is a
failure and the parent process continues. What is sent was validated, and is cut by decoded size.

The messages on the socket, whose descriptor is the first argument::

    child:  READY                                          once, when it has started
    parent: ["tables" or "schema", kind, skip], the path   for each file; `skip` parts are left out
    child:  ["batch", share], then an Arrow stream         for rows
    child:  ["row", share, reason]                         for a row that cannot be read
    child:  ["table", share, reason]                       for a part that cannot be read
    child:  ["end", 1]                                     after the last part
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from captioner.core.extras import needed
from captioner.readers.rows import BATCH_BYTES, BATCH_ROWS, one_line
from captioner.readers.table_sizes import row_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY = 2 << 30
"""Bytes that the process may allocate; a file that is mapped does not count."""

CPU_S = 60
"""Seconds of processor time for one part of a file."""

MOST_ROW_BYTES = 576 << 20
"""Decoded bytes of a row; a video of the default limit fits."""

READY = b"ready"

_SMALL = 1 << 16


class Part(NamedTuple):
    """A part of a table.

    Attributes:
        what: ``batch``, or ``row`` or ``table`` for what cannot be read.
        share: How much of the file was read, 0 to 1.
        content: A record batch or the reason.
    """

    what: str
    share: float
    content: Any


def main() -> None:
    """Read files until the parent closes the connection."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # others reserve more than they use
    for limit, most in ((resource.RLIMIT_DATA, MEMORY), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # some systems lack one of them
            resource.setrlimit(limit, (most, most))
    connection = Connection(int(sys.argv[1]))
    arrow = needed("pyarrow")
    connection.send_bytes(READY)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            what, kind, skip = orjson.loads(connection.recv_bytes())
            path = Path(os.fsdecode(connection.recv_bytes()))
            signal.setitimer(signal.ITIMER_PROF, CPU_S)
            parts = schema_of(path, kind) if what == "schema" else parts_of(path, kind)
            for number, part in enumerate(parts):
                if number >= skip:
                    _send(connection, part, arrow)
                signal.setitimer(signal.ITIMER_PROF, CPU_S)
                del part
            connection.send_bytes(orjson.dumps(["end", 1]))


def _send(connection: Connection, part: Part, arrow: Any) -> None:
    what, share, content = part
    if what != "batch":
        connection.send_bytes(orjson.dumps([what, share, content]))
        return
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, content.schema) as stream:
        stream.write_batch(content)
    connection.send_bytes(orjson.dumps([what, share]))
    connection.send_bytes(sink.getvalue())


def schema_of(path: Path, kind: str) -> Iterator[Part]:
    """Yield a batch without rows that has the columns of a file, or the reason."""
    arrow = needed("pyarrow")
    try:
        if kind == "parquet":
            with needed("pyarrow.parquet").ParquetFile(path, memory_map=True) as file:
                schema = file.schema_arrow
        else:
            with arrow.memory_map(str(path)) as mapped:
                schema = _opened(mapped, arrow).schema
        columns = [arrow.nulls(0, field.type) for field in schema]
        yield Part("batch", 1, arrow.RecordBatch.from_arrays(columns, schema=schema))
    except Exception as error:  # noqa: BLE001 - a damaged file makes Arrow raise anything
        yield Part("table", 1, one_line(error))


def parts_of(path: Path, kind: str) -> Iterator[Part]:
    """Yield the rows of a file in validated batches, and the reasons of what cannot be read."""
    arrow = needed("pyarrow")
    try:
        yield from _parquet(path, arrow) if kind == "parquet" else _arrow(path, arrow)
    except MemoryError:
        yield Part("table", 1, f"it needs more than {MEMORY} bytes of memory")
    except Exception as error:  # noqa: BLE001 - as above
        yield Part("table", 1, one_line(error))


def _parquet(path: Path, arrow: Any) -> Iterator[Part]:
    parquet = needed("pyarrow.parquet")
    with parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
        groups = file.num_row_groups
        for group in range(groups):
            share = (group + 1) / groups
            try:
                yield from _group(file, group, share, arrow)
            except MemoryError:
                yield Part("table", share, f"it needs more than {MEMORY} bytes of memory")
            except Exception as error:  # noqa: BLE001 - as above
                yield Part("table", share, one_line(error))


def _group(file: Any, group: int, share: float, arrow: Any) -> Iterator[Part]:
    """Yield the rows of a row group; one at a time if several do not fit into the memory.

    Pages say how large they are compressed: one value may stand for a thousand rows.
    """
    size = file.metadata.row_group(group)
    row_bytes = max(1, size.total_byte_size // max(1, size.num_rows))
    count = max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))
    done = 0
    try:
        for batch in file.iter_batches(batch_size=count, row_groups=[group], use_threads=False):
            yield from _bounded(batch, share, arrow)
            done += batch.num_rows
    except MemoryError:
        if count == 1:
            raise
    else:
        return
    for batch in file.iter_batches(batch_size=1, row_groups=[group], use_threads=False):
        done -= 1
        if done < 0:
            yield from _bounded(batch, share, arrow)


def _arrow(path: Path, arrow: Any) -> Iterator[Part]:
    with arrow.memory_map(str(path)) as mapped:
        file = _opened(mapped, arrow)
        streamed = not hasattr(file, "num_record_batches")
        for batch in file if streamed else map(file.get_batch, range(file.num_record_batches)):
            yield from _bounded(batch, 1, arrow)


def _opened(mapped: Any, arrow: Any) -> Any:
    """Return the reader of an Arrow file, or of the streaming format that `datasets` writes."""
    try:
        return arrow.ipc.open_file(mapped)
    except arrow.ArrowInvalid:
        mapped.seek(0)
        return arrow.ipc.open_stream(mapped)


def _bounded(batch: Any, share: float, arrow: Any) -> Iterator[Part]:
    """Yield a batch in validated slices of at most `BATCH_BYTES` decoded, but at least a row."""
    for run in _validated(batch, arrow):
        if isinstance(run, str):
            yield Part("row", share, run)
            continue
        sizes = row_sizes(run, arrow)
        first = 0
        while first < run.num_rows:
            count, size = _fitting(sizes, first, run.num_rows)
            if size > MOST_ROW_BYTES:
                reason = f"it has {size} bytes when decoded; the most is {MOST_ROW_BYTES}"
                yield Part("row", share, reason)
            else:
                yield Part("batch", share, _own_memory(run.slice(first, count), arrow))
            first += count


def _fitting(sizes: Any, first: int, end: int) -> tuple[int, int]:
    """Return how many rows make the next slice, and their bytes."""
    most = min(BATCH_ROWS, end - first)
    if isinstance(sizes, int):
        count = max(1, min(most, BATCH_BYTES // max(1, sizes)))
        return count, count * sizes
    count = total = 0
    for size in sizes.slice(first, most).to_pylist():
        if count and total + size > BATCH_BYTES:
            break
        count, total = count + 1, total + size
    return count, total


def _validated(batch: Any, arrow: Any) -> Iterator[Any]:
    """Yield a batch if it is valid; else its valid rows, and the reasons of the others."""
    try:
        batch.validate(full=True)
    except arrow.ArrowInvalid:
        batch.validate()  # raises if the structure is damaged, not only text
    else:
        yield batch
        return
    first = 0
    for at in range(batch.num_rows):
        try:
            batch.slice(at, 1).validate(full=True)
        except arrow.ArrowInvalid as error:
            if first < at:
                yield batch.slice(first, at - first)
            yield one_line(error)
            first = at + 1
    if first < batch.num_rows:
        yield batch.slice(first)


def _own_memory(batch: Any, arrow: Any) -> Any:
    """Return a slice of a batch without the values that only rows outside of it use."""
    columns = [_own_values(column, arrow) for column in batch.columns]
    fields = [
        field.with_type(column.type) for field, column in zip(batch.schema, columns, strict=True)
    ]
    schema = arrow.schema(fields, batch.schema.metadata)
    return arrow.RecordBatch.from_arrays(columns, schema=schema)


def _own_values(column: Any, arrow: Any) -> Any:
    kind, types = column.type, arrow.types
    if types.is_dictionary(kind) and column.dictionary.nbytes > _SMALL:
        compute = needed("pyarrow.compute")
        used = compute.unique(column.indices).drop_null()
        indices = compute.index_in(column.indices, used).cast(kind.index_type)
        values = column.dictionary.take(used)
        return arrow.DictionaryArray.from_arrays(indices, values, ordered=kind.ordered)
    if types.is_string_view(kind):
        return column.cast(arrow.large_string())
    if types.is_binary_view(kind):
        return column.cast(arrow.large_binary())
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        return column.cast(arrow.large_list(kind.value_type))
    return column


if __name__ == "__main__":
    main()
