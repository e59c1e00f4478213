"""Carries records through batches into the journal; it can be interrupted at any time.

::

    source ─ records ─▶ prepare ─▶ files of requests ─▶ upload, create ─▶ poll
                                        ▲                                   │
                                        └──── retries ◀── merge ◀─ fetch ◀──┘
                                                            └─▶ sink
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from captioner.core.cancellation import StoppedError
from captioner.core.errors import DiskError, SettingsError
from captioner.core.jsonbytes import one_line
from captioner.core.keys import KeyTable
from captioner.core.lines import BLOCK
from captioner.core.regular import reading, writing
from captioner.core.types import NO_OVERRIDES, Caption, Failure, InputRecord, PreparedRecord
from captioner.endpoints.addresses import base_url
from captioner.endpoints.transport import AiohttpTransport
from captioner.executors.batch_api.client import BatchApi
from captioner.executors.batch_api.ledger import Batch, BatchWriter, Entry, Ledger, read_entries
from captioner.executors.batch_api.merge import BatchMerger
from captioner.executors.batch_api.results import Results
from captioner.executors.batch_api.steps import BatchSteps
from captioner.journal.disk import replacing

if TYPE_CHECKING:
    from pathlib import Path

    from captioner.core.types import Outcome
    from captioner.engine.engine import Engine
    from captioner.journal.journal import Journal
    from captioner.journal.writer import JournalSink
    from captioner.settings.context import RunContext
    from captioner.settings.settings import Settings

CHUNK = 16
"""Records prepared at once."""


class BatchPipeline:
    """Carries records through batches, as `Pipeline` does through single requests.

    Cancelling the run ends it after the current step; the next run continues.

    Raises:
        SettingsError: The endpoint has no batch API, or the settings do not fit open batches.
    """

    def __init__(
        self,
        engine: Engine,
        context: RunContext,
        sink: JournalSink,
        journal: Journal,
        settled: Callable[[Outcome], None] | None,
    ) -> None:
        settings = context.settings
        ledger = Ledger.of(journal.path)
        shaping = settings.shaping(engine.model)
        _check_open_batches(ledger, settings, shaping)
        ledger.settings = shaping
        self._engine = engine
        self._context = context
        self._ledger = ledger
        self._journal = journal
        self._keys = settings.record_keys
        self._samples = settings.prompt.samples
        self._options = settings.batch
        self._raise_if_stopped = context.cancel.raise_if_requested
        self._merger = BatchMerger(engine, context, ledger, journal, sink, settled)
        self._writer: BatchWriter | None = None
        self._steps: BatchSteps | None = None  # none if another program sends the requests
        if settings.batch.batch_api:
            api = _open_api(engine, context, ledger)
            self._steps = BatchSteps(api, ledger, self._merger, context)

    async def run(self, records: AsyncIterator[list[InputRecord]]) -> None:
        """Carry all records, or as many as possible before the run stops.

        Raises:
            LimitReachedError: The time to wait is over; nothing is lost.
            RunError: The reason why the run stopped; submitted batches are noted.
        """
        self._ledger.remove_leftovers()
        submitted = await asyncio.to_thread(self._submitted)
        try:
            if self._options.from_batch_file is not None:
                await self._merge_file(self._options.from_batch_file)
                async for _ in records:  # only counted
                    self._raise_if_stopped()
            else:
                await self._write_requests(records, submitted)
            self._context.progress.complete = True
            if self._steps is not None:
                await self._steps.finish()
        except StoppedError:
            return
        except OSError as error:
            raise DiskError(
                f"the disk refused to write beside {self._journal.path.name}: "
                f"{error.strerror or error}. Submitted batches are noted; repair the disk and run "
                "the same command again."
            ) from error
        finally:
            if self._writer is not None:
                self._writer.abandon()
                self._writer = None
            if isinstance(records, AsyncGenerator):
                await records.aclose()
            if self._steps is not None:
                self._steps.show_progress()

    # -- writing requests ---------------------------------------------------------------------

    async def _write_requests(
        self, records: AsyncIterator[list[InputRecord]], submitted: KeyTable
    ) -> None:
        """Write requests for the records that are in no batch yet, and submit full batches."""
        async for batch in records:
            pending = [one for one in batch if submitted.take(self._keys.of_record(one)) is None]
            for at in range(0, len(pending), CHUNK):
                items = await asyncio.gather(*map(self._requests_of, pending[at : at + CHUNK]))
                settled = [item for item in items if isinstance(item, Caption | Failure)]
                await self._merger.settle(settled)
                for item in items:
                    if isinstance(item, Caption | Failure):
                        continue
                    entry, bodies = item
                    if self._writer is not None and not self._writer.fits(bodies):
                        await self._close_writer()
                    if self._writer is None:
                        steps = self._steps
                        self._writer = steps.new_writer() if steps else BatchWriter(self._ledger)
                    self._writer.add(entry, bodies)
                self._raise_if_stopped()
        await self._close_writer()

    def _submitted(self) -> KeyTable:
        """Return the keys of records in open batches that are not in the journal yet."""
        table = KeyTable(offsets=False)
        for batch in self._ledger.batches:
            written = (
                self._journal.keys_since(batch.journal_at) if batch.state == "merging" else None
            )
            for entry in read_entries(self._ledger.path(batch, "records")):
                self._raise_if_stopped()
                if written is None or written.take(entry.key) is None:
                    table.add(entry.key)
        return table

    async def _requests_of(self, record: InputRecord) -> tuple[Entry, list[bytes]] | Outcome:
        """Return a record's requests and release its memory, or its outcome if it needs none."""
        prepared = await self._engine.async_preparer.prepare(record)
        if not isinstance(prepared, PreparedRecord):
            return prepared
        dialect = self._engine.connected.dialect
        bodies = [
            b"".join(dialect.request(messages, NO_OVERRIDES).pieces)
            for messages in prepared.questions
            for _ in range(self._samples)
        ]
        self._engine.memory.release(prepared.reserved)
        record = prepared.record
        entry = Entry(
            record.number,
            self._keys.of_record(record),
            1,
            len(prepared.questions),
            self._samples,
            prepared.replaces,
            one_line(record.raw),
            prepared.notes,
        )
        return entry, bodies

    async def _close_writer(self) -> None:
        """Note the written batch, and submit it or write it to the user's file."""
        if self._writer is None:
            return
        batch = await asyncio.to_thread(self._writer.close)
        self._writer = None
        if self._steps is None:
            batch.state = "exported"
            await asyncio.to_thread(self._export, batch)
        self._ledger.batches.append(batch)
        await asyncio.to_thread(self._ledger.save)
        if self._steps is not None:
            await self._steps.submit()

    def _export(self, batch: Batch) -> None:
        target = self._options.to_batch_file
        if target is not None:
            requests = self._ledger.path(batch, "requests")
            with replacing(target) as partial, reading(requests) as file, writing(partial) as copy:
                while block := file.read(BLOCK):
                    self._raise_if_stopped()
                    copy.write(block)

    async def _merge_file(self, path: Path) -> None:
        """Merge the results in a file that another program has written."""
        if not await asyncio.to_thread(path.is_file):
            raise SettingsError(f"from-batch-file: there is no file {path}")
        found = False
        exported = [one for one in self._ledger.batches if one.state in ("exported", "merging")]

        def read() -> Results:
            return Results([path.resolve()], exported, self._raise_if_stopped)

        with await asyncio.to_thread(read) as results:
            for batch in exported:
                if results.has(batch.token):
                    found = True
                    await self._merger.merge(batch, results, None)
        if not found:
            raise SettingsError(
                f"from-batch-file: {path} has no response to the requests of this output; write "
                "some with --to-batch-file"
            )


