"""Files that are not what their names say: one sentence at the start, with the cure."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import json
import lzma
import struct
import subprocess
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import command, jpeg, rows
from inputs import captioned

from captioner import SettingsError
from captioner.readers.jsonl import JsonlSource
from captioner.readers.registry import open_input

LINE = b'{"image": "0.jpg"}\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 12345\n"


def zipped() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("xl/workbook.xml", "<x/>")
    return packed.getvalue()


def parquet() -> bytes:
    packed = io.BytesIO()
    pq.write_table(pa.table({"image": ["0.jpg"]}), packed)
    return packed.getvalue()


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.json", "in.tsv", "metadata.csv"])
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (LINE.decode().encode("utf-16"), "is UTF-16"),
        (LINE.decode().encode("utf-16-le"), "is UTF-16"),
        (LINE.decode().encode("utf-32-be"), "iconv"),
        (POINTER, "is a Git LFS pointer.*git lfs pull"),
        (gzip.compress(LINE, mtime=0), "compressed with gzip: name it .gz"),
        (zstandard.compress(LINE), "compressed with Zstandard: name it .zst"),
        (lzma.compress(LINE), "compressed with xz: unpack it"),
        (bz2.compress(LINE), "compressed with bzip2: unpack it"),
        (zipped(), "a zip archive, as Excel workbooks are"),
        (parquet(), "holds Parquet: name it .parquet"),
    ],
)
def test_text_that_is_none_is_refused(tmp_path, name, data, told):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SettingsError, match=f"{name} .*{told}"):
        open_input(tmp_path / name)


@pytest.mark.parametrize("name", ["in.parquet", "in.arrow", "in.tar"])
def test_a_pointer_in_place_of_a_table_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(SettingsError, match="git lfs pull"):
        open_input(tmp_path / name)


async def test_one_pointer_among_tables_is_a_failure(tmp_path, endpoint):
    source = tmp_path / "tables"
    source.mkdir()
    pq.write_table(pa.table({"image": pa.array([jpeg(0)])}), source / "a.parquet")
    (source / "b.parquet").write_bytes(POINTER)
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert (len(found.rows), found.codes) == (1, ["bad_table"])
    assert "b.parquet cannot be read: it is a Git LFS pointer" in found.messages


def test_standard_input_that_is_no_text_is_refused(tmp_path, endpoint):
    words = command("-", "-o", "out.jsonl", "--base-url", endpoint.base_url, "--model", "m")
    data = LINE.decode().encode("utf-16")
    ended = subprocess.run(words, cwd=tmp_path, input=data, capture_output=True, check=False)
    assert ended.returncode == 2
    assert b"the input is UTF-16" in ended.stderr
    assert endpoint.count == 0


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("block", [b"", b"\xef\xbb\xbf", b"\n"])
async def test_an_array_called_jsonl_is_read_with_a_warning(tmp_path, endpoint, indent, block):
    """As json.dump writes a list, on one line or on many."""
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    found = [{"image": "0.jpg"}, {"image": "1.jpg", "t": ["]", "["]}]
    source = tmp_path / "in.jsonl"
    source.write_bytes(block + json.dumps(found, indent=indent).encode() + b"\n")
    done = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert [row["image"] for row in done.rows] == ["0.jpg", "1.jpg"]
    assert done.warnings == ["in.jsonl is one JSON array, not lines, and is read so"]


@pytest.mark.parametrize(
    "first",
    [
        b'[{"image": "1.jpg"}]\n',
        b"[INFO] started\n",
        b"[]\n",
        b'["image", "n"]\n',
        b"[\n",
        b'[{"image": "1.jpg"}\n',
    ],
)
async def test_lines_after_one_that_is_an_array_are_lines(tmp_path, endpoint, first):
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    source = tmp_path / "in.jsonl"
    source.write_bytes(first + LINE + LINE.replace(b"0", b"1"))
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    done = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert [row["image"] for row in rows(tmp_path / "out.jsonl")] == ["0.jpg", "1.jpg"]
    assert len(done.failures) == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (rb'{"image": "0.jpg", "x": NaN}', "JSON has no NaN: write null"),
        (rb'{"image": "0.jpg", "x": [1, -Infinity]}', "JSON has no -Infinity: write null"),
        (rb'{"image": "0.jpg", "x": "a \ud83d b"}', r"\ud83d is half of a character"),
        (rb'{"image": "0.jpg", "x": "\udc4d"}', r"\udc4d is half of a character"),
        (rb"{'image': '0.jpg'}", "it is a Python dict"),
        (rb'{"image": "NaN \\ud83d", x}', "not valid JSON"),
    ],
)
async def test_json_that_is_none_says_why(tmp_path, endpoint, line, told):
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "in.jsonl").write_bytes(LINE + line + b"\n")
    done = await captioned(tmp_path / "in.jsonl", endpoint, tmp_path / "out.jsonl")
    assert (len(done.rows), done.codes) == (1, ["bad_json"])
    assert told in done.messages


@pytest.mark.parametrize("name", ["in.jsonl", "in.mpg4", "in.csv", "in"])
@pytest.mark.parametrize("data", [jpeg(1), bytes(range(256)) * 20, b"\x1aE\xdf\xa3" + b"text" * 50])
def test_binary_data_in_place_of_text_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SettingsError, match=f"{name} is binary data.*--input-format images"):
        open_input(tmp_path / name)


async def test_a_line_of_binary_data_is_not_in_the_failures_file(tmp_path, endpoint):
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    binary = jpeg(1).replace(b"\n", b"")
    (tmp_path / "in.jsonl").write_bytes(LINE + b" " * 5_000 + b"\n" + binary + b"\n")
    done = await captioned(tmp_path / "in.jsonl", endpoint, tmp_path / "out.jsonl")
    assert (len(done.rows), done.codes) == (1, ["bad_json"])
    assert done.messages == "the line is binary data, not JSON"
    assert done.failures[0]["record"] == f"{len(binary)} bytes of binary data"


@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "list.txt"])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            json.dumps({"image": "0.jpg"}, indent=2) + "\n" + json.dumps({}),
            "one a line, as with jq",
        ),
        ('{"image": "0.jpg",\n "n": 1}\n', "one a line, as with jq"),
        ('{"image": "0.jpg"},\n{"image": "1.jpg"},\n', "lines that end in commas: remove those"),
        ("a/0.jpg\nb c/1.PNG\n", "is a list of files.*first line `image` and name it .csv"),
        ("https://x/0.jpg?w=1\n", "is a list of files"),
        ("<!DOCTYPE html>\n<html>\n", "is a web page or XML"),
    ],
)
async def test_text_of_another_kind_is_refused_as_a_whole(tmp_path, endpoint, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError, match=f"{name} .*{told}"):
        await captioned(tmp_path / name, endpoint, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.failed.jsonl").exists()
    assert endpoint.count == 0


async def test_one_line_that_ends_in_a_comma_says_so(tmp_path, endpoint):
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "in.jsonl").write_bytes(LINE + LINE.strip() + b",\n" + LINE)
    done = await captioned(tmp_path / "in.jsonl", endpoint, tmp_path / "out.jsonl")
    assert (len(done.rows), done.messages) == (2, "the line ends in a comma: remove it")


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.csv.gz", "in.jsonl.zst", "in.json.gz"])
def test_a_file_that_is_not_compressed_as_its_name_says_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(LINE)
    with pytest.raises(SettingsError, match=f"{name} is not compressed.*name it without"):
        open_input(tmp_path / name)


def test_lines_that_end_in_carriage_returns_alone_are_refused(tmp_path):
    source = JsonlSource(tmp_path / "in.jsonl")
    (tmp_path / "in.jsonl").write_bytes(LINE.strip() + b"\r" + LINE.strip() + b"\r")
    with pytest.raises(SettingsError, match="has carriage returns in place of line ends"):
        asyncio.run(anext(source.batches()))


async def test_zeros_at_the_end_are_told_and_not_written(tmp_path, endpoint):
    """As after a crash of the machine that wrote the file."""
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "in.jsonl").write_bytes(LINE + bytes(3_000))
    done = await captioned(tmp_path / "in.jsonl", endpoint, tmp_path / "out.jsonl")
    assert (len(done.rows), done.codes) == (1, ["bad_json"])
    assert "it is only zeros" in done.messages
    assert done.failures[0]["record"] == "3000 bytes of binary data"


async def test_a_file_of_pzstd_is_compressed(tmp_path):
    """It begins with a frame that is skipped, which has the size of the next one."""
    compressed = zstandard.compress(LINE)
    path = tmp_path / "in.jsonl.zst"
    path.write_bytes(b"\x50\x2a\x4d\x18" + struct.pack("<II", 4, len(compressed)) + compressed)
    batches = [batch async for batch in open_input(path).source.batches()]
    assert [record.raw for batch in batches for record in batch] == [LINE.strip()]
