"""Run a job in this process, or in several: build its parts, caption, finish the output, report."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from captioner.core.bottleneck import LOOK_S, Bottleneck
from captioner.core.cancellation import CancelToken, StoppedError
from captioner.core.errors import RunError, SettingsError
from captioner.core.humanize import counted
from captioner.core.keys import KeyTable, off_the_loop
from captioner.core.log import forward_warnings
from captioner.core.progress import Counters, Progress, RunReport
from captioner.core.shortage import shortage
from captioner.engine.engine import Engine
from captioner.engine.first_look import FIRST
from captioner.engine.selection import Selection
from captioner.executors.opening import (
    is_redone,
    look_first,
    open_source,
    refuse_other_outputs,
    refuse_strange_files,
    spent_before,
    warn_of_unused,
)
from captioner.executors.redo import take_again
from captioner.executors.uploading import refuse_other_object, upload_output
from captioner.journal.companions import (
    answers_path,
    failures_path,
    journal_path,
    shards_folder,
)
from captioner.journal.disk import Files, network_file_system
from captioner.journal.finalize import order_output
from captioner.journal.journal import Journal
from captioner.journal.resume_filter import ResumeFilter
from captioner.journal.row_encoder import RowEncoder
from captioner.journal.writer import JournalSink
from captioner.outputs.export import check_format, export
from captioner.settings.context import RunContext
from captioner.settings.locations import is_elsewhere
from captioner.settings.remembered import remembered, sealed
from captioner.settings.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from captioner.core.protocols import Dialect, Sink, Source, Transport
    from captioner.core.types import InputRecord, Outcome
    from captioner.endpoints.limiter import Limiter
    from captioner.engine.most_doubtful import MostDoubtfulFirst
    from captioner.engine.pipeline import Pipeline
    from captioner.executors.batch_api.pipeline import BatchPipeline
    from captioner.executors.processes.dispatcher import Dispatcher
    from captioner.executors.processes.pool import WorkerPool

logger = logging.getLogger(__name__)

FEW = 10
"""Records of an input that are too few to say that it was written in another format."""


async def run_batch(
    settings: Settings | str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    source: Source | None = None,
    sink: Sink | None = None,
    dialect: Dialect | None = None,
    transport: Transport | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    warn: Callable[[str], None] | None = None,
    files: Files | None = None,
    limits: Callable[[Sequence[Limiter]], None] | None = None,
    **options: Any,
) -> RunReport:
    """Caption every record of an input; run again to continue where it stopped.

    Args:
        settings: The settings, or the path of the input (or a list of images and videos) with
            options as keywords, for example
            ``run_batch("in.jsonl", base_url="http://localhost:8000/v1", model="m")``.
        output: Path of the captions; see `Settings`.
        source: Where records come from, instead of the input file.
        sink: Where outcomes go, instead of the output file; then nothing is resumed.
        dialect: Builds requests and parses responses instead of OpenAI's chat completions.
        transport: Sends requests instead of aiohttp.
        progress: Kept up to date during the run.
        cancel: Request it to stop the run in order.
        warn: Called with the text of each warning, from any thread. Warnings are logged to the
            logger ``captioner`` in any case.
        files: The disk.
        limits: Called with the limiters of the endpoints, to share limits between processes.
        **options: Options by name, as in `Settings.create`.

    Returns:
        The result. Failed records are counted in it, not raised.

    Raises:
        SettingsError: The settings cannot work; nothing was sent or written.
        RunError: The run stopped early; what was finished is saved. Its ``report`` has the result
            so far.
    """
    cancel = options.pop("stopping", CancelToken()) if cancel is None else cancel
    if not isinstance(settings, Settings):
        settings = Settings.create(settings, output, **options)
    elif options or output is not None:
        raise SettingsError("give either settings or single options, not both")
    if settings.cluster.engine != "local":
        raise SettingsError("engine: call run_on_ray for a run on Ray")
    context = RunContext(settings, progress or Progress(), cancel)
    with forward_warnings(warn):
        warn_of_unused(settings)
        engine_context, folder_of, found = context, "", None
        if source is None:
            found = open_source(settings)
            source = found.source
            engine_context = replace(context, settings=found.with_image_field(context.settings))
            if settings.input is not None and settings.input.is_dir():
                folder_of = found.format
        selected = Selection(source, engine_context.settings)
        run = _Run(context, source, selected, files or Files(), folder_of, settings)
        try:
            if sink is None:
                if found is not None:
                    await cancel.race(look_first(selected, engine_context.settings))
                await cancel.race(
                    asyncio.to_thread(refuse_other_object, settings, files or Files())
                )
                engine_context = _continued(engine_context, settings, files or Files())
            opened: AbstractAsyncContextManager[Engine | WorkerPool]
            if settings.run.processes == 1:
                opened = Engine.open(engine_context, dialect, transport, limits=limits)
            elif dialect is not None or transport is not None:
                raise SettingsError(
                    "processes: a custom dialect or transport works in one process only"
                )
            else:
                from captioner.executors.processes.pool import WorkerPool

                opened = WorkerPool.open(engine_context)
            async with opened as engine:
                if sink is not None:
                    return await run.into_sink(engine, sink)
                return await run.into_journal(engine)
        except StoppedError:  # the run was cancelled while it started
            return run.report("interrupted")


def _continued(context: RunContext, settings: Settings, files: Files) -> RunContext:
    """Return the context of a run that may continue an output.

    Raises:
        SettingsError: There are files that no run has written, or the output is no file.
    """
    if settings.is_to_stdout:
        raise SettingsError("output: name a file, or give a sink")
    refuse_strange_files(settings, files)
    context.progress.spent_before = spent_before(settings, files)
    own = context.settings
    if own.stages:
        journal = journal_path(settings.output_path, settings.run.output_format)
        own = replace(own, answers=answers_path(journal))
    if is_redone(settings, files):
        own = replace(own, run=replace(own.run, overwrite=True))
    return replace(context, settings=own)


class _Run:
    """One run: ``selected`` are the records of ``source`` that it takes.

    ``folder_of`` is the input format that a folder was taken for, else empty; ``given`` are the
    settings before files and presets were read.
    """

    def __init__(
        self,
        context: RunContext,
        source: Source,
        selected: Selection,
        files: Files,
        folder_of: str,
        given: Settings,
    ) -> None:
        self._context = context
        self._given = given
        self._settings = context.settings
        self._progress = context.progress
        self._source = source
        self._selected = selected
        self._files = files
        self._folder_of = folder_of
        self._raise_if_stopped = context.cancel.raise_if_requested
        self._keys = self._settings.record_keys
        self._began = time.monotonic()
        self._progress.bottleneck = Bottleneck(self._settings.run.concurrency)
        self._orphans = 0
        self._to_file = False
        self._kinds: dict[str, tuple[int, int, str]] = {}  # count, line and message by code
        self._outdated: set[int] = set()  # offsets of failures with a newer outcome
        self._progress.size = source.size
        records = self._settings.records
        self._progress.limit = min(filter(None, (records.sample, records.limit)), default=0)

    async def into_sink(self, engine: Engine | WorkerPool, sink: Sink) -> RunReport:
        """Caption into a sink of the caller; nothing is resumed."""
        pipeline = engine.pipeline(self._context, sink)
        return await self._reporting(pipeline.run(self._records()))

    async def into_journal(self, engine: Engine | WorkerPool) -> RunReport:
        """Caption into the output, continuing what it holds."""
        self._to_file = True
        journal = self._make_journal(engine.model)
        if self._settings.records.duplicates == "error":
            await self._refuse_duplicates()
        await asyncio.to_thread(journal.open)
        try:
            await self._refuse_reformatted(journal)
            await self._repair(journal)
            await take_again(journal, self._settings, self._selected)
            self._progress.stage = "captioning"
            report = await self._reporting(self._caption(engine, journal))
            await asyncio.to_thread(journal.refuse_damage)
            return report
        finally:
            journal.close()

    def _make_journal(self, model: str) -> Journal:
        """Return the journal of the output, not opened yet, unless it belongs to another run."""
        settings, run = self._settings, self._settings.run
        kind = check_format(settings.output_path, run.output_format)
        path = journal_path(settings.output_path, kind)
        if (shards_folder(path) / "manifest.json").exists():
            raise SettingsError(
                f"an unfinished run on Ray keeps its captions in {shards_folder(path)}: "
                "continue it with --ray"
            )
        refuse_other_outputs(settings, path)
        if remote := network_file_system(path.parent):
            logger.warning(
                "%s is on a network file system (%s): a run on another host may not see that this "
                "run writes to it. Start only one.",
                path.name,
                remote,
            )
        source = str(settings.input or "")
        if settings.input is not None and not is_elsewhere(settings.input):
            source = str(settings.input.absolute())
        shaping = settings.shaping(model)
        if self._folder_of:
            shaping["folder_of"] = self._folder_of
        return Journal(
            path,
            self._keys,
            shaping,
            failures=failures_path(settings.output_path),
            source=source,
            options=sealed(remembered(self._given)),
            accept_changes=run.accept_changes or run.redo is not None,
            accept_edits=run.accept_edits,
            files=self._files,
            raise_if_stopped=self._raise_if_stopped,
        )

    async def _refuse_reformatted(self, journal: Journal) -> None:
        """Refuse an input whose records are written differently than those of the output.

        Raises:
            SettingsError: Fewer than a tenth of the output's rows belong to a record of the input.
        """
        enough = min(len(journal.done), FIRST) // 10
        run = self._settings.run
        if not enough or run.accept_changes or run.redo is not None:
            return
        found = seen = 0
        async for batch in self._source.batches():
            self._raise_if_stopped()
            seen += len(batch)
            for at in range(0, len(batch), FIRST // 10):
                some = batch[at : at + FIRST // 10]
                keys = await off_the_loop(self._keys.of_records, some)
                found += sum(map(journal.done.__contains__, keys))
                if found >= enough:
                    return
        if seen < FEW:  # too few to tell
            return
        raise SettingsError(
            f"{found} of the {len(journal.done)} captions in {journal.path.name} belong to records "
            "of this input, which seems to have been written again in another format. Captioned "
            "records are found by their bytes: restore the input, use --id-field with a field that "
            "identifies records, or add --accept-changes to caption all of them."
        )

    async def _repair(self, journal: Journal) -> None:
        """Remove rows that the output has more often than the input has their record."""
        if not journal.repeated:
            return
        repeated = {key for _, key in journal.repeated}
        counts: Counter[bytes] = Counter()
        async for batch in self._source.batches():
            self._raise_if_stopped()
            keys = await off_the_loop(self._keys.of_records, batch)
            counts.update(key for key in keys if key in repeated)
        await asyncio.to_thread(journal.truncate_duplicates, counts)

    async def _caption(self, engine: Engine | WorkerPool, journal: Journal) -> None:
        context, progress = self._context, self._progress
        encoder = RowEncoder(self._keys, self._settings.fields)
        retrying = journal.failures.retrying
        settled = partial(self._settle, retrying) if len(retrying) else None
        async with JournalSink(
            journal,
            encoder,
            progress,
            context.cancel,
            disk_wait_s=self._settings.run.disk_wait,
        ) as sink:
            pipeline: Pipeline | Dispatcher | BatchPipeline
            if self._settings.batch.any and isinstance(engine, Engine):
                from captioner.executors.batch_api.pipeline import BatchPipeline

                pipeline = BatchPipeline(engine, context, sink, journal, settled)
            else:
                pipeline = engine.pipeline(context, sink, settled)
            resume_filter = ResumeFilter(
                self._keys,
                journal.done,
                journal.failures.unclaimed,
                journal.contents,
                retrying,
                duplicates=self._settings.records.duplicates,
                progress=progress,
            )
            await pipeline.run(self._records(resume_filter))
            if isinstance(engine, Engine):
                if engine.first is not None:
                    await self._postponed(engine, engine.first, sink, settled)
                engine.deduplicator.close()  # frees memory for ordering the output
        if progress.complete and progress.settled >= progress.read and not context.cancel:
            await self._finish(journal)
        elif self._outdated:
            await asyncio.to_thread(journal.compact_failures, self._outdated)
        if progress.failed_before:
            self._kinds = await asyncio.to_thread(journal.failures.by_code)

    async def _postponed(
        self,
        engine: Engine,
        first: MostDoubtfulFirst,
        sink: Sink,
        settled: Callable[[Outcome], None] | None,
    ) -> None:
        """Caption the records that wait for a stage, the most doubtful first."""
        while not self._context.cancel and await asyncio.to_thread(first.begin_pass):
            pipeline = engine.pipeline(self._context, sink, settled)
            await pipeline.run(self._chosen(first.takes))
        if first.left_out:
            logger.warning(
                "the budget is used: %s, which are less doubtful, are captioned without the stage "
                'with order = "doubt" (equal records count once)',
                counted(first.left_out, "record"),
            )

    async def _chosen(
        self, takes: Callable[[InputRecord], bool]
    ) -> AsyncIterator[list[InputRecord]]:
        """Yield some records of the input, with their keys."""
        async with aclosing(self._selected.batches()) as batches:
            async for batch in batches:
                if found := list(filter(takes, batch)):
                    keys = await off_the_loop(self._keys.of_records, found)
                    yield [
                        record._replace(key=key) for record, key in zip(found, keys, strict=True)
                    ]
                else:
                    await asyncio.sleep(0)

    async def _finish(self, journal: Journal) -> None:
        """Drop outdated failures, order the output and export it: nothing is pending."""
        self._progress.stage = "ordering"
        settings = self._settings
        # Failures that no record claimed. A crash during a retry leaves some that are outdated.
        failures = journal.failures
        if unclaimed := {*failures.unclaimed.offsets(), *failures.retrying.offsets()}:
            captioned = await asyncio.to_thread(journal.rescan)
            self._outdated |= failures.superseded(unclaimed, captioned)
        await asyncio.to_thread(journal.begin_redo, "")
        await asyncio.to_thread(journal.compact_failures, self._outdated)
        is_exported = settings.output_path != journal.path
        if settings.run.order == "input" or is_exported:
            # A part of the input says nothing of rows that other runs have captioned.
            whole = len(journal.done) > 0
            records = self._source if whole else self._selected
            self._orphans = await order_output(journal, records.batches())
        else:
            self._orphans = len(journal.done) if self._selected.is_whole else 0
        if is_exported:
            self._progress.stage = "exporting"
            await asyncio.to_thread(
                export,
                journal.path,
                settings.output_path,
                check_format(settings.output_path, settings.run.output_format),
                image_root=settings.records.image_root,
                source=settings.input,
                overwrite=settings.run.overwrite
                or settings.joins
                or settings.records.existing == "replace",
                own=True,
                csv_safe=self._settings.run.csv_safe,
                reviewed="ignore",
                raise_if_stopped=self._raise_if_stopped,
            )
        if settings.upload is not None:
            self._progress.stage = "uploading"
            await upload_output(settings, self._context.cancel)

    async def _records(
        self, resume_filter: ResumeFilter | None = None
    ) -> AsyncIterator[list[InputRecord]]:
        """Yield the records that are pending."""
        progress = self._progress
        async with aclosing(self._selected.batches()) as batches:
            async for batch in batches:
                pending = batch
                if resume_filter is not None:
                    pending = await off_the_loop(resume_filter.pending, batch)
                progress.read += len(batch)
                progress.position = batch[-1].end
                if pending:
                    yield pending
                else:
                    await asyncio.sleep(0)

    async def _refuse_duplicates(self) -> None:
        seen = KeyTable()
        async for batch in self._selected.batches():
            self._raise_if_stopped()
            keys = await off_the_loop(self._keys.of_records, batch)
            for record, key in zip(batch, keys, strict=True):
                if (first := seen.find(key)) is not None:
                    raise SettingsError(
                        f"line {record.number} of the input repeats line {first} "
                        "(--equal-records error)"
                    )
                seen.add(key, record.number)

    def _settle(self, retrying: KeyTable, outcome: Outcome) -> None:
        """Note that the old failure of a retried record is outdated."""
        key = outcome.record.key
        if key is not None and (offset := retrying.take(key)) is not None:
            self._outdated.add(offset)

    async def _reporting(self, work: Awaitable[None]) -> RunReport:
        looking = asyncio.create_task(self._look())
        try:
            await work
        except RunError as error:
            error.report = self.report(type(error).__name__)
            raise
        except Exception as error:
            if not (said := shortage(error)):
                raise
            ended = RunError(said)
            ended.report = self.report(RunError.__name__)
            raise ended from error
        finally:
            looking.cancel()
        self._progress.stage = "finished"
        return self.report("interrupted" if self._context.cancel else "")

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._progress.bottleneck.look(self._progress)

    def report(self, stopped: str) -> RunReport:
        """Return the result so far."""
        progress = self._progress
        kinds = self._kinds or {
            code: (progress.codes[code], failure.record.number, failure.message)
            for code, failure in progress.examples.items()
        }
        report = RunReport(
            pending=progress.read - progress.settled,
            complete=progress.complete and progress.read == progress.settled and not stopped,
            orphans=self._orphans,
            seconds=time.monotonic() - self._began,
            codes={code: count for code, (count, _, _) in kinds.items()},
            examples={code: (line, message) for code, (_, line, message) in kinds.items()},
            stopped=stopped,
        )
        report.add(Counters.of(progress))
        report.held_by, report.held_share = progress.bottleneck.whole
        if progress.cost is not None:
            report.total_cost = progress.spent_before.plus(progress).cost
        report.failed += progress.failed_before
        if self._to_file:
            report.output = str(self._settings.output_path)
            report.failures = str(failures_path(self._settings.output_path))
        return report