def _open_api(engine: Engine, context: RunContext, ledger: Ledger) -> BatchApi:
    """Return a client of the endpoint's batch API, and note the endpoint in the ledger."""
    transport = engine.connected.transport
    if not isinstance(transport, AiohttpTransport) or context.settings.endpoint.offline:
        raise SettingsError("batch-api: this endpoint has no batch API")
    (endpoint,) = context.settings.each_endpoint
    ledger.base_url = base_url(endpoint)
    ledger.api_key_env = list(endpoint.api_key_env)
    hours = context.settings.batch.batch_max_wait
    now = asyncio.get_running_loop().time()
    until = math.inf if hours is None else now + hours * 3600
    return BatchApi(transport, context, max_outage_s=endpoint.max_outage, until=until)


def _check_open_batches(ledger: Ledger, settings: Settings, shaping: dict[str, Any]) -> None:
    """Raise `SettingsError` if the settings do not fit the open batches."""
    if changed := ledger.changed(shaping):
        raise SettingsError(
            f"open batches were made with other settings ({', '.join(changed)}): restore these "
            "until the batches are finished"
        )
    exported = any(batch.state == "exported" for batch in ledger.batches)
    remote = any(batch.state not in ("exported", "merging") for batch in ledger.batches)
    target = settings.batch.to_batch_file
    if exported and (settings.batch.batch_api or target is not None):
        option = "batch-api" if settings.batch.batch_api else "to-batch-file"
        raise SettingsError(
            f"{option}: requests of --to-batch-file wait for their answers; give these with "
            "--from-batch-file first"
        )
    if remote and not settings.batch.batch_api:
        raise SettingsError("batches are open at the provider: continue with --batch-api")
    if target is not None and target.exists() and not settings.run.overwrite:
        raise SettingsError(f"to-batch-file: {target} already exists; choose another name")
