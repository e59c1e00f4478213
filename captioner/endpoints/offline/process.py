"""The describer in a child process, so that image work does not slow the engine's event loop.

Run as a module, it prints its base URL and serves until its standard input ends. The system closes
that pipe when the parent ends, however it ends, so the child never outlives the parent.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from captioner.core.errors import SettingsError
from captioner.core.subprocesses import environment, python
from captioner.endpoints.offline.server import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def offline_endpoint(*, start_timeout: float = 60.0) -> AsyncIterator[str]:
    """Run the describer in a child process while the context is open, and yield its base URL.

    Raises:
        SettingsError: The child did not start within `start_timeout` seconds.
    """
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(  # noqa: ASYNC220, S603 - takes milliseconds; our own module
            python("captioner.endpoints.offline.process"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(),
            start_new_session=True,  # Ctrl-C at the terminal must not end it before the engine
        ) as process,
    ):
        reason = "it ended before it listened"
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            try:
                # A thread, because asyncio and uvloop start processes in different ways.
                async with asyncio.timeout(start_timeout):
                    line = (await asyncio.to_thread(process.stdout.readline)).decode().strip()
            except TimeoutError:
                line, reason = "", f"it did not listen within {start_timeout:g} seconds"
            if not line.startswith("http://"):
                process.kill()
                stderr.seek(0)
                details = stderr.read().decode("utf-8", "replace").strip()[-2000:]
                raise SettingsError(f"the offline endpoint did not start: {reason}. {details}")
            yield line
        finally:
            process.kill()


async def _serve_parent() -> None:
    async with running() as base_url:
        print(base_url, flush=True)  # noqa: T201 - the parent reads it
        # From now on the pipe is not read. A library that prints must not fill it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        await asyncio.to_thread(sys.stdin.buffer.read)
        os._exit(0)  # at once: an image in work would delay an orderly exit


if __name__ == "__main__":
    asyncio.run(_serve_parent())
