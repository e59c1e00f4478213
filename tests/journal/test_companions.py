from __future__ import annotations

from pathlib import Path

import pytest
from conftest import rows
from fakes import EchoTransport, ListSource

from captioner import run_batch
from captioner.core.errors import SettingsError
from captioner.journal.companions import (
    failures_path,
    find_journal,
    format_of,
    journal_path,
    output_of,
    reviews_path,
    unused_path,
    votes_path,
)
from captioner.journal.disk import Files

SIDECARS = [(failures_path, "failed"), (reviews_path, "review"), (votes_path, "votes")]


@pytest.mark.parametrize(("path_of", "word"), SIDECARS)
def test_outputs_with_the_same_stem_share_nothing(tmp_path, path_of, word):
    """A JSONL output leaves its suffix out; any other output uses its full name."""
    names = ("run.jsonl", "run.csv", "run.tsv", "run.parquet", "run-%05d.tar")
    found = [path_of(tmp_path / name).name for name in names]
    assert found == [
        f"run.{word}.jsonl",
        *(f"{name}.{word}.jsonl" for name in names[1:]),
    ]
    assert len(set(found)) == len(names)


@pytest.mark.parametrize(("path_of", "word"), SIDECARS)
@pytest.mark.parametrize("begun", ["run.csv", "run.csv.jsonl"])
def test_an_output_keeps_a_file_with_the_earlier_name(tmp_path, path_of, word, begun):
    """An output that an earlier version began goes on using the file that it has."""
    old, new = tmp_path / f"run.{word}.jsonl", tmp_path / f"run.csv.{word}.jsonl"
    old.touch()
    assert path_of(tmp_path / "run.csv") == new  # there is no such output yet: it is not its own
    (tmp_path / begun).touch()
    assert path_of(tmp_path / "run.csv") == old
    assert path_of(tmp_path / "run.tsv") == tmp_path / f"run.tsv.{word}.jsonl"
    new.touch()
    assert path_of(tmp_path / "run.csv") == new
    new.unlink()
    (tmp_path / "run.jsonl").touch()  # whose it is
    assert path_of(tmp_path / "run.csv") == new
    assert path_of(tmp_path / "run.jsonl") == old


def refusing(*endings):
    transport = EchoTransport()
    transport.refuse = lambda question: question.endswith(endings)
    return transport


async def caption(output, transport, **options):
    source = ListSource([f"q{n}" for n in range(6)])
    return await run_batch(
        "unused", output, source=source, transport=transport, model="m", max_attempts=1, **options
    )


async def test_two_outputs_of_one_stem_keep_their_own_failures(tmp_path):
    """What failed for one output is neither failed nor retried for the other."""
    assert (await caption(tmp_path / "run.jsonl", refusing("1"))).failed == 1
    assert (await caption(tmp_path / "run.csv", refusing("2", "3"))).failed == 2
    assert [row["record"]["id"] for row in rows(tmp_path / "run.failed.jsonl")] == ["q1"]
    assert len(rows(tmp_path / "run.csv.failed.jsonl")) == 2
    again = await caption(tmp_path / "run.jsonl", refusing(), retry_failed="all")
    assert (again.captioned, again.failed) == (1, 0)
    assert not (tmp_path / "run.failed.jsonl").exists()
    assert len(rows(tmp_path / "run.csv.failed.jsonl")) == 2


async def test_an_old_job_resumes_with_its_failures(tmp_path):
    """Its failed records stay failed and are retried from where they are."""
    output, old = tmp_path / "run.csv", tmp_path / "run.failed.jsonl"
    await caption(output, refusing("1"))
    (tmp_path / "run.csv.failed.jsonl").rename(old)  # as an earlier version named it
    transport = refusing()
    report = await caption(output, transport)
    assert (report.failed, report.pending, len(transport.calls)) == (1, 0, 0)
    assert report.failures == str(old)
    assert (await caption(output, transport, retry_failed="all")).captioned == 1
    assert not old.exists()


def test_format_of():
    """The name implies the format; an image folder is known by the name of its metadata."""
    names = ("a.jsonl", "a", "a.CSV", "a.db", "a-%05d.tar", "metadata.jsonl", "metadata.csv")
    assert [format_of(Path(name)) for name in names] == [
        *("jsonl", "jsonl", "csv", "sqlite", "webdataset", "imagefolder", "imagefolder")
    ]


def test_journal_and_output(tmp_path):
    """A journal is found by its output, and an existing output by its journal."""
    output, journal = tmp_path / "a.csv", tmp_path / "a.csv.jsonl"
    assert journal_path(output) == journal
    assert journal_path(output, "jsonl") == output
    assert output_of(journal) == journal
    with pytest.raises(SettingsError, match="there is no output"):
        find_journal(output, Files())
    (tmp_path / "a.csv.jsonl.shards").mkdir()
    with pytest.raises(SettingsError, match="unfinished run on Ray"):
        find_journal(output, Files())
    output.touch()
    journal.touch()
    assert output_of(journal) == output
    assert output_of(output) == output
    assert find_journal(output, Files()) == journal
    with pytest.raises(SettingsError, match="is a folder"):
        find_journal(Path("/"), Files())


def test_unused_path(tmp_path):
    """Files that are kept for a person are never overwritten."""
    (tmp_path / "a.broken-1").touch()
    assert unused_path(Files(), tmp_path / "a", ".broken").name == "a.broken-2"
