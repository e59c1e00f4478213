"""The offline endpoint as a child process, so that image work does not slow the engine's loop.

Run as ``python -m captioner.endpoints.offline.process`` it writes one line of JSON with its base
URL to standard output, then serves until standard input ends. The system closes that pipe however
the parent ends, so the child never outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from typing import IO, TYPE_CHECKING, Self

import orjson

from captioner.core.subprocesses import environment, python
from captioner.endpoints.offline.server import start

if TYPE_CHECKING:
    from types import TracebackType

_MODULE = "captioner.endpoints.offline.process"
_START_SECONDS = 60.0
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.02
_STDERR_TAIL = 2000  # bytes of the child's complaints quoted in an error


class OfflineEndpoint:
    """The offline endpoint in a child process, for as long as the context is open.

    The child is in a session of its own, so that Ctrl-C at the terminal stops the engine but not
    the endpoint that its last requests still need.

    Attributes:
        base_url: What an OpenAI client takes as its base URL; empty before the context is entered.
        pid: The child's process id; 0 before the context is entered.
    """

    def __init__(self, *, start_timeout: float = _START_SECONDS) -> None:
        """Prepare an endpoint; nothing runs before the context is entered.

        Args:
            start_timeout: Seconds the child has to say where it listens; 60 by default.
        """
        self.base_url = ""
        self.pid = 0
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        """Start the child and wait until it listens.

        Returns:
            The endpoint itself.

        Raises:
            RuntimeError: If the child did not start, or not in time.
        """
        with tempfile.TemporaryFile() as complaints:
            # A plain subprocess: asyncio's and uvloop's own differ in how they can be abandoned.
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - takes milliseconds; our own module
                python(_MODULE),
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=environment(),
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(self._start_timeout):
                    line = await _read_line(process)
                self.base_url = str(orjson.loads(line)["base_url"])
            except TimeoutError:
                await _stop(process)
                seconds = f"{self._start_timeout:g} seconds"
                raise RuntimeError(
                    _failure(f"did not start within {seconds}", complaints)
                ) from None
            except (ValueError, KeyError, TypeError) as error:
                await _stop(process)
                raise RuntimeError(_failure("ended before it listened", complaints)) from error
            except BaseException:
                await _stop(process)
                raise
        self._process = process
        self.pid = process.pid
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the child, by force if it does not end within five seconds."""
        if self._process is not None:
            process, self._process = self._process, None
            await _stop(process)


async def _read_line(process: subprocess.Popen[bytes]) -> bytes:
    """Read from the child's standard output up to the first line's end, or the output's."""
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    descriptor = process.stdout.fileno()
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()
    received = bytearray()

    def receive() -> None:
        chunk = os.read(descriptor, 4096)
        received.extend(chunk)
        if (not chunk or b"\n" in chunk) and not done.done():
            done.set_result(bytes(received))

    loop.add_reader(descriptor, receive)
    try:
        return await done
    finally:
        loop.remove_reader(descriptor)


async def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the child by closing its standard input, and by SIGKILL if that is not heeded."""
    loop = asyncio.get_running_loop()
    try:
        if process.stdin is not None:
            process.stdin.close()
        deadline = loop.time() + _STOP_SECONDS
        while process.poll() is None and loop.time() < deadline:  # noqa: ASYNC110 - no event to await
            await asyncio.sleep(_POLL_SECONDS)
    finally:
        # Also when cancelled here: nobody is left to end the child later.
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _failure(what: str, complaints: IO[bytes]) -> str:
    """Say what went wrong, with the end of what the child wrote to its standard error."""
    size = complaints.seek(0, os.SEEK_END)
    complaints.seek(max(0, size - _STDERR_TAIL))
    detail = complaints.read().decode("utf-8", "replace").strip()
    sentence = f"The offline endpoint {what}."
    return f"{sentence} It said: {detail}" if detail else sentence


def _exit_with_parent() -> None:
    """End this process when standard input does."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    # Not a tidy shutdown: nobody is left to hear the answers, and an image being read in a thread
    # would hold that up.
    os._exit(0)


async def _run() -> None:
    server = await start("127.0.0.1", 0)
    sys.stdout.buffer.write(orjson.dumps({"base_url": server.base_url}) + b"\n")
    sys.stdout.flush()
    # Nobody reads the pipe from here on; a library that prints must not fill it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    await asyncio.Event().wait()


def main() -> None:
    """Serve on a free port of this machine until standard input ends."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    asyncio.run(_run())


if __name__ == "__main__":
    main()
