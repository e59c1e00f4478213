"""What came back from a batch: into the journal, or into a batch of what is to be asked again."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import (
    AttemptError,
    BadReplyError,
    ImageRejectedError,
    ParameterError,
    RefusedError,
    RunError,
)
from captioner.core.secrets import masked
from captioner.core.types import CaptionResult, Failure, InputRecord, Response, ValidatedCompletion
from captioner.engine.caption_checks import attempts_for, check
from captioner.engine.pipeline import count
from captioner.executors.batch_api.ledger import Entry, read_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from captioner.core.keys import KeyTable
    from captioner.core.types import Outcome
    from captioner.engine.engine import Engine
    from captioner.executors.batch_api.ledger import Batch, BatchWriter, Ledger
    from captioner.journal.journal import Journal
    from captioner.journal.writer import JournalSink
    from captioner.settings.context import RunContext

logger = logging.getLogger(__name__)

LOST = "lost"
"""What we call a batch that the provider has forgotten."""

NEVER_RAN = "batch_failed"

AT_ONCE = 16
"""Outcomes written at once."""


class BatchMerger:
    """Merges the results of batches into the journal; an interrupted merge can be continued.

    Args:
        engine: Parses responses and makes captions of answers.
        context: The run.
        ledger: The batches of the output.
        journal: Open; tells what an interrupted merge has written.
        sink: Takes outcomes.
        settled: Called with every outcome after it is written.
    """

    def __init__(
        self,
        engine: Engine,
        context: RunContext,
        ledger: Ledger,
        journal: Journal,
        sink: JournalSink,
        settled: Callable[[Outcome], None] | None,
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._sink = sink
        self._dialect = engine.connected.dialect
        self._attempts = engine.attempts
        self._rules = engine.rules
        self._progress = context.progress
        self._settled = settled

    async def merge(
        self, batch: Batch, writer: Callable[[], BatchWriter] | None, given: Results | None = None
    ) -> None:
        """Write what came back into the journal, and what is to be asked again into a batch.

        Args:
            batch: Whose results have been fetched.
            writer: Makes what writes that batch; None where nothing is asked again.
            given: Results of files that somebody else has run.
        """
        ledger = self._ledger
        done = await self._begin(batch)
        results = given
        if results is None:
            results = await asyncio.to_thread(self._results_of, batch)
        try:
            more = await self._sort(batch, results, done, writer)
        finally:
            if given is None:
                results.close()
        batch.state = "merged"
        if more is not None:
            ledger.batches.append(more)
        # Both in one: else a crash between would ask for some twice.
        await asyncio.to_thread(ledger.save)
        await asyncio.to_thread(ledger.forget, batch)

    async def _begin(self, batch: Batch) -> list[KeyTable]:
        """Note where merging begins; return what a merge that was cut short has written."""
        journal = self._journal
        if batch.state == "merging":
            return [
                await asyncio.to_thread(journal.keys_since, batch.journal_at),
                await asyncio.to_thread(journal.failures.keys_since, batch.failures_at),
            ]
        batch.journal_at, batch.failures_at = journal.length, journal.failures.size
        batch.state = "merging"
        await asyncio.to_thread(self._ledger.save)
        return []

    def _results_of(self, batch: Batch) -> Results:
        paths = [self._ledger.path(batch, what) for what in ("output", "errors")]
        return Results([path for path in paths if path.exists()])

    async def _sort(
        self,
        batch: Batch,
        results: Results,
        done: list[KeyTable],
        writer: Callable[[], BatchWriter] | None,
    ) -> Batch | None:
        """Settle what has an outcome; return a batch of what is to be asked again, if any is."""
        ledger = self._ledger
        retry: BatchWriter | None = None
        outcomes: list[Outcome] = []
        missing = 0
        try:
            with ledger.path(batch, "requests").open("rb") as requests:
                for index, entry in enumerate(read_entries(ledger.path(batch, "records"))):
                    lines = [requests.readline() for _ in entry.ids(batch.token, index)]
                    if any(table.take(entry.key) is not None for table in done):
                        continue
                    outcome, attempt = self._outcome(entry, index, batch, results)
                    if outcome is not None:
                        outcomes.append(outcome)
                    elif writer is not None:
                        retry = retry or writer()
                        retry.add(entry._replace(attempt=attempt), [_body(line) for line in lines])
                    else:
                        missing += 1
                    if len(outcomes) >= AT_ONCE:
                        await self.settle(outcomes)
                        outcomes = []
            await self.settle(outcomes)
            await self._sink.commit()
        except BaseException:
            if retry is not None:
                retry.abandon()
            raise
        if missing:
            logger.warning("%d records have no answer yet and are pending again", missing)
        return await asyncio.to_thread(retry.close) if retry else None

    def _outcome(
        self, entry: Entry, index: int, batch: Batch, results: Results
    ) -> tuple[Outcome | None, int]:
        """Return what became of a record; None if it is to be asked for again, as which attempt."""
        line = InputRecord(entry.number, entry.raw, key=entry.key)
        answers: list[ValidatedCompletion] = []
        for name in entry.ids(batch.token, index):
            try:
                answers.append(self._answer(results.get(name), batch))
            except RefusedError as error:
                return Failure(line, error.code, error.message, entry.attempt), 0
            except AttemptError as error:
                if error.code == NEVER_RAN:
                    return None, entry.attempt
                most = self._rules.max_attempts
                if isinstance(error, BadReplyError):
                    most = attempts_for(error.code, self._rules)
                if entry.attempt >= most or isinstance(error, ParameterError | ImageRejectedError):
                    return Failure(line, error.code, error.message, entry.attempt), 0
                return None, entry.attempt + 1
        each = [answers[at : at + entry.samples] for at in range(0, len(answers), entry.samples)]
        answered = CaptionResult(each, entry.attempt)
        return self._attempts.caption_of(line, answered, replaces=entry.replaces), 0

    def _answer(self, result: dict[str, Any] | None, batch: Batch) -> ValidatedCompletion:
        """Return the answer in one line of results.

        Raises:
            AttemptError: There is none; another attempt may have one.
            RefusedError: There never will be.
        """
        if result is None:
            raise _without_answer(batch)
        response = result.get("response")
        if not isinstance(response, dict):
            error = result.get("error")
            error = error if isinstance(error, dict) else {}
            code = str(error.get("code") or "batch_error")
            message = f"the batch has no answer: {masked(str(error.get('message') or code))[:300]}"
            if code in ("batch_expired", "batch_cancelled"):
                raise BadReplyError(code, message)
            raise RefusedError(code, message)
        status = response.get("status_code")
        body = orjson.dumps(response.get("body"))
        reply = Response(status if isinstance(status, int) else 200, {}, body)
        try:
            completion = self._dialect.judge(reply)
        except RunError as error:  # of one request among many: another batch may fare better
            raise BadReplyError("batch_refused", str(error)) from None
        answer = check(completion, self._rules)
        return ValidatedCompletion(answer.value, completion, answer.flag)

    async def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Write outcomes, and count them."""
        if not outcomes:
            return
        await self._sink.put(outcomes)
        count(outcomes, self._progress, self._settled)


