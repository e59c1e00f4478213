"""Merges the results of a batch into the journal, and writes retries into a new batch."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import (
    AttemptError,
    BadReplyError,
    ImageRejectedError,
    ParameterError,
    RecordError,
    RefusedError,
    RunError,
)
from captioner.core.humanize import counted
from captioner.core.lines import BLOCK
from captioner.core.regular import reading
from captioner.core.secrets import without_keys_in
from captioner.core.types import CaptionResult, Failure, InputRecord, Response, ValidatedCompletion
from captioner.endpoints.replies import shown, usage_of
from captioner.engine.caption_checks import CUT, attempts_for, check
from captioner.engine.pipeline import count
from captioner.executors.batch_api.ledger import Entry, body_of, read_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from captioner.core.keys import KeyTable
    from captioner.core.types import Outcome
    from captioner.engine.engine import Engine
    from captioner.executors.batch_api.ledger import Batch, BatchWriter, Ledger
    from captioner.executors.batch_api.results import Results
    from captioner.journal.journal import Journal
    from captioner.journal.writer import JournalSink
    from captioner.settings.context import RunContext

logger = logging.getLogger(__name__)

LOST = "lost"
"""Our status of a batch that the provider no longer has."""

NEVER_RAN = "batch_failed"

CHUNK = 16
"""Outcomes written at once."""

LONGEST_CODE = 64
"""Characters of the provider's own code of an error."""


