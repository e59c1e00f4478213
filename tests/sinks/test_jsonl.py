from __future__ import annotations

import asyncio

import pytest
from conftest import rows

import captioner.sinks.jsonl
from captioner.identity import Identity
from captioner.records import Caption, Line, Progress, Usage
from captioner.sinks.journal import Journal
from captioner.sinks.jsonl import JournalSink, Rows
from captioner.stopping import Stopping

IDENTITY = Identity(("caption",))


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "out.jsonl", IDENTITY, {})
    journal.open()
    yield journal
    journal.close()


def outcome(number):
    return Caption(Line(number, b'{"id":%d}' % number), "c", False, 1, Usage())


async def test_it_ends_at_once_although_the_last_rows_wait_for_others(journal, monkeypatch):
    """Leaving it writes what was put and does not wait for the next commit, or for ever."""
    monkeypatch.setattr(captioner.sinks.jsonl, "COMMIT_S", 1_000.0)
    monkeypatch.setattr(captioner.sinks.jsonl, "GATHER_S", 0.05)
    made = Rows(IDENTITY, ("caption",)), Progress(), Stopping()
    async with JournalSink(journal, *made, warn=print, disk_wait_s=0) as sink:
        await sink.put([outcome(1)])
        late = asyncio.create_task(sink.put([outcome(2)]))
        await asyncio.sleep(0.001)  # it is gathered now
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
    assert [row["id"] for row in rows(journal.path)] == [1, 2]