def _without_answer(batch: Batch) -> AttemptError | RefusedError:
    """Return why a request of a batch that has ended has no answer."""
    if batch.remote == LOST:
        return RefusedError(
            "batch_lost",
            f"the provider has forgotten batch {batch.batch_id} or its answers; --retry-failed "
            "asks, and pays, again",
        )
    if batch.remote == "completed":
        return RefusedError(
            "batch_no_answer",
            f"batch {batch.batch_id} is completed, but has no answer; --retry-failed asks again",
        )
    if batch.remote == "failed":  # for other lines of it: this one has not run
        return BadReplyError(NEVER_RAN, "the batch was refused before the request was done")
    return BadReplyError("batch_expired", "the batch ended before the request was done")


def _body(line: bytes) -> bytes:
    """Return the body in a line of requests as it stands there."""
    _, mark, rest = line.partition(b',"body":')
    if not mark:
        raise ValueError("no line of requests")
    return rest.rstrip(b"\n")[:-1]


class Results:
    """Lines of results by their ids, wherever they stand in the files.

    Args:
        paths: The files.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        self._places: dict[str, tuple[int, int]] = {}
        self._tokens: set[str] = set()
        for number, file in enumerate(self._files):
            at = 0
            for line in file:
                name = _id(line)
                if name and name not in self._places:  # an answer goes before an error
                    self._places[name] = number, at
                    self._tokens.add(name.partition(".")[0])
                at += len(line)

    def get(self, name: str) -> dict[str, Any] | None:
        """Return a line, None if there is none."""
        if name not in self._places:
            return None
        number, at = self._places[name]
        self._files[number].seek(at)
        value: dict[str, Any] = orjson.loads(self._files[number].readline())
        return value

    def answers(self, token: str) -> bool:
        """Tell whether there are any for a batch's requests."""
        return token in self._tokens

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def _id(line: bytes) -> str:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return ""
    name = value.get("custom_id") if isinstance(value, dict) else None
    return name if isinstance(name, str) else ""
