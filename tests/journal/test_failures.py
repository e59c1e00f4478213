from __future__ import annotations

import os

import orjson
import pytest
from conftest import rows
from fakes import FULL, FaultyFiles

from captioner.core.errors import OutputDamagedError
from captioner.core.keys import KeyTable, digest
from captioner.journal.disk import Files
from captioner.journal.failures import FailuresFile

A, B, C = (digest(name) for name in (b"a", b"b", b"c"))


def line(key, code="refused", message="no", number=1):
    failure = {"line": number, "key": key.hex(), "code": code, "message": message}
    return orjson.dumps(failure) + b"\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "o.failed.jsonl"


@pytest.fixture
def opened(path):
    """Open the file with some content in it."""
    made = []

    def make(content=b"", files=None):
        if content:
            path.write_bytes(content)
        failures = FailuresFile(files or Files(), path)
        made.append(failures)
        failures.open()
        return failures

    yield make
    for failures in made:
        failures.close()


def test_no_file_until_a_record_fails(path, opened):
    """A run in which nothing fails leaves no file of failures behind."""
    failures = opened()
    failures.compact([])
    assert not failures.by_code()
    assert not path.exists()
    failures.append(line(A))
    assert path.read_bytes() == line(A)


def test_torn_last_line_is_sealed(path, opened):
    """After a crash in the middle of a line the next failure is on a line of its own."""
    failures = opened(line(A) + line(B)[:-9])
    assert A in failures.unclaimed
    assert B not in failures.unclaimed
    failures.append(line(C))
    assert path.read_bytes() == line(A) + line(B)[:-9] + b"\n" + line(C)
    failures.close()
    assert sorted(opened().unclaimed.offsets()) == [0, len(line(A)) + len(line(B)[:-9]) + 1]


def test_unreadable_lines_are_dropped(path, opened):
    """Lines that are no failures neither stop a run nor survive it; the good ones stay as is."""
    bad = [b"\0" * 600, b"[]", b"3", b"{}", b"", b'{"key":"zz"}', b'{"key":5}', b"\xff{"]
    failures = opened(line(A) + b"\n".join(bad) + b"\n" + line(B) + b'{"key"')
    assert len(failures.unclaimed) == 2
    assert A in failures.unclaimed
    assert B in failures.unclaimed
    failures.compact([])
    assert path.read_bytes() == line(A) + line(B)
    failures.append(line(C))  # it goes on where the compacted file ends
    assert path.read_bytes() == line(A) + line(B) + line(C)


def test_failures_that_are_retried_stay_so(opened, path):
    """Failures that are retried no longer count, after a crash as well, and new ones do."""
    failures = opened(line(A, "refused") + line(B, "image_missing") + line(C, "refused"))
    failures.retry({one.offset for one in failures.read() if one.code == "refused"})
    failures.append(line(A, "refused"))
    failures.close()
    failures = opened(path.read_bytes())
    assert (len(failures.retrying), A in failures.retrying, C in failures.retrying) == (2, 1, 1)
    assert (len(failures.unclaimed), A in failures.unclaimed, B in failures.unclaimed) == (2, 1, 1)
    failures.compact([one.offset for one in failures.read() if one.again])
    assert path.read_bytes() == line(B, "image_missing") + line(A, "refused")


def test_by_code(opened):
    """The summary counts every code, with the line and the message of its first failure."""
    failures = opened(line(A, "x", "one", 4) + line(B, "y", "two", 5) + line(C, "x", "three", 6))
    assert failures.by_code() == {"x": (2, 4, "one"), "y": (1, 5, "two")}


def test_superseded(opened):
    """Only failures with a newer outcome are removed; one that lost its input is kept."""
    failures = opened(line(A) + line(B) + line(A) + line(C))
    a, b, a_again, c = 0, len(line(A)), 2 * len(line(A)), 3 * len(line(A))
    captioned = KeyTable()
    captioned.add(B)
    assert failures.superseded([], captioned) == set()
    assert failures.superseded([a, b, c], captioned) == {a, b}
    assert failures.superseded([a, a_again], captioned) == set()  # both are orphans


def test_compact(path, opened):
    """The file holds only what is still failed, and is gone when nothing is."""
    failures = opened(line(A) + line(B, number=2))
    failures.compact([0])
    assert [row["line"] for row in rows(path)] == [2]
    failures.compact([0])
    assert list(path.parent.iterdir()) == []
    failures.append(line(C))  # and comes back when a record fails again
    assert path.read_bytes() == line(C)


def test_refused_by_the_disk(path, opened):
    """On a full disk the failures stay whole: an append can be repeated, a compaction, too."""
    before = line(A) + line(B)
    failures = opened(before, FaultyFiles("short", 1, FULL))
    with pytest.raises(OSError, match="No space"):
        failures.append(line(C))
    assert path.read_bytes() == before
    failures.append(line(C))
    assert path.read_bytes() == before + line(C)
    failures.close()
    failures = opened(files=FaultyFiles("replace", 1, FULL))
    with pytest.raises(OSError, match="No space"):
        failures.compact([0])
    assert path.read_bytes() == before + line(C)


def test_a_hole_is_not_read_as_one_line(path, opened, monkeypatch):
    """A file of a terabyte with nothing in it costs neither the memory nor the time."""
    monkeypatch.setattr("captioner.core.lines.LONGEST", 8 << 20)
    path.write_bytes(line(A))
    os.truncate(path, 1 << 40)
    with pytest.raises(OutputDamagedError, match=r"o\.failed\.jsonl has a line of more than 8 MB"):
        opened()
