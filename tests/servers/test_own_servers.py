"""``--serve`` with real servers and a tiny model with random weights."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import command, jpeg, rows
from real_servers import GGUF, HOME, MODEL
from waiting import wait_until

RECORDS = 30


@pytest.fixture(params=["transformers", "llama-server"])
def arguments(request, tmp_path: Path, wanted: Callable[[str], None], monkeypatch) -> list[str]:
    """The command's words for a folder of images; the server is the only program in PATH."""
    name = request.param
    wanted(name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / name).symlink_to(HOME / name / "bin" / name)
    # A name that tells this server from those of other tests.
    (tmp_path / "tiny").symlink_to(MODEL if name == "transformers" else GGUF)
    serve = {
        "transformers": (f"transformers:{tmp_path}/tiny", "--serve-args=--device cpu"),
        "llama-server": (f"llamacpp:{tmp_path}/tiny/tiny.gguf", "--serve-args=--threads 2"),
    }
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    images = tmp_path / "photos"
    images.mkdir()
    for number in range(RECORDS):
        (images / f"{number:03}.jpg").write_bytes(jpeg(number, (64, 64)))
    return command(
        images,
        *("--serve", *serve[name], "--max-tokens", "12"),
        # Random weights write gibberish.
        *("--accept", "truncated,garbage,looping,refused,too_short,no_image_seen"),
        *("--thinking", "off", "--concurrency", "4", "--no-dedup"),
    )


def servers(folder: Path) -> list[int]:
    """Return the processes of a server that serves the model in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        served = any(word.startswith(os.fsencode(folder / "tiny")) for word in words)
        if served and b"guard.py" not in b"".join(words) and b"captioner" not in words:
            found.append(int(path.parent.name))
    return found


def captions(folder: Path) -> int:
    output = folder / "photos.captions.jsonl"
    return output.read_text().count("\n") if output.exists() else 0


@pytest.mark.timeout(900)  # the model is loaded three times
def test_server_and_captioner_killed_in_mid_run_lose_nothing(arguments, tmp_path) -> None:
    """The server is started again; captioner leaves no process, and continues."""
    first = subprocess.Popen(arguments)
    wait_until(lambda: captions(tmp_path) >= 3, first)
    (before,) = servers(tmp_path)
    os.kill(before, signal.SIGKILL)
    done = captions(tmp_path)
    wait_until(lambda: captions(tmp_path) > done + 4, first)
    assert servers(tmp_path) != [before]
    first.kill()
    first.wait()
    wait_until(lambda: not servers(tmp_path))
    second = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    files = [row["image"] for row in rows(tmp_path / "photos.captions.jsonl")]
    assert len(files) == len(set(files)) == RECORDS
    assert not servers(tmp_path)
