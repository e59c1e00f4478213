"""The steps of batches at the provider: upload, create, poll, fetch, merge."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from captioner.core.errors import (
    EndpointFaultError,
    EndpointRefusedError,
    LimitReachedError,
    NotFoundError,
    RunError,
)
from captioner.core.humanize import counted, exactly, sentence
from captioner.core.regular import reading
from captioner.core.retry import LONGEST_WAIT_S
from captioner.executors.batch_api.client import ENDED, TOO_MANY_TOKENS, UnclearError
from captioner.executors.batch_api.ledger import Batch, BatchWriter, Ledger
from captioner.executors.batch_api.merge import LOST, BatchMerger
from captioner.executors.batch_api.results import MAX_LINE, Results
from captioner.journal.disk import atomic_write

if TYPE_CHECKING:
    from captioner.executors.batch_api.client import BatchApi, RemoteBatch
    from captioner.settings.context import RunContext

MAX_TRIES = 3
"""Searches without result before a batch counts as not created; refusals before a run gives up."""


@dataclass
class BatchSteps:
    """Takes the batches of a ledger through their states, and notes each step in it.

    Attributes:
        full: The provider accepts no batch until another one ends.
    """

    api: BatchApi
    ledger: Ledger
    merger: BatchMerger
    context: RunContext
    full: bool = False

    def new_writer(self) -> BatchWriter:
        """Return a writer of a batch within the limits of the settings."""
        options = self.context.settings.batch
        return BatchWriter(self.ledger, options.batch_requests, options.batch_bytes)

    async def submit(self) -> None:
        """Submit the written batches, as soon as the provider accepts all but one of them."""
        while self.full or self._unsubmitted > 1:
            await self._advance()
            await self._pause()
        await self._advance()

    @property
    def _unsubmitted(self) -> int:
        return sum(batch.state in ("written", "uploaded") for batch in self.ledger.batches)

    async def finish(self) -> None:
        """Return when all batches are merged."""
        while self.ledger.batches:
            await self._advance()
            if self.ledger.batches:
                await self._pause()

    async def _save(self) -> None:
        await asyncio.to_thread(self.ledger.save)

    async def _pause(self) -> None:
        """Wait until the next look at the batches, but not longer than the user wants."""
        self.show_progress()
        options = self.context.settings.batch
        remaining = self.api.until - asyncio.get_running_loop().time()
        if remaining <= 0:
            raise LimitReachedError(
                f"After the time of --batch-max-wait ({options.batch_max_wait:g} h), "
                f"{counted(len(self.ledger.batches), 'batch is', 'batches are')} not finished. "
                "Nothing is lost: run the same command again later."
            )
        await self.context.cancel.sleep(min(remaining, options.batch_poll))

    def show_progress(self) -> None:
        """Show the requests of open batches as the requests in flight."""
        progress = self.context.progress
        created = [batch for batch in self.ledger.batches if batch.state == "created"]
        done, of = sum(b.done for b in created), sum(b.requests for b in created)
        progress.in_flight = of - done
        progress.waiting = ""
        if created:
            statuses = ", ".join(sorted({batch.remote or "submitted" for batch in created}))
            progress.waiting = (
                f"{counted(len(created), 'batch', 'batches')} ({statuses}), "
                f"{done:,} of {counted(of, 'request')} done"
            )

    async def _advance(self) -> None:
        """Take every batch as far as it goes now."""
        for batch in list(self.ledger.batches):
            self.context.cancel.raise_if_requested()
            await self._step(batch)

    async def _step(self, batch: Batch) -> None:
        if batch.state == "written":
            batch.file_id = await self.api.upload(self.ledger.path(batch, "requests"))
            batch.state = "uploaded"
            await self._save()
        if batch.state == "creating":  # the response that creates it may have been lost
            await self._find(batch)
        if batch.state == "uploaded" and not self.full:
            await self._create(batch)
        if batch.state == "created":
            await self._poll(batch)
        if batch.state == "ended":
            await self._fetch(batch)
        if batch.state in ("fetched", "merging"):
            paths = [self.ledger.path(batch, content) for content in ("output", "errors")]
            raise_if_stopped = self.context.cancel.raise_if_requested
            with await asyncio.to_thread(Results, paths, [batch], raise_if_stopped) as results:
                writer = self.new_writer if batch.remote != "cancelled" else None
                await self.merger.merge(batch, results, writer)
            if batch.file_id:
                await self.api.delete(batch.file_id)

    async def _find(self, batch: Batch) -> None:
        """Search for a batch that may have been created; the provider's list may lag behind."""
        found = await self.api.find(batch.file_id)
        if found is not None:
            await self._note_created(batch, found)
            return
        batch.missed += 1
        if batch.missed >= MAX_TRIES:
            batch.state, batch.missed = "uploaded", 0
        await self._save()

    async def _create(self, batch: Batch) -> None:
        batch.state = "creating"
        await self._save()
        try:
            remote = await self.api.create(batch.file_id)
        except UnclearError:
            pass
        except NotFoundError as error:  # the provider no longer has the file
            batch.state, batch.file_id = "written", ""
            batch.missed += 1
            await self._save()
            if batch.missed >= MAX_TRIES:
                raise EndpointRefusedError(
                    f"The endpoint takes files but creates no batch. {sentence(error.message)} "
                    "Run without --batch-api."
                ) from None
        except EndpointFaultError as error:
            batch.state = "uploaded"
            self.context.progress.waiting = f"the batch API: {error.message}"
            await self._save()
            await self.context.cancel.sleep(min(LONGEST_WAIT_S, error.retry_after_s or 1.0))
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
        self.context.progress.calls += batch.requests
        await self._save()

    async def _poll(self, batch: Batch) -> None:
        try:
            remote = await self.api.get(batch.batch_id)
        except NotFoundError:
            batch.remote, batch.state = LOST, "fetched"
            await self._save()
            return
        batch.remote, batch.done = remote.status, remote.done
        if remote.status not in ENDED:
            return
        self.full = False
        if remote.status == "failed":
            if any(code in TOO_MANY_TOKENS for code, _, _ in remote.faults):
                await self._submit_again(batch)
                return
            await self._write_faults(batch, remote)
        batch.output_id, batch.errors_id = remote.output_id, remote.errors_id
        batch.state = "ended"
        await self._save()

    async def _submit_again(self, batch: Batch) -> None:
        """Submit a batch again when another one has ended: the provider has too much enqueued."""
        self.context.progress.calls -= batch.requests
        others = [one for one in self.ledger.batches if one is not batch]
        self.full = any(one.state == "created" for one in others)
        batch.alone += not self.full
        if batch.alone >= MAX_TRIES:
            await self._give_up(batch)
            raise EndpointRefusedError(
                f"A batch of {exactly(batch.requests, 'request')} exceeds the provider's limit of "
                "enqueued tokens. Run again with smaller batches: --batch-requests."
            )
        batch.state, batch.batch_id = "uploaded", ""
        await self._save()

    async def _write_faults(self, batch: Batch, remote: RemoteBatch) -> None:
        """Write the provider's errors about lines of a batch as results, if it names lines."""
        faults = {line: (code, message) for code, line, message in remote.faults if line}
        if not faults:
            reason = "; ".join(message for _, _, message in remote.faults) or "no reason was given"
            self.context.progress.calls -= batch.requests
            await self._give_up(batch)
            raise EndpointRefusedError(
                f"The provider refused batch {batch.batch_id}: {reason}. Its records are pending "
                "and other batches are unchanged. Fix the cause and run again."
            )

        def write() -> None:
            errors = self.ledger.path(batch, "errors")
            with (
                reading(self.ledger.path(batch, "requests")) as requests,
                atomic_write(errors, self.ledger.files, private=True) as out,
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
        await asyncio.to_thread(self.ledger.remove_files, batch)

    async def _fetch(self, batch: Batch) -> None:
        for content, file_id in (("output", batch.output_id), ("errors", batch.errors_id)):
            if file_id:
                target, most = self.ledger.path(batch, content), batch.requests * MAX_LINE
                try:
                    await self.api.download(file_id, target, most)
                except NotFoundError:
                    batch.remote = LOST
        batch.state = "fetched"
        await self._save()
