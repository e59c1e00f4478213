"""One request for equal records: those that ask the same about the same images."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.keys import KeyTable
from captioner.core.types import CaptionResult, Completion, Failure, Usage, ValidatedCompletion

if TYPE_CHECKING:
    from collections.abc import Callable

    from captioner.core.types import Caption, InputRecord, Outcome, PreparedRecord, Progress
    from captioner.engine.attempts import RecordAttempts
    from captioner.engine.cache import Cache

TAIL = 1 << 16
"""Bytes of answers that are written together."""

MAX_PARKED = 1_000
"""Records that wait for one equal to them; further ones keep their worker waiting."""


class RequestDeduplicator:
    """Captions records, equal ones by one request.

    The records that come while an equal one is under way are parked without their images. What
    was answered is kept on disk until the run ends, so that a hundred million answers take no
    more memory than their keys.

    Args:
        attempts: Captions one record.
        progress: Counts.
        dedup: Equal records of this run share an answer.
        cache: Keeps answers from run to run.
        warn: Called with a sentence when answers can be kept no longer.
    """

    def __init__(
        self,
        attempts: RecordAttempts,
        progress: Progress,
        *,
        dedup: bool,
        cache: Cache | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._attempts = attempts
        self._progress = progress
        self._answered = _Answered(warn) if dedup else None
        self._cache = cache
        self._parked: dict[bytes, _Waiters] = {}

    async def caption(self, prepared: PreparedRecord) -> Outcome:
        """Return what became of one record, whatever others are under way."""
        if prepared.known and (caption := self._known(prepared)):
            return caption
        found = await self._attempts.answers(prepared)
        if isinstance(found, Failure):
            return found
        if self._cache is not None:
            self._cache.put(prepared.key, dump(found))
        return self._attempts.caption_of(prepared.record, found, replaces=prepared.replaces)

    async def outcomes(self, prepared: PreparedRecord) -> list[Outcome]:
        """Return what became of a record and of those that waited for it; none while it waits."""
        if self._answered is None or prepared.known:
            return [await self.caption(prepared)]
        shared = await self._wait_for_equal(prepared, self._answered)
        return await self._ask(prepared, self._answered) if shared is None else shared

    async def _wait_for_equal(
        self, prepared: PreparedRecord, answered: _Answered
    ) -> list[Outcome] | None:
        """Return what an equal record gives this one, none while it is under way; None: ask."""
        key = prepared.key
        while True:
            if stored := answered.get(key):
                self._progress.shared += 1
                return [
                    self._attempts.caption_of(
                        prepared.record, load(stored), replaces=prepared.replaces
                    )
                ]
            under_way = self._parked.get(key)
            if under_way is None:
                return None
            if len(under_way.records) < MAX_PARKED:
                line = prepared.record
                if line.images:
                    line = line._replace(images=())
                under_way.records.append((line, prepared.replaces))
                return []
            if under_way.done is None:
                under_way.done = asyncio.Event()
            await under_way.done.wait()
            if under_way.failed is not None:
                return [_fails_too(under_way.failed, prepared.record)]

    async def _ask(self, prepared: PreparedRecord, answered: _Answered) -> list[Outcome]:
        """Return what became of a record and of those that waited for it."""
        key = prepared.key
        parked = self._parked[key] = _Waiters()
        try:
            found = await self._attempts.answers(prepared)
        finally:
            del self._parked[key]
            if parked.done is not None:
                parked.done.set()
        if isinstance(found, Failure):
            parked.failed = found
            self._progress.shared += len(parked.records)
            return [found, *(_fails_too(found, line) for line, _ in parked.records)]
        stored = dump(found)
        answered.put(key, stored)
        if self._cache is not None:
            self._cache.put(key, stored)
        own = self._attempts.caption_of(prepared.record, found, replaces=prepared.replaces)
        if not parked.records:
            return [own]
        self._progress.shared += len(parked.records)
        again = load(stored)
        return [
            own,
            *(self._attempts.caption_of(line, again, replaces=r) for line, r in parked.records),
        ]

    def _known(self, prepared: PreparedRecord) -> Caption | None:
        try:
            answers = load(prepared.known)
        except (ValueError, TypeError):
            return None  # somebody else has written there; it is asked for, and put right
        self._progress.cached += 1
        return self._attempts.caption_of(prepared.record, answers, replaces=prepared.replaces)

    def close(self) -> None:
        """Forget what was answered."""
        if self._answered is not None:
            self._answered.close()
            self._answered = None


class _Waiters:
    """The records that wait for one that is under way."""

    def __init__(self) -> None:
        self.records: list[tuple[InputRecord, bool]] = []
        self.done: asyncio.Event | None = None  # for those that are too many to be parked
        self.failed: Failure | None = None


def _fails_too(failure: Failure, line: InputRecord) -> Failure:
    return Failure(line, failure.code, failure.message, 0)


class _Answered:
    """Answers by key: the keys in memory, the answers in a file that nobody else sees."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._places = KeyTable()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._written = 0
        self._tail = bytearray()  # what is not written yet
        self._full = False

    def put(self, key: bytes, stored: bytes) -> None:
        if self._full:
            return
        self._places.add(key, self._written + len(self._tail))
        self._tail += len(stored).to_bytes(4, "big") + stored
        if len(self._tail) < TAIL:
            return
        try:
            self._file.write(self._tail)
            self._file.flush()
        except OSError as error:  # what is in memory stays there; no more is kept
            self._full = True
            self._warn(
                f"the temporary folder takes no more answers ({error.strerror}): equal records "
                "from now on are asked for each"
            )
        else:
            self._written += len(self._tail)
            self._tail.clear()

    def get(self, key: bytes) -> bytes:
        place = self._places.find(key)
        if place is None:
            return b""
        size = int.from_bytes(self._read(place, 4), "big")
        return self._read(place + 4, size)

    def _read(self, place: int, size: int) -> bytes:
        if place >= self._written:
            at = place - self._written
            return bytes(self._tail[at : at + size])
        return os.pread(self._file.fileno(), size, place)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written is tried again
            self._file.close()


def dump(answers: CaptionResult) -> bytes:
    """Return answers as JSON: for each question, each sample's value, reason, model and flag."""
    return orjson.dumps(
        [
            [
                (one.value, one.completion.finish_reason, one.completion.model, one.flag)
                for one in several
            ]
            for several in answers.each
        ]
    )


def load(stored: bytes) -> CaptionResult:
    """Return stored answers, which cost neither requests nor tokens.

    Raises:
        ValueError: They are not what `dump` makes.
    """
    each: Any = orjson.loads(stored)
    return CaptionResult(
        [
            [
                ValidatedCompletion(value, Completion("", reason, model, Usage()), flag)
                for value, reason, model, flag in several
            ]
            for several in each
        ],
        0,
    )
