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
import shutil
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.cancellation import StoppedError
from captioner.core.errors import (
    DiskError,
    EndpointFaultError,
    EndpointRefusedError,
    LimitReachedError,
    NotFoundError,
    RunError,
    SettingsError,
)
from captioner.core.humanize import counted
from captioner.core.jsonbytes import one_line
from captioner.core.keys import KeyTable
from captioner.core.regular import reading, writing
from captioner.core.retry import LONGEST_WAIT_S
from captioner.core.types import NO_OVERRIDES, Caption, Failure, InputRecord, PreparedRecord
from captioner.endpoints.connect import base_url
from captioner.endpoints.transport import AiohttpTransport
from captioner.executors.batch_api.client import ENDED, TOO_MANY_TOKENS, BatchApi, UnclearError
from captioner.executors.batch_api.ledger import BatchWriter, Entry, Ledger, read_entries
from captioner.executors.batch_api.merge import LOST, BatchMerger, Results
from captioner.journal.disk import atomic_write, replacing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from captioner.core.types import Outcome
    from captioner.engine.engine import Engine
    from captioner.executors.batch_api.client import RemoteBatch
    from captioner.executors.batch_api.ledger import Batch
    from captioner.journal.journal import Journal
    from captioner.journal.writer import JournalSink
    from captioner.settings.context import RunContext
    from captioner.settings.settings import Settings

