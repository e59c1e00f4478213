"""Request deduplication: records with identical requests share one response."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from captioner.core.keys import KeyTable
from captioner.core.types import (
    Caption,
    CaptionResult,
    Completion,
    Failure,
    Usage,
    ValidatedCompletion,
)
from captioner.engine.most_doubtful import PostponedError

if TYPE_CHECKING:
    from captioner.core.progress import Progress
    from captioner.core.types import InputRecord, Notes, Outcome, PreparedRecord
    from captioner.engine.cache import Cache
    from captioner.engine.rows import Rows

    class Answerer(Protocol):
        """Answers the questions of records."""

        async def answers(self, prepared: PreparedRecord) -> CaptionResult | Failure:
            """Return the answers that make a record's caption, or its failure."""


logger = logging.getLogger(__name__)

WRITE_BYTES = 1 << 16
"""Bytes of responses that are written together."""

MAX_WAITERS = 1_000
"""Records parked behind an identical request; further ones keep their worker waiting."""


class RequestDeduplicator:
    """Captions records, identical requests once.

    Records whose request is in flight already are parked without their images. Responses are kept
    in a temporary file until the run ends; only their keys are in memory.

    Args:
        attempts: Answers the questions of one record.
        rows: Makes captions of answers.
        progress: Counts.
        dedup: Records of this run with identical requests share a response.
        cache: Keeps responses from run to run.
    """

    def __init__(
        self,
        attempts: Answerer,
        rows: Rows,
        progress: Progress,
        *,
        dedup: bool,
        cache: Cache | None = None,
    ) -> None:
        self._attempts = attempts
        self._rows = rows
        self._progress = progress
        self._responses = _Responses() if dedup else None
        self._cache = cache
        self._in_flight: dict[bytes, _Waiters] = {}

    async def caption(self, prepared: PreparedRecord) -> Outcome:
        """Return the outcome of one record, whatever other requests are in flight."""
        if prepared.cached and (caption := self._from_cache(prepared)):
            return caption
        result = await self._attempts.answers(prepared)
        if isinstance(result, Failure):
            return result
        if self._cache is not None:
            self._cache.put(prepared.key, dump(result))
        return self._caption(prepared, result)

    async def outcomes(self, prepared: PreparedRecord) -> list[Outcome]:
        """Return the outcomes of a record and of those parked behind it; [] if it was parked.

        Raises:
            PostponedError: They wait for a later pass over the input.
        """
        if self._responses is None or prepared.cached:
            return [await self.caption(prepared)]
        shared = await self._share(prepared, self._responses)
        return await self._send(prepared, self._responses) if shared is None else shared

    async def _share(self, prepared: PreparedRecord, responses: _Responses) -> list[Outcome] | None:
        """Return outcomes from an identical request.

        Returns:
            ``[]`` if the record was parked behind one in flight, None if it must be sent.
        """
        key = prepared.key
        while True:
            if stored := responses.get(key):
                self._progress.shared += 1
                return [self._caption(prepared, load(stored))]
            waiters = self._in_flight.get(key)
            if waiters is None:
                return None
            if len(waiters.records) < MAX_WAITERS:
                record = prepared.record
                if record.images:
                    record = record._replace(images=())
                waiters.records.append((record, prepared.replaces, prepared.notes))
                return []
            if waiters.done is None:
                waiters.done = asyncio.Event()
            await waiters.done.wait()
            if waiters.failed is not None:
                return [_copy_of(waiters.failed, prepared.record)]

    async def _send(self, prepared: PreparedRecord, responses: _Responses) -> list[Outcome]:
        """Send a record; return its outcome and those of the records parked behind it."""
        key = prepared.key
        waiters = self._in_flight[key] = _Waiters()
        try:
            result = await self._attempts.answers(prepared)
        except PostponedError as error:
            for record, *_ in waiters.records:
                error.add(record)
            raise
        finally:
            del self._in_flight[key]
            if waiters.done is not None:
                waiters.done.set()
        self._progress.shared += len(waiters.records)
        if isinstance(result, Failure):
            waiters.failed = result
            return [result, *(_copy_of(result, record) for record, *_ in waiters.records)]
        stored = dump(result)
        responses.put(key, stored)
        own = self._caption(prepared, result)
        if self._cache is not None and isinstance(own, Caption):
            self._cache.put(key, stored)
        if not waiters.records:
            return [own]
        again = load(stored)
        return [
            own,
            *(
                self._rows.caption_of(record, again, replaces=replaces, notes=notes)
                for record, replaces, notes in waiters.records
            ),
        ]

    def _from_cache(self, prepared: PreparedRecord) -> Outcome | None:
        try:
            result = load(prepared.cached)
        except (ValueError, TypeError):
            return None  # not written by us: send the request and overwrite it
        self._progress.cached += 1
        return self._caption(prepared, result)

    def _caption(self, prepared: PreparedRecord, result: CaptionResult) -> Outcome:
        return self._rows.caption_of(
            prepared.record, result, replaces=prepared.replaces, notes=prepared.notes
        )

    def close(self) -> None:
        """Forget all responses."""
        if self._responses is not None:
            self._responses.close()
            self._responses = None


