"""Tables of strangers: what their bytes do to the process that reads them is no harm to a run."""

from __future__ import annotations

import base64
import itertools
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import jpeg
from inputs import captioned

from captioner.core import subprocesses
from captioner.core.errors import DecoderError
from captioner.readers.rows import BATCH_BYTES
from captioner.readers.table_child import MOST_ROW_BYTES
from captioner.readers.table_process import TableReader, UnreadableRow
from captioner.readers.table_sizes import row_sizes
from captioner.readers.tables import ArrowSource

LONG = "x" * 1_000

DIES = """
import os, signal, sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
connection.send_bytes(b"ready")
connection.recv_bytes()
os.kill(os.getpid(), signal.SIG{name})
"""


async def records_of(*paths):
    source = ArrowSource(paths, kind=paths[0].suffix[1:])
    return [record async for batch in source.batches() for record in batch]


def write_arrow(path, *columns):
    batch = pa.record_batch(list(columns), [f"c{number}" for number in range(len(columns))])
    with pa.ipc.new_file(str(path), batch.schema) as file:
        file.write_batch(batch)
    return path


def wild_text():
    """Return text with an offset that points a gigabyte behind its bytes."""
    offsets = pa.array([0, 1 << 30, 24], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"abc" * 8)])


@pytest.fixture
def dying(monkeypatch):
    """Make the first processes die by a signal when they are asked; return the list of starts."""
    real = subprocesses.python
    starts: list[str] = []

    def make(name: str, times: int = 1, code: str = DIES):
        def python(module: str, *arguments: str) -> list[str]:
            if module == "captioner.readers.table_child":
                starts.append(module)
                if len(starts) <= times:
                    return [sys.executable, "-c", code.format(name=name), *arguments]
            return real(module, *arguments)

        monkeypatch.setattr(subprocesses, "python", python)
        return starts

    return make


async def test_pointers_out_of_a_file_are_its_failure(tmp_path):
    """Converted unchecked, they end the process by a segmentation fault. The next file is read."""
    bad = write_arrow(tmp_path / "a.arrow", wild_text())
    good = write_arrow(tmp_path / "b.arrow", pa.array(["fine", "too"]))
    found = await records_of(bad, good)
    codes = [record.fault and record.fault[0] for record in found]
    assert codes == ["bad_row", "bad_row", None, None]


async def test_a_crash_costs_the_file_and_no_other(tmp_path, dying):
    starts = dying("SEGV")
    files = [write_arrow(tmp_path / name, pa.array(["x"])) for name in ("a.arrow", "b.arrow")]
    found = await records_of(*files)
    assert len(starts) == 2
    assert [record.fault and record.fault[0] for record in found] == ["bad_table", None]
    assert "crashed" in found[0].fault[1]


async def test_a_reader_that_the_system_killed_is_asked_again(tmp_path, dying):
    """Memory may have been short for a moment: nothing of the file is lost."""
    starts = dying("KILL")
    found = await records_of(write_arrow(tmp_path / "a.arrow", pa.array(["x", "y"])))
    assert len(starts) == 2
    assert [record.fault for record in found] == [None, None]


async def test_a_reader_that_is_killed_again_and_again_is_given_up(tmp_path, dying):
    starts = dying("KILL", 2)
    found = await records_of(write_arrow(tmp_path / "a.arrow", pa.array(["x", "y"])))
    assert len(starts) == 2
    assert [record.fault[0] for record in found] == ["bad_table"]


async def test_trouble_at_the_start_is_no_failure_of_records(tmp_path, dying):
    starts = dying("", 99, "")
    with pytest.raises(DecoderError, match="cannot start"):
        await records_of(write_arrow(tmp_path / "a.arrow", pa.array(["x"])))
    assert len(starts) == 3


def test_a_reader_that_is_stopped_ends_what_it_reads(tmp_path):
    path = write_arrow(tmp_path / "a.arrow", pa.array(["x" * BATCH_BYTES] * 8))
    reader = TableReader()
    tables = reader.tables(path, "arrow")
    next(tables)
    reader.stop()
    assert len(list(tables)) < 7
    reader.end()


