"""A signal in the middle of long work that awaits nothing: it is obeyed, and no file is torn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import command, rows
from PIL import Image
from waiting import LIMIT_S, wait_until

from captioner.outputs.viewer.lineindex import LineIndex

AT_WORK = """
import importlib, os, sys, threading
from captioner.core.cancellation import CancelToken
import captioner.__main__ as command

place = sys.argv.pop(1)
requested = threading.Event()
request = CancelToken.request

def note(self):
    request(self)
    requested.set()

CancelToken.request = note
module, _, name = place.rpartition(".")
try:
    owner = importlib.import_module(module)
except ModuleNotFoundError:
    module, _, kind = module.rpartition(".")
    owner = getattr(importlib.import_module(module), kind)
work = getattr(owner, name)

def interrupted(*args, **kwargs):
    print("at work", flush=True)
    for _ in range(1_200):  # a signal that comes just before a wait is seen after it
        if requested.wait(0.1):
            break
    try:
        return work(*args, **kwargs)
    except BaseException as error:
        os.write(2, f"ended by {type(error).__name__}\\n".encode())
        raise

setattr(owner, name, interrupted)
command.main()
"""
"""Says where some work begins, which goes on once a signal has arrived."""


def interrupted(place: str, number: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command; a signal arrives when a function is called."""
    words = [sys.executable, "-c", AT_WORK, place, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        begun = process.stdout.readline() == "at work\n"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert begun, stderr
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


def torn(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".partial", ".lock")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("place", "more"),
    [
        ("captioner.journal.journal.scan_output", []),
        ("captioner.executors.redo.find_rows", ["--redo=true"]),
        ("captioner.executors.redo.set_rows_aside", ["--redo=true"]),
        ("captioner.journal.finalize._replace", ["--order", "input"]),
        ("captioner.journal.journal.Journal.verify", []),
    ],
)
def test_a_signal_while_the_output_is_read(
    make_input, endpoint, run_command, tmp_path, place, more, number
) -> None:
    """At the start, for --redo, at the end, for the order: the next run finishes the work."""
    source = make_input(30)
    backwards = tmp_path / "backwards.jsonl"
    lines = source.read_text().splitlines()
    backwards.write_text("".join(line + "\n" for line in lines[:0:-1]))
    output = tmp_path / "out.jsonl"
    options = ["--base-url", endpoint.base_url, "--model", "m", "-o", output, "--concurrency", 1]
    assert run_command(backwards, *options).returncode == 0
    done = interrupted(place, number, source, *options, *more)
    assert done.returncode == 128 + number, done.stderr
    assert "ended by StoppedError" in done.stderr
    assert "not finished" in done.stderr
    assert not torn(tmp_path)
    assert {row["id"] for row in rows(output)} >= set(range(1, 30))
    last = run_command(source, *options, *more)
    assert last.returncode == 0, last.stderr
    ids = [row["id"] for row in rows(output)]
    assert sorted(ids) == list(range(30))
    if "--order" in more:
        assert ids == list(range(30))
    if "--redo=true" not in more:
        assert max(endpoint.answered.values()) == 1


@pytest.mark.parametrize("ending", ["csv", "json", "parquet", "sqlite"])
def test_a_signal_during_an_export(make_input, endpoint, run_command, tmp_path, ending) -> None:
    """At the end of a run, and of the command: the file is there as a whole, or not at all."""
    source, output = make_input(5), tmp_path / f"out.{ending}"
    options = ["--base-url", endpoint.base_url, "--model", "m", "-o", output]
    done = interrupted(
        "captioner.outputs.export.registry.OutputReader.lines", signal.SIGTERM, source, *options
    )
    assert (done.returncode, endpoint.given) == (143, 5), done.stderr
    assert "ended by" not in done.stderr  # it is a generator
    assert not output.exists()
    assert not torn(tmp_path)
    assert run_command(source, *options).returncode == 0
    assert endpoint.given == 5
    before = output.read_bytes()
    again = tmp_path / f"again.{ending}"
    again.write_text("as it was")
    done = interrupted(
        "captioner.outputs.export.registry.OutputReader.lines", signal.SIGTERM,
        "export", output, "--to", again, "--overwrite",
    )  # fmt: skip
    assert done.returncode == 143, done.stderr
    assert (again.read_text(), output.read_bytes()) == ("as it was", before)
    assert not torn(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("captioner.engine.estimate._Survey.take", ["estimate", "in.jsonl", "--model=m"]),
        ("captioner.outputs.check.scan_journal", ["check", "out.jsonl"]),
        ("captioner.outputs.reader.scan_journal", ["report", "out.jsonl"]),
    ],
)
def test_a_signal_while_a_command_reads(tmp_path, monkeypatch, place, words, number) -> None:
    monkeypatch.chdir(tmp_path)
    for name, more in (("in.jsonl", {}), ("out.jsonl", {"caption": "a dog"})):
        line = json.dumps({"image": "x.jpg", **more}) + "\n"
        (tmp_path / name).write_text(line * 100)
    done = interrupted(place, number, *words)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


def test_a_signal_while_the_first_records_are_awaited(endpoint) -> None:
    """An input that has a record now and then has none for long: nothing has to come first."""
    words = ["-", "--base-url", endpoint.base_url, "--model", "m", "-o", "x", "--where", "n == 5"]
    with subprocess.Popen(
        command(*words), stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        for _ in range(2_000):
            process.stdin.write(b'{"n": 1}\n' * 1_000)  # it returns when most of it was read
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT_S)
    assert process.returncode == 130


def test_indexing_ends_when_the_page_is_closed(tmp_path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"caption":"a"}\n' * 100)
    index = LineIndex(path)
    index.refresh()
    assert len(index) == 100
    with path.open("a") as file:
        file.write('{"caption":"b"}\n')
    index.stop()
    index.refresh()
    assert len(index) == 100
    assert not list(index.blocks(0, 1))
    index.close()


@pytest.mark.skipif(sys.platform != "linux", reason="children are read from /proc")
def test_a_signal_while_an_image_is_decoded(tmp_path, endpoint, run_command) -> None:
    """A decoder that hangs is not waited for, and its image stays pending."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.bmp")
    source = tmp_path / "in.jsonl"
    source.write_text('{"image": "a.bmp"}\n')
    known = [source, "--base-url", endpoint.base_url, "--model=m"]
    words = command(*known, "--image-timeout=3600")

    def decoders() -> list[int]:
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
        return [one for one in children if b"decoder" in Path(f"/proc/{one}/cmdline").read_bytes()]

    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: bool(decoders()), process)
        os.kill(decoders()[0], signal.SIGSTOP)
        process.terminate()
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert not endpoint.calls
    assert run_command(*known).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="what was read is told by /proc")
def test_a_signal_while_a_line_without_an_end_is_read(tmp_path, endpoint) -> None:
    """A cell of 256 GB, all a hole: it is not read to its end."""
    source = tmp_path / "in.csv"
    source.write_text('image,prompt\n"')
    os.truncate(source, 1 << 38)
    words = command(source, "--base-url", endpoint.base_url, "--model=m")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        told = Path(f"/proc/{process.pid}/io")
        wait_until(lambda: int(told.read_text().split()[1]) > 200 << 20, process)
        process.terminate()
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert "Traceback" not in stderr
