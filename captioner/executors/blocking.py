"""A run for programs without asyncio."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from captioner.core.cancellation import CancelToken
from captioner.executors.local import run_batch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from captioner.core.progress import RunReport
    from captioner.settings.settings import Settings


def caption_batch(
    settings: Settings | str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    **options: Any,
) -> RunReport:
    """Caption every record of an input, and return when the run has ended.

    The same as `run_batch` for code without ``await``. It runs in a separate thread, so it also
    works where an event loop is running already, as in Jupyter; that loop stands still meanwhile.
    KeyboardInterrupt lets the requests in flight finish and is then raised.

    Args:
        settings: See `run_batch`.
        output: See `run_batch`.
        **options: The other arguments and the options of `run_batch`.

    Returns:
        The result. Failed records are counted in it, not raised.

    Raises:
        SettingsError: The settings cannot work; nothing was sent or written.
        RunError: The run stopped early; what was finished is saved.
    """
    given = options.get("cancel")
    cancel = options["cancel"] = CancelToken() if given is None else given
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> RunReport:
        loops.append(asyncio.get_running_loop())
        return await run_batch(settings, output, **options)

    with ThreadPoolExecutor(1, thread_name_prefix="captioner") as threads:
        running = threads.submit(lambda: asyncio.run(run()))
        try:
            return running.result()
        except KeyboardInterrupt:
            if not loops:
                cancel.request()
            for loop in loops:
                loop.call_soon_threadsafe(cancel.request)
            raise
