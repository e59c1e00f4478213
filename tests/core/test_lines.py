from __future__ import annotations

import pytest

from captioner.core import lines
from captioner.core.lines import iter_lines


@pytest.mark.parametrize("block", [1, 2, 3, 1_000])
@pytest.mark.parametrize(
    ("data", "whole", "last"),
    [
        (b"", [], []),
        (b"\n", [b""], []),
        (b"a\nbc\n", [b"a", b"bc"], []),
        (b"a\n\n\nb", [b"a", b"", b""], [b"b"]),
        (b"long line without an end", [], [b"long line without an end"]),
        (b"a\r\nb\x0bc\x85\n", [b"a\r", b"b\x0bc\x85"], []),
    ],
)
def test_iter_lines(monkeypatch, data, whole, last, block):
    """Lines are the same whatever the size of the blocks; only a newline ends one."""
    monkeypatch.setattr(lines, "BLOCK", block)

    def read(size, offset):
        return data[offset : offset + size]

    assert [line for some in iter_lines(read) for line in some] == whole
    assert [line for some in iter_lines(read, unfinished=True) for line in some] == whole + last


def test_iter_lines_from_an_offset():
    """Reading can start at any line."""
    data = b"one\ntwo\nthree\n"
    assert list(iter_lines(lambda size, at: data[at : at + size], 4)) == [[b"two", b"three"]]


def test_a_block_at_a_time(monkeypatch):
    """The lines of a block are there before the next block is read."""
    monkeypatch.setattr(lines, "BLOCK", 4)
    asked = []

    def read(size, offset):
        asked.append(offset)
        return b"a\nb\nc\nd\n"[offset : offset + size]

    assert next(iter_lines(read)) == [b"a", b"b"]
    assert asked == [0]
