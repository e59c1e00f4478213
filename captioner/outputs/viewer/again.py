"""Captions records again that a reviewer marked, by the command that a person would type.

The page shows the command, and starts it as a separate process if that can do nothing unforeseen:
only for a page that no other machine reaches, with an endpoint that the output remembers, and if no
other record of the input is pending, which the command would caption as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
from collections import deque
from typing import TYPE_CHECKING, Any

from captioner.core.humanize import counted, printable
from captioner.core.subprocesses import environment, program, python
from captioner.journal.checkpoint import Checkpoint, read_checkpoint
from captioner.journal.companions import journal_path
from captioner.journal.disk import Files
from captioner.outputs.check import check_output
from captioner.settings.remembered import LOST, unsealed

if TYPE_CHECKING:
    from captioner.outputs.viewer.store import ViewerStore

WHERE = 'review == "again"'
"""What `--redo` gets: the rows that are marked."""

LONGEST_QUESTION = 20_000
PATIENCE_S = 10.0
"""Seconds in which a run that is stopped may finish its requests."""

_LINES = 8
"""Lines that a run printed last, to show."""


class Recaptioner:
    """Runs the command for the marked rows of a store.

    Args:
        store: The output and its reviews.
        is_private: Whether only this machine reaches the page.
    """

    def __init__(self, store: ViewerStore, *, is_private: bool) -> None:
        self._store = store
        self._is_private = is_private
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._said: deque[str] = deque(maxlen=_LINES)
        self._starting = asyncio.Lock()

    def command(self, question: str) -> list[str]:
        """Return the command, without the program's name.

        Args:
            question: Replaces the questions of the records; empty asks the same again.

        Raises:
            ValueError: There is no such command.
        """
        question = question.strip()
        if len(question) > LONGEST_QUESTION:
            raise ValueError(f"the question has more than {LONGEST_QUESTION} characters")
        if question.startswith("@"):
            raise ValueError("a question must not begin with @, which names a file")
        source = self._checkpoint().source
        if source in ("", "-"):
            raise ValueError("the output does not remember a file or folder as its input")
        words = [source, "-o", str(self._store.output.absolute()), f"--redo={WHERE}"]
        if question:
            fields = self._store.reader.fields
            if self._store.reader.settings.get("stages"):
                raise ValueError("the output was made in stages: change their prompts in its file")
            if len(fields) > 1:
                raise ValueError("each field has its own question: write them with --ask")
            words.append(f"--ask={fields[0]}={question}")
        return words

    def shown(self, question: str) -> dict[str, Any]:
        """Return the command as it can be pasted, and where it would send the records.

        Raises:
            ValueError: There is no such command.
        """
        options = unsealed(self._checkpoint().options) or {}
        servers = options.get("base_url") or [options.get("serve") or ""]
        where = "the built-in describer" if options.get("offline") else ", ".join(map(str, servers))
        return {
            "command": shlex.join([*program(), *self.command(question)]),
            "endpoint": where,
            "model": str(options.get("model") or self._store.reader.settings.get("model") or ""),
            "obstacle": self._obstacle(where, options.get(LOST) or []),
        }

    def _checkpoint(self) -> Checkpoint:
        return read_checkpoint(Files(), self._store.journal) or Checkpoint()

    def _obstacle(self, endpoint: str, lost: list[str]) -> str:
        """Return why the page does not start the command; empty if it does."""
        if not self._is_private:
            return "this page can be reached from other machines"
        if self.is_running or self._store.is_running():
            return "a run is writing to the output; wait for its end"
        if not endpoint:
            return "the output does not remember an endpoint: add --base-url"
        if lost:
            return f"the output does not remember what was given with {', '.join(lost)}: add it"
        if self._store.journal != journal_path(self._store.output):
            return "the output does not remember its format: add --output-format"
        return ""

    @property
    def is_running(self) -> bool:
        """Whether a run that the page started is going on."""
        return self._process is not None and self._process.returncode is None

    def status(self) -> dict[str, Any]:
        """Return whether a run is going on, and what it printed last."""
        return {"running": self.is_running, "said": list(self._said)}

    async def start(self, question: str) -> None:
        """Start the command.

        Raises:
            ValueError: It cannot be started from here, or would caption other records as well.
        """
        async with self._starting:
            await self._start(question)

    async def _start(self, question: str) -> None:
        words = self.command(question)
        if obstacle := self.shown(question)["obstacle"]:
            raise ValueError(obstacle)
        report = await asyncio.to_thread(asyncio.run, check_output(self._store.output))
        if report.violations:
            raise ValueError(f"the output is damaged: {report.violations[0]}")
        if report.pending is None:
            raise ValueError(f"the input is gone: {words[0]}")
        if report.pending:
            raise ValueError(
                f"{counted(report.pending, 'record of the input is', 'records of the input are')} "
                "pending, which the command would caption too: paste it, or finish the run first"
            )
        if self.is_running:
            raise ValueError("a run is already in progress")
        self._said.clear()
        self._process = await asyncio.create_subprocess_exec(
            *python("captioner", *words),
            env={**os.environ, **environment()},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the page, which then stops the run
        )
        self._watching = asyncio.create_task(self._watch(self._process))

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        while process.stderr is not None:
            try:
                line = await process.stderr.readline()
            except ValueError:  # a line longer than any of ours
                continue
            if not line:
                break
            self._said.append(printable(line.decode(errors="replace").rstrip()))
        await process.wait()

    async def close(self) -> None:
        """Stop the run: it finishes its requests, or leaves them pending if that takes long."""
        if self._process is None or self._watching is None:
            return
        for _ in range(2):
            if self.is_running:
                self._process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(self._watching), PATIENCE_S)
        await self._watching
