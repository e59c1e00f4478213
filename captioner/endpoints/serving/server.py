"""One local server: started, waited for, watched, started again when it dies, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shlex
from typing import TYPE_CHECKING, Any

import aiohttp

from captioner.core.errors import SettingsError
from captioner.core.humanize import duration, sentence
from captioner.core.retry import waits
from captioner.endpoints.server_load import values_of
from captioner.endpoints.serving.launchers import lacks_memory, lacks_network
from captioner.endpoints.serving.process import ServerProcess
from captioner.endpoints.serving.pulse import Pulse
from captioner.endpoints.serving.running import RunningServer, ServerState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captioner.endpoints.serving.launchers import Launcher, Start

logger = logging.getLogger(__name__)

READY_POLL_S = 0.3
"""Seconds between two questions whether a server that starts is ready."""

WATCH_S = 10.0
"""Seconds between two looks at a server that works."""

LONGEST_PAGE = 4 << 20
"""Bytes of a server's health or metrics."""

ANSWER_S = 10.0
"""Seconds that a server has to say that it is healthy."""

SILENT_S = 1_800.0
"""Seconds without a line in its log after which a server that starts hangs."""

MOST_FAILURES = 5
"""Starts in a row that fail, after which a server that worked is given up."""

LONGEST_PAUSE_S = 30.0
"""Longest pause before a server is started again."""

SHOWN_LINES = 12
"""Lines of the log in the message that a server did not start."""


