"""A data set from a stranger brings links, and a neighbour meddles with the output of a run."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import rows
from fakes import EchoTransport, ListSource

from captioner import OutputBusyError, OutputDamagedError, SettingsError, run_batch
from captioner.core.types import Request, Response
from captioner.journal.companions import (
    answers_path,
    batch_folder,
    checkpoint_path,
    failures_path,
    gathered_path,
    journal_path,
    lock_path,
    made_path,
    page_path,
    reviews_path,
    shards_folder,
    shards_lock_path,
)

QUESTIONS = [f"q{n}" for n in range(30)]
PRECIOUS = b"export PATH=/usr/bin\n"

COMPANIONS: dict[str, Callable[[Path], Path]] = {
    "journal": journal_path,
    "lock": lambda output: lock_path(journal_path(output)),
    "checkpoint": lambda output: checkpoint_path(journal_path(output)),
    "failures": failures_path,
    "reviews": reviews_path,
    "answers": lambda output: answers_path(journal_path(output)),
    "made": lambda output: made_path(journal_path(output)),
    "gathered": lambda output: gathered_path(journal_path(output)),
    "shards lock": lambda output: shards_lock_path(journal_path(output)),
    "batch state": lambda output: batch_folder(journal_path(output)) / "state.json",
    "requests": lambda output: batch_folder(journal_path(output)) / "0001.requests.jsonl",
    "page": page_path,
    "manifest": lambda output: shards_folder(journal_path(output)) / "manifest.json",
}


class Meddling(EchoTransport):
    """Calls a function at one request, when captions have been written."""

    def __init__(self, at: int, meddle: Callable[[], object]) -> None:
        super().__init__()
        self.at = at
        self.meddle = meddle
        self.sent = 0

    async def send(self, request: Request) -> Response:
        self.sent += 1
        if self.sent == self.at:
            self.meddle()
        return await super().send(request)


async def caption(output: Path, transport: EchoTransport | None = None, **options):
    return await run_batch(
        "unused",
        output,
        source=ListSource(QUESTIONS),
        transport=transport or EchoTransport(),
        model="m",
        concurrency=3,
        **options,
    )


def in_folder(folder: Path) -> dict[str, bytes | None]:
    """What is in a folder: the content of regular files, None for anything else."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if stat.S_ISREG(path.lstat().st_mode)
        else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", ["run.jsonl", "run.csv"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
@pytest.mark.parametrize("which", COMPANIONS)
async def test_what_has_the_name_of_a_file_of_ours_is_refused(tmp_path, which, kind, name):
    """Exit 2, one sentence with its name, nothing sent, written or waited for."""
    victim = tmp_path / "bashrc"
    victim.write_bytes(PRECIOUS)
    data = tmp_path / "data"
    data.mkdir()
    path = COMPANIONS[which](data / name)
    path.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(victim if kind == "link" else tmp_path / "new")
    before = in_folder(tmp_path)
    transport = EchoTransport()
    with pytest.raises(SettingsError) as refused:
        await caption(data / name, transport)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert transport.calls.total() == 0
    assert in_folder(tmp_path) == before


@pytest.mark.parametrize("ending", [".batch", ".shards"])
async def test_a_folder_of_ours_is_no_link(tmp_path, ending):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"run.jsonl{ending}").symlink_to(elsewhere)
    with pytest.raises(SettingsError, match=rf"run\.jsonl\{ending} is not a folder"):
        await caption(tmp_path / "run.jsonl")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("path_of", [failures_path, reviews_path, lock_path])
async def test_a_hard_link_to_a_file_of_others(tmp_path, path_of):
    """Appending to it would change the other file as well."""
    victim = tmp_path / "bashrc"
    victim.write_bytes(PRECIOUS)
    path = path_of(tmp_path / "run.jsonl")
    path.hardlink_to(victim)
    with pytest.raises(SettingsError, match=f"{path.name} is a hard link"):
        await caption(tmp_path / "run.jsonl")
    assert victim.read_bytes() == PRECIOUS


