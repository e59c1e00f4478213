"""A run's events as lines of JSON for log collectors, instead of the display."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TextIO

import orjson

from captioner.core.humanize import printable_json

if TYPE_CHECKING:
    from captioner.core.progress import Progress

EVERY_S = 10.0
"""Seconds between two lines of progress."""

_NUMBERS = (
    "captioned", "failed", "resumed", "failed_before", "in_flight", "read", "calls", "retries",
    "prompt_tokens", "completion_tokens", "cost", "waiting", "stage",
)  # fmt: skip


class JsonLog:
    """Writes a line for each event, and the progress of a run every 10 seconds."""

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        self._progress = progress
        self._stream = stream
        self._began = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start."""
        self.event("started")
        self._task = asyncio.create_task(self._write_progress())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def say(self, text: str) -> None:
        """Write a warning as an event."""
        self.event("warning", message=text)

    def event(self, name: str, **more: Any) -> None:
        """Write one event."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": name, **more}
        with contextlib.suppress(OSError):  # nothing reads the stream; the run continues
            print(printable_json(orjson.dumps(line).decode()), file=self._stream, flush=True)

    async def _write_progress(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            now = self._progress
            numbers = {name: getattr(now, name) for name in _NUMBERS}
            seconds = round(time.monotonic() - self._began, 1)
            self.event("progress", seconds=seconds, codes=dict(now.codes), **numbers)
