"""A run's events as lines of JSON for log collectors, instead of the display."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TextIO

import orjson

from captioner.cli.display import Pace
from captioner.core.errors import SettingsError
from captioner.core.humanize import printable_json
from captioner.core.secrets import without_secrets
from captioner.settings.locations import location
from captioner.settings.remembered import remembered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from captioner.core.progress import Progress
    from captioner.settings.settings import Settings

EVERY_S = 10.0
"""Seconds between two lines of progress."""

_NUMBERS = (
    "captioned", "failed", "resumed", "failed_before", "in_flight", "read", "calls", "retries",
    "prompt_tokens", "completion_tokens", "cached_tokens", "cost", "waiting", "stage",
)  # fmt: skip


class JsonLog:
    """Writes a line for each event, and the progress of a run every 10 seconds.

    Args:
        progress: The run.
        stream: Where lines go.
        about: Values of the first event.
    """

    def __init__(
        self, progress: Progress, stream: TextIO, about: dict[str, Any] | None = None
    ) -> None:
        self._about = about or {}
        self._progress = progress
        self._stream = stream
        self._pace = Pace(progress)
        self._began = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start."""
        self.event("started", **self._about)
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
            self._pace.tick()
            left_s = None if self._pace.left_s is None else round(self._pace.left_s)
            codes = dict(now.codes)
            more = {"codes": codes, "held_by": now.bottleneck.now}
            self.event("progress", seconds=seconds, left_s=left_s, **more, **numbers)


@contextlib.contextmanager
def log_file(settings: Settings, progress: Progress) -> Iterator[JsonLog | None]:
    """Keep the log file of a run open, if it has one.

    Raises:
        SettingsError: It cannot be written.
    """
    if (path := settings.run.log_file) is None:
        yield None
        return
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"log-file: cannot write {path}: {error.strerror}") from None
    names = {"input": settings.input, "output": settings.output}
    about = {name: location(value) for name, value in names.items() if value is not None}
    about |= {"upload": without_secrets(settings.upload)} if settings.upload else {}
    with file:
        yield JsonLog(progress, file, {**about, "settings": remembered(settings)})
