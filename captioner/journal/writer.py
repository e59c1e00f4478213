"""The writer: writes outcomes to the journal in batches, as lines that `RowEncoder` makes.

`JournalSink.put` returns once its rows are in the file, so a kill loses only requests in flight.
All writes are made by a thread, so that a slow disk never blocks the event loop. Rows that arrive
during a write form the next batch. A second thread commits, so that writes continue during a sync.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from aiofiles.ospath import wrap  # type: ignore[attr-defined]

from captioner.core.errors import (
    DescriptorsError,
    DiskError,
    DiskFullError,
    LimitReachedError,
    OutputDamagedError,
)
from captioner.core.humanize import counted
from captioner.core.jsonbytes import BEYOND
from captioner.core.types import Caption
from captioner.journal.disk import disk_error, is_full

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from captioner.core.cancellation import CancelToken
    from captioner.core.progress import Progress
    from captioner.core.types import Outcome
    from captioner.journal.journal import Journal
    from captioner.journal.row_encoder import RowEncoder

logger = logging.getLogger(__name__)

COMMIT_RECORDS = 1_000
COMMIT_BYTES = 16 << 20
COMMIT_S = 1.0
"""Records, bytes and seconds after which a commit is due."""

_OUTRANKED = (LimitReachedError, OutputDamagedError)
"""Errors of a run that matter less than a damaged output."""

SLOW_SYNC_S = 1.0
RETRY_S = 1.0
REST_S = 30.0
"""Seconds at most to try again to write what is in memory after an error of the disk."""


class JournalSink:
    """Writes outcomes through a journal.

    Use as an async context manager; leaving it writes and commits everything.

    Args:
        journal: An open journal.
        rows: Encodes outcomes.
        progress: What the run has used goes into the checkpoint; gets a note while the run waits
            for space on the disk.
        cancel: Once forced, a full disk is not waited for.
        disk_wait_s: Seconds to wait for space on a full disk before giving up.
    """

    def __init__(
        self,
        journal: Journal,
        rows: RowEncoder,
        progress: Progress,
        cancel: CancelToken,
        *,
        disk_wait_s: float,
    ) -> None:
        self._journal = journal
        self._rows = rows
        self._progress = progress
        self._cancel = cancel
        self._disk_wait_s = disk_wait_s
        self._captions: list[bytes] = []
        self._failures: list[bytes] = []
        self._taken: list[list[bytes]] = []  # captions and failures that are being written
        self._waiting: list[asyncio.Future[None]] = []  # for the next batch
        self._writing: list[asyncio.Future[None]] = []  # for the batch that is being written
        self._wake = asyncio.Event()
        self._error: Exception | None = None
        self._closing = False
        self._since_commit = 0
        self._last_commit = time.monotonic()
        self._commit_task: asyncio.Task[None] | None = None
        self._warned_slow = False
        self._spent_before = journal.spent
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="captioner-journal")
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start writing."""
        self._writer = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Write and commit everything, and compare the files with what was written.

        Raises:
            DiskError: Something could not be written.
            OutputDamagedError: The output was changed during the run.
        """
        self._closing = True
        self._wake.set()
        idle = False
        try:
            if self._writer is not None:
                await self._writer
            if self._commit_task is not None:
                await self._commit_task
            if self._error is None and (self._note_spent() or self._journal.dirty):
                await self._in_thread(self._journal.commit)
            elif isinstance(self._error, DiskError | DescriptorsError):
                await self._write_rest()
            if self._error is None and exc_info[0] is None and not self._cancel:
                await self._in_thread(self._journal.verify)
            if self._journal.damage:
                self._error = await wrap(self._journal.salvage)(executor=self._threads)
            idle = True
        finally:
            self._threads.shutdown(wait=idle)
        if self._error is not None and exc_info[0] in (None, *_OUTRANKED):
            raise self._error

    async def put(self, outcomes: Sequence[Outcome]) -> None:
        """Return once the outcomes are in their files.

        Raises:
            DiskError: They cannot be written, and no later ones will be. They are kept in memory
                until the end, when one more attempt is made.
        """
        for at, outcome in enumerate(outcomes):
            if outcome.record.raw[BEYOND]:
                await _to_its_end(self._encode_all(outcomes[at:]))
                break
            if isinstance(outcome, Caption):
                self._captions.append(self._rows.caption(outcome))
            else:
                self._failures.append(self._rows.failure(outcome))
        if self._error is not None:
            raise self._error
        written = asyncio.get_running_loop().create_future()
        self._waiting.append(written)
        self._wake.set()
        await written

    async def _encode_all(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            is_caption = isinstance(outcome, Caption)
            encode: Any = self._rows.caption if is_caption else self._rows.failure
            row = await asyncio.to_thread(encode, outcome)
            (self._captions if is_caption else self._failures).append(row)

    async def commit(self) -> None:
        """Return when everything that was put is on disk.

        Raises:
            DiskError: It could not be synced.
            OutputDamagedError: The output was changed during the run.
        """
        if self._commit_task is not None:
            await self._commit_task
        if self._error is None and self._journal.dirty:
            self._commit_task = asyncio.create_task(self._commit())
            await self._commit_task
        if self._error is not None:
            raise self._error
        if self._journal.damage:
            raise OutputDamagedError(self._journal.damage)

    def _note_spent(self) -> bool:
        """Give the journal what its runs have used; return whether that is more than before."""
        before = self._journal.spent
        self._journal.spent = self._spent_before.plus(self._progress)
        return self._journal.spent != before

    def _stop_if_damaged(self) -> None:
        """Stop the run cleanly: what is in flight is paid for, and still taken."""
        if self._journal.damage and not self._cancel:
            logger.warning("%s; the run stops", self._journal.damage)
            self._cancel.request()

    async def _run(self) -> None:
        try:
            await self._write()
        except asyncio.CancelledError:
            for written in (*self._writing, *self._waiting):
                written.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - raised by `put`, `commit` and `__aexit__`
            self._error = error
        _settle(self._writing, self._error)
        _settle(self._waiting, self._error)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        while self._error is None:
            await self._wake.wait()
            await asyncio.sleep(0)  # rows of other tasks that are ready join the batch
            self._wake.clear()
            captions, failures = self._captions, self._failures
            self._writing, self._waiting = self._waiting, []
            self._captions, self._failures = [], []
            self._taken = [captions, failures]
            self._since_commit += len(captions) + len(failures)
            if captions:
                await self._in_thread(self._journal.append, b"".join(captions))
                self._taken = [[], failures]
                self._stop_if_damaged()
            if failures:
                await self._in_thread(self._journal.failures.append, b"".join(failures))
            self._taken = []
            _settle(self._writing, None)
            if self._closing and not self._waiting:
                break
            self._commit_if_due()
            if self._journal.dirty and (timer is None or timer.when() <= loop.time()):
                timer = loop.call_later(COMMIT_S, self._wake.set)
        if timer is not None:
            timer.cancel()

    async def _in_thread(self, write: Callable[..., None], *lines: bytes) -> None:
        """Write; while the disk is full, wait for space and keep the captions in memory."""
        deadline: float | None = None
        while True:
            try:
                await wrap(write)(*lines, executor=self._threads)
            except (OSError, DiskFullError) as error:
                now = time.monotonic()
                failure: Exception = error
                if isinstance(error, OSError):
                    failure = disk_error("write", self._journal.path, error)
                    if not is_full(error):
                        raise failure from error
                if deadline is None:
                    deadline = now + self._disk_wait_s
                    logger.warning(
                        "the disk is full; waiting up to %.0f s for space", self._disk_wait_s
                    )
                if now >= deadline or self._cancel.forced:
                    raise failure from error
                self._progress.waiting = "the disk is full"
                await asyncio.sleep(min(RETRY_S, deadline - now))
            else:
                if deadline is not None:
                    self._progress.waiting = ""
                return

    async def _write_rest(self) -> None:
        """After an error of the disk: try again to write what is in memory, and say what is lost.

        Lines beyond what was committed are checked when the output is opened again.
        """
        captions, failures = self._taken or ([], [])
        captions, failures = captions + self._captions, failures + self._failures
        answers = counted(len(captions), "answer")
        until = time.monotonic() + min(self._disk_wait_s, REST_S)
        while captions or failures:
            try:
                if captions:
                    await wrap(self._journal.append)(b"".join(captions), executor=self._threads)
                    logger.warning("%s in memory could still be written", answers)
                    captions = []
                if failures:
                    write = self._journal.failures.append
                    await wrap(write)(b"".join(failures), executor=self._threads)
                    failures = []
            except OSError:
                if not captions or time.monotonic() >= until or self._cancel.forced:
                    break
                self._progress.waiting = f"the disk refuses to take {answers}"
                await asyncio.sleep(RETRY_S)
        if captions:
            logger.warning("%s could not be written and will be requested again", answers)

    def _commit_if_due(self) -> None:
        running = self._commit_task is not None and not self._commit_task.done()
        if running or not self._journal.dirty or self._error is not None:
            return
        if (
            self._since_commit >= COMMIT_RECORDS
            or self._journal.uncommitted >= COMMIT_BYTES
            or time.monotonic() - self._last_commit >= COMMIT_S
        ):
            self._since_commit = 0
            self._commit_task = asyncio.create_task(self._commit())

    async def _commit(self) -> None:
        slow = asyncio.get_running_loop().call_later(SLOW_SYNC_S, self._warn_slow)
        try:
            self._note_spent()
            await self._in_thread(self._journal.commit)
            self._stop_if_damaged()
        except Exception as error:  # noqa: BLE001 - raised by `put`, `commit` and `__aexit__`
            self._error = error
            self._wake.set()
        finally:
            slow.cancel()
            self._last_commit = time.monotonic()

    def _warn_slow(self) -> None:
        if not self._warned_slow:
            self._warned_slow = True
            logger.warning(
                "the disk is slow: a sync of %s takes more than %.0f s; captioning continues",
                self._journal.path.name,
                SLOW_SYNC_S,
            )


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Do some work. A caller that is cancelled meanwhile is cancelled after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def _settle(waiting: list[asyncio.Future[None]], error: Exception | None) -> None:
    """Let callers of `put` return, or raise an error there."""
    for written in waiting:
        if written.done():
            continue
        if error is None:
            written.set_result(None)
        else:
            written.set_exception(error)