class _Waiters:
    """The records parked behind a request in flight."""

    def __init__(self) -> None:
        self.records: list[tuple[InputRecord, bool, Notes | None]] = []
        self.done: asyncio.Event | None = None  # for records beyond `MAX_WAITERS`
        self.failed: Failure | None = None


def _copy_of(failure: Failure, record: InputRecord) -> Failure:
    return Failure(record, failure.code, failure.message, 0)


class _Responses:
    """Responses by key: the keys in memory, the responses in an unnamed temporary file."""

    def __init__(self) -> None:
        self._offsets = KeyTable()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._written = 0
        self._unwritten = bytearray()
        self._full = False

    def put(self, key: bytes, stored: bytes) -> None:
        if self._full:
            return
        self._offsets.add(key, self._written + len(self._unwritten))
        self._unwritten += len(stored).to_bytes(4, "big") + stored
        if len(self._unwritten) < WRITE_BYTES:
            return
        try:
            self._file.write(self._unwritten)
            self._file.flush()
        except OSError as error:  # what is in memory stays there; no more is added
            self._full = True
            logger.warning(
                "the temporary folder is full (%s): identical requests are sent each from now on",
                error.strerror,
            )
        else:
            self._written += len(self._unwritten)
            self._unwritten.clear()

    def get(self, key: bytes) -> bytes:
        offset = self._offsets.find(key)
        if offset is None:
            return b""
        size = int.from_bytes(self._read(offset, 4), "big")
        return self._read(offset + 4, size)

    def _read(self, offset: int, size: int) -> bytes:
        if offset >= self._written:
            at = offset - self._written
            return bytes(self._unwritten[at : at + size])
        return os.pread(self._file.fileno(), size, offset)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closing retries a failed write
            self._file.close()


def dump(result: CaptionResult) -> bytes:
    """Return answers as JSON: for each question, what is kept of each sample."""
    return orjson.dumps([[_kept(one) for one in several] for several in result.each])


def _kept(one: ValidatedCompletion) -> tuple[Any, ...]:
    found = one.value, one.completion.finish_reason, one.completion.model, one.flag
    return (*found, one.asked, one.doubt) if one.asked or one.doubt is not None else found


def load(stored: bytes) -> CaptionResult:
    """Return stored answers; they count no requests and no tokens.

    Raises:
        ValueError: ``stored`` was not made by `dump`.
        TypeError: The same.
    """
    each = [[_restored(*one) for one in several] for several in orjson.loads(stored)]
    if not each or not all(each):
        raise ValueError("an answer is missing")
    return CaptionResult(each, 0)


def _restored(
    value: Any, reason: Any, model: Any, flag: Any, asked: Any = "", doubt: Any = None
) -> ValidatedCompletion:
    texts = all(isinstance(one, str) for one in (reason, model, flag, asked))
    if not texts or not isinstance(doubt, float | int | None):
        raise ValueError("it is no answer")
    completion = Completion("", reason, model, Usage())
    return ValidatedCompletion(value, completion, flag, asked=asked, doubt=doubt)