@dataclass
class BatchMerger:
    """Merges the results of batches into the journal; an interrupted merge can be continued."""

    engine: Engine
    context: RunContext
    ledger: Ledger
    journal: Journal
    sink: JournalSink
    settled: Callable[[Outcome], None] | None

    async def merge(
        self, batch: Batch, results: Results, writer: Callable[[], BatchWriter] | None
    ) -> None:
        """Write outcomes into the journal, and requests to be retried into a new batch.

        Args:
            batch: The batch.
            results: Its results.
            writer: Returns a writer for the new batch; None leaves the records pending instead.
        """
        done = await self._begin(batch)
        retries = await self._settle_batch(batch, results, done, writer)
        batch.state = "merged"
        if retries is not None:
            self.ledger.batches.append(retries)
        # Saved together: a crash in between would submit the retries twice.
        await asyncio.to_thread(self.ledger.save)
        await asyncio.to_thread(self.ledger.remove_files, batch)

    async def _begin(self, batch: Batch) -> list[KeyTable]:
        """Note where merging begins; return the keys that an interrupted merge has written."""
        journal = self.journal
        if batch.state == "merging":
            return [
                await asyncio.to_thread(journal.keys_since, batch.journal_at),
                await asyncio.to_thread(journal.failures.keys_since, batch.failures_at),
            ]
        batch.journal_at, batch.failures_at = journal.length, journal.failures.size
        batch.state = "merging"
        await asyncio.to_thread(self.ledger.save)
        return []

    async def _settle_batch(
        self,
        batch: Batch,
        results: Results,
        done: list[KeyTable],
        writer: Callable[[], BatchWriter] | None,
    ) -> Batch | None:
        """Settle the records that have an outcome; return a batch of retries if there are any."""
        retries: BatchWriter | None = None
        missing = 0
        chunks = self._chunks(batch, results, done)
        try:
            while chunk := await asyncio.to_thread(next, chunks, None):
                await self.settle([one for one, _ in chunk if not isinstance(one, Entry)])
                for outcome, requests in chunk:
                    if not isinstance(outcome, Entry):
                        continue
                    if writer is not None:
                        retries = retries or writer()
                        retries.add(outcome, [body_of(line) for line in requests])
                    else:
                        missing += 1
            await self.sink.commit()
        except BaseException:
            if retries is not None:
                retries.abandon()
            raise
        if missing:
            records = counted(missing, "record has", "records have")
            logger.warning("%s no response yet; pending again", records)
        return await asyncio.to_thread(retries.close) if retries else None

    def _chunks(
        self, batch: Batch, results: Results, done: list[KeyTable]
    ) -> Iterator[list[tuple[Outcome | Entry, list[bytes]]]]:
        """Yield what becomes of records without an outcome, and the requests of those retried.

        It is run in threads: a response may be long, and its checks take their time.

        Raises:
            StoppedError: The run was cancelled.
        """
        path = self.ledger.path
        chunk: list[tuple[Outcome | Entry, list[bytes]]] = []
        held = 0
        with reading(path(batch, "requests")) as requests:
            for index, entry in enumerate(read_entries(path(batch, "records"))):
                self.context.cancel.raise_if_requested()
                lines = [requests.readline() for _ in entry.ids(batch.token, index)]
                if any(table.take(entry.key) is not None for table in done):
                    continue
                outcome = self._outcome(entry, index, batch, results)
                kept = lines if isinstance(outcome, Entry) else []
                chunk.append((outcome, kept))
                held += sum(map(len, kept))
                if len(chunk) >= CHUNK or held >= BLOCK:
                    yield chunk
                    chunk, held = [], 0
        yield chunk

    def _outcome(self, entry: Entry, index: int, batch: Batch, results: Results) -> Outcome | Entry:
        """Return the outcome of a record, or its entry in the next batch if it is retried."""
        record = InputRecord(entry.number, entry.raw, key=entry.key)
        completions: list[ValidatedCompletion] = []
        for name in entry.ids(batch.token, index):
            try:
                completions.append(self._completion(results.get(name), batch, entry.attempt))
            except RecordError as error:
                return Failure(record, error.code, error.message, entry.attempt)
            except AttemptError as error:
                if error.code == NEVER_RAN:
                    return entry
                most = self.engine.rules.max_attempts
                if isinstance(error, BadReplyError):
                    most = attempts_for(error.code, self.engine.rules)
                if entry.attempt >= most or isinstance(error, ParameterError | ImageRejectedError):
                    return Failure(record, error.code, error.message, entry.attempt)
                return entry._replace(attempt=entry.attempt + 1)
        samples = entry.samples
        each = [completions[at : at + samples] for at in range(0, len(completions), samples)]
        result = CaptionResult(each, entry.attempt)
        return self.engine.rows.caption_of(
            record, result, replaces=entry.replaces, notes=entry.notes
        )

    def _completion(
        self, result: dict[str, Any] | None, batch: Batch, attempt: int
    ) -> ValidatedCompletion:
        """Return the completion in one line of results, or raise why there is none."""
        if result is None:
            raise _no_response(batch)
        response = result.get("response")
        if not isinstance(response, dict):
            error = result.get("error")
            error = error if isinstance(error, dict) else {}
            code = shown(str(error.get("code") or "batch_error"))[:LONGEST_CODE]
            message = f"the batch has no response: {shown(str(error.get('message') or code))}"
            if code in ("batch_expired", "batch_cancelled"):
                raise BadReplyError(code, message)
            raise RefusedError(code, message)
        status = response.get("status_code")
        body = without_keys_in(orjson.dumps(response.get("body")))
        reply = Response(status if isinstance(status, int) else 200, {}, body)
        usage, progress = usage_of(reply), self.context.progress
        progress.prompt_tokens += usage.prompt_tokens
        progress.completion_tokens += usage.completion_tokens
        progress.cached_tokens += usage.cached_tokens
        try:
            completion = self.engine.connected.dialect.judge(reply)
        except RunError as error:  # it concerns one request of many; a retry may succeed
            raise BadReplyError("batch_refused", str(error)) from None
        rules = self.engine.rules
        answer = check(completion, rules, may_cut=attempt >= attempts_for(CUT[0], rules))
        return ValidatedCompletion(answer.value, completion, answer.flag)

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Write outcomes and count them."""
        if outcomes:
            await self.sink.put(outcomes)
            count(outcomes, self.context.progress, self.settled)


def _no_response(batch: Batch) -> AttemptError | RefusedError:
    """Return why a request of a batch that has ended has no response."""
    if batch.remote == LOST:
        return RefusedError(
            "batch_lost",
            f"the provider no longer has batch {batch.batch_id} or its responses; --retry "
            "batch_lost sends, and pays for, the request again",
        )
    if batch.remote == "completed":
        return RefusedError(
            "batch_no_answer",
            f"batch {batch.batch_id} is completed but has no response; --retry "
            "batch_no_answer sends the request again",
        )
    if batch.remote == "failed":  # because of other requests; this one did not run
        return BadReplyError(NEVER_RAN, "the batch was refused before the request was processed")
    return BadReplyError("batch_expired", "the batch ended before the request was processed")
