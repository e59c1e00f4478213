"""Cases 2, 8, 11 and 12: every file call fails once, disks fill up, syncs fail or take long."""

from __future__ import annotations

import asyncio
import errno
import resource
import subprocess
import threading
from pathlib import Path

import pytest
from conftest import command, rows
from fakes import EchoTransport, FaultyFiles, ListSource

from captioner import DiskError, RunReport, run_batch
from captioner.core.progress import Progress
from captioner.journal import writer as jsonl
from captioner.journal.disk import Files
from captioner.outputs.check import check_output

QUESTIONS = [f"q{n}" for n in range(30)]


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit often, so that small runs meet every kind of call many times."""
    monkeypatch.setattr(jsonl, "COMMIT_RECORDS", 5)
    monkeypatch.setattr(jsonl, "RETRY_S", 0.01)


async def run(
    folder: Path, files: Files | None = None, transport: EchoTransport | None = None, **options
) -> RunReport:
    transport = transport or EchoTransport()
    transport.refuse = lambda question: question.endswith("7")
    return await run_batch(
        "unused",
        folder / "out.jsonl",
        source=ListSource(QUESTIONS),
        transport=transport,
        model="m",
        files=files,
        concurrency=3,
        max_attempts=1,
        **options,
    )


def assert_clean_end(folder: Path) -> None:
    """The output is the good records in order, the failures the others, nothing else is there."""
    got = [(row["id"], row["caption"]) for row in rows(folder / "out.jsonl")]
    assert got == [(q, f"about {q}") for q in QUESTIONS if not q.endswith("7")]
    failed = sorted(row["record"]["id"] for row in rows(folder / "out.failed.jsonl"))
    assert failed == sorted(q for q in QUESTIONS if q.endswith("7"))
    names = {path.name for path in folder.iterdir()}
    broken = {name for name in names if ".broken-" in name}
    ours = {"out.jsonl", "out.failed.jsonl", "out.jsonl.ckpt"}
    assert names - broken == ours


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EFBIG])
@pytest.mark.parametrize("kind", ["write", "short", "sync", "replace", "sync_folder", "open"])
async def test_whichever_file_call_fails_the_run_stops_and_the_next_one_finishes(
    tmp_path, kind, code
) -> None:
    """For the n-th call of each kind, n = 1, 2, 3 …, until a run meets no fault: exit 9, nothing
    lost, nothing doubled, and nothing vouched for that is not there."""
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        files = FaultyFiles(kind, number, code, lasting=code == errno.EROFS)
        try:
            await run(folder, files, disk_wait=0)
        except DiskError as error:
            assert files.happened
            assert error.exit_code == 9
        else:
            assert not files.happened, "a fault went by unnoticed"
            break
        if (folder / "out.jsonl").exists():
            report = await check_output(folder / "out.jsonl")
            assert report.violations == []
        await run(folder)
        assert_clean_end(folder)
    assert number > 3, "hardly any call was made to fail"


async def test_a_full_disk_is_waited_for_and_nothing_is_sent_twice(tmp_path, caplog) -> None:
    """ENOSPC holds the run up until there is space; captions already paid for are kept."""
    transport = EchoTransport()
    files = FaultyFiles("short", 4, errno.ENOSPC)
    report = await run(tmp_path, files, transport, disk_wait=30)
    assert files.happened
    assert report.complete
    assert any("disk is full" in message for message in caplog.messages)
    assert set(transport.calls.values()) == {1}
    assert_clean_end(tmp_path)


async def test_after_a_failed_sync_nothing_is_vouched_for(tmp_path) -> None:
    """A sync that failed is not tried again, and no checkpoint follows it."""

    class Recording(FaultyFiles):
        after: list[str]

        def sync(self, fd: int) -> None:
            if self.happened:
                self.after.append("sync")
            super().sync(fd)

        def replace(self, source: Path, target: Path) -> None:
            if self.happened:
                self.after.append(f"replace {target.name}")
            super().replace(source, target)

    files = Recording("sync", 6, errno.EIO)
    files.after = []
    with pytest.raises(DiskError, match="refused to sync"):
        await run(tmp_path, files)
    assert files.happened
    assert files.after == []
    await run(tmp_path)
    assert_clean_end(tmp_path)


async def test_a_slow_sync_warns_and_holds_nothing_up(tmp_path, monkeypatch, caplog) -> None:
    """While one sync takes for ever, requests are sent and captions written."""
    monkeypatch.setattr(jsonl, "SLOW_SYNC_S", 0.01)
    release = threading.Event()
    transport = EchoTransport()
    progress = Progress()

    class Slow(Files):
        syncs = 0

        def sync(self, fd: int) -> None:
            self.syncs += 1
            if self.syncs == 3:  # the first two open the output and its checkpoint
                assert release.wait(30)
            super().sync(fd)

    task = asyncio.create_task(run(tmp_path, Slow(), transport, progress=progress))
    while progress.settled < len(QUESTIONS) or "the disk is slow" not in caplog.text:
        assert not task.done()
        await asyncio.sleep(0.001)
    assert sum(transport.calls.values()) == len(QUESTIONS)
    release.set()
    await task
    assert_clean_end(tmp_path)


def test_a_file_size_limit_ends_the_run_and_the_next_one_finishes(make_input, endpoint) -> None:
    """EFBIG: exit 9, the output ends on a line, and a run without the limit completes it."""
    source = make_input(400)
    output = source.with_name("input.captions.jsonl")
    arguments = command(source, "--base-url", endpoint.base_url, "--model", "m")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    first = subprocess.run(arguments, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert first.returncode == 9, first.stderr
    assert "File too large" in first.stderr
    assert output.read_bytes().endswith(b"\n")
    assert 0 < len(rows(output)) < 400
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == 0
    assert [row["id"] for row in rows(output)] == list(range(400))


def test_a_small_disk_ends_the_run_and_a_larger_one_finishes_it(
    make_input, endpoint, tmp_path
) -> None:
    """ENOSPC on a real file system: exit 9 after --disk-wait, and nothing lost when it grows."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    source = make_input(1_500)
    output = disk / "out.jsonl"
    base = ["--base-url", endpoint.base_url, "--model", "m", "--disk-wait", "0"]
    arguments = command(source, "-o", output, *base)
    if mounted.returncode:  # only root may mount; the simulated full disk above runs everywhere
        return
    try:
        first = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert first.returncode == 9, first.stderr
        assert "No space left" in first.stderr
        assert output.read_bytes().endswith(b"\n")
        assert 0 < len(rows(output)) < 1_500
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        assert subprocess.run(arguments, capture_output=True, check=False).returncode == 0
        assert [row["id"] for row in rows(output)] == list(range(1_500))
    finally:
        subprocess.run(["umount", disk], check=True)


async def test_a_torn_write_that_cannot_be_cut_off_is_cut_by_the_next_run(tmp_path) -> None:
    """When even shortening the file fails, the torn line stays above what is vouched for."""

    class Stuck(FaultyFiles):
        stuck = 0

        def truncate(self, fd: int, size: int) -> None:
            self.stuck += 1
            raise OSError(errno.EIO, "Input/output error")

        def write(self, fd: int, data: memoryview, offset: int) -> int:
            if self.stuck:
                raise OSError(errno.EIO, "Input/output error")
            return super().write(fd, data, offset)

    met = 0
    for number in range(3, 15):
        folder = tmp_path / str(number)
        folder.mkdir()
        files = Stuck("short", number, errno.ENOSPC)
        with pytest.raises(DiskError):
            await run(folder, files, disk_wait=0)
        assert files.stuck
        met += not (folder / "out.jsonl").read_bytes().endswith(b"\n")
        assert (await check_output(folder / "out.jsonl")).violations == []
        await run(folder)
        assert_clean_end(folder)
    assert met, "no torn line was ever left behind"
