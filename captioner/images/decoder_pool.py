"""A pool of decoder processes.

A process contains what a thread cannot: code that hangs, crashes or takes all memory. It costs a
tenth more than a thread (benchmarks/images.py) and does not slow down the event loop.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import signal
import subprocess
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.cancellation import StoppedError
from captioner.core.descriptors import PATIENCE_S, PAUSE_S, are_used_up, warn_used_up
from captioner.core.errors import BadImageError, DecoderError
from captioner.core.subprocesses import start_child
from captioner.images.fit import HEAVY, READY, Fitted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection
    from typing import Self

    from captioner.core.types import ImageOverrides
    from captioner.images.fit import FitOptions

_START_S = 60.0
"""Seconds that a process may take to start on a busy machine."""

MOST_FAILED = 3
MOST_KILLED = 20
"""Processes in a row that end while they start, by themselves or by a signal, before the pool gives
up."""

TRIES = 2
"""Processes that try an image; one more if the last was killed by signal 9."""

LONGEST_PAUSE_S = 2.0
"""Longest pause before a process is started again; the first is `PAUSE_S`, each the double."""

END_S = 1.0
"""Seconds in which a process ends that has closed its connection."""

STEP_S = 1.0
"""Seconds of one wait; a process that is stopped meanwhile does not wait longer."""


class DecoderPool:
    """Re-encodes images in child processes, each started when it is first needed.

    Args:
        wanted: The requirements for images.
        count: Most processes at once.
    """

    def __init__(self, wanted: FitOptions, count: int) -> None:
        heavy = threading.Lock()
        self._decoders = [_Decoder(wanted, heavy) for _ in range(count)]
        self._idle: queue.LifoQueue[_Decoder] = queue.LifoQueue()
        for decoder in self._decoders:
            self._idle.put(decoder)

    def __enter__(self) -> Self:
        """Return the pool itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self.close()

    def render(self, data: bytes, image_overrides: ImageOverrides) -> tuple[Fitted, ...]:
        """Return the frames of an image. Blocks, and may be called from any thread.

        Raises:
            BadImageError: ``image_timeout``, ``image_crashed`` or an error of the decoder.
            DecoderError: No process can be started.
            StoppedError: The pool was closed.
        """
        frames: tuple[Fitted, ...] = self._ask((*image_overrides,), data)
        return frames

    def look(self, data: bytes, names: Sequence[str]) -> dict[str, Any]:
        """Return what is known about an image; see `captioner.images.render.look`.

        Blocks, may be called from any thread, and raises the same as `render`.
        """
        found: dict[str, Any] = self._ask({"look": names}, data)
        return found

    def _ask(self, request: object, data: bytes) -> Any:
        decoder = self._idle.get()
        try:
            reply = decoder.ask(orjson.dumps(request), data)
        finally:
            self._idle.put(decoder)
        if isinstance(reply, BadImageError):
            raise reply
        return reply

    def close(self) -> None:
        """End all processes; waiting calls of `render` raise `StoppedError`."""
        for decoder in self._decoders:
            decoder.close()


