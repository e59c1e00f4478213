"""One worker process, as its parent sees it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from captioner.core.errors import WorkersDiedError
from captioner.core.log import warn_once
from captioner.core.subprocesses import environment, python
from captioner.endpoints.addresses import variables_of
from captioner.executors.processes.messages import (
    Done,
    EndOfInput,
    Exited,
    Ready,
    Stop,
    Warned,
    Wire,
    Work,
    WorkerStats,
    Written,
)

if TYPE_CHECKING:
    from captioner.core.progress import Spent
    from captioner.core.types import InputRecord
    from captioner.settings.settings import Settings

AHEAD = 64
"""Records that a worker holds beyond those that it may have in flight."""

AHEAD_BYTES = 16 << 20
"""Bytes of records that a worker holds; one record may be larger."""

START_S = 120.0
"""Seconds in which a worker must connect to the endpoints."""

END_S = 5.0
"""Seconds in which a worker must end after its work."""


class WorkerHandle:
    """One worker process.

    Attributes:
        records: Records sent to it that have no outcome yet, by number.
        stats: Its latest statistics.
        gone: It has ended, or is about to.
        is_reserved: It gets no records but one, which is tried alone.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        wire: Wire,
        max_records: int,
        spent: Spent,
        warned: set[str],
    ) -> None:
        self.records: dict[int, InputRecord] = {}
        self.stats = WorkerStats()
        self.gone = False
        self.is_reserved = False
        self._process = process
        self._wire = wire
        self._max_records = max_records
        self._spent_before = spent
        self._warned = warned
        self._bytes = 0

    @classmethod
    async def start(cls, settings: Settings, spent: Spent, warned: set[str]) -> Self:
        """Start a process.

        Args:
            settings: Its share of the settings.
            spent: Its share of what was used before.
            warned: The warnings that a worker of the run has logged.
        """
        ours = None
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                process = subprocess.Popen(  # noqa: ASYNC220, S603 - milliseconds; our own program
                    python("captioner.executors.processes.worker", str(theirs.fileno())),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment(fetching=True, more=variables_of(settings.all_endpoints)),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # only the parent handles Ctrl-C
                )
        except OSError as error:
            if ours is not None:
                ours.close()
            raise WorkersDiedError(f"cannot start a process: {error.strerror}") from None
        wire = await Wire.over(ours)
        wire.send((settings, spent))
        return cls(process, wire, settings.run.concurrency + AHEAD, spent, warned)

    async def wait_until_ready(self) -> str:
        """Return the model that it requests when it has connected to the endpoints."""
        try:
            async with asyncio.timeout(START_S):
                message = await self.receive()
        except TimeoutError:
            raise WorkersDiedError(f"a process was not ready within {START_S:g} s") from None
        if isinstance(message, Exited):
            raise message.as_error()
        if not isinstance(message, Ready):
            raise WorkersDiedError(f"a process {self.how_it_ended()} before it was ready")
        return message.model

    async def receive(self) -> Ready | Done | Exited | None:
        """Return the next message and log warnings; None if the process has died."""
        while isinstance(message := await self._wire.receive(), Warned):
            warn_once(message.text, self._warned)
        if message is None:  # it closed its connection a moment before it ends
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, END_S)
        return message  # type: ignore[no-any-return]

    def send(self, message: Work | Written | Stop | EndOfInput) -> None:
        """Send a message."""
        if not self.gone:
            self._wire.send(message)

    @property
    def spent(self) -> Spent:
        """What was used in its place so far."""
        return self._spent_before.plus(self.stats.counters)

    @property
    def has_room(self) -> bool:
        """Whether it may get more records."""
        is_full = len(self.records) >= self._max_records or self._bytes >= AHEAD_BYTES
        return not (is_full or self.is_reserved)

    @property
    def fullness(self) -> float:
        """Its records as a part of those that it may have."""
        return len(self.records) / self._max_records

    def give(self, records: list[InputRecord]) -> None:
        """Send records."""
        for record in records:
            self.records[record.number] = record
            self._bytes += _size(record)
        self.send(Work(records))

    def take(self, number: int) -> InputRecord:
        """Return a record that has an outcome."""
        record = self.records.pop(number)
        self._bytes -= _size(record)
        return record

    def how_it_ended(self) -> str:
        """Return in words how the process ended, of which `receive` returned None."""
        status = self._process.poll()
        if status is None:
            return "closed its connection"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    async def close(self) -> None:
        """Wait until the process ends; kill it if that takes too long."""
        self._wire.close()
        try:
            await asyncio.to_thread(self._process.wait, END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _size(record: InputRecord) -> int:
    """Return the bytes of a record, with the images that it carries."""
    return len(record.raw) + sum(len(data) for _, data in record.images)


def part(settings: Settings, number: int) -> Settings:
    """Return the settings of one worker, with its share of the run's limits."""
    run, images = settings.run, settings.images

    def share(whole: int) -> int:
        return max(1, whole // run.processes + (number < whole % run.processes))

    return replace(
        settings,
        run=replace(run, concurrency=share(run.concurrency)),
        images=replace(
            images,
            memory=share(images.memory),
            fetch_concurrency=share(images.fetch_concurrency),
        ),
    )