async def test_a_file_of_others_in_the_place_of_the_lock(tmp_path):
    lock = tmp_path / "run.jsonl.lock"
    lock.write_bytes(PRECIOUS)
    with pytest.raises(SettingsError, match=r"run\.jsonl\.lock is in the place of a lock"):
        await caption(tmp_path / "run.jsonl")
    assert lock.read_bytes() == PRECIOUS


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe", "folder", "file"])
async def test_what_appears_during_the_run_as_its_failures_file(tmp_path, kind):
    """That file is created when the first record fails. Every caption that was paid is kept."""
    victim, output = tmp_path / "bashrc", tmp_path / "run.jsonl"
    victim.write_bytes(PRECIOUS)
    path = failures_path(output)

    def meddle() -> None:
        if kind == "link":
            path.symlink_to(victim)
        elif kind == "dangling link":
            path.symlink_to(tmp_path / "new")
        elif kind == "hard link":
            path.hardlink_to(victim)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.write_bytes(PRECIOUS)

    transport = Meddling(12, meddle)
    transport.refuse = lambda question: question == "q20"
    with pytest.raises(OutputDamagedError, match=r"run\.failed\.jsonl was created by another"):
        await caption(output, transport, max_attempts=1)
    assert victim.read_bytes() == PRECIOUS
    assert not (tmp_path / "new").exists()
    paid = [question for question in transport.calls if question != "q20"]
    assert sorted(row["id"] for row in rows(output)) == sorted(paid)


async def test_names_of_temporary_files_cannot_be_guessed(tmp_path):
    """Links with names that earlier versions used, and with plain ones, are left alone."""
    victim, output = tmp_path / "bashrc", tmp_path / "run.jsonl"
    victim.write_bytes(PRECIOUS)
    names = ("run.jsonl.ckpt.tmp", "run.jsonl.partial", "run.failed.jsonl.partial", "run.jsonl.tmp")
    for name in names:
        (tmp_path / name).symlink_to(victim)
    assert (await caption(output)).captioned == len(QUESTIONS)
    assert victim.read_bytes() == PRECIOUS
    assert all((tmp_path / name).is_symlink() for name in names)


def delete(output: Path) -> None:
    output.unlink()


def move(output: Path) -> None:
    output.rename(output.with_name("elsewhere.jsonl"))


def replace(output: Path) -> None:
    other = output.with_name("other")
    other.write_text("other\n")
    other.rename(output)


def shorten(output: Path) -> None:
    os.truncate(output, 100)


def append(output: Path) -> None:
    with output.open("ab") as file:
        file.write(b'{"alien":1}\n')


def edit(output: Path) -> None:
    with output.open("r+b") as file:
        file.seek(8)
        file.write(b"XX")


WORDS = {
    delete: "deleted or moved",
    move: "deleted or moved",
    replace: "replaced",
    shorten: "shortened",
    append: "appended to",
    edit: "changed",
}


@pytest.mark.parametrize("order", ["input", "completion"])
@pytest.mark.parametrize("meddle", WORDS)
async def test_an_output_that_somebody_meddles_with(tmp_path, meddle, order):
    """The run stops with exit 5 and says what happened; every paid caption is somewhere."""
    output = tmp_path / "run.jsonl"
    before: list[bytes] = []

    def spy() -> None:
        before.append(output.read_bytes())
        meddle(output)

    transport = Meddling(15, spy)
    with pytest.raises(OutputDamagedError) as stopped:
        await caption(output, transport, order=order)
    assert stopped.value.exit_code == 5
    assert f"run.jsonl was {WORDS[meddle]}" in str(stopped.value)
    assert before[0].count(b"\n") >= 5  # it happened in the middle
    if meddle in (delete, move, append):
        places = (output, tmp_path / "elsewhere.jsonl", tmp_path / "run.jsonl.broken-1")
        found = {row.get("id") for path in places if path.exists() for row in rows(path)}
        assert len(found - {None}) == transport.calls.total()


@pytest.mark.parametrize("meddle", [delete, replace])
async def test_the_captions_of_a_deleted_output_are_put_back(tmp_path, meddle):
    """As the message says: rename the file with the captions and run again."""
    output = tmp_path / "run.jsonl"
    first = Meddling(15, lambda: meddle(output))
    with pytest.raises(OutputDamagedError, match=r"all its captions are in run\.jsonl\.broken-1"):
        await caption(output, first)
    (tmp_path / "run.jsonl.broken-1").rename(output)
    second = EchoTransport()
    assert (await caption(output, second)).complete
    assert [row["id"] for row in rows(output)] == QUESTIONS
    assert first.calls.total() + second.calls.total() == len(QUESTIONS)


