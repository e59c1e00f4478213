"""Carries records through the provider's batch API into the journal, however often it is stopped.

::

    source ─ lines ─▶ prepare ─▶ files of requests ─▶ upload, create ─▶ poll
                                      ▲                                   │
                                      └── asked again ◀── merge ◀─ fetch ◀┘
                                                            └─▶ sink
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.cancellation import StoppedError
from captioner.core.errors import (
    DiskError,
    EndpointFaultError,
    EndpointRefusedError,
    LimitReachedError,
    NotFoundError,
    SettingsError,
)
from captioner.core.keys import KeyTable
from captioner.core.types import NO_OVERRIDES, Failure, InputRecord, PreparedRecord
from captioner.endpoints.connect import base_url
from captioner.endpoints.transport import AiohttpTransport
from captioner.executors.batch_api.client import ENDED, TOO_MANY_TOKENS, BatchApi, UnclearError
from captioner.executors.batch_api.ledger import BatchWriter, Entry, Ledger, entry_of, read_entries
from captioner.executors.batch_api.merge import LOST, BatchMerger, Results
from captioner.outputs.export import replacing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from captioner.core.cancellation import CancelToken
    from captioner.core.keys import RecordKeys
    from captioner.core.memory import MemoryBudget
    from captioner.core.protocols import Dialect
    from captioner.core.types import Outcome, Progress
    from captioner.engine.attempts import RecordAttempts
    from captioner.engine.caption_checks import CaptionRules
    from captioner.engine.engine import Engine
    from captioner.engine.prepare_async import AsyncPreparer
    from captioner.executors.batch_api.client import RemoteBatch
    from captioner.executors.batch_api.ledger import Batch
    from captioner.journal.journal import Journal
    from captioner.journal.writer import JournalSink
    from captioner.settings.options import BatchSettings
    from captioner.settings.settings import Settings

LOOKS = 3
"""Looks that must not find a batch before it is taken for never created."""

AT_ONCE = 16
"""Records prepared at once."""


class BatchPipeline:
    """Carries records through batches, as `Pipeline` does through single requests.

    Args:
        preparation: Makes records ready.
        dialect: Builds requests, judges replies.
        attempts: Makes captions of answers.
        rules: What a caption has to be like.
        budget: Bytes held by prepared records.
        api: The provider; None where files are written for somebody else to run.
        ledger: What has been handed over.
        journal: Open, to tell what a merge that was cut short has written.
        identity: Computes keys.
        sink: Takes outcomes.
        progress: Counts.
        cancel: Ends everything after the step at hand.
        samples: Answers to each question.
        options: Sizes and waits.
        settled: Called with every outcome after it is written.
        warn: Called with a sentence when something is worth knowing but no error.
    """

    def __init__(
        self,
        preparation: AsyncPreparer,
        dialect: Dialect,
        attempts: RecordAttempts,
        rules: CaptionRules,
        budget: MemoryBudget,
        api: BatchApi | None,
        ledger: Ledger,
        journal: Journal,
        identity: RecordKeys,
        sink: JournalSink,
        progress: Progress,
        cancel: CancelToken,
        *,
        samples: int,
        options: BatchSettings,
        settled: Callable[[Outcome], None] | None,
        warn: Callable[[str], None],
    ) -> None:
        self._preparation = preparation
        self._dialect = dialect
        self._budget = budget
        self._api = api
        self._ledger = ledger
        self._journal = journal
        self._identity = identity
        self._progress = progress
        self._cancel = cancel
        self._samples = samples
        self._options = options
        self._merging = BatchMerger(
            ledger, journal, sink, dialect, attempts, rules, progress, settled=settled, warn=warn
        )
        self._writer: BatchWriter | None = None
        self._held = False  # the provider takes no more until something ends
        loop = asyncio.get_running_loop()
        hours = options.batch_max_wait
        self._until = math.inf if hours is None else loop.time() + hours * 3600
        if api is not None:
            api.until = self._until

    async def run(self, lines: AsyncIterator[list[InputRecord]]) -> None:
        """Carry all records, or as far as the run goes before it is stopped.

        Raises:
            LimitReachedError: The time to wait is over; nothing is lost.
            RunError: What stopped the run; everything submitted is noted.
        """
        self._ledger.sweep()
        handed = await asyncio.to_thread(self._handed_over)
        try:
            if self._options.from_batch_file is not None:
                await self._take_given(self._options.from_batch_file)
                await self._read_only(lines)
            else:
                await self._take_in(lines, handed)
            self._progress.complete = True
            if self._api is not None:
                await self._see_through()
        except StoppedError:
            return
        except OSError as error:
            raise DiskError(
                f"the disk refused to write beside {self._journal.path.name}: "
                f"{error.strerror or error}. What was submitted is noted; mend the disk and run "
                "the same command again."
            ) from error
        finally:
            if self._writer is not None:
                self._writer.abandon()
                self._writer = None
            if isinstance(lines, AsyncGenerator):
                await lines.aclose()
            self._tell()

    # -- in -----------------------------------------------------------------------------------

    async def _take_in(self, lines: AsyncIterator[list[InputRecord]], handed: KeyTable) -> None:
        """Write requests for the records that are in no batch yet, submitting full ones."""
        async for batch in lines:
            left = [line for line in batch if handed.take(self._key(line)) is None]
            for at in range(0, len(left), AT_ONCE):
                chunk = left[at : at + AT_ONCE]
                items = await asyncio.gather(*map(self._requests_of, chunk))
                await self._merging.settle([item for item in items if isinstance(item, Failure)])
                for item in items:
                    if not isinstance(item, Failure):
                        await self._add(*item)
                if self._cancel:
                    raise StoppedError
        await self._close_writer()

    def _key(self, line: InputRecord) -> bytes:
        return line.key or self._identity.of_input(line.raw)

    def _handed_over(self) -> KeyTable:
        """Return the records of open batches that are not in the journal yet."""
        table = KeyTable(offsets=False)
        for batch in self._ledger.batches:
            written = self._journal.since(batch.journal_at) if batch.state == "merging" else None
            for entry in read_entries(self._ledger.path(batch, "records")):
                if written is None or written.take(entry.key) is None:
                    table.add(entry.key)
        return table

    async def _read_only(self, lines: AsyncIterator[list[InputRecord]]) -> None:
        """Count the records; nothing is handed over."""
        async for _ in lines:
            if self._cancel:
                raise StoppedError

    async def _requests_of(self, line: InputRecord) -> tuple[Entry, list[bytes]] | Failure:
        """Return a record's requests; its place in the memory budget is free again."""
        prepared = await self._preparation.prepare(line)
        if not isinstance(prepared, PreparedRecord):
            return prepared
        bodies = [
            b"".join(self._dialect.request(messages, NO_OVERRIDES).pieces)
            for messages in prepared.questions
            for _ in range(self._samples)
        ]
        self._budget.release(prepared.reserved)
        entry = entry_of(
            prepared.record,
            self._key(prepared.record),
            questions=len(prepared.questions),
            samples=self._samples,
            replaces=prepared.replaces,
        )
        return entry, bodies

    async def _add(self, entry: Entry, bodies: list[bytes]) -> None:
        if self._writer is not None and not self._writer.fits(bodies):
            await self._close_writer()
        if self._writer is None:
            self._writer = self._new_writer()
        self._writer.add(entry, bodies)

    def _new_writer(self) -> BatchWriter:
        options = self._options
        whole = self._api is None  # one file for whoever runs it
        return BatchWriter(
            self._ledger,
            max_requests=1 << 62 if whole else options.batch_requests,
            max_bytes=1 << 62 if whole else options.batch_bytes,
        )

    async def _close_writer(self) -> None:
        """Note a batch that is written, and hand it over as soon as the provider takes it."""
        if self._writer is None:
            return
        batch = await asyncio.to_thread(self._writer.close)
        self._writer = None
        if self._api is None:
            batch.state = "exported"
            await asyncio.to_thread(self._hand_out, batch)
        self._ledger.batches.append(batch)
        await self._save()
        if self._api is None:
            return
        while self._held or self._waiting_to_go() > 1:
            await self._advance()
            await self._pause()
        await self._advance()

    def _waiting_to_go(self) -> int:
        return sum(batch.state in ("written", "uploaded") for batch in self._ledger.batches)

    def _hand_out(self, batch: Batch) -> None:
        target = self._options.to_batch_file
        if target is None:
            return
        with replacing(target) as partial:
            shutil.copyfile(self._ledger.path(batch, "requests"), partial)

    async def _save(self) -> None:
        await asyncio.to_thread(self._ledger.save)

    # -- through ------------------------------------------------------------------------------

    async def _see_through(self) -> None:
        while self._ledger.batches:
            await self._advance()
            if self._ledger.batches:
                await self._pause()

    async def _pause(self) -> None:
        """Wait until the batches are to be looked at again.

        Raises:
            LimitReachedError: For longer than the user wants to.
            StoppedError: The run stops.
        """
        self._tell()
        left = self._until - asyncio.get_running_loop().time()
        if left <= 0:
            raise LimitReachedError(
                f"{len(self._ledger.batches)} batches are not done after "
                f"{self._options.batch_max_wait:g} hours (--batch-max-wait). Nothing is lost: run "
                "the same command again when they are."
            )
        await self._cancel.sleep(min(left, self._options.batch_poll))

    def _tell(self) -> None:
        progress = self._progress
        at_provider = [batch for batch in self._ledger.batches if batch.state == "created"]
        progress.in_flight = sum(batch.requests - batch.done for batch in at_provider)
        if not at_provider:
            progress.waiting = ""
            return
        done, of = sum(b.done for b in at_provider), sum(b.requests for b in at_provider)
        words = ", ".join(sorted({batch.remote or "submitted" for batch in at_provider}))
        progress.waiting = f"{len(at_provider)} batches ({words}), {done:,} of {of:,} requests done"

    async def _advance(self) -> None:
        """Take every batch as far as it goes now."""
        for batch in list(self._ledger.batches):
            if self._cancel:
                raise StoppedError
            await self._step(batch)

    async def _step(self, batch: Batch) -> None:
        api = self._api
        if api is None or batch.state == "exported":
            return
        if batch.state == "written":
            batch.file_id = await api.upload(self._ledger.path(batch, "requests"))
            batch.state = "uploaded"
            await self._save()
        if batch.state == "creating":  # was it created, and its id lost?
            await self._look_for(batch, api)
        if batch.state == "uploaded" and not self._held:
            await self._create(batch, api)
        if batch.state == "created":
            await self._look(batch, api)
        if batch.state == "ended":
            await self._fetch(batch, api)
        if batch.state in ("fetched", "merging"):
            await self._merge(batch, api)

    async def _look_for(self, batch: Batch, api: BatchApi) -> None:
        """Find a batch that may have been created; a list may lag, so one look is not enough."""
        found = await api.find(batch.file_id)
        if found is not None:
            await self._created(batch, found)
            return
        batch.missed += 1
        if batch.missed >= LOOKS:
            batch.state, batch.missed = "uploaded", 0
        await self._save()

    async def _create(self, batch: Batch, api: BatchApi) -> None:
        batch.state = "creating"
        await self._save()
        try:
            remote = await api.create(batch.file_id)
        except UnclearError:
            return
        except NotFoundError:
            batch.state, batch.file_id = "written", ""  # it has forgotten the file
        except EndpointFaultError as error:
            batch.state = "uploaded"
            self._progress.waiting = f"the batch API: {error.message}"
            await self._save()
            await self._cancel.sleep(min(60.0, error.retry_after_s or 1.0))
        except EndpointRefusedError:
            batch.state = "uploaded"
            await self._save()
            raise
        else:
            await self._created(batch, remote)
            return
        await self._save()

    async def _created(self, batch: Batch, remote: RemoteBatch) -> None:
        batch.batch_id = remote.id
        batch.remote = remote.status
        batch.state, batch.missed = "created", 0
        self._progress.calls += batch.requests
        await self._save()

    async def _look(self, batch: Batch, api: BatchApi) -> None:
        try:
            remote = await api.get(batch.batch_id)
        except NotFoundError:
            batch.remote, batch.state = LOST, "fetched"
            await self._save()
            return
        batch.remote, batch.done = remote.status, remote.done
        if remote.status not in ENDED:
            return
        self._held = False
        if remote.status == "failed":
            if any(code in TOO_MANY_TOKENS for code, _, _ in remote.faults):
                # It counts for nothing, and goes again when another one has ended.
                self._progress.calls -= batch.requests
                others = [one for one in self._ledger.batches if one is not batch]
                self._held = any(one.state == "created" for one in others)
                batch.alone += not self._held
                if batch.alone >= LOOKS:
                    await self._give_up(batch)
                    raise EndpointRefusedError(
                        f"A batch of {batch.requests:,} requests is more than the provider's limit "
                        "of enqueued tokens. Run again with smaller ones: --batch-requests."
                    )
                batch.state, batch.batch_id = "uploaded", ""
                await self._save()
                return
            await self._write_faults(batch, remote)
        batch.output_id, batch.errors_id = remote.output_id, remote.errors_id
        batch.state = "ended"
        await self._save()

    async def _write_faults(self, batch: Batch, remote: RemoteBatch) -> None:
        """Make errors of what the provider says of single lines of a batch that it refused.

        Raises:
            EndpointRefusedError: It says so of all of it.
        """
        told = {line: (code, message) for code, line, message in remote.faults if line}
        if not told:
            reason = "; ".join(message for _, _, message in remote.faults) or "no reason was given"
            self._progress.calls -= batch.requests
            await self._give_up(batch)
            raise EndpointRefusedError(
                f"The provider refused batch {batch.batch_id}: {reason}. Mend that and run again: "
                "its records are pending, other batches are as they were."
            )
        path = self._ledger.path(batch, "errors")

        def write() -> None:
            with (
                self._ledger.path(batch, "requests").open("rb") as requests,
                path.open("wb") as out,
            ):
                for number, line in enumerate(requests, 1):
                    if number in told:
                        code, message = told[number]
                        error = {"code": code or "batch_rejected", "message": message}
                        name = orjson.loads(line)["custom_id"]
                        row = {"custom_id": name, "response": None, "error": error}
                        out.write(orjson.dumps(row) + b"\n")
                out.flush()
                os.fsync(out.fileno())

        await asyncio.to_thread(write)

    async def _give_up(self, batch: Batch) -> None:
        """Forget a batch of which nothing was done: its records are pending."""
        batch.state = "merged"
        await self._save()
        await asyncio.to_thread(self._ledger.forget, batch)

    async def _fetch(self, batch: Batch, api: BatchApi) -> None:
        for what, file_id in (("output", batch.output_id), ("errors", batch.errors_id)):
            if file_id:
                try:
                    await api.download(file_id, self._ledger.path(batch, what))
                except NotFoundError:
                    batch.remote = LOST
        batch.state = "fetched"
        await self._save()

    # -- out ----------------------------------------------------------------------------------

    async def _take_given(self, given: Path) -> None:
        """Merge the results of files that somebody else has run.

        Raises:
            SettingsError: There is no such file, or it answers no request of ours.
        """
        if not await asyncio.to_thread(given.is_file):
            raise SettingsError(f"from-batch-file: there is no file {given}")
        taken = 0
        results = await asyncio.to_thread(Results, [given])
        try:
            for batch in list(self._ledger.batches):
                if batch.state in ("exported", "merging") and results.answers(batch.token):
                    taken += 1
                    await self._merging.merge(batch, None, results)
        finally:
            results.close()
        if not taken:
            raise SettingsError(
                f"from-batch-file: {given} answers none of the requests that wait for answers; "
                "write some with --to-batch-file"
            )

    async def _merge(self, batch: Batch, api: BatchApi) -> None:
        again = batch.remote != "cancelled"
        await self._merging.merge(batch, self._new_writer if again else None)
        if batch.file_id:
            await api.delete(batch.file_id)


