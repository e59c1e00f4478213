"""The composition root: builds the parts of a run, lets it go, finishes the output, reports."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from captioner.core.cancellation import CancelToken, StoppedError
from captioner.core.errors import RunError, SettingsError
from captioner.core.keys import KeyTable, RecordKeys
from captioner.core.types import Progress, RunReport
from captioner.engine.engine import Engine
from captioner.executors.batch_api.ledger import Ledger
from captioner.journal.disk import Files, network_file_system
from captioner.journal.failures import failures_path
from captioner.journal.finalize import order_output, quarantine_rows
from captioner.journal.journal import Journal, companion, journal_path, read_checkpoint
from captioner.journal.resume_filter import ResumeFilter
from captioner.journal.reviews import Reviews, fingerprint, reviews_path
from captioner.journal.writer import JournalSink, RowEncoder
from captioner.outputs.export import check_format, export, targets_of
from captioner.outputs.rows import parsed
from captioner.readers.registry import open_input
from captioner.settings.locations import is_elsewhere
from captioner.settings.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from captioner.core.protocols import Dialect, Sink, Source, Transport
    from captioner.core.types import InputRecord, Outcome
    from captioner.endpoints.limiter import Limiter
    from captioner.engine.pipeline import Pipeline
    from captioner.executors.batch_api.pipeline import BatchPipeline
    from captioner.executors.processes.pool import Dispatcher, WorkerPool
    from captioner.readers.registry import Input
    from captioner.settings.options import InputFormat


async def run_batch(
    settings: Settings | str | Path,
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
        settings: The settings, or the input's path with the rest as keywords, for example
            ``run_batch("in.jsonl", base_url="http://localhost:8000/v1", model="m")``.
        output: The captions; see `Settings`.
        source: Where records come from, instead of the input file.
        sink: Where outcomes go, instead of the output file; then nothing is resumed.
        dialect: Builds requests and judges replies, instead of OpenAI's chat completions.
        transport: Carries requests, instead of aiohttp.
        progress: Kept up to date while the run goes on.
        cancel: Set it to stop the run in order.
        warn: Called with a sentence when something is worth knowing but no error.
        files: The disk.
        limits: Called with the limiters of the endpoints, for whoever shares out a limit.
        **options: Options by name, as in `Settings.create`.

    Returns:
        What was done. Failed records are counted there, not raised.

    Raises:
        SettingsError: The settings cannot work; nothing was sent or written.
        RunError: The run stopped early; what was finished is saved. Its ``report`` tells.
    """
    cancel = options.pop("stopping", CancelToken()) if cancel is None else cancel
    if not isinstance(settings, Settings):
        settings = Settings.create(settings, output, **options)
    elif options or output is not None:
        raise SettingsError("give either settings or single options, not both")
    if settings.cluster.engine != "local":
        raise SettingsError("engine: for Ray call run_on_ray")
    run = _Run(settings, progress or Progress(), cancel, warn or _ignore)
    asked = settings
    if source is None:
        found = open_source(settings)
        source = found.source
        run.format = found.format
        if found.image_field is not None:
            fields = replace(settings.records, image_field=found.image_field)
            asked = replace(settings, records=fields)
    if sink is None and settings.input is None and settings.output is None:
        raise SettingsError("an output is needed: there is no input to name it after")
    try:
        async with _open_engine(asked, run, cancel, dialect, transport, limits) as engine:
            if sink is not None:
                return await run.into_sink(engine, source, sink)
            return await run.into_journal(engine, source, files or Files())
    except StoppedError:  # before there was anything to stop
        return run.report("interrupted")


def open_source(settings: Settings) -> Input:
    """Return the input: what reads it, and what it says of its records.

    Raises:
        SettingsError: There is none, or it is the output itself.
    """
    path = settings.input
    if path is None:
        raise SettingsError("an input is needed")
    fields = settings.records
    given = fields.input_format or _as_before(settings)
    found = open_input(path, given, image_field=fields.image_field, max_line=fields.max_line)
    among = path.is_dir() and settings.output_path.absolute().is_relative_to(path.absolute())
    if among and found.format in ("webdataset", "parquet"):
        raise SettingsError(
            f"the output would lie among the inputs in {path}, and be one next time; choose "
            "another place with -o"
        )
    if not settings.output_path.name:
        raise SettingsError(f"the output {settings.output_path} is a folder; name a file with -o")
    sidecars = settings.run.output_format in ("txt", "caption")
    if os.path.realpath(path) == os.path.realpath(settings.output_path) and not sidecars:
        raise SettingsError(f"the output would overwrite the input {path}; choose another with -o")
    return found