class Server:
    """One server.

    Args:
        launcher: Its kind.
        serve: The value of ``--serve``.
        start: What its command is made of.
        more: Arguments of the user.
        gpus: The GPUs that it may use; empty for all.
        shared: Other runs may use it.
        tell: Called with what it does while it starts; empty when it works.
        answers: Returns how many responses came so far: a sign that it works.
        heard: Called with each line of its log, from a thread.
    """

    def __init__(
        self,
        launcher: Launcher,
        serve: str,
        start: Start,
        more: Sequence[str] = (),
        gpus: Sequence[str] = (),
        *,
        shared: bool = False,
        tell: Callable[[str], None] = lambda _: None,
        answers: Callable[[], int] = lambda: 0,
        heard: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._launcher = launcher
        self._start = start
        self._more = more
        self._gpus = gpus
        self._tell = tell
        self._answers = answers
        self._heard = heard
        host = "127.0.0.1" if start.host in ("0.0.0.0", "::") else start.host  # noqa: S104
        self._root = f"http://{f'[{host}]' if ':' in host else host}:{start.port}"
        self._running = RunningServer(
            start.port, ServerState(serve, start.name, f"{self._root}/v1", shared=shared)
        )
        self._process: ServerProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_S))

    @property
    def state(self) -> ServerState:
        """Its state."""
        return self._running.state

    async def open(self) -> None:
        """Start it, return when it works, and watch it from then on.

        Raises:
            SettingsError: It does not start. The message has the last lines of its log.
        """
        while (why := await self._started()) is not None:
            if not self._lowered():
                raise SettingsError(why)
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop it."""
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
            if self._process is not None:
                await self._process.stop()
        finally:
            self._running.close()
            await self._client.close()

    async def given_up(self) -> str:
        """Return why it was given up, when it was."""
        assert self._task is not None  # noqa: S101 - it was opened
        await asyncio.shield(self._task)
        return self.state.why

    # -- starting ------------------------------------------------------------------------------

    @property
    def _command(self) -> list[str]:
        return self._launcher.command(self._start, self._more)

    async def _started(self) -> str | None:
        """Start it once and wait; return None when it works, else why it does not."""
        environment = self._launcher.environment(self._start, self._gpus)
        process = self._process = ServerProcess(self._command, environment, self._heard)
        self._running.change(state="starting", starts=self.state.starts + 1)
        loop = asyncio.get_running_loop()
        last, since = "", loop.time()
        while not process.ended.is_set():
            if await self._health():
                try:
                    await self._prepare()
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                    await process.stop()
                    return f"{self._start.model} cannot be loaded: {error}"
                self._tell("")
                self._running.change(state="ready")
                return None
            if process.last_line != last:
                last, since = process.last_line, loop.time()
            if loop.time() - since > SILENT_S:
                await process.stop()
                return f"{self._launcher.program} did nothing for {duration(SILENT_S)}. {last}"
            self._tell(": ".join(filter(None, (f"{self._launcher.program} starts", last))))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READY_POLL_S):
                    await process.ended.wait()
        return self._why_not(process)

    def _why_not(self, process: ServerProcess) -> str:
        lines = list(process.lines)
        command = shlex.join(self._command)
        what = f"{self._launcher.program} {process.how_it_ended} before it was ready."
        if lacks_network(lines):
            what += (
                " The model is not on this machine and cannot be downloaded: check the network, or "
                "HF_ENDPOINT for a mirror, or name a folder with the model."
            )
        elif lacks_memory(lines):
            what += " There is not enough memory: choose a smaller model (captioner models)."
        elif process.was_killed:
            what += (
                " If no user killed it, the system did because its memory was used up: choose a "
                "smaller model (captioner models)."
            )
        shown = "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:])
        return f"{what} The command was\n  {command}\nIts last lines:\n{shown}"

    async def _prepare(self) -> None:
        """Download the model if the server does so only when asked, as Ollama does.

        Raises:
            ValueError: It cannot be downloaded.
        """
        if self._launcher.name != "ollama":
            return
        model = {"model": self._start.model}
        longer = aiohttp.ClientTimeout(sock_read=SILENT_S)
        async with self._client.post(f"{self._root}/api/show", json=model) as reply:
            if reply.status == 200:
                return
        pull = self._client.post(f"{self._root}/api/pull", json=model, timeout=longer)
        async with pull as reply:
            async for line in reply.content:
                self._pulled(json.loads(line))

    def _pulled(self, line: Any) -> None:
        if not isinstance(line, dict):
            return
        if error := line.get("error"):
            raise ValueError(f"ollama cannot download it: {error}")
        done, total = line.get("completed"), line.get("total")
        share = ""
        if isinstance(done, int) and isinstance(total, int) and total > 0:
            share = f" {done / total:.0%} of {total / 1e9:.1f} GB"
        self._tell(f"ollama downloads {self._start.model}: {line.get('status', '')}{share}")

    def _lowered(self) -> bool:
        """Lower the limits if it ended for lack of memory; return whether its command changed."""
        lack = lacks_memory(list(self._process.lines)) if self._process is not None else ""
        if not lack:
            return False
        limits = self._start.limits.lowered(cache=lack == "cache")
        before = self._command
        if limits is None:
            return False
        self._start = self._start._replace(limits=limits)
        if self._command == before:
            return False
        logger.warning(
            "%s has too little memory: starting it with %s", self._launcher.program, limits
        )
        return True

    # -- watching ------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Start it again whenever it dies or hangs, until it cannot be started."""
        failures = 0
        pauses = waits(LONGEST_PAUSE_S)
        why = ""
        while failures < MOST_FAILURES:
            try:
                if not failures:
                    why, lasted_s = await self._ended()
                    if lasted_s > LONGEST_PAUSE_S:
                        pauses = waits(LONGEST_PAUSE_S)
                    logger.warning("%s It is started again.", why)
                self._running.change(state="starting", why=why)
                self._lowered()
                await asyncio.sleep(next(pauses))
                reason = await self._started()
            except OSError as error:
                reason = f"{self._launcher.program} cannot be started: {error.strerror}."
            failures = 0 if reason is None else failures + 1
            why = reason or why
        self._running.change(
            state="failed",
            why=f"{MOST_FAILURES} starts of the server failed. {why}\nWhat was finished is saved; "
            "run the same command again.",
        )

    async def _ended(self) -> tuple[str, float]:
        """Return how it ended, when it has, and the seconds that it lasted.

        A server that hangs is ended.
        """
        process = self._process
        assert process is not None  # noqa: S101 - it was started
        loop = asyncio.get_running_loop()
        began = loop.time()
        pulse = Pulse(began)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await process.ended.wait()
            if process.ended.is_set():
                how = f"{self._launcher.program} {process.how_it_ended}."
                last = sentence(f"Its last line: {process.last_line}")
                return f"{how} {last}" if process.last_line else how, loop.time() - began
            healthy = await self._health()
            working, progress = await self._work()
            fault = pulse.fault(
                loop.time(),
                healthy=healthy,
                working=working,
                progress=progress,
                answers=self._answers(),
            )
            if fault:
                await process.stop()
                return f"{self._launcher.program} {fault} and was ended.", loop.time() - began

    async def _health(self) -> bool:
        return await self._get(self._launcher.health) is not None

    async def _work(self) -> tuple[bool, float]:
        """Return whether it says to work on requests, and a number that grows with its progress."""
        if not self._launcher.running or (text := await self._get("/metrics")) is None:
            return False, 0.0
        progress = sum(sum(values_of(text, name)) for name in self._launcher.progress)
        return sum(values_of(text, self._launcher.running)) > 0, progress

    async def _get(self, path: str) -> str | None:
        """Return a response of status 200; None for others, and for none."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._client.get(self._root + path) as reply:
                if reply.status != 200:
                    return None
                page = bytearray()
                async for chunk in reply.content.iter_any():
                    page += chunk
                    if len(page) > LONGEST_PAGE:
                        return None
                return page.decode(errors="replace")
        return None
