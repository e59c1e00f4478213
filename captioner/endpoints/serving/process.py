"""One start of a server's command, under the guard, with the last lines of its log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING

from captioner.core.humanize import printable
from captioner.endpoints.serving import guard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LINES = 200
"""Lines of the log that are kept."""

LONGEST = 4096
"""Characters of a line that are kept."""

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class ServerProcess:
    """A running command of a server.

    It ends when it is stopped, and when this process ends, however that happens.

    Args:
        command: The command.
        environment: Its environment.
        heard: Called with each line of its log, from a thread.

    Attributes:
        lines: The last lines of its log.
        ended: Set when it has ended.
        status: Its exit status as a shell gives it, once it has ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        heard: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.lines: deque[str] = deque(maxlen=LINES)
        self.ended = asyncio.Event()
        self.status = 0
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._guard = subprocess.Popen(  # noqa: S603 - our own script
            # Isolated from the user's Python: the guard needs the standard library only.
            [sys.executable, "-I", "-S", guard.__file__, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C at the terminal must not end it before the engine
        )
        # Threads, because asyncio and uvloop start processes in different ways.
        reading = threading.Thread(target=self._read, daemon=True)
        reading.start()
        threading.Thread(target=self._wait, args=(reading,), daemon=True).start()

    @property
    def last_line(self) -> str:
        """The last line of the log, for a person; empty if there is none."""
        return self.lines[-1][:160] if self.lines else ""

    @property
    def how_it_ended(self) -> str:
        """How it ended, in words."""
        if self.status > 128:
            return f"was killed by signal {self.status - 128}"
        return f"ended with status {self.status}"

    @property
    def was_killed(self) -> bool:
        """Whether it ended by SIGKILL, as the system ends a process when memory is used up."""
        return self.status == 128 + signal.SIGKILL

    async def stop(self) -> None:
        """End it, by force if it does not end by itself in time."""
        self._close_pipe()
        try:
            async with asyncio.timeout(guard.GRACE_S + 5):
                await self.ended.wait()
        except TimeoutError:
            self._guard.kill()  # the system kills the server with it
            await self.ended.wait()

    def _close_pipe(self) -> None:
        assert self._guard.stdin is not None  # noqa: S101 - it is a pipe
        self._guard.stdin.close()

    def _read(self) -> None:
        assert self._guard.stdout is not None  # noqa: S101 - it is a pipe
        rest = ""
        with self._guard.stdout as log:
            while chunk := os.read(log.fileno(), 65_536):
                *lines, rest = re.split(r"[\r\n]+", rest + chunk.decode("utf-8", "replace"))
                for line in lines:
                    self._keep(line)
                rest = rest[:LONGEST]
        self._keep(rest)

    def _keep(self, line: str) -> None:
        line = printable(_COLOURS.sub("", line).strip()[:LONGEST])
        if line:
            self.lines.append(line)
            self._heard(line)

    def _wait(self, reading: threading.Thread) -> None:
        self.status = self._guard.wait()
        self._close_pipe()
        reading.join(1.0)
        with contextlib.suppress(RuntimeError):  # the loop was closed first
            self._loop.call_soon_threadsafe(self.ended.set)
