"""The worker processes of a run: starts them, each with its share of the run's limits."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Self, TypeVar

from captioner.core.errors import WorkersDiedError
from captioner.core.retry import waits
from captioner.endpoints.serving import serving
from captioner.executors.processes.dispatcher import MOST_DEATHS, Dispatcher, ReplaceWorker
from captioner.executors.processes.handle import WorkerHandle, part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from captioner.core.cancellation import CancelToken
    from captioner.core.progress import Spent
    from captioner.core.protocols import Sink
    from captioner.core.types import Outcome
    from captioner.settings.context import RunContext
    from captioner.settings.settings import Settings

LONGEST_PAUSE_S = 4.0
"""Longest pause before a worker that died while it started is started again."""

T = TypeVar("T")


class WorkerPool:
    """The workers of a run, in place of an `Engine`.

    Attributes:
        model: See `Engine`.
    """

    def __init__(
        self, workers: list[WorkerHandle], model: str, replace_worker: ReplaceWorker
    ) -> None:
        self.model = model
        self._workers = workers
        self._replace_worker = replace_worker

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, context: RunContext) -> AsyncIterator[Self]:
        """Start the workers, each with its share of the run's limits.

        Raises:
            SettingsError: See `Engine.open`.
            WorkersDiedError: A worker cannot be started.
            StoppedError: The run was cancelled first.
        """
        warned: set[str] = set()
        async with contextlib.AsyncExitStack() as stack:
            context = await stack.enter_async_context(serving(context))
            processes = context.settings.run.processes
            share = context.progress.spent_before.part(processes)

            async def begin(number: int, spent: Spent) -> tuple[WorkerHandle, str]:
                settings = part(context.settings, number)
                return await _started(settings, spent, warned, stack, context.cancel)

            async def replace_worker(number: int, spent: Spent) -> WorkerHandle:
                return (await begin(number, spent))[0]

            tasks = [asyncio.create_task(begin(number, share)) for number in range(processes)]
            try:
                started = await context.cancel.race(_all(tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            yield cls([worker for worker, _ in started], started[0][1], replace_worker)

    def pipeline(
        self,
        context: RunContext,
        sink: Sink,
        settled: Callable[[Outcome], None] | None = None,
    ) -> Dispatcher:
        """Return a pipeline from the workers into a sink."""
        return Dispatcher(self._workers, context, sink, settled, self._replace_worker)


async def _all(tasks: list[asyncio.Task[T]]) -> list[T]:
    return await asyncio.gather(*tasks)


async def _started(
    settings: Settings,
    spent: Spent,
    warned: set[str],
    stack: contextlib.AsyncExitStack,
    cancel: CancelToken,
) -> tuple[WorkerHandle, str]:
    """Return a worker that is ready, and its model; one that dies is started again.

    Raises:
        WorkersDiedError: The last of `MOST_DEATHS` could not be started.
        StoppedError: The run was cancelled.
    """
    pauses = waits(LONGEST_PAUSE_S)
    for tries in itertools.count(1):
        try:
            worker = await WorkerHandle.start(settings, spent, warned)
            stack.push_async_callback(worker.close)
            return worker, await worker.wait_until_ready()
        except WorkersDiedError:
            if tries >= MOST_DEATHS:
                raise
        await cancel.sleep(next(pauses))
    raise AssertionError
