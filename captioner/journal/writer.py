"""The writer: outcomes to lines, lines to the journal in batches, commits beside them.

`put` returns once its record is in the file, so a kill loses only what was on the wire. Writing
into the system's memory takes microseconds and is done in the event loop: a trip to a thread costs
ten times as much. After a write that took long, while a sync runs and on network file systems lines
go to a thread, many in one trip. Syncs run in a second thread: a slow disk holds up neither the
writes nor, but for one now and then, the loop.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Self

import orjson
from aiofiles.os import wrap

from captioner.core.errors import DiskError, DiskFullError
from captioner.core.jsonbytes import add_fields, fields_in, one_line, quoted, replace_values
from captioner.core.row import FLAG
from captioner.core.types import Caption
from captioner.journal.disk import is_full, network_file_system

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from captioner.core.cancellation import CancelToken
    from captioner.core.keys import RecordKeys
    from captioner.core.progress import Progress
    from captioner.core.types import Failure, Outcome
    from captioner.journal.journal import Journal

COMMIT_RECORDS = 1_000
COMMIT_BYTES = 16 << 20
COMMIT_S = 1.0
SLOW_SYNC_S = 1.0
RETRY_S = 1.0
QUICK_S = 0.002
QUICK_BYTES = 1 << 20
"""Seconds and bytes of a write in the event loop. After one that took longer ..."""

TRIPS = 250
"""... so many go to the thread, and again so many after one that took so long there:"""

SLOW_TRIP_S = 0.02
"""Longer than a thread may have to wait for the interpreter."""

GATHER_S = 0.005
"""Seconds between two trips to the thread while all go there, at the least: two threads that want
the interpreter are dear. A record that comes alone goes at once ..."""

ENOUGH = 64
"""... and so do so many, or as many as are on the wire: else they would wait for each other."""


class RowEncoder:
    """Turns outcomes into lines.

    Args:
        identity: Gives failures the key by which they are known again.
        fields: Names of the members that take answers, that of the caption first.
    """

    def __init__(self, identity: RecordKeys, fields: Sequence[str]) -> None:
        self._identity = identity
        self._name = quoted(fields[0])
        self._flags = tuple(quoted(f"{name}_{FLAG}") for name in fields)
        self._quoted: dict[str, bytes] = {}

    def caption(self, caption: Caption) -> bytes:
        """Return the input record with the caption in it, and nothing else changed."""
        raw = one_line(caption.record.raw)
        added = [(self._name, orjson.dumps(caption.text))]
        for name, value in caption.more:
            if name not in self._quoted:
                self._quoted[name] = quoted(name)
            added.append((self._quoted[name], orjson.dumps(value)))
        if caption.replaces:
            there = {member.name for member in fields_in(raw)}
            written = {member for member, _ in added}
            for flag in self._flags:  # that of an older caption says nothing about this one
                if flag in there and flag not in written:
                    raw = replace_values(raw, flag, b"null")
            for member, new in added:
                if member in there:
                    raw = replace_values(raw, member, new)
            added = [(member, new) for member, new in added if member not in there]
            if not added:
                return raw + b"\n"
        return add_fields(raw, b",".join([name + b":" + value for name, value in added])) + b"\n"

    def failure(self, failure: Failure) -> bytes:
        """Return a failure as ``{line, key, code, message, attempts, record}``."""
        raw = failure.record.raw
        key = failure.record.key or self._identity.of_input(raw)
        try:
            orjson.loads(raw)
        except orjson.JSONDecodeError:
            record = orjson.dumps(raw.decode(errors="replace"))
        else:
            record = one_line(raw)
        fields = orjson.dumps(
            {
                "line": failure.record.number,
                "key": key.hex(),
                "code": failure.code,
                # Names of files may hold what is no text.
                "message": failure.message.encode(errors="replace").decode(),
                "attempts": failure.attempts,
            }
        )
        return fields[:-1] + b',"record":' + record + b"}\n"


class JournalSink:
    """Writes outcomes through a journal.

    Args:
        journal: An open journal.
        rows: Turns outcomes into lines.
        progress: Is told when the disk keeps us waiting.
        cancel: When it is hurried, a full disk is not waited for.
        warn: Called with a sentence when the disk is slow or full.
        disk_wait_s: Seconds to wait for space on a full disk before giving up.

    Use as an async context manager; leaving it writes and commits what was put.
    """

    def __init__(
        self,
        journal: Journal,
        rows: RowEncoder,
        progress: Progress,
        cancel: CancelToken,
        *,
        warn: Callable[[str], None],
        disk_wait_s: float,
    ) -> None:
        self._journal = journal
        self._rows = rows
        self._progress = progress
        self._cancel = cancel
        self._warn = warn
        self._disk_wait_s = disk_wait_s
        self._captions: list[bytes] = []
        self._failures: list[bytes] = []
        self._waiting = 0  # outcomes in both
        self._written: list[asyncio.Future[None]] = []  # who waits for the batch being collected
        self._taken = self._written  # who waits for the one being written
        self._wake = asyncio.Event()
        self._go = asyncio.Event()
        self._error: Exception | None = None
        self._closing = False
        self._since_commit = 0
        self._last_commit = time.monotonic()
        self._commit_task: asyncio.Task[None] | None = None
        self._warned_slow = False
        self._trips = 0  # to the thread, unasked: a write took long
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="captioner-journal")
        self._remote = bool(network_file_system(journal.path.parent))
        self._timed_in_thread = wrap(self._timed)
        self._commit = partial(wrap(journal.commit), executor=self._threads)
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start writing."""
        self._writer = asyncio.create_task(self._write_all())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Write and commit what was put.

        Raises:
            DiskError: It could not be.
        """
        self._closing = True
        self._wake.set()
        self._go.set()
        idle = False
        try:
            if self._writer is not None:
                await self._writer
            if self._commit_task is not None:
                await self._commit_task
            if self._error is None and self._journal.dirty:
                await self._patiently(self._commit)
            idle = True
        finally:
            self._threads.shutdown(wait=idle)
        if self._error is not None and exc_info[0] is None:
            raise self._error

    async def put(self, outcomes: Sequence[Outcome]) -> None:
        """Return once the outcomes are in their files.

        Raises:
            DiskError: They are not, and no later ones will be.
        """
        if self._error is not None:
            raise self._error
        for outcome in outcomes:
            if isinstance(outcome, Caption):
                self._captions.append(self._rows.caption(outcome))
            else:
                self._failures.append(self._rows.failure(outcome))
        written = asyncio.get_running_loop().create_future()
        self._written.append(written)
        self._wake.set()
        self._waiting += len(outcomes)
        if self._enough():
            self._go.set()
        await written

    def _enough(self) -> bool:
        """Tell whether those that wait to be written need not wait for more."""
        waiting = self._waiting
        return waiting >= ENOUGH or waiting >= self._progress.in_flight or self._closing

    async def commit(self) -> None:
        """Return when everything that was put is on disk.

        Raises:
            DiskError: It is not.
        """
        if self._commit_task is not None:
            await self._commit_task
        if self._error is not None:
            raise self._error
        if self._journal.dirty:
            self._commit_task = asyncio.create_task(self._commit_now())
            await self._commit_task
        if self._error is not None:
            raise self._error

    async def _write_all(self) -> None:
        try:
            await self._write()
        except asyncio.CancelledError:
            for written in (*self._taken, *self._written):
                written.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whoever waits for a batch must be told
            self._error = error
        _tell(self._taken, self._error)
        _tell(self._written, self._error)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        next_trip = loop.time()
        while True:
            await self._wake.wait()
            if not (self._quick or self._enough()) and (early := next_trip - loop.time()) > 0:
                self._go.clear()
                late = loop.call_later(early, self._go.set)
                await self._go.wait()
                late.cancel()
            if not self._closing:
                self._wake.clear()
            captions, failures, written = self._captions, self._failures, self._written
            if captions or failures:
                self._captions, self._failures, self._written = [], [], []
                self._waiting = 0
                self._taken = written
                next_trip = loop.time() + GATHER_S
                if captions:
                    await self._append(self._journal.append, captions)
                if failures:
                    opened = self._journal.failures.opened  # else a folder has to be synced
                    await self._append(self._journal.failures.append, failures, quick=opened)
                self._since_commit += len(captions) + len(failures)
                _tell(written, None)
            elif self._closing:
                if timer is not None:
                    timer.cancel()
                return
            self._commit_if_due()
            if self._error is not None:
                return
            if self._journal.dirty and (timer is None or timer.when() <= loop.time()):
                timer = loop.call_later(COMMIT_S, self._wake.set)

    @property
    def _quick(self) -> bool:
        """The disk keeps nobody waiting just now."""
        idle = self._commit_task is None or self._commit_task.done()
        return idle and not self._trips and not self._remote

    async def _append(
        self, append: Callable[[bytes], None], lines: list[bytes], *, quick: bool = True
    ) -> None:
        """Write here and now if that takes no time, else in a thread; patiently either way."""
        data = b"".join(lines)

        async def write() -> None:
            if quick and self._quick and len(data) <= QUICK_BYTES:
                self._timed(append, data, QUICK_S)
            else:
                self._trips = max(0, self._trips - 1)
                await self._timed_in_thread(append, data, SLOW_TRIP_S, executor=self._threads)

        await self._patiently(write)

    def _timed(self, append: Callable[[bytes], None], lines: bytes, most: float) -> None:
        begin = time.monotonic()
        try:
            append(lines)
        finally:
            if time.monotonic() - begin > most:
                self._trips = TRIPS

    async def _patiently(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write; on a full disk wait for space, holding what was paid for in memory."""
        deadline: float | None = None
        while True:
            try:
                await write()
            except (OSError, DiskFullError) as error:
                now = time.monotonic()
                failure = self._disk_error(error)
                if isinstance(error, OSError) and not is_full(error):
                    raise failure from error
                if deadline is None:
                    deadline = now + self._disk_wait_s
                    self._warn(
                        f"the disk is full; waiting up to {self._disk_wait_s:.0f} s for space"
                    )
                if now >= deadline or self._cancel.forced:
                    raise failure from error
                self._progress.waiting = "the disk is full"
                await asyncio.sleep(min(RETRY_S, deadline - now))
            else:
                if deadline is not None:
                    self._progress.waiting = ""
                return

    def _disk_error(self, error: OSError | DiskError) -> DiskError:
        if isinstance(error, DiskError):
            return error
        return DiskError(
            f"the disk refused a write to {self._journal.path.name}: {error.strerror or error}. "
            "What was written before is safe; mend the disk and run the same command again."
        )

    def _commit_if_due(self) -> None:
        running = self._commit_task is not None and not self._commit_task.done()
        if running or not self._journal.dirty or self._error is not None:
            return
        due = (
            self._since_commit >= COMMIT_RECORDS
            or self._journal.uncommitted >= COMMIT_BYTES
            or time.monotonic() - self._last_commit >= COMMIT_S
        )
        if due:
            self._since_commit = 0
            self._commit_task = asyncio.create_task(self._commit_now())

    async def _commit_now(self) -> None:
        slow = asyncio.get_running_loop().call_later(SLOW_SYNC_S, self._say_slow)
        try:
            await self._patiently(self._commit)
        except Exception as error:  # noqa: BLE001 - raised again for whoever puts or closes
            self._error = error
            self._wake.set()
        finally:
            slow.cancel()
            self._last_commit = time.monotonic()

    def _say_slow(self) -> None:
        if not self._warned_slow:
            self._warned_slow = True
            self._warn(
                f"the disk is slow: a sync of {self._journal.path.name} takes more than "
                f"{SLOW_SYNC_S:.0f} s; captioning goes on meanwhile"
            )


def _tell(waiting: list[asyncio.Future[None]], error: Exception | None) -> None:
    """Let those go on who wait, or tell them that nothing will be written any more."""
    for written in waiting:
        if written.done():
            continue
        if error is None:
            written.set_result(None)
        else:
            written.set_exception(error)
