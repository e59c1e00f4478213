"""The actor of a run on Ray that captions shards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.core.cancellation import CancelToken
from captioner.core.errors import RunError, SettingsError
from captioner.core.log import forward_warnings
from captioner.core.progress import Counters, Progress, RunReport
from captioner.executors.local import run_batch
from captioner.executors.opening import open_source
from captioner.executors.ray.rate_broker import RENEW_S, LeaseHolder
from captioner.executors.ray.shard_store import ShardStore
from captioner.executors.ray.shards import (
    SelectingSource,
    ShardSource,
    input_name,
    output_names,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.core.protocols import Source
    from captioner.endpoints.limiter import Limiter
    from captioner.settings.settings import Settings

PUSH_S = 30.0
"""Seconds between two copies of a shard's journal to an object store."""

LEASE_TIMEOUT_S = 2.0
"""Seconds that the broker may take to respond."""


@dataclass
class ShardRunner:
    """Captions shards, one after the other. Its methods never raise: Ray would end the job.

    Attributes:
        environment: The variables with keys and addresses.
        partitioned: Each shard has an input file; else its records are selected from the input.
        fresh: It has used nothing of the rate limits yet.
    """

    settings: Settings
    name: str
    shards: int
    location: str
    broker: Any
    environment: dict[str, str]
    workers: int
    partitioned: bool
    fresh: bool = True
    progress: Progress = field(default_factory=Progress)
    cancel: tuple[asyncio.AbstractEventLoop, CancelToken] | None = None
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Set the variables."""
        os.environ.update(self.environment)

    def run(self, shard: int) -> dict[str, Any]:
        """Caption a shard; return its report or error, and the warnings."""
        warnings: list[str] = []
        self.progress = Progress()
        result: dict[str, Any]
        try:
            with forward_warnings(warnings.append):
                report = asyncio.run(_caption_shard(self, shard))
            result = {"report": report.as_dict()}
        except (RunError, SettingsError) as error:
            result = {"error": type(error).__name__, "message": str(error)}
        except Exception as error:  # noqa: BLE001 - the driver shows it to the user
            result = {"error": "Exception", "message": f"{type(error).__name__}: {error}"}
        return {**result, "warnings": warnings}

    def stats(self) -> tuple[Counters, int, str]:
        """Return the counters of the current shard, requests in flight and what it waits for."""
        now = self.progress
        return Counters.of(now), now.in_flight, now.waiting

    def stop(self, *, forced: bool) -> None:
        """Stop cleanly, or at once."""
        with self.lock:
            self.stopped = True
            if self.cancel is not None:
                loop, cancel = self.cancel
                with contextlib.suppress(RuntimeError):  # the shard is done, its loop closed
                    loop.call_soon_threadsafe(cancel.force if forced else cancel.request)


async def _caption_shard(runner: ShardRunner, shard: int) -> RunReport:
    """Caption a shard. Not a method of the actor: Ray would run it in its own event loop."""
    cancel = CancelToken()
    with runner.lock:
        runner.cancel = asyncio.get_running_loop(), cancel
        if runner.stopped:
            cancel.request()
    with tempfile.TemporaryDirectory(prefix="captioner-shard-") as scratch:
        store = ShardStore(runner.location, Path(scratch))
        names = output_names(shard)
        await asyncio.to_thread(store.fetch, (input_name(shard), *names))
        source = _source_of(runner, store, shard)
        renewing: list[asyncio.Task[None]] = []

        def use_leases(limiters: Sequence[Limiter]) -> None:
            holder = LeaseHolder(limiters, workers=runner.workers, fresh=runner.fresh)
            runner.fresh = False
            renewing.append(asyncio.create_task(_renew(runner, holder)))

        ending = asyncio.Event()
        pushing = asyncio.create_task(_push_regularly(store, names, ending))
        try:
            return await run_batch(
                _shard_settings(runner.settings, store.folder / names[1]),
                source=source,
                progress=runner.progress,
                cancel=cancel,
                limits=use_leases,
            )
        finally:
            for task in renewing:
                task.cancel()
            ending.set()  # a copy in progress must not finish after the last one
            await asyncio.gather(pushing, *renewing, return_exceptions=True)
            await asyncio.to_thread(store.push, names)
            with runner.lock:
                runner.cancel = None


async def _renew(runner: ShardRunner, holder: LeaseHolder) -> None:
    """Renew the lease; each time that the broker does not respond, continue with half of it."""
    while True:
        try:
            async with asyncio.timeout(LEASE_TIMEOUT_S):
                lease = await runner.broker.lease.remote(runner.name, holder.take_feedback())
            holder.apply(lease)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                runner.broker.leave.remote(runner.name)
            raise
        except Exception:  # noqa: BLE001 - without a broker, whatever the reason
            holder.halve()
        await asyncio.sleep(RENEW_S)


async def _push_regularly(store: ShardStore, names: Sequence[str], ending: asyncio.Event) -> None:
    while store.remote and not ending.is_set():
        try:
            async with asyncio.timeout(PUSH_S):
                await ending.wait()
        except TimeoutError:
            await asyncio.to_thread(store.push, names[:2])


def _shard_settings(settings: Settings, output: Path) -> Settings:
    return replace(
        settings,
        output=output,
        cluster=replace(settings.cluster, engine="local"),
        records=replace(settings.records, where=None, sample=None, limit=None),
        run=replace(
            settings.run, order="completion", output_format="jsonl", processes=1, probe=False
        ),
    )


def _source_of(runner: ShardRunner, store: ShardStore, shard: int) -> Source:
    settings = runner.settings
    if not runner.partitioned:
        whole = open_source(settings).source
        return SelectingSource(whole, settings.record_keys, shard, runner.shards)
    path = store.folder / input_name(shard)
    if not path.exists():
        raise RunError(f"the input of shard {shard} is missing: another run ended this one")
    return ShardSource(path)
