from __future__ import annotations

import asyncio
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.readers import jsonl
from captioner.readers.jsonl import JsonlSource

BLOCKS = [1, 2, 3, 5, 8, 13, 64, 1 << 20]
NASTY = [
    {"a": 1},
    {"b": '[{"x": "\\"}]'},
    {"c": "\\\\\\", "d": ["]", "[", "{", "}", ",", '"']},
    {"e": {"f": [[], {}, [[1, 2], 3]]}, "g": "é\u2028😀\u00a0"},
    {},
    {"h": "a\\", "i": '\\"'},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture
def read(folder):
    """Read some bytes as an input, in blocks of some size."""

    def read(data, name="input.jsonl", **options):
        path = folder / name
        path.write_bytes(data)

        async def collect():
            source = JsonlSource(path, **options)
            assert source.size == len(data)
            return [line async for batch in source.batches() for line in batch]

        lines = asyncio.run(collect())
        ends = [line.end for line in lines]
        assert ends == sorted(ends)
        assert all(0 < end <= len(data) for end in ends)
        return lines

    return read


def everywhere(read, data, name="input.jsonl", **options):
    """Read with every block size, check that all agree, and return the records."""
    results = [read(data, name, block=block, **options) for block in BLOCKS]
    for block, result in zip(BLOCKS, results, strict=True):
        assert result == results[-1], f"block size {block}"
    return results[-1]


def dumped(record, *, ascii_only=False, indent=None):
    return json.dumps(record, ensure_ascii=ascii_only, indent=indent).encode()


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_lines_are_read_whatever_wrote_them(read, newline, last, bom):
    """Windows line ends, a byte order mark and a missing last line end change no record."""
    raws = [dumped(record) for record in NASTY]
    data = bom + newline.join(raws) + (newline if last else b"")
    lines = everywhere(read, data)
    assert [line.raw for line in lines] == raws
    assert [line.number for line in lines] == list(range(1, len(raws) + 1))
    assert all(line.fault is None for line in lines)
    assert lines[-1].end == len(data)


def test_empty_lines_are_counted_but_are_no_records(read):
    """A line number is the one that an editor shows."""
    lines = everywhere(read, b'\n{"a":1}\n\n  \t\r\n {"b":2} \n\n')
    assert [(line.number, line.raw) for line in lines] == [(2, b'{"a":1}'), (5, b'{"b":2}')]


@pytest.mark.parametrize("data", [b"", b"\n\r\n ", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("name", ["input.jsonl", "input.json"])
def test_an_input_without_records_has_none(read, data, name):
    """An empty file is no error."""
    assert everywhere(read, data, name) == []


def test_broken_lines_are_passed_on(read):
    """Invalid JSON is delivered as it is; the run reports it with its line number."""
    data = b'{"a":1}\nnot json\n\xff\xfe\x00\n{"b":2'
    lines = everywhere(read, data)
    assert [line.raw for line in lines] == data.split(b"\n")
    assert [line.number for line in lines] == [1, 2, 3, 4]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_a_line_that_is_too_long_is_a_fault(read, newline, last):
    """A giant line fails alone: its beginning is shown, and its neighbours are read."""
    long = b'{"x":"' + b"y" * 400 + b'"}'
    raws = [b'{"a":1}', long, b'{"b":2}', b'{"c":3}', long + b" "]
    lines = everywhere(read, newline.join(raws) + (newline if last else b""), max_line=40)
    assert [line.number for line in lines] == [1, 2, 3, 4, 5]
    assert [line.fault and line.fault[0] for line in lines] == [
        None,
        "record_too_long",
        None,
        None,
        "record_too_long",
    ]
    assert "most is 40" in lines[1].fault[1]
    assert lines[1].raw
    assert long.startswith(lines[1].raw)
    assert len(lines[1].raw) < len(long)
    assert len(lines[1].key) == 16


@pytest.mark.parametrize("around", [b"", b" ", b"    "])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_the_limit_does_not_depend_on_where_blocks_end(read, around, newline):
    """Whether a record is too long is decided by the record alone."""
    raws = [around + b'{"x":"' + b"y" * count + b'"}' + around for count in range(8, 16)]
    lines = everywhere(read, newline.join(raws) + newline, max_line=20)
    assert len(lines) == len(raws)
    if not around:
        assert lines[0].fault is None
    assert lines[-1].fault is not None


@pytest.mark.parametrize("name", ["input.jsonl", "input.json"])
def test_giant_records_are_told_apart(read, name):
    """Two giant records that differ in one byte in the middle have different keys."""
    raws = [b'{"x":"' + b"y" * at + b"z" + b" " * (300 - at) + b'"}' for at in (100, 101, 100)]
    data = b"\n".join(raws) if name.endswith("l") else b"[" + b",".join(raws) + b"]"
    keys = [line.key for line in everywhere(read, data, name, max_line=50)]
    assert keys[0] == keys[2]
    assert keys[0] != keys[1]
    assert None not in keys


def lines_and_peak(path):
    """Read a file whose lines may have 64 kB; return them, and the most memory that it took."""

    async def collect():
        source = JsonlSource(path, max_line=1 << 16, block=1 << 16)
        return [line async for batch in source.batches() for line in batch]

    tracemalloc.start()
    lines = asyncio.run(collect())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return lines, peak


def test_a_giant_line_is_not_held_in_memory(folder):
    """A line far over the limit is never more than a few blocks of memory."""
    path = folder / "giant.jsonl"
    path.write_bytes(b'{"x":"' + b"y" * (16 << 20) + b'"}\n{"a":1}\n')

    lines, peak = lines_and_peak(path)
    assert [line.fault is None for line in lines] == [False, True]
    assert peak < 2 << 20


class Counting:
    """A pattern that counts the bytes of the texts in which it is looked for."""

    def __init__(self, pattern):
        self._pattern = pattern
        self.longest = 0

    def search(self, data, at):
        self.longest = max(self.longest, len(data))
        return self._pattern.search(data, at)

    def match(self, data, at):
        self.longest = max(self.longest, len(data))
        return self._pattern.match(data, at)


@pytest.mark.parametrize("value", [b'"' + b"y" * 200_000 + b'"', b"[" + b"1," * 100_000 + b"0]"])
def test_a_giant_element_is_passed_over_once(read, monkeypatch, value):
    """What is looked at of an element does not grow with what was read of it."""
    patterns = [Counting(jsonl._TOKEN), Counting(jsonl._STRING_PART)]
    monkeypatch.setattr(jsonl, "_TOKEN", patterns[0])
    monkeypatch.setattr(jsonl, "_STRING_PART", patterns[1])
    raw = b'{"x":' + value + b"}"
    (line,) = read(b"[" + raw + b"]", "input.json", block=1_000)
    assert line.raw == raw
    assert max(one.longest for one in patterns) <= 1_001


def test_a_giant_first_line_is_looked_at_a_few_times(read, monkeypatch):
    """Whether a file is an array is asked again only when twice as much of it was read."""
    looks = []
    asked = jsonl._seems_array
    monkeypatch.setattr(
        jsonl, "_seems_array", lambda *given, **more: looks.append(1) or asked(*given, **more)
    )
    data = b'[{"x":"' + b"y" * 200_000 + b'"}]\n'
    (line,) = read(data, block=1_000)
    assert line.raw == data[1:-2]
    assert len(looks) < 12


@pytest.mark.parametrize("begin", [b"", b'[{"a":1}]\n'])
def test_blanks_without_end_are_not_kept(folder, begin):
    """A file of blanks is decided on when it is longer than a record may be."""
    path = folder / "blank.jsonl"
    path.write_bytes(begin + b" \n" * (4 << 20))

    lines, peak = lines_and_peak(path)
    assert [line.raw for line in lines] == ([b'{"a":1}'] if begin else [])
    assert peak < 6 << 20


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_the_elements_of_an_array_are_records(read, indent, ascii_only, bom):
    """An array, pretty-printed or not, gives the same records as lines would."""
    data = bom + b" \n" + dumped(NASTY, ascii_only=ascii_only, indent=indent) + b"\n"
    lines = everywhere(read, data, "input.json")
    assert [json.loads(line.raw) for line in lines] == NASTY
    assert [line.number for line in lines] == list(range(1, len(NASTY) + 1))
    assert all(line.raw == line.raw.strip() for line in lines)
    assert all(line.fault is None for line in lines)
    assert lines[-1].end == len(data) - 1


@pytest.mark.parametrize("data", [b"[]", b" [ \n ] \n", b"\xef\xbb\xbf[]"])
def test_an_empty_array_has_no_records(read, data):
    """An empty array is no error."""
    assert everywhere(read, data, "input.json") == []


def test_elements_keep_their_spelling(read):
    """Numbers and escapes in an array are not changed."""
    raws = [b'{"n": 1.50e+2, "b": 123456789012345678901234567890}', b'{"s":"\\u00e9\\/"}', b"7"]
    lines = everywhere(read, b"[ " + b" ,\n".join(raws) + b"\t]", "input.json")
    assert [line.raw for line in lines] == raws


def test_lines_in_a_json_file_are_lines(read):
    """A file called .json that holds an object a line is read as lines."""
    lines = everywhere(read, b'{"a":[1]}\n{"b":2}\n', "input.json")
    assert [line.raw for line in lines] == [b'{"a":[1]}', b'{"b":2}']


def test_an_array_cut_short_is_a_fault(read):
    """Wherever an array was cut off, its whole elements are read and the loss is reported."""
    data = dumped(NASTY[:4])
    for end in range(1, len(data)):
        for block in (1, 7, 1 << 20):
            lines = read(data[:end], "input.json", block=block)
            assert [json.loads(line.raw) for line in lines[:-1]] == NASTY[: len(lines) - 1]
            assert all(line.fault is None for line in lines[:-1])
            assert lines[-1].fault[0] == "bad_json"
            assert "not closed" in lines[-1].fault[1]
            assert [line.number for line in lines] == list(range(1, len(lines) + 1))
            assert lines[-1].end == end


@pytest.mark.parametrize(
    "more", [b"x", b"]", b"}", b',{"b":2}', b' {"b":2}', b"{}", b'"abc', b"2,3", b"y" * 300]
)
def test_what_follows_an_array_is_a_fault(read, more):
    """Something after the end of an array is reported, however long it is, and hides nothing."""
    data = b'[{"a":1}, {"a":2}]' + more
    lines = everywhere(read, data, "input.json", max_line=40)
    assert [line.raw for line in lines[:2]] == [b'{"a":1}', b'{"a":2}']
    assert [line.number for line in lines] == [1, 2, 3]
    assert lines[2].fault[0] == "bad_json"
    assert "follows" in lines[2].fault[1]


def test_an_element_that_is_too_long_is_a_fault(read):
    """A giant element fails alone, whatever its strings hold and wherever blocks cut it."""
    long = dumped({"x": '\\"]},[{' * 30, "y": ["\\" * 61, {"z": '"' * 51}]})
    raws = [b'{"a":1}', long, b'{"b":2}', b'"' + b'\\"' * 99 + b'"', b'{"c":3}', long]
    lines = everywhere(read, b"[\n" + b" ,\n".join(raws) + b"\n]\n", "input.json", max_line=60)
    assert [line.number for line in lines] == [1, 2, 3, 4, 5, 6]
    for line, raw in zip(lines, raws, strict=True):
        if len(raw) > 60:
            assert line.fault[0] == "record_too_long"
            assert line.raw
            assert raw.startswith(line.raw)
        else:
            assert (line.fault, line.raw) == (None, raw)
    assert lines[1].key != lines[3].key


def test_a_giant_element_cut_short_is_a_fault(read):
    """An array that ends inside a giant element says so, once."""
    data = b'[{"a":1},{"x":"' + b"\\\\" * 200
    lines = everywhere(read, data, "input.json", max_line=40)
    assert [line.fault and line.fault[0] for line in lines] == [None, "bad_json"]
    assert lines[1].raw.startswith(b'{"x":"')


def test_a_missing_element_does_not_vanish(read):
    """Two commas in a row make an empty record; a comma at the end does not."""
    lines = everywhere(read, b'[{"a":1},,{"b":2},]', "input.json")
    assert [line.raw for line in lines] == [b'{"a":1}', b"", b'{"b":2}']
    assert [line.number for line in lines] == [1, 2, 3]


TEXTS = st.text(st.sampled_from('ab"\\[]{},:/é😀\n '), max_size=12)
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


@given(
    values=st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), min_size=1, max_size=4),
    block=st.integers(1, 24),
    indent=st.sampled_from([None, 0, 1]),
    ascii_only=st.booleans(),
    max_line=st.sampled_from([30, 1 << 20]),
)
@settings(max_examples=120, deadline=None)
def test_any_records_are_read_in_any_blocks(folder, values, block, indent, ascii_only, max_line):
    """Lines and arrays alike: what is read is what was written, wherever blocks cut it."""
    lines = [dumped(value, ascii_only=ascii_only) for value in values]
    elements = [dumped(value, ascii_only=ascii_only, indent=indent) for value in values]
    for name, raws, data in [
        ("any.jsonl", lines, b"\n".join(lines)),
        ("any.json", elements, b"[" + b",".join(elements) + b"]"),
    ]:
        path = folder / name
        path.write_bytes(data)
        found = asyncio.run(_collect(JsonlSource(path, max_line=max_line, block=block)))
        assert [line.number for line in found] == list(range(1, len(raws) + 1))
        for line, raw in zip(found, raws, strict=True):
            if len(raw) <= max_line:
                assert (line.fault, line.raw) == (None, raw)
            else:
                assert line.fault[0] == "record_too_long"
        assert found[-1].end == len(data)


async def _collect(source):
    return [line async for batch in source.batches() for line in batch]