def test_one_value_for_many_rows_is_read_in_slices(tmp_path):
    """60 kB of Parquet hold rows of gigabytes; a batch has a few megabytes."""
    values = pa.array(["x" * (BATCH_BYTES // 4), "y"])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 600 + [1] * 200, pa.int32()), values)
    pq.write_table(pa.table({"x": column}), tmp_path / "in.parquet", compression="zstd")
    assert (tmp_path / "in.parquet").stat().st_size < 10_000
    sizes, rows = [], 0
    for _, batch in TableReader().tables(tmp_path / "in.parquet", "parquet"):
        sizes.append(sum(len(value) for value in batch.column(0).to_pylist()))
        rows += batch.num_rows
        assert batch.nbytes < 2 * BATCH_BYTES
        assert batch.schema.field(0).type == column.type
    assert rows == 800
    assert max(sizes) <= BATCH_BYTES


def test_rows_that_do_not_fit_together_are_read_one_by_one(tmp_path):
    """Where the reader's memory is too small for 256 rows, none is lost and none comes twice."""
    indices = pa.array([0] * 256 + [1] * 256, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, ["y", "x" * 10_000_000])
    table = pa.table({"n": range(512), "x": column})
    pq.write_table(table, tmp_path / "in.parquet", compression="zstd", store_schema=False)
    parts = TableReader().tables(tmp_path / "in.parquet", "parquet")
    batches = [batch.column(0).to_pylist() for _, batch in itertools.islice(parts, 4)]
    assert batches == [list(range(256)), [256], [257], [258]]


def test_a_row_of_a_gigabyte_is_its_own_failure(tmp_path):
    """Views that overlap make a small file a row of any size. The other rows are read."""
    count = 1 << 16
    lists = pa.ListViewArray.from_arrays(
        pa.array([0, 0, 0], pa.int32()), pa.array([1, count, 2], pa.int32()), pa.nulls(count)
    )
    huge = pa.ListViewArray.from_arrays(
        pa.array([0] * 3, pa.int32()),
        pa.array([1, 200, 1], pa.int32()),
        lists.take(pa.array([0] + [1] * 199)),
    )
    write_arrow(tmp_path / "a.arrow", huge)
    found = [content for _, content in TableReader().tables(tmp_path / "a.arrow", "arrow")]
    assert [isinstance(one, UnreadableRow) for one in found] == [False, True, False]
    assert str(MOST_ROW_BYTES) in found[1]


def dictionary():
    return pa.DictionaryArray.from_arrays(pa.array([0, 0, None, 1], pa.int32()), [LONG, "y"])


@pytest.mark.parametrize(
    "array",
    [
        pa.array([LONG, "y", None]),
        pa.array([b"", LONG.encode()], pa.large_binary()),
        pa.array([LONG, "y", None], pa.string_view()),
        dictionary(),
        pa.array([[LONG], [], None, ["a", "b"]]),
        pa.array([[("k", LONG)], [], None], pa.map_(pa.string(), pa.string())),
        pa.array([{"a": 1, "b": LONG}, None, {"a": 1, "b": "z"}]),
        pa.array([["a", LONG], ["b", "c"]], pa.list_(pa.string(), 2)),
        pa.ListArray.from_arrays(pa.array([0, 2, 4], pa.int32()), dictionary()),
        pa.ListViewArray.from_arrays(
            pa.array([0, 0, 1], pa.int32()),
            pa.array([3, 3, 1], pa.int32()),
            pa.array(["x", "yy", LONG]),
        ),
        pa.RunEndEncodedArray.from_arrays(pa.array([2, 5], pa.int32()), pa.array([LONG, "y"])),
        pa.UnionArray.from_dense(
            pa.array([0, 0], pa.int8()), pa.array([0, 0], pa.int32()), [pa.array([LONG])]
        ),
        pa.array([1, 2, 3]),
        pa.array([b"abc"], pa.binary(3)),
        pa.nulls(3),
        pa.array([], pa.list_(pa.string())),
    ],
    ids=lambda array: str(array.type).partition("<")[0],
)
def test_no_row_is_larger_than_estimated(array):
    """Of any type, also where the array is a slice."""
    for first in range(min(2, len(array) + 1)):
        part = array.slice(first)
        sizes = row_sizes(pa.record_batch([part], ["x"]), pa)
        sizes = [sizes] * len(part) if isinstance(sizes, int) else sizes.to_pylist()
        real = [len(repr(value)) - 6 for value in part.to_pylist()]
        assert len(sizes) == len(real)
        assert all(size >= length for size, length in zip(sizes, real, strict=True))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.list_(pa.binary())])
async def test_a_binary_column_is_not_in_the_failures_file(tmp_path, endpoint, kind):
    """A picture under a name of its own, a vector, a list of either."""
    data = jpeg(1)
    values = [[data]] if pa.types.is_list(kind) else [data]
    columns = {"data": pa.array(values, kind), "embedding": [bytes(512)], "n": [1]}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    found = await captioned(tmp_path / "in.parquet", endpoint, tmp_path / "out.jsonl")
    assert found.codes == ["no_image"]
    assert "its fields: 'data', 'embedding', 'n'" in found.messages
    assert found.failures[0]["record"]["n"] == 1
    assert "bytes of base64" in found.failures[0]["record"]["data"]
    assert base64.b64encode(data)[:200].decode() not in json.dumps(found.failures)
    chosen = {"image_field": "data"}
    found = await captioned(tmp_path / "in.parquet", endpoint, tmp_path / "2.jsonl", **chosen)
    assert len(found.rows) == 1