def _as_before(settings: Settings) -> InputFormat | None:
    """Return what a folder was taken for by the run that began the output.

    The output may lie in it, and make it look like something else.
    """
    if settings.input is None or not settings.input.is_dir():
        return None
    kind = settings.run.output_format
    found = read_checkpoint(Files(), journal_path(settings.output_path, kind))
    format_: InputFormat | None = found.settings.get("folder_of") if found else None
    return format_


def _open_engine(
    settings: Settings,
    run: _Run,
    cancel: CancelToken,
    dialect: Dialect | None,
    transport: Transport | None,
    limits: Callable[[Sequence[Limiter]], None] | None,
) -> AbstractAsyncContextManager[Engine | WorkerPool]:
    """Return what captions records: an engine here, or several in processes of their own."""
    if settings.run.processes == 1:
        return Engine.open(
            settings, run.progress, cancel, dialect, transport, limits=limits, warn=run.warn
        )
    if dialect is not None or transport is not None:
        raise SettingsError("processes: a dialect or transport of one's own is for one process")
    from captioner.executors.processes.pool import WorkerPool

    return WorkerPool.open(settings, cancel, warn=run.warn)


class _Run:
    """One run and what it keeps count of."""

    def __init__(
        self,
        settings: Settings,
        progress: Progress,
        cancel: CancelToken,
        warn: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.progress = progress
        self.cancel = cancel
        self.warn = warn
        self._began = time.monotonic()
        self._orphans = 0
        self._to_file = False
        self._kinds: dict[str, tuple[int, int, str]] = {}
        self._retrying = KeyTable()
        self._stale: set[int] = set()
        self.format = ""

    async def into_sink(self, engine: Engine | WorkerPool, source: Source, sink: Sink) -> RunReport:
        """Caption into a sink of the caller's; nothing is resumed."""
        self._expect(source)
        pipeline = engine.pipeline(self.settings, sink, self.progress, self.cancel)
        return await self._reporting(pipeline.run(self._lines(source)))

    def _expect(self, source: Source) -> None:
        self.progress.size = source.size
        self.progress.limit = self.settings.records.limit or 0

    async def into_journal(
        self, engine: Engine | WorkerPool, source: Source, files: Files
    ) -> RunReport:
        """Caption into the output, continuing what it holds."""
        settings = self.settings
        self._to_file = True
        fields = settings.records
        identity = RecordKeys(settings.fields, fields.id_field)
        kind = check_format(settings.output_path, settings.run.output_format)
        path = journal_path(settings.output_path, kind)
        if (companion(path, ".shards") / "manifest.json").exists():
            raise SettingsError(
                f"an unfinished run on Ray keeps its captions in {companion(path, '.shards')}: "
                "continue it with --engine ray"
            )
        if not settings.batch.any and Ledger.of(path).batches:
            raise SettingsError(
                f"batches of {path.name} are open, submitted or written to a file: go on with "
                "--batch-api or --from-batch-file"
            )
        resolved = replace(settings, prompt=settings.prompt.resolved())
        if path != settings.output_path and not settings.run.overwrite:
            refuse_strangers(settings.output_path, path)
        shaping = resolved.shaping(engine.model)
        if self.format and settings.input is not None and settings.input.is_dir():
            shaping["folder_of"] = self.format
        journal = Journal(
            path,
            identity,
            shaping,
            failures=failures_path(settings.output_path),
            source=_where(settings.input),
            accept_changes=settings.run.accept_changes,
            accept_edits=settings.run.accept_edits,
            files=files,
        )
        if remote := network_file_system(path.parent):
            self.warn(
                f"{path.name} is on a network file system ({remote}): a run on another host may "
                "not see that this one writes to it. Start only one."
            )
        self._expect(source)
        if fields.duplicates == "error":
            await self._refuse_duplicates(source, identity)
        await asyncio.to_thread(journal.open)
        try:
            if journal.repeated:
                allowed = await self._count(source, identity, {key for _, key in journal.repeated})
                await asyncio.to_thread(journal.truncate_duplicates, allowed)
            if settings.run.retry_rejected:
                if Ledger.of(path).batches:  # they know where in the output they were merged
                    raise SettingsError(
                        "retry-rejected: batches are open; run without it until they are done"
                    )
                await asyncio.to_thread(self._take_back_rejected, journal, identity, files)
            if settings.run.retry_failed:
                before = len(self._retrying)
                await asyncio.to_thread(
                    journal.failures.forgive, settings.run.retry_failed, self._retrying
                )
                if len(self._retrying) == before and len(journal.failures.left):
                    codes = await asyncio.to_thread(journal.failures.kinds)
                    self.warn(
                        f"no failure has the code {settings.run.retry_failed!r}; there are "
                        f"{', '.join(sorted(codes))}"
                    )
            self.progress.stage = "captioning"
            return await self._reporting(self._caption(engine, source, journal, identity, files))
        finally:
            journal.close()

    def _take_back_rejected(self, journal: Journal, identity: RecordKeys, files: Files) -> None:
        """Make records pending whose captions a reviewer rejected."""
        fields = self.settings.fields
        rejected = Reviews(reviews_path(self.settings.output_path)).rejected()
        keys = {key for key, _ in rejected}

        def unwanted(line: bytes) -> bool:
            key = identity.of_output(line)
            if key is None or key not in keys:
                return False
            return (key, fingerprint(parsed(line), fields)) in rejected

        taken = quarantine_rows(journal, identity, unwanted, files) if rejected else []
        if not taken:
            self.warn("no caption in the output is one that a reviewer rejected (--retry-rejected)")
        for key in taken:  # a failure from before its caption came, say
            if (offset := journal.failures.left.take(key)) is not None:
                self._retrying.add(key, offset)

    async def _caption(
        self,
        engine: Engine | WorkerPool,
        source: Source,
        journal: Journal,
        identity: RecordKeys,
        files: Files,
    ) -> None:
        settings = self.settings
        rows = RowEncoder(identity, settings.fields)
        async with JournalSink(
            journal,
            rows,
            self.progress,
            self.cancel,
            warn=self.warn,
            disk_wait_s=settings.run.disk_wait,
        ) as sink:
            settled = self._settle if len(self._retrying) else None
            pipeline: Pipeline | Dispatcher | BatchPipeline
            if settings.batch.any and isinstance(engine, Engine):
                from captioner.executors.batch_api.pipeline import open_pipeline as batch_pipeline

                pipeline = batch_pipeline(
                    engine, settings, sink, journal, identity, self.progress, self.cancel,
                    settled, self.warn,
                )  # fmt: skip
            else:
                pipeline = engine.pipeline(settings, sink, self.progress, self.cancel, settled)
            resume_filter = ResumeFilter(
                identity,
                journal.done,
                journal.failures.left,
                journal.contents,
                self._retrying,
                duplicates=settings.records.duplicates,
                progress=self.progress,
            )
            await pipeline.run(self._lines(source, resume_filter))
        progress = self.progress
        if progress.complete and progress.settled >= progress.read and not self.cancel:
            await self._finish(source, journal, identity, files)
        elif self._stale:
            await asyncio.to_thread(journal.compact_failures, self._stale)
        if self.progress.failed_before:
            self._kinds = await asyncio.to_thread(journal.failures.kinds)

    async def _finish(
        self, source: Source, journal: Journal, identity: RecordKeys, files: Files
    ) -> None:
        """Nothing is pending: drop failures that were overtaken, and put the output in order."""
        self.progress.stage = "ordering"
        settings = self.settings
        # Failures that no record claimed; a crash while retrying leaves some that are overtaken.
        if left := {*journal.failures.left.offsets(), *self._retrying.offsets()}:
            captioned = await asyncio.to_thread(journal.rescan)
            self._stale |= journal.failures.overtaken(left, captioned)
        await asyncio.to_thread(journal.compact_failures, self._stale)
        exported = settings.output_path != journal.path
        if settings.run.order == "input" or exported:
            again = _limited(source, settings.records.limit)
            self._orphans = await order_output(journal, identity, again, files)
        else:
            self._orphans = len(journal.done)
        if exported:
            self.progress.stage = "exporting"
            await asyncio.to_thread(
                export,
                journal.path,
                settings.output_path,
                check_format(settings.output_path, settings.run.output_format),
                image_root=settings.records.image_root,
                source=settings.input,
                overwrite=settings.run.overwrite,
                own=True,
                reviewed="ignore",
            )

    async def _lines(
        self, source: Source, resume_filter: ResumeFilter | None = None
    ) -> AsyncIterator[list[InputRecord]]:
        """Yield the records that are still to be done."""
        progress = self.progress
        async with aclosing(_limited(source, self.settings.records.limit)) as batches:
            async for batch in batches:
                pending = batch if resume_filter is None else resume_filter.pending(batch)
                progress.read += len(batch)
                progress.position = batch[-1].end
                if pending:
                    yield pending
                else:
                    await asyncio.sleep(0)

    async def _refuse_duplicates(self, source: Source, identity: RecordKeys) -> None:
        seen = KeyTable()
        async for batch in _limited(source, self.settings.records.limit):
            for line in batch:
                key = line.key or identity.of_input(line.raw)
                if (first := seen.find(key)) is not None:
                    raise SettingsError(
                        f"line {line.number:,} of the input repeats line {first:,} "
                        "(--duplicates error)"
                    )
                seen.add(key, line.number)

    def _settle(self, outcome: Outcome) -> None:
        """Note that a retried record has a newer outcome than its old line says."""
        key = outcome.record.key
        if key is not None and (offset := self._retrying.take(key)) is not None:
            self._stale.add(offset)

    async def _count(
        self, source: Source, identity: RecordKeys, keys: set[bytes]
    ) -> Counter[bytes]:
        counts: Counter[bytes] = Counter()
        async for batch in _limited(source, self.settings.records.limit):
            for line in batch:
                key = line.key or identity.of_input(line.raw)
                if key in keys:
                    counts[key] += 1
        return counts

    async def _reporting(self, work: Awaitable[None]) -> RunReport:
        try:
            await work
        except RunError as error:
            error.report = self.report(type(error).__name__)
            raise
        self.progress.stage = "finished"
        return self.report("interrupted" if self.cancel else "")

    def report(self, stopped: str) -> RunReport:
        """Return what has been done so far."""
        progress = self.progress
        settled = progress.settled
        kinds = self._kinds or {
            code: (progress.codes[code], failure.record.number, failure.message)
            for code, failure in progress.examples.items()
        }
        output = self.settings.output_path if self._to_file else None
        return RunReport(
            output=str(output) if output else None,
            failures=str(failures_path(output)) if output else None,
            captioned=progress.captioned,
            resumed=progress.resumed,
            failed=progress.failed + progress.failed_before,
            skipped=progress.skipped,
            changed=progress.changed,
            shared=progress.shared,
            cached=progress.cached,
            pending=progress.read - settled,
            complete=progress.complete and progress.read == settled,
            orphans=self._orphans,
            seconds=time.monotonic() - self._began,
            calls=progress.calls,
            retries=progress.retries,
            prompt_tokens=progress.prompt_tokens,
            completion_tokens=progress.completion_tokens,
            codes={code: count for code, (count, _, _) in kinds.items()},
            examples={code: (line, message) for code, (_, line, message) in kinds.items()},
            stopped=stopped,
            cost=progress.cost,
        )


def refuse_strangers(target: Path, journal: Path) -> None:
    """Refuse to put an output in the place of a file that no run of ours has made.

    Raises:
        SettingsError: There is one.
    """
    for path in targets_of(target):
        if path.is_file() and not journal.exists():
            raise SettingsError(
                f"{path} is there already, and no run has made it; choose another output with -o, "
                "or have it replaced with --overwrite"
            )


def _where(path: Path | None) -> str:
    """Return an input's place, whatever the working directory is next time."""
    if path is None:
        return ""
    return str(path) if is_elsewhere(path) else str(path.absolute())


async def _limited(source: Source, limit: int | None) -> AsyncGenerator[list[InputRecord], None]:
    """Yield the records up to a limit; the source is closed whenever this is."""
    left = limit
    batches = source.batches()
    try:
        async for batch in batches:
            if left is None or not batch:
                if batch:
                    yield batch
                continue
            yield batch[:left]
            left -= min(left, len(batch))
            if not left:
                return
    finally:
        if isinstance(batches, AsyncGenerator):
            await batches.aclose()


def _ignore(_: str) -> None:
    """Take a warning and do nothing: a library does not print."""