async def test_an_output_whose_folder_is_gone(tmp_path):
    """Nothing can be saved beside it, and the run says that."""
    output = tmp_path / "data" / "run.jsonl"
    output.parent.mkdir()
    with pytest.raises(OutputDamagedError, match=r"deleted or moved .* cannot be saved beside it"):
        await caption(output, Meddling(15, lambda: shutil.rmtree(output.parent)))


async def test_a_folder_that_is_swapped_for_a_link(tmp_path):
    """The run stops; captions are in the folder that was moved away, and no file of the other
    folder is written to."""
    output, moved, victim = (tmp_path / name for name in ("data", "moved", "victim"))
    output, moved = output / "run.jsonl", moved / "run.jsonl"
    output.parent.mkdir()
    victim.mkdir()
    names = ("run.jsonl", "run.failed.jsonl", "run.jsonl.lock", "precious")
    for name in names:
        (victim / name).write_bytes(PRECIOUS)

    def swap() -> None:
        output.parent.rename(moved.parent)
        output.parent.symlink_to(victim)

    transport = Meddling(15, swap)
    with pytest.raises(OutputDamagedError, match=r"run\.jsonl was replaced"):
        await caption(output, transport)
    assert {(victim / name).read_bytes() for name in names} == {PRECIOUS}
    assert len(rows(moved)) == transport.calls.total()


async def test_failures_that_are_deleted(tmp_path):
    output = tmp_path / "run.jsonl"
    transport = Meddling(20, lambda: failures_path(output).unlink())
    transport.refuse = lambda question: question == "q3"
    with pytest.raises(OutputDamagedError, match=r"run\.failed\.jsonl was deleted or moved"):
        await caption(output, transport, max_attempts=1)


@pytest.mark.parametrize("name", ["run.jsonl.ckpt", "run.jsonl.lock"])
async def test_a_checkpoint_or_a_lock_that_is_deleted_loses_nothing(tmp_path, name):
    output = tmp_path / "run.jsonl"
    meddle = Meddling(15, lambda: (tmp_path / name).unlink(missing_ok=True))
    assert (await caption(output, meddle)).complete
    assert [row["id"] for row in rows(output)] == QUESTIONS


@pytest.mark.parametrize("how", ["hard link", "no lock"])
async def test_a_second_writer_is_kept_out_by_the_file_itself(tmp_path, how):
    """Through another name of the file, and when somebody removed the lock beside it."""
    output, other = tmp_path / "run.jsonl", tmp_path / "run.jsonl"
    busy: list[str] = []

    class Second(EchoTransport):
        async def send(self, request: Request) -> Response:
            nonlocal other
            if self.calls.total() == 15 and not busy:
                busy.append("")
                if how == "hard link":
                    other = tmp_path / "other.jsonl"
                    other.hardlink_to(output)
                else:
                    (tmp_path / "run.jsonl.lock").unlink()
                with pytest.raises(OutputBusyError) as refused:
                    await caption(other)
                busy[0] = str(refused.value)
            return await super().send(request)

    assert (await caption(output, Second())).complete
    assert f"{other.name} is being written by another process" in busy[0]
    assert [row["id"] for row in rows(output)] == QUESTIONS
    assert not (tmp_path / "run.jsonl.lock").exists()


async def test_who_can_read_the_files(tmp_path):
    """Records and settings may be private: new companions are for their owner only, and a file
    that exists keeps its mode. Captions get the mode that the user gives new files."""
    output = tmp_path / "run.jsonl"
    transport = EchoTransport()
    transport.refuse = lambda question: question == "q3"
    before = os.umask(0o022)
    try:
        await caption(output, transport, max_attempts=1)
    finally:
        os.umask(before)

    def modes() -> dict[str, int]:
        return {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}

    assert modes() == {
        "run.jsonl": 0o644,
        "run.failed.jsonl": 0o600,
        "run.jsonl.ckpt": 0o600,
    }
    for path in tmp_path.iterdir():
        path.chmod(0o640)
    await caption(output, retry_failed="all")
    assert modes() == {"run.jsonl": 0o640, "run.jsonl.ckpt": 0o640}
