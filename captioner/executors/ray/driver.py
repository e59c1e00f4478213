"""A run on Ray. It hands out shards; each actor runs the engine whole, with a journal of its own.

Ray Data's own retries would pay again for whole blocks; a shard's journal pays again for what was
in flight. A run can be continued with any number of workers, and ends as one output.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.core import errors
from captioner.core.cancellation import CancelToken
from captioner.core.errors import OutputBusyError, RunError, SettingsError, WorkersDiedError
from captioner.core.extras import needed
from captioner.core.log import forward_warnings
from captioner.core.progress import Counters, Progress, RequestCounters, RunReport
from captioner.endpoints.connect import KEY_NAMES, URL_NAMES
from captioner.engine.engine import Engine
from captioner.executors.batch_api.ledger import Ledger
from captioner.executors.local import open_source, refuse_strangers, run_batch
from captioner.executors.ray.shard_store import Store
from captioner.executors.ray.shards import Plan, names_of
from captioner.executors.ray.worker import RateBrokerActor, ShardRunner, identity_of
from captioner.journal.checkpoint import read_checkpoint
from captioner.journal.companions import (
    checkpoint_path,
    companion,
    failures_path,
    journal_path,
    lock_path,
    shards_folder,
)
from captioner.journal.disk import Files
from captioner.journal.journal import Journal
from captioner.outputs.export import check_format
from captioner.readers.registry import FORMATS_WITH_IMAGES
from captioner.settings.context import RunContext
from captioner.settings.locations import storage_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from captioner.readers.registry import OpenedInput
    from captioner.settings.settings import Settings

logger = logging.getLogger(__name__)

SHARDS_A_WORKER = 4
"""More shards than workers: the last ones end at about the same time."""

LOOK_S = 0.5
"""Seconds between two looks at the workers."""

DEATHS = 5
"""A shard whose actor dies so often is given up: something in it kills them."""


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
        settings: The run's; ``cluster`` says where and how wide.
        progress: Kept up to date while the run goes on, the sum of all workers.
        cancel: Set it to stop the run in order.
        stopping: The name of ``cancel`` until version 0.2.
        warn: Called with a sentence when something is worth knowing but no error.

    Raises:
        SettingsError: The settings cannot work; nothing was sent.
        RunError: The run stopped early; what was finished is saved.
    """
    ray = needed("ray", "ray")
    cancel = next((token for token in (cancel, stopping) if token is not None), CancelToken())
    context = RunContext(settings, progress or Progress(), cancel)
    with forward_warnings(warn):
        return await _Driver(context, ray).run()


