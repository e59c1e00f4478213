"""What runs on the machines of a Ray cluster: workers that caption shards, and the broker.

Each worker runs the engine whole, with a journal of its own for one shard after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.core.cancellation import CancelToken
from captioner.core.errors import RunError, SettingsError
from captioner.core.keys import RecordKeys
from captioner.core.progress import Counters, Progress, RunReport
from captioner.executors.local import open_source, run_batch
from captioner.executors.ray.rate_broker import RENEW_S, Feedback, Lease, LeaseHolder, RateBroker
from captioner.executors.ray.shard_store import Store
from captioner.executors.ray.shards import PartSource, ShardSource, names_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.core.protocols import Source
    from captioner.endpoints.limiter import Limiter
    from captioner.settings.settings import Settings

PUSH_S = 30.0
"""Seconds between two copies of a shard's journal into an object store."""

LEASE_ANSWER_S = 2.0
"""Seconds the broker may take."""


class ShardRunner:
    """Runs shards, one after the other. Its methods never raise: Ray would only kill the job.

    Args:
        settings: The run's.
        name: This worker's.
        shards: How many there are.
        place: Where they lie.
        broker: Shares the limits out; None for a worker that has them alone.
        environment: Variables that hold keys and addresses.
        workers: How many there are.
        dealt: The records have been dealt out; else each shard picks its own.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        shards: int,
        place: str,
        broker: Any,
        environment: dict[str, str],
        workers: int,
        dealt: bool,  # noqa: FBT001 - over the wire
    ) -> None:
        os.environ.update(environment)
        self.workers = workers
        self.dealt = dealt
        self.fresh = True
        self.settings = settings
        self.name = name
        self.shards = shards
        self.place = place
        self.broker = broker
        self.progress = Progress()
        self.cancel: tuple[asyncio.AbstractEventLoop, CancelToken] | None = None
        self.wished: bool | None = None
        self.lock = threading.Lock()

    def run(self, shard: int) -> dict[str, Any]:
        """Caption a shard; return what became of it."""
        warnings: list[str] = []
        self.progress = Progress()
        try:
            report = asyncio.run(_caption_shard(self, shard, warnings))
        except (RunError, SettingsError) as error:
            return {"error": type(error).__name__, "message": str(error), "warnings": warnings}
        except Exception as error:  # noqa: BLE001 - the driver tells the user
            message = f"{type(error).__name__}: {error}"
            return {"error": "Exception", "message": message, "warnings": warnings}
        return {"report": report.as_dict(), "warnings": warnings}

    def stats(self) -> tuple[Counters, int, str]:
        """Return the counters of the current shard, requests in flight and what it waits for."""
        now = self.progress
        return Counters.of(now), now.in_flight, now.waiting

    def stop(self, forced: bool) -> None:  # noqa: FBT001 - over the wire
        """Stop in order, or at once."""
        with self.lock:
            self.wished = forced
            if self.cancel is not None:
                loop, cancel = self.cancel
                with contextlib.suppress(RuntimeError):  # the shard is done, and its loop closed
                    loop.call_soon_threadsafe(cancel.force if forced else cancel.request)


async def _caption_shard(runner: ShardRunner, shard: int, warnings: list[str]) -> RunReport:
    """Caption a shard. No method of the actor, which Ray would then run in a loop of its own."""
    cancel = CancelToken()
    with runner.lock:
        runner.cancel = asyncio.get_running_loop(), cancel
        if runner.wished is not None:
            cancel.request()
    with tempfile.TemporaryDirectory(prefix="captioner-shard-") as scratch:
        store = Store(runner.place, Path(scratch))
        names = names_of(shard)
        await asyncio.to_thread(store.fetch, (f"{shard:04d}.in", *names))
        settings = _of_shard(runner.settings, store.folder / names[1])
        source = _source_of(runner, store, shard)
        renewing: list[asyncio.Task[None]] = []

        def under_lease(limiters: Sequence[Limiter]) -> None:
            if runner.broker is not None:
                tenant = LeaseHolder(limiters, workers=runner.workers, fresh=runner.fresh)
                runner.fresh = False
                renewing.append(asyncio.create_task(_renew(runner, tenant)))

        ending = asyncio.Event()
        pushing = asyncio.create_task(_push_now_and_then(store, names, ending))
        try:
            return await run_batch(
                settings,
                source=source,
                progress=runner.progress,
                cancel=cancel,
                warn=warnings.append,
                limits=under_lease,
            )
        finally:
            for task in renewing:
                task.cancel()
            ending.set()  # a copy that is under way must not land after the last one
            await asyncio.gather(pushing, *renewing, return_exceptions=True)
            await asyncio.to_thread(store.push, names)
            with runner.lock:
                runner.cancel = None


async def _renew(runner: ShardRunner, tenant: LeaseHolder) -> None:
    """Keep the lease; go on with ever less while the broker does not answer."""
    while True:
        try:
            async with asyncio.timeout(LEASE_ANSWER_S):
                lease = await runner.broker.lease.remote(runner.name, tenant.met())
            tenant.apply(Lease(*lease))
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                runner.broker.leave.remote(runner.name)
            raise
        except Exception:  # noqa: BLE001 - whatever it is, nobody shares out
            tenant.halve()
        await asyncio.sleep(RENEW_S)


class RateBrokerActor:
    """A `RateBroker` as an actor."""

    def __init__(self, in_flight: int) -> None:
        self._broker = RateBroker(in_flight, time.monotonic)

    def lease(self, name: str, met: Sequence[Any]) -> tuple[Any, ...]:
        """See `Broker.lease`."""
        return tuple(self._broker.lease(name, Feedback(*met)))

    def leave(self, name: str) -> None:
        """See `Broker.leave`."""
        self._broker.leave(name)


async def _push_now_and_then(store: Store, names: Sequence[str], ending: asyncio.Event) -> None:
    while store.remote and not ending.is_set():
        try:
            async with asyncio.timeout(PUSH_S):
                await ending.wait()
        except TimeoutError:
            await asyncio.to_thread(store.push, names[:2])


def _of_shard(settings: Settings, output: Path) -> Settings:
    """Return the settings of one shard's run."""
    return replace(
        settings,
        output=output,
        cluster=replace(settings.cluster, engine="local"),
        records=replace(settings.records, limit=None),
        run=replace(settings.run, order="completion", output_format="jsonl", processes=1),
    )


def _source_of(runner: ShardRunner, store: Store, shard: int) -> Source:
    if not runner.dealt:
        whole = open_source(runner.settings).source
        return PartSource(whole, identity_of(runner.settings), shard, runner.shards)
    path = store.folder / f"{shard:04d}.in"
    if not path.exists():
        raise RunError(f"the input of shard {shard} is gone: another run has ended this one's")
    return ShardSource(path)


def identity_of(settings: Settings) -> RecordKeys:
    """Return what computes the keys of a run's records."""
    return RecordKeys(settings.fields, settings.records.id_field)
