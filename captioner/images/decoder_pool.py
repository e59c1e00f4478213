"""A pool of decoder processes.

A process contains what a thread cannot: code that hangs, crashes or takes all memory. It costs a
tenth more than a thread (benchmarks/images.py) and does not slow down the event loop.
"""

from __future__ import annotations

import queue
import subprocess
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING

import orjson

from captioner.core.cancellation import StoppedError
from captioner.core.errors import BadImageError, DecoderError
from captioner.core.subprocesses import environment, python
from captioner.images.fit import HEAVY, READY, Fitted

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from typing import Self

    from captioner.core.types import ImageOverrides
    from captioner.images.fit import FitOptions

_START_S = 60.0
"""Seconds that a process may take to start on a busy machine."""


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
        decoder = self._idle.get()
        try:
            reply = decoder.render(data, image_overrides)
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
        self._closed = False

    def render(
        self, data: bytes, image_overrides: ImageOverrides
    ) -> tuple[Fitted, ...] | BadImageError:
        try:
            connection = self._connection or self._start()
            connection.send_bytes(orjson.dumps((*image_overrides,)))
            connection.send_bytes(data)
            reply = _receive(connection, self._timeout_s)
            if reply == HEAVY:
                with self._heavy:
                    connection.send_bytes(b"go")
                    reply = _receive(connection, self._timeout_s)
            frames = orjson.loads(reply)
            if isinstance(frames, dict):
                return BadImageError(frames["code"], frames["message"])
            return tuple(
                Fitted(media_type, _receive(connection, self._timeout_s), width, height)
                for media_type, width, height in frames
            )
        except BaseException as error:
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
        from multiprocessing.connection import Pipe

        if self._closed:
            raise StoppedError
        self._connection, theirs = Pipe()
        reason = "it ended at once"
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    python("captioner.images.decoder", str(theirs.fileno())),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment(),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C stops the run, which may still need it
                )
            if self._closed:  # `close` may have found no process yet
                raise StoppedError
            self._connection.send_bytes(self._options)
            if _receive(self._connection, _START_S) == READY:
                return self._connection
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or reason
        raise DecoderError(f"cannot start a decoder for images: {reason}")

    def _end(self) -> None:
        self._kill()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def close(self) -> None:
        self._closed = True
        self._kill()

    def _kill(self) -> None:
        process = self._process
        if process is not None:
            process.kill()
            process.wait()


def _receive(connection: Connection, timeout_s: float) -> bytes:
    if not connection.poll(timeout_s):
        raise TimeoutError
    return connection.recv_bytes()