MAX_TRIES = 3
"""Searches without result before a batch counts as not created; refusals before it is given up."""

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
        self._async_preparer = engine.async_preparer
        self._dialect = engine.connected.dialect
        self._memory = engine.memory
        self._api = _open_api(engine, context, ledger) if settings.batch.batch_api else None
        self._ledger = ledger
        self._journal = journal
        self._keys = settings.record_keys
        self._progress = context.progress
        self._cancel = context.cancel
        self._samples = settings.prompt.samples
        self._options = settings.batch
        self._merger = BatchMerger(engine, context, ledger, journal, sink, settled)
        self._writer: BatchWriter | None = None
        self._full = False  # the provider accepts no batch until another one ends

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
                    self._raise_if_cancelled()
            else:
                await self._write_requests(records, submitted)
            self._progress.complete = True
            while self._api is not None and self._ledger.batches:
                await self._advance(self._api)
                if self._ledger.batches:
                    await self._pause(self._api)
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
            self._show_progress()

    def _raise_if_cancelled(self) -> None:
        if self._cancel:
            raise StoppedError

    async def _save(self) -> None:
        await asyncio.to_thread(self._ledger.save)

    # -- writing requests ---------------------------------------------------------------------

    async def _write_requests(
        self, records: AsyncIterator[list[InputRecord]], submitted: KeyTable
    ) -> None:
        """Write requests for the records that are in no batch yet, and submit full batches."""
        async for batch in records:
            pending = [one for one in batch if submitted.take(self._key(one)) is None]
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
                    self._writer = self._writer or self._new_writer()
                    self._writer.add(entry, bodies)
                self._raise_if_cancelled()
        await self._close_writer()

    def _key(self, record: InputRecord) -> bytes:
        return record.key or self._keys.of_input(record.raw)

    def _submitted(self) -> KeyTable:
        """Return the keys of records in open batches that are not in the journal yet."""
        table = KeyTable(offsets=False)
        for batch in self._ledger.batches:
            written = (
                self._journal.keys_since(batch.journal_at) if batch.state == "merging" else None
            )
            for entry in read_entries(self._ledger.path(batch, "records")):
                if written is None or written.take(entry.key) is None:
                    table.add(entry.key)
        return table

    async def _requests_of(self, record: InputRecord) -> tuple[Entry, list[bytes]] | Outcome:
        """Return a record's requests and release its memory, or its outcome if it needs none."""
        prepared = await self._async_preparer.prepare(record)
        if not isinstance(prepared, PreparedRecord):
            return prepared
        bodies = [
            b"".join(self._dialect.request(messages, NO_OVERRIDES).pieces)
            for messages in prepared.questions
            for _ in range(self._samples)
        ]
        self._memory.release(prepared.reserved)
        record = prepared.record
        entry = Entry(
            record.number,
            self._key(record),
            1,
            len(prepared.questions),
            self._samples,
            prepared.replaces,
            one_line(record.raw),
        )
        return entry, bodies

    def _new_writer(self) -> BatchWriter:
        options = self._options
        one_file = self._api is None
        return BatchWriter(
            self._ledger,
            max_requests=1 << 62 if one_file else options.batch_requests,
            max_bytes=1 << 62 if one_file else options.batch_bytes,
        )

    async def _close_writer(self) -> None:
        """Note the written batch, and submit it or write it to the user's file."""
        if self._writer is None:
            return
        batch = await asyncio.to_thread(self._writer.close)
        self._writer = None
        if self._api is None:
            batch.state = "exported"
            await asyncio.to_thread(self._export, batch)
        self._ledger.batches.append(batch)
        await self._save()
        if self._api is None:
            return
        while self._full or self._unsubmitted > 1:
            await self._advance(self._api)
            await self._pause(self._api)
        await self._advance(self._api)

    @property
    def _unsubmitted(self) -> int:
        return sum(batch.state in ("written", "uploaded") for batch in self._ledger.batches)

    def _export(self, batch: Batch) -> None:
        target = self._options.to_batch_file
        if target is not None:
            requests = self._ledger.path(batch, "requests")
            with replacing(target) as partial, reading(requests) as file, writing(partial) as copy:
                shutil.copyfileobj(file, copy)

    # -- the provider's side ------------------------------------------------------------------

    async def _pause(self, api: BatchApi) -> None:
        """Wait until the next look at the batches.

        Raises:
            LimitReachedError: The time to wait is over.
            StoppedError: The run was cancelled.
        """
        self._show_progress()
        remaining = api.until - asyncio.get_running_loop().time()
        if remaining <= 0:
            raise LimitReachedError(
                f"After the time of --batch-max-wait ({self._options.batch_max_wait:g} h), "
                f"{counted(len(self._ledger.batches), 'batch is', 'batches are')} not finished. "
                "Nothing is lost: run the same command again later."
            )
        await self._cancel.sleep(min(remaining, self._options.batch_poll))

    def _show_progress(self) -> None:
        progress = self._progress
        created = [batch for batch in self._ledger.batches if batch.state == "created"]
        done, of = sum(b.done for b in created), sum(b.requests for b in created)
        progress.in_flight = of - done
        progress.waiting = ""
        if created:
            statuses = ", ".join(sorted({batch.remote or "submitted" for batch in created}))
            progress.waiting = (
                f"{counted(len(created), 'batch', 'batches')} ({statuses}), "
                f"{done:,} of {counted(of, 'request')} done"
            )

    async def _advance(self, api: BatchApi) -> None:
        """Take every batch as far as it goes now."""
        for batch in list(self._ledger.batches):
            self._raise_if_cancelled()
            await self._step(batch, api)

    async def _step(self, batch: Batch, api: BatchApi) -> None:
        if batch.state == "written":
            batch.file_id = await api.upload(self._ledger.path(batch, "requests"))
            batch.state = "uploaded"
            await self._save()
        if batch.state == "creating":  # the response that creates it may have been lost
            await self._find(batch, api)
        if batch.state == "uploaded" and not self._full:
            await self._create(batch, api)
        if batch.state == "created":
            await self._poll(batch, api)
        if batch.state == "ended":
            await self._fetch(batch, api)
        if batch.state in ("fetched", "merging"):
            paths = (self._ledger.path(batch, content) for content in ("output", "errors"))
            with await asyncio.to_thread(Results, *paths) as results:
                writer = self._new_writer if batch.remote != "cancelled" else None
                await self._merger.merge(batch, results, writer)
            if batch.file_id:
                await api.delete(batch.file_id)

    async def _find(self, batch: Batch, api: BatchApi) -> None:
        """Search for a batch that may have been created; the provider's list may lag behind."""
        found = await api.find(batch.file_id)
        if found is not None:
            await self._note_created(batch, found)
            return
        batch.missed += 1
        if batch.missed >= MAX_TRIES:
            batch.state, batch.missed = "uploaded", 0
        await self._save()

    async def _create(self, batch: Batch, api: BatchApi) -> None:
        batch.state = "creating"
        await self._save()
        try:
            remote = await api.create(batch.file_id)
        except UnclearError:
            pass
        except NotFoundError:  # the provider no longer has the file
            batch.state, batch.file_id = "written", ""
            await self._save()
        except EndpointFaultError as error:
            batch.state = "uploaded"
            self._progress.waiting = f"the batch API: {error.message}"
            await self._save()
            await self._cancel.sleep(min(LONGEST_WAIT_S, error.retry_after_s or 1.0))
        except RunError:
            batch.state = "uploaded"
            await self._save()
            raise
        else:
            await self._note_created(batch, remote)

    async def _note_created(self, batch: Batch, remote: RemoteBatch) -> None:
        batch.batch_id = remote.id
        batch.remote = remote.status
        batch.state, batch.missed = "created", 0
        self._progress.calls += batch.requests
        await self._save()

    async def _poll(self, batch: Batch, api: BatchApi) -> None:
        try:
            remote = await api.get(batch.batch_id)
        except NotFoundError:
            batch.remote, batch.state = LOST, "fetched"
            await self._save()
            return
        batch.remote, batch.done = remote.status, remote.done
        if remote.status not in ENDED:
            return
        self._full = False
        if remote.status == "failed":
            if any(code in TOO_MANY_TOKENS for code, _, _ in remote.faults):
                await self._submit_again(batch)
                return
            await self._write_faults(batch, remote)
        batch.output_id, batch.errors_id = remote.output_id, remote.errors_id
        batch.state = "ended"
        await self._save()

    async def _submit_again(self, batch: Batch) -> None:
        """Submit a batch again when another one has ended: the provider has too much enqueued.

        Raises:
            EndpointRefusedError: It was refused repeatedly with no other batch open.
        """
        self._progress.calls -= batch.requests
        others = [one for one in self._ledger.batches if one is not batch]
        self._full = any(one.state == "created" for one in others)
        batch.alone += not self._full
        if batch.alone >= MAX_TRIES:
            await self._give_up(batch)
            raise EndpointRefusedError(
                f"A batch of {counted(batch.requests, 'request')} exceeds the provider's limit of "
                "enqueued tokens. Run again with smaller batches: --batch-requests."
            )
        batch.state, batch.batch_id = "uploaded", ""
        await self._save()

    async def _write_faults(self, batch: Batch, remote: RemoteBatch) -> None:
        """Write the provider's errors about single lines of a refused batch as results.

        Raises:
            EndpointRefusedError: The provider refused the whole batch.
        """
        faults = {line: (code, message) for code, line, message in remote.faults if line}
        if not faults:
            reason = "; ".join(message for _, _, message in remote.faults) or "no reason was given"
            self._progress.calls -= batch.requests
            await self._give_up(batch)
            raise EndpointRefusedError(
                f"The provider refused batch {batch.batch_id}: {reason}. Its records are pending "
                "and other batches are unchanged. Fix the cause and run again."
            )

        def write() -> None:
            errors = self._ledger.path(batch, "errors")
            with (
                reading(self._ledger.path(batch, "requests")) as requests,
                atomic_write(errors, self._ledger.files, private=True) as out,
            ):
                for number, line in enumerate(requests, 1):
                    if number in faults:
                        code, message = faults[number]
                        error = {"code": code or "batch_rejected", "message": message}
                        name = orjson.loads(line)["custom_id"]
                        row = {"custom_id": name, "response": None, "error": error}
                        out.write(orjson.dumps(row) + b"\n")

        await asyncio.to_thread(write)

    async def _give_up(self, batch: Batch) -> None:
        """Drop a batch without results: its records are pending again."""
        batch.state = "merged"
        await self._save()
        await asyncio.to_thread(self._ledger.remove_files, batch)

    async def _fetch(self, batch: Batch, api: BatchApi) -> None:
        for content, file_id in (("output", batch.output_id), ("errors", batch.errors_id)):
            if file_id:
                try:
                    await api.download(file_id, self._ledger.path(batch, content))
                except NotFoundError:
                    batch.remote = LOST
        batch.state = "fetched"
        await self._save()

    async def _merge_file(self, path: Path) -> None:
        """Merge the results in a file that another program has written.

        Raises:
            SettingsError: There is no such file, or it has no result for our requests.
        """
        if not await asyncio.to_thread(path.is_file):
            raise SettingsError(f"from-batch-file: there is no file {path}")
        found = False
        with await asyncio.to_thread(lambda: Results(path.resolve())) as results:
            for batch in list(self._ledger.batches):
                if batch.state in ("exported", "merging") and results.has(batch.token):
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
    """Check that the settings fit the open batches.

    Raises:
        SettingsError: They do not.
    """
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