def open_pipeline(
    engine: Engine,
    settings: Settings,
    sink: JournalSink,
    journal: Journal,
    identity: RecordKeys,
    progress: Progress,
    cancel: CancelToken,
    settled: Callable[[Outcome], None] | None,
    warn: Callable[[str], None],
) -> BatchPipeline:
    """Return a pipeline that sends records through the batch API, or through files.

    Raises:
        SettingsError: The endpoint is not one that has it.
    """
    ledger = Ledger.of(journal.path)
    shaping = replace(settings, prompt=settings.prompt.resolved()).shaping(engine.model)
    _refuse_to_mix(ledger, settings, shaping)
    ledger.settings = shaping
    api = None
    if settings.batch.batch_api:
        transport = engine.connected.transport
        if not isinstance(transport, AiohttpTransport) or settings.endpoint.offline:
            raise SettingsError("batch-api: it needs an endpoint that has it")
        (endpoint,) = settings.each_endpoint

        def note(text: str) -> None:
            progress.waiting = text

        api = BatchApi(transport, cancel, max_outage_s=endpoint.max_outage, note=note)
        ledger.base_url = base_url(endpoint)
        ledger.api_key_env = list(endpoint.api_key_env)
    return BatchPipeline(
        engine.preparation,
        engine.connected.dialect,
        engine.attempts,
        engine.rules,
        engine.budget,
        api,
        ledger,
        journal,
        identity,
        sink,
        progress,
        cancel,
        samples=settings.prompt.samples,
        options=settings.batch,
        settled=settled,
        warn=warn,
    )


def _refuse_to_mix(ledger: Ledger, settings: Settings, shaping: dict[str, Any]) -> None:
    """Refuse what does not go with the batches that are open.

    Raises:
        SettingsError: The settings are others, or the batches go another way.
    """
    if changed := ledger.changed(shaping):
        raise SettingsError(
            f"batches are open that were made with other settings ({', '.join(changed)}): go back "
            "to those until they are done"
        )
    exported = any(batch.state == "exported" for batch in ledger.batches)
    remote = any(batch.state not in ("exported", "merging") for batch in ledger.batches)
    if exported and settings.batch.batch_api:
        raise SettingsError(
            "batch-api: requests written with --to-batch-file wait for their answers; give them "
            "with --from-batch-file first"
        )
    if remote and not settings.batch.batch_api:
        raise SettingsError("batches are open at the provider: go on with --batch-api")
    target = settings.batch.to_batch_file
    if target is None:
        return
    if exported:
        raise SettingsError(
            "to-batch-file: requests were written already and wait for their answers; give them "
            "with --from-batch-file first"
        )
    if target.exists() and not settings.run.overwrite:
        raise SettingsError(f"to-batch-file: {target} is there already; choose another name")