class _Driver:
    """Plans shards, gives them to actors, watches them and merges their outputs."""

    def __init__(self, context: RunContext, ray: Any) -> None:
        self._context = context
        self._settings = context.settings
        self._progress = context.progress
        self._cancel = context.cancel
        self._warned: set[str] = set()
        self._ray = ray
        self._began = time.monotonic()
        self._records = 0  # 0: not known
        self._finished: set[int] = set()
        self._settled = Counters()  # of shards that are over
        self._stats: dict[int, tuple[Counters, int, str]] = {}  # of current shards, by worker
        self._error: RunError | SettingsError | None = None
        self._workers = 1
        self._dealt = True

    async def run(self) -> RunReport:
        settings = self._settings
        journal = journal_path(settings.output_path, settings.run.output_format)
        if storage_url(settings.output_path) is not None:
            return await self._run_locked()
        files = Files()
        if who := files.holder(lock_path(journal)):
            raise OutputBusyError(f"{journal.name} is being written by {who}; wait for it.")
        path = companion(journal, ".shards.lock")
        lock = await asyncio.to_thread(files.lock, path)
        try:
            return await self._run_locked()
        finally:
            files.unlock(lock, path)

    async def _run_locked(self) -> RunReport:
        settings = self._settings
        found = open_source(settings)
        kind = check_format(settings.output_path, settings.run.output_format)
        output = settings.output_path
        url = storage_url(output)
        if url and kind != "jsonl":
            raise SettingsError("engine: an output in an object store is JSONL")
        await asyncio.to_thread(self._start)
        cores = self._ray.cluster_resources().get("CPU", 1)
        workers = self._workers = settings.cluster.workers or max(1, int(cores))
        with tempfile.TemporaryDirectory(prefix="captioner-plan-") as scratch:
            journal = Path(scratch) / "output.jsonl" if url else journal_path(output, kind)
            place = f"{url}.shards" if url else str(shards_folder(journal))
            store = Store(place, Path(scratch) / "shards")
            plan = Plan(store, identity_of(settings))
            await self._plan(plan, workers, found, journal, url)
            self._progress.stage = "captioning"
            await self._caption(plan, place, workers)
            if self._error is not None:
                if isinstance(self._error, RunError):
                    self._error.report = self._report()
                raise self._error
            if len(self._finished) < plan.shards or self._cancel:
                return self._report()
            return await self._finish(plan, journal, url)

    def _start(self) -> None:
        """Connect to the cluster, or start a small one here."""
        if self._ray.is_initialized():
            return
        address = self._settings.cluster.ray_address
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options |= {
                "num_cpus": self._settings.cluster.workers,
                "object_store_memory": 100 << 20,  # nothing but counts goes through it
                "include_dashboard": False,
            }
        try:
            self._ray.init(address=address, **options)
        except Exception as error:  # noqa: BLE001 - of any kind
            reason = " ".join(str(error).split())[:300]
            raise SettingsError(f"ray-address: cannot connect to Ray: {reason}") from None

    async def _plan(
        self, plan: Plan, workers: int, found: OpenedInput, journal: Path, url: str | None
    ) -> None:
        """Deal out the records, and at first what the output holds already."""
        settings = self._settings
        wanted = settings.cluster.shards or SHARDS_A_WORKER * workers
        if url:
            await asyncio.to_thread(_fetch_output, url, journal)
        shaping = await self._shaping()
        accept = settings.run.accept_changes
        new = await asyncio.to_thread(plan.open, wanted, shaping, accept_changes=accept)
        if new:
            await asyncio.to_thread(self._check_output, journal, shaping)
            await asyncio.to_thread(plan.store.clear)
        if not new and settings.cluster.shards not in (None, plan.shards):
            logger.warning(
                "the output has %d shards; --shards only applies to a new output", plan.shards
            )
        if found.format not in FORMATS_WITH_IMAGES:
            self._records = await plan.partition(found.source, settings.records.limit)
        elif settings.records.limit is not None:
            raise SettingsError("limit: not with tables on Ray")
        if new:
            failures = failures_path(settings.output_path if url is None else journal)
            await asyncio.to_thread(plan.seed, journal, failures, str(settings.input))
        self._dealt = found.format not in FORMATS_WITH_IMAGES

    async def _shaping(self) -> dict[str, Any]:
        """Return what shapes a caption, the model that the endpoint serves included."""
        settings = self._settings
        async with Engine.open(RunContext(settings, cancel=self._cancel)) as engine:
            return settings.shaping(engine.model)

    def _check_output(self, journal: Path, shaping: dict[str, Any]) -> None:
        """See that the output is ours and may go on, before anything is paid for it.

        Raises:
            SettingsError: It is somebody else's, or was begun with other settings.
            OutputDamagedError: It is not what we wrote.
        """
        settings = self._settings
        target = settings.output_path
        if target != journal and not settings.run.overwrite:
            refuse_strangers(target, journal)
        if Ledger.of(journal).batches:
            raise SettingsError(f"batches of {journal.name} are open: go on with --batch-api")
        if not journal.exists():
            return
        found = Journal(
            journal,
            identity_of(settings),
            shaping,
            failures=failures_path(target if storage_url(target) is None else journal),
            source=str(settings.input or ""),
            accept_changes=settings.run.accept_changes,
            accept_edits=settings.run.accept_edits,
        )
        found.open()
        found.close()

    async def _caption(self, plan: Plan, place: str, workers: int) -> None:
        ray = self._ray
        broker = (
            ray.remote(RateBrokerActor).options(num_cpus=0).remote(self._settings.run.concurrency)
        )
        left = list(range(plan.shards))[::-1]
        deaths = dict.fromkeys(left, 0)
        tasks = [
            asyncio.create_task(self._work(number, broker, plan, place, left, deaths))
            for number in range(min(workers, plan.shards))
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            ray.kill(broker)

    async def _work(
        self,
        number: int,
        broker: Any,
        plan: Plan,
        place: str,
        left: list[int],
        deaths: dict[int, int],
    ) -> None:
        """Have one actor after the other run shards until none is left."""
        ray = self._ray
        own = (name for one in self._settings.each_endpoint for name in one.api_key_env)
        names = {*KEY_NAMES, *URL_NAMES, *own}
        environment = {name: os.environ[name] for name in names if name in os.environ}
        actor: Any = None
        while left and not self._cancel and self._error is None:
            shard = left.pop()
            if actor is None:
                remote = ray.remote(ShardRunner).options(num_cpus=1, max_concurrency=3)
                actor = remote.remote(
                    self._settings,
                    f"worker-{number}",
                    plan.shards,
                    place,
                    broker,
                    environment,
                    self._workers,
                    self._dealt,
                )
            try:
                result = await self._watch(actor, number, shard)
            except ray.exceptions.RayActorError as error:
                actor = None
                deaths[shard] += 1
                if deaths[shard] >= DEATHS:
                    reason = " ".join(str(error).split())[:300]
                    self._fail(WorkersDiedError(f"shard {shard} killed {DEATHS} workers: {reason}"))
                else:
                    self._warn_once(
                        f"a worker died over shard {shard}; another one goes on with it"
                    )
                    left.append(shard)
                continue
            for text in result["warnings"]:
                self._warn_once(text)
            if "report" in result:
                if not result["report"]["stopped"]:
                    self._finished.add(shard)
            elif result["error"] == OutputBusyError.__name__:
                left.append(shard)  # a worker that Ray gave up is still ending
                await asyncio.sleep(LOOK_S)
            else:
                self._fail(_error(result["error"], result["message"]))
        if actor is not None:
            ray.kill(actor)

    async def _watch(self, actor: Any, number: int, shard: int) -> dict[str, Any]:
        """Return what became of a shard, counting meanwhile and telling the actor to stop."""
        running = asyncio.wrap_future(actor.run.remote(shard).future())
        told: bool | None = None
        try:
            while True:
                await asyncio.wait((running,), timeout=LOOK_S)
                over = running.done()
                self._stats[number] = await asyncio.wrap_future(actor.stats.remote().future())
                if over:
                    result: dict[str, Any] = running.result()
                    self._settled.add(self._stats[number][0])
                    return result
                self._sum_up()
                wish = self._cancel.forced if self._cancel or self._error else None
                if wish is not None and wish != told:
                    actor.stop.remote(wish)
                    told = wish
        finally:
            self._stats.pop(number, None)  # a retry of a dead actor's shard counts again
            running.cancel()
            self._sum_up()

    def _sum_up(self) -> None:
        progress, stats = self._progress, list(self._stats.values())
        total = Counters.of(self._settled)
        for counters, _, _ in stats:
            total.add(counters)
        total.add(Counters.of(progress), -1)
        progress.add(total)
        progress.in_flight = sum(in_flight for _, in_flight, _ in stats)
        progress.waiting = next((waiting for _, _, waiting in stats if waiting), "")
        progress.size = self._records
        progress.position = progress.read

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("%s", text)

    def _fail(self, error: RunError | SettingsError) -> None:
        self._error = self._error or error

    # -- the end -----------------------------------------------------------------------------

    async def _finish(self, plan: Plan, journal: Path, url: str | None) -> RunReport:
        """Put the shards together, and finish the output as any run does: nothing is pending."""
        self._progress.stage = "ordering"
        settings = self._settings
        failures = failures_path(settings.output_path if url is None else journal)
        await asyncio.to_thread(self._put_together, plan, journal, failures)
        if url:
            await asyncio.to_thread(_push_output, url, journal)
        await asyncio.to_thread(plan.store.remove)  # all of it is in the journal by now
        local = replace(
            settings,
            cluster=replace(settings.cluster, engine="local"),
            run=replace(settings.run, retry_failed=None),  # they were tried in their shards
        )
        if url:
            local = replace(local, output=journal)
        report = await run_batch(local, cancel=self._cancel)
        if url:
            await asyncio.to_thread(_push_output, url, journal)
        self._progress.stage = "finished"
        total = self._settled
        return replace(
            report,
            captioned=total.captioned,
            resumed=report.resumed - total.captioned,
            prompt_tokens=total.prompt_tokens,
            completion_tokens=total.completion_tokens,
            seconds=time.monotonic() - self._began,
            **RequestCounters.of(total).as_dict(),
        )

    def _put_together(self, plan: Plan, journal: Path, failures: Path) -> None:
        files = Files()
        gathered, failed = companion(journal, ".gathered"), companion(failures, ".gathered")
        for path in (gathered, failed):
            path.unlink(missing_ok=True)
        extent = plan.gather(gathered, failed)
        found = None
        for number in range(plan.shards):
            found = found or read_checkpoint(files, plan.store.folder / names_of(number)[1])
        gathered.touch()
        with contextlib.suppress(FileNotFoundError):
            failed.replace(failures)
        whole = Journal(
            journal,
            identity_of(self._settings),
            found.settings if found else {},
            failures=failures,
            source=str(self._settings.input or ""),
            accept_changes=True,
        )
        whole.open()
        try:
            whole.replace(gathered, extent)
        finally:
            whole.close()

    def _report(self) -> RunReport:
        """Return the result so far of a run that is not finished."""
        total, output = self._settled, self._settings.output_path
        report = RunReport(
            output=str(output),
            failures=str(failures_path(output)),
            pending=max(0, (self._records or total.read) - total.settled),
            seconds=time.monotonic() - self._began,
            stopped="interrupted" if self._cancel else type(self._error).__name__,
        )
        report.add(total)
        report.failed += total.failed_before
        return report


def _error(name: str, message: str) -> RunError | SettingsError:
    """Return the error that ended a worker."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, RunError | SettingsError):
        return kind(message)
    return RunError(message)


def _fetch_output(url: str, journal: Path) -> None:
    """Bring an output from an object store here, with what belongs to it, if there is one."""
    folder, _, name = url.rpartition("/")
    system, path = needed("fsspec", "s3").core.url_to_fs(folder)
    for ours, theirs in _output_names(journal, name):
        if system.exists(f"{path}/{theirs}"):
            system.get_file(f"{path}/{theirs}", str(ours))


def _push_output(url: str, journal: Path) -> None:
    folder, _, name = url.rpartition("/")
    system, path = needed("fsspec", "s3").core.url_to_fs(folder)
    for ours, theirs in _output_names(journal, name):
        if ours.exists():
            system.put_file(str(ours), f"{path}/{theirs}")


def _output_names(journal: Path, name: str) -> list[tuple[Path, str]]:
    """Return our files and what they are called there, the checkpoint last."""
    return [
        (failures_path(journal), failures_path(Path(name)).name),
        (journal, name),
        (checkpoint_path(journal), f"{name}.ckpt"),
    ]
