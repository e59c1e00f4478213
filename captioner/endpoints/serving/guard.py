"""A process that ends a server when captioner ends, however captioner does.

Run as a script with the server's command. Its standard input is a pipe that captioner holds; the
system closes it when captioner ends, also by kill -9. The guard then ends the server's process
group, and the processes that left the group. If the guard itself is killed, Linux kills the server.

It uses the standard library alone and imports nothing of captioner, so that it starts in a moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

GRACE_S = 10.0
"""Seconds that a server has to end by itself after SIGTERM."""

CANNOT_START = 127
"""Exit status if there is no such command, as that of a shell."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """Run the command until it ends or captioner does; return its exit status as a shell does."""
    prctl = _prctl()
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        server = subprocess.Popen(  # noqa: S603 - the command that captioner made
            sys.argv[1:],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 - no thread yet
        )
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]}: {error.strerror}\n")
        return CANNOT_START
    threading.Thread(target=_end_with_captioner, args=(server.pid,), daemon=True).start()
    status = server.wait()
    _kill_group(server.pid)
    _kill_children()
    return status if status >= 0 else 128 - status


def _prctl() -> Callable[[int, int], object]:
    """Return the system call of Linux; a function without effect elsewhere."""
    if sys.platform != "linux":
        return lambda *_: None
    call = ctypes.CDLL(None).prctl
    return lambda option, value: call(option, value, 0, 0, 0)


def _end_with_captioner(server: int) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    with contextlib.suppress(OSError):
        os.killpg(server, signal.SIGTERM)
    time.sleep(GRACE_S)  # main ends the process when the server has ended
    _kill_group(server)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(leader, signal.SIGKILL)


def _kill_children() -> None:
    """Kill processes that left the group of the server; Linux made them children of this one."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(OSError):
        while found := children.read_text().split():
            for pid in map(int, found):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.exit(main())
