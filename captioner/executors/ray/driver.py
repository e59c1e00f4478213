"""A run on Ray: partitions the records into shards, which actors caption, and merges the outputs.

Ray Data's own retries would pay for whole blocks again; a shard's journal repeats only what was in
flight. A run can continue with any number of workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.core.cancellation import CancelToken
from captioner.core.errors import (
    OutputBusyError,
    RunError,
    SettingsError,
    WorkersDiedError,
    revive,
)
from captioner.core.extras import needed
from captioner.core.log import LOGGER, forward_warnings, warn_once
from captioner.core.progress import Counters, Progress, RequestCounters, RunReport
from captioner.endpoints.addresses import variables_of
from captioner.engine.engine import Engine
from captioner.engine.selection import Selection
from captioner.executors.local import run_batch
from captioner.executors.opening import (
    look_first,
    open_source,
    refuse_other_outputs,
    refuse_strange_files,
)
from captioner.executors.ray.rate_broker import RateBroker
from captioner.executors.ray.shard_store import ShardStore
from captioner.executors.ray.shards import ShardSet, output_names
from captioner.executors.ray.worker import ShardRunner
from captioner.journal.checkpoint import read_checkpoint
from captioner.journal.companions import (
    checkpoint_path,
    failures_path,
    gathered_path,
    journal_path,
    lock_path,
    shards_folder,
    shards_lock_path,
)
from captioner.journal.disk import Files
from captioner.journal.journal import Journal
from captioner.outputs.export import check_format
from captioner.settings.context import RunContext
from captioner.settings.locations import location, storage_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from captioner.readers.registry import OpenedInput
    from captioner.settings.settings import Settings

SHARDS_PER_WORKER = 4
"""With more shards than workers, the workers finish at about the same time."""

POLL_S = 0.5
"""Seconds between two looks at the workers."""

MAX_DEATHS = 5
"""Workers that may die over one shard before the run gives up."""


async def run_on_ray(
    settings: Settings,
    *,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    stopping: CancelToken | None = None,
    warn: Callable[[str], None] | None = None,
) -> RunReport:
    """Caption every record of an input on a Ray cluster; run again to continue.

    Args:
        settings: The settings; ``cluster`` names the cluster and the number of workers.
        progress: Kept up to date during the run, the sum of all workers.
        cancel: Request it to stop the run cleanly.
        stopping: The name of ``cancel`` until version 0.2.
        warn: Called with the text of each warning.

    Raises:
        SettingsError: The settings cannot work; nothing was sent.
        RunError: The run stopped early; what was finished is saved.
    """
    ray = needed("ray")
    cancel = next((token for token in (cancel, stopping) if token is not None), CancelToken())
    context = RunContext(settings, progress or Progress(), cancel)
    with forward_warnings(warn):
        return await _Driver(context, ray).run()


class _Driver:
    """Prepares shards, gives them to actors, watches these and merges the outputs."""

    def __init__(self, context: RunContext, ray: Any) -> None:
        self._settings = context.settings
        self._progress = context.progress
        self._cancel = context.cancel
        self._ray = ray
        self._warned: set[str] = set()
        self._began = time.monotonic()
        self._records = 0  # 0: unknown
        self._finished = 0
        self._total = Counters()  # of shards that have ended
        self._stats: dict[int, tuple[Counters, int, str]] = {}  # of current shards, by worker
        self._error: RunError | SettingsError | None = None

    async def run(self) -> RunReport:
        output, kind = self._settings.output_path, self._settings.run.output_format
        if url := storage_url(output):
            return await self._run(url)
        journal = journal_path(output, kind)
        files = Files()
        refuse_strange_files(self._settings, files)
        if holder := files.holder(lock_path(journal)):
            raise OutputBusyError(f"{journal.name} is being written by {holder}; wait for it.")
        path = shards_lock_path(journal)
        lock = await asyncio.to_thread(files.lock, path)
        try:
            return await self._run("")
        finally:
            files.unlock(lock, path)

    async def _run(self, url: str) -> RunReport:
        """Run on an output in an object store, or on a local one with an empty address."""
        settings = self._settings
        found = open_source(settings)
        with_field = found.with_image_field(settings)
        selected = Selection(found.source, with_field)
        await look_first(selected, with_field)
        output = settings.output_path
        kind = check_format(output, settings.run.output_format)
        if url and kind != "jsonl":
            raise SettingsError("engine: an output in an object store is JSONL")
        await asyncio.to_thread(self._connect)
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        workers = settings.cluster.workers or max(1, cores)
        with tempfile.TemporaryDirectory(prefix="captioner-output-") as scratch:
            folder = url.rpartition("/")[0] or str(output.parent)
            store = ShardStore(folder, Path(scratch) / "output")
            output = store.folder / output.name
            journal = journal_path(output, kind)
            failures = failures_path(output)
            location = f"{url}.shards" if url else str(shards_folder(journal))
            shards = ShardSet(ShardStore(location, Path(scratch) / "shards"), settings.record_keys)
            names = [failures.name, journal.name, checkpoint_path(journal).name]
            await asyncio.to_thread(store.fetch, names)
            wanted = settings.cluster.shards or SHARDS_PER_WORKER * workers
            partitioned = await self._prepare(
                shards, wanted, found, selected, journal=journal, failures=failures
            )
            self._progress.stage = "captioning"
            await self._caption(shards.count, location, workers, partitioned=partitioned)
            if self._error is not None:
                if isinstance(self._error, RunError):
                    self._error.report = self._report()
                raise self._error
            if self._finished < shards.count or self._cancel:
                return self._report()
            self._progress.stage = "ordering"
            await asyncio.to_thread(self._merge, shards, journal, failures)
            await asyncio.to_thread(store.push, names)
            await asyncio.to_thread(shards.store.remove)  # the journal has everything by now
            report = await self._finish(output)
            await asyncio.to_thread(store.push, names)
            self._progress.stage = "finished"
            return report

    async def _prepare(
        self,
        shards: ShardSet,
        wanted: int,
        found: OpenedInput,
        selected: Selection,
        *,
        journal: Path,
        failures: Path,
    ) -> bool:
        """Prepare the shards' files; return whether the shards have their own inputs."""
        settings = self._settings
        async with Engine.open(RunContext(settings, cancel=self._cancel)) as engine:
            shaping = settings.shaping(engine.model)
        accept = settings.run.accept_changes
        new = await asyncio.to_thread(shards.open, wanted, shaping, accept_changes=accept)
        if new:
            await asyncio.to_thread(self._check_output, journal, failures, shaping)
            await asyncio.to_thread(shards.store.clear)
        elif settings.cluster.shards not in (None, shards.count):
            LOGGER.warning(
                "the output has %d shards; --shards only applies to a new output", shards.count
            )
        partitioned = not found.holds_images
        if partitioned:
            self._records = await shards.partition(selected)
        elif not selected.is_whole:
            raise SettingsError("limit, sample and where do not work with tables on Ray")
        if new:
            source = str(settings.input)
            await asyncio.to_thread(shards.import_existing, journal, failures, source)
        return partitioned

    def _connect(self) -> None:
        """Connect to the cluster, or start a small one on this machine."""
        if self._ray.is_initialized():
            return
        cluster = self._settings.cluster
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if cluster.ray_address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options |= {
                "num_cpus": cluster.workers,
                "object_store_memory": 100 << 20,  # it only transfers counters
                "include_dashboard": False,
            }
        try:
            self._ray.init(address=cluster.ray_address, **options)
        except Exception as error:  # noqa: BLE001 - Ray raises errors of many classes
            raise SettingsError(f"ray: cannot connect to Ray: {_short(error)}") from None

    def _check_output(self, journal: Path, failures: Path, shaping: dict[str, Any]) -> None:
        """Check that the run may continue the output, before requests cost money."""
        refuse_other_outputs(self._settings, journal)
        if journal.exists():
            existing = self._journal(journal, failures, shaping, merging=False)
            existing.open()
            existing.close()

    def _journal(
        self, path: Path, failures: Path, shaping: dict[str, Any], *, merging: bool
    ) -> Journal:
        run = self._settings.run
        return Journal(
            path,
            self._settings.record_keys,
            shaping,
            failures=failures,
            source=str(self._settings.input or ""),
            accept_changes=merging or run.accept_changes,
            accept_edits=run.accept_edits and not merging,
        )

    async def _caption(
        self, shards: int, location: str, workers: int, *, partitioned: bool
    ) -> None:
        """Have the workers caption all shards."""
        ray, settings = self._ray, self._settings
        broker = ray.remote(RateBroker).options(num_cpus=0).remote(settings.run.concurrency)
        needed_names = variables_of(settings.each_endpoint) & os.environ.keys()
        environment = {name: os.environ[name] for name in needed_names}

        def start(number: int) -> Any:
            remote = ray.remote(ShardRunner).options(num_cpus=1, max_concurrency=3)
            return remote.remote(
                settings,
                name=f"worker-{number}",
                shards=shards,
                location=location,
                broker=broker,
                environment=environment,
                workers=workers,
                partitioned=partitioned,
            )

        pending = list(reversed(range(shards)))
        deaths = [0] * shards
        tasks = [
            asyncio.create_task(self._work(number, start, pending, deaths))
            for number in range(min(workers, shards))
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            ray.kill(broker)

    async def _work(
        self, number: int, start: Callable[[int], Any], pending: list[int], deaths: list[int]
    ) -> None:
        """Have one worker caption pending shards; replace it when it dies."""
        actor: Any = None
        while pending and not self._cancel and self._error is None:
            shard = pending.pop()
            actor = actor or start(number)
            try:
                result = await self._watch(actor, number, shard)
            except self._ray.exceptions.RayActorError as death:
                actor = None
                deaths[shard] += 1
                if deaths[shard] >= MAX_DEATHS:
                    text = f"{MAX_DEATHS} workers died over shard {shard}: {_short(death)}"
                    self._error = self._error or WorkersDiedError(text)
                else:
                    text = f"a worker died over shard {shard}; another one continues it"
                    warn_once(text, self._warned)
                    pending.append(shard)
                continue
            for text in result["warnings"]:
                warn_once(text, self._warned)
            if "report" in result:
                self._finished += not result["report"]["stopped"]
            elif result["error"] == OutputBusyError.__name__:
                pending.append(shard)  # a worker that Ray gave up is still ending
                await asyncio.sleep(POLL_S)
            else:
                error = revive(result["error"], result["message"])
                self._error = self._error or error or RunError(result["message"])
        if actor is not None:
            self._ray.kill(actor)

    async def _watch(self, actor: Any, number: int, shard: int) -> dict[str, Any]:
        """Return the result of a shard; meanwhile update the counters and forward a stop."""
        running = asyncio.wrap_future(actor.run.remote(shard).future())
        sent: bool | None = None
        try:
            while True:
                await asyncio.wait((running,), timeout=POLL_S)
                done = running.done()
                self._stats[number] = await asyncio.wrap_future(actor.stats.remote().future())
                if done:
                    result: dict[str, Any] = running.result()
                    self._total.add(self._stats[number][0])
                    return result
                self._update_progress()
                if (self._cancel or self._error) and sent != self._cancel.forced:
                    sent = self._cancel.forced
                    actor.stop.remote(forced=sent)
        finally:
            self._stats.pop(number, None)  # the next worker counts a dead worker's shard again
            running.cancel()
            self._update_progress()

    def _update_progress(self) -> None:
        progress, stats = self._progress, list(self._stats.values())
        total = Counters.of(self._total)
        for counters, _, _ in stats:
            total.add(counters)
        total.add(Counters.of(progress), -1)
        progress.add(total)
        progress.in_flight = sum(in_flight for _, in_flight, _ in stats)
        progress.waiting = next((waiting for _, _, waiting in stats if waiting), "")
        progress.size = self._records
        progress.position = progress.read

    def _merge(self, shards: ShardSet, journal: Path, failures: Path) -> None:
        """Merge the outputs of the shards into one journal."""
        files, folder = Files(), shards.store.folder
        merged = gathered_path(journal)
        files.remove(merged)
        extent = shards.merge(merged, failures)
        files.close(files.open(merged, create=True, private=True))
        checkpoints = (
            read_checkpoint(files, folder / output_names(number)[1])
            for number in range(shards.count)
        )
        shaping = next((found.settings for found in checkpoints if found), {})
        whole = self._journal(journal, failures, shaping, merging=True)
        whole.open()
        with contextlib.closing(whole):
            whole.replace(merged, extent)

    async def _finish(self, output: Path) -> RunReport:
        """Finish the merged output as any run does: no record is pending."""
        settings = self._settings
        local = replace(
            settings,
            output=output,
            cluster=replace(settings.cluster, engine="local"),
            run=replace(settings.run, retry_failed=None),  # the shards retried them
        )
        report = await run_batch(local, cancel=self._cancel)
        total = self._total
        return replace(
            report,
            captioned=total.captioned,
            resumed=report.resumed - total.captioned,
            seconds=time.monotonic() - self._began,
            output=location(settings.output_path),
            failures=location(failures_path(settings.output_path)),
            **RequestCounters.of(total).as_dict(),
        )

    def _report(self) -> RunReport:
        """Return the result so far of a run that is not finished."""
        total, output = self._total, self._settings.output_path
        report = RunReport(
            output=location(output),
            failures=location(failures_path(output)),
            pending=max(0, (self._records or total.read) - total.settled),
            seconds=time.monotonic() - self._began,
            stopped="interrupted" if self._cancel else type(self._error).__name__,
        )
        report.add(total)
        report.failed += total.failed_before
        return report


def _short(error: Exception) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split())[:300]