class _Decoder:
    """One process and the connection to it. Used by one thread at a time, except `close`."""

    def __init__(self, wanted: FitOptions, heavy: threading.Lock) -> None:
        self._options = orjson.dumps((asdict(wanted.images), wanted.detail))
        self._timeout_s = wanted.images.image_timeout
        self._heavy = heavy
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._closing = threading.Event()
        self._killed = False  # the last process was, by signal 9

    @property
    def _closed(self) -> bool:
        return self._closing.is_set()

    def ask(
        self, request: bytes, data: bytes
    ) -> tuple[Fitted, ...] | dict[str, Any] | BadImageError:
        """Return the frames of an image, what was found in it, or its error.

        Another process tries it after a crash.

        A process that is killed (signal 9) may be the system's choice, not the image's fault.
        """
        tries = TRIES
        while True:
            try:
                return self._ask(request, data)
            except BadImageError as error:
                tries -= 1
                if error.code != "image_crashed" or tries + self._killed <= 0:
                    raise

    def _ask(
        self, request: bytes, data: bytes
    ) -> tuple[Fitted, ...] | dict[str, Any] | BadImageError:
        if self._process is not None and self._process.poll() is not None:
            self._end()  # it was killed while it had nothing to do
        connection = self._connection or self._start()
        try:
            connection.send_bytes(request)
            connection.send_bytes(data)
            reply = _receive(connection, self._timeout_s)
            if reply == HEAVY:
                with self._heavy:
                    try:
                        connection.send_bytes(b"go")
                        reply = _receive(connection, self._timeout_s)
                    except BaseException:
                        self._kill()  # its memory is free before the next one takes some
                        raise
            frames = orjson.loads(reply)
            if isinstance(frames, dict):
                if "found" in frames:
                    return dict(frames["found"])
                return BadImageError(frames["code"], frames["message"])
            return tuple(
                Fitted(media_type, _receive(connection, self._timeout_s), width, height, time_s)
                for media_type, width, height, time_s in frames
            )
        except BaseException as error:
            self._killed = self._status() == -signal.SIGKILL
            self._end()
            if self._closed:
                raise StoppedError from None
            if isinstance(error, TimeoutError):
                raise BadImageError(
                    "image_timeout",
                    f"decoding the image took more than {self._timeout_s:g} s (--image-timeout)",
                ) from None
            if isinstance(error, (EOFError, OSError, ValueError, TypeError, KeyError)):
                raise BadImageError("image_crashed", "the decoder crashed on the image") from None
            raise

    def _start(self) -> Connection:
        """Return the connection to a new process.

        The system may kill one while it starts, or have none for a while: then the next is
        started after a pause.

        Raises:
            DecoderError: None can be started.
            StoppedError: The pool was closed.
        """
        until = time.monotonic() + PATIENCE_S
        pause_s = PAUSE_S
        for tries in itertools.count(1):
            try:
                return self._start_once()
            except DecoderError as error:
                used_up = are_used_up(error.__cause__)
                most = MOST_KILLED if self._status() < 0 else MOST_FAILED
                self._end()
                last = time.monotonic() > until if used_up else tries >= most
                if last or (isinstance(error.__cause__, OSError) and not used_up):
                    raise
                if used_up:
                    warn_used_up()
            except BaseException:
                self._end()
                raise
            if self._closing.wait(pause_s):
                break
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise StoppedError

    def _status(self) -> int:
        """Return the status of the process if it has ended, negative for a signal; else 0."""
        if self._process is None or self._connection is None:
            return 0
        if self._connection.poll():  # what is there is the end, or another message
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(END_S)
        return self._process.poll() or 0

    def _start_once(self) -> Connection:
        from multiprocessing.connection import Pipe

        if self._closed:
            raise StoppedError
        cause: OSError | None = None
        reason = "it ended at once"
        try:
            self._connection, theirs = Pipe()
            with theirs:
                self._process = start_child("captioner.images.decoder", theirs.fileno())
            if self._closed:  # `close` may have found no process yet
                raise StoppedError
            self._connection.send_bytes(self._options)
            if _receive(self._connection, _START_S) == READY:
                return self._connection
        except (EOFError, ConnectionError):
            pass  # it has ended
        except OSError as error:
            cause, reason = error, error.strerror or reason
        if self._closed:
            raise StoppedError
        raise DecoderError(f"cannot start a decoder for images: {reason}") from cause

    def _end(self) -> None:
        self._kill()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def close(self) -> None:
        self._closing.set()
        self._kill()

    def _kill(self) -> None:
        process = self._process
        if process is not None:
            process.kill()
            process.wait()


def _receive(connection: Connection, timeout_s: float) -> bytes:
    """Return a message. Time in which this process was stopped does not count."""
    while not connection.poll(min(timeout_s, STEP_S)):
        timeout_s -= STEP_S
        if timeout_s <= 0:
            raise TimeoutError
    return connection.recv_bytes()
