"""The guard leaves no process, whatever the server has started and however captioner ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from starts import is_running
from waiting import wait_until

from captioner.endpoints.serving import guard

SERVER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for leaves in (False, True):
    if os.fork() == 0:
        if leaves:
            os.setsid()
        break
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(600)
"""


@pytest.fixture
def guarded(tmp_path: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a server that ignores SIGTERM, with a child in its group and one outside of it."""
    pids = tmp_path / "pids"
    script = Path(guard.__file__).read_text().replace("GRACE_S = 10.0", "GRACE_S = 0.1")
    (tmp_path / "guard.py").write_text(script)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "guard.py", sys.executable, "-c", SERVER, pids],
        stdin=subprocess.PIPE,
    )
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 3, process)
    return process, pids


def left(pids: Path) -> list[int]:
    return [pid for pid in map(int, pids.read_text().split()) if is_running(pid)]


@pytest.mark.skipif(sys.platform != "linux", reason="a process that left the group stays elsewhere")
def test_the_pipe_closes(guarded) -> None:
    process, pids = guarded
    process.stdin.close()
    assert process.wait() == 128 + signal.SIGKILL
    assert not left(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_guard_is_killed(guarded) -> None:
    """The system then kills the server; what the server started is its own affair."""
    process, pids = guarded
    started = left(pids)
    process.kill()
    process.communicate()
    try:
        wait_until(lambda: len(left(pids)) == 2)
    finally:
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, guard.__file__, tmp_path / "none"], capture_output=True, check=False
    )
    assert found.returncode == guard.CANNOT_START
    assert b"No such file" in found.stderr
