from __future__ import annotations

import json

import pytest
from conftest import rows
from fakes import FULL, FaultyFiles

from captioner.core.errors import DiskError
from captioner.core.keys import RecordKeys
from captioner.core.types import Caption, InputRecord, Usage
from captioner.journal import finalize
from captioner.journal.disk import Files
from captioner.journal.finalize import order_output, write_array
from captioner.journal.journal import Journal
from captioner.journal.row_encoder import RowEncoder

IDENTITY = RecordKeys(("caption",))
ROWS = RowEncoder(IDENTITY, ("caption",))


def lines_of(journal):
    return journal.read(journal.length, 0).splitlines()


def record(number, text=""):
    return InputRecord(number, json.dumps({"id": number, "text": text}).encode())


def captioned(line, caption="c"):
    return ROWS.caption(Caption(line, caption, False, 1, Usage()))


async def batches(lines, size=2):
    for at in range(0, len(lines), size):
        yield lines[at : at + size]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "o.jsonl"


@pytest.fixture
def journal(path):
    """Open an output that already holds some lines."""
    made = []

    def make(lines=(), files=None):
        journal = Journal(path, IDENTITY, {}, files=files)
        made.append(journal)
        journal.open()
        journal.append(b"".join(lines))
        return journal

    yield make
    for each in made:
        each.close()


async def test_input_order_orphans_last(path, journal):
    """The finished output is in the order of the input; lines that lost their record come last."""
    lines = [record(n) for n in range(6)]
    out = journal(captioned(lines[n]) for n in (5, 3, 0, 4, 1))
    kept = [lines[n] for n in (0, 1, 2, 3, 5)]  # 2 has no caption, 4 no record
    assert await order_output(out, batches(kept)) == 1
    assert [row["id"] for row in rows(path)] == [0, 1, 3, 5, 4]
    assert sorted(p.name for p in path.parent.iterdir()) == [
        *("o.jsonl", "o.jsonl.ckpt", "o.jsonl.lock")
    ]


async def test_ordered_output_goes_on(path, journal):
    """An output put in order is as good as the one before: it is appended to and resumed."""
    lines = [record(n) for n in range(4)]
    out = journal(captioned(lines[n]) for n in (2, 0))
    await order_output(out, batches(lines))
    out.append(captioned(lines[3]))
    out.commit()
    out.close()
    again = journal()
    assert [row["id"] for row in rows(path)] == [0, 2, 3]
    assert [IDENTITY.of_input(line.raw) in again.done for line in lines] == [
        *(True, False, True, True)
    ]


async def test_ordered_already(path, journal):
    """An output that is in order already costs nothing: it is not written again."""
    lines = [record(n) for n in range(4)]
    out = journal(map(captioned, lines))
    before = path.stat().st_ino, path.read_bytes()
    assert await order_output(out, batches(lines[:3])) == 1
    assert await order_output(out, batches(lines)) == 0
    assert (path.stat().st_ino, path.read_bytes()) == before


async def test_equal_records(path, journal):
    """Equal records keep a line each, however they are mixed with others."""
    lines = [record(1), record(2), record(1)]
    out = journal([captioned(lines[1]), captioned(lines[0], "a"), captioned(lines[2], "b")])
    assert await order_output(out, batches(lines)) == 0
    assert [(row["id"], row["caption"]) for row in rows(path)] == [(1, "a"), (2, "c"), (1, "b")]


async def test_long_lines(path, journal, monkeypatch):
    """Records longer than what is read at a time are moved whole, short ones between them, too."""
    monkeypatch.setattr(finalize, "_WINDOW", 64)
    monkeypatch.setattr(finalize, "_ROWS", 3)
    lines = [record(n, "x" * (1000 if n % 2 else n)) for n in range(8)]
    wanted = [captioned(line) for line in lines]
    out = journal(reversed(wanted))
    await order_output(out, batches(lines))
    assert path.read_bytes() == b"".join(wanted)
    target = path.with_name("o.json")
    write_array(lines_of(out), target, Files())
    assert json.loads(target.read_bytes()) == rows(path)


async def test_write_array(path, journal):
    """A .json output is one array with every record as it stands, a record a line."""
    lines = [record(1, "[,]"), record(2, "\n"), InputRecord(3, b'{"n": 18446744073709551616.10}')]
    out = journal(map(captioned, lines))
    target = path.with_name("o.json")
    write_array(lines_of(out), target, Files())
    body = path.read_bytes().rstrip(b"\n").replace(b"\n", b",\n")
    assert target.read_bytes() == b"[\n" + body + b"\n]\n"
    assert json.loads(target.read_bytes()) == rows(path)


async def test_write_array_of_nothing(path, journal):
    """An output without a record is an empty array, and a valid one."""
    target = path.with_name("o.json")
    write_array(lines_of(journal()), target, Files())
    assert json.loads(target.read_bytes()) == []


@pytest.mark.parametrize("fault", ["write", "short", "sync", "replace"])
async def test_refused_by_the_disk(path, journal, fault):
    """A disk that refuses to finish takes nothing: what was there before is there as it was."""
    lines = [record(n) for n in range(3)]
    target = path.with_name("o.json")
    target.write_text("[]")
    out = journal(captioned(line) for line in reversed(lines))
    out.commit()
    before = path.read_bytes()
    with pytest.raises(DiskError, match=r"refused to write o\.json:.*run the same command again"):
        write_array(lines_of(out), target, FaultyFiles(fault, 1, FULL))
    assert target.read_text() == "[]"
    if fault != "replace":  # the journal's own
        # The first ones are those of the commit before the new file is written.
        out.files = FaultyFiles(fault, 3 if fault == "sync" else 2, FULL)
        with pytest.raises(DiskError, match=r"refused to write o\.jsonl:.*before are safe"):
            await order_output(out, batches(lines))
    assert path.read_bytes() == before
