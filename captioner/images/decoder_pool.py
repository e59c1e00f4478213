"""The decoders of a run: child processes, so that one image can do no more than fail itself.

Threads cannot promise that. A decoder that hangs in C code cannot be ended, one that crashes takes
the run with it, and one that wants all memory gets it. A process costs a tenth more than a thread
(benchmarks/images.py), and leaves the event loop alone.
"""

from __future__ import annotations

import contextlib
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
    from typing import Self

    from captioner.core.types import ImageOverrides
    from captioner.images.fit import FitOptions

_MODULE = "captioner.images.decoder"
_START_S = 60.0
"""Seconds that a child may take to start: the machine may be busy."""


class DecoderPool:
    """Draws images in child processes, each started when it is first needed.

    Args:
        wanted: What images have to be like.
        count: Most children at once.
    """

    def __init__(self, wanted: FitOptions, count: int) -> None:
        self._greeting = orjson.dumps((asdict(wanted.images), wanted.detail))
        self._timeout_s = wanted.images.image_timeout
        self._idle: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)
        self._heavy = threading.Lock()
        self._lock = threading.Lock()
        self._children: set[_Child] = set()
        self._closed = False

    def __enter__(self) -> Self:
        """Return the decoders themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the children."""
        self.close()

    def render(self, data: bytes, image_overrides: ImageOverrides) -> tuple[Fitted, ...]:
        """Return the frames of an image, rendered by a child; blocks, and may be called anywhere.

        Raises:
            BadImageError: Those of the drawing, ``image_timeout`` or ``image_crashed``.
            DecoderError: No child can be started.
            StoppedError: The decoders were closed meanwhile.
        """
        child = self._idle.get()
        try:
            if child is None:
                child = self._start()
            return child.render(data, image_overrides, self._timeout_s, self._heavy)
        except (DecoderError, StoppedError):
            raise
        except (EOFError, OSError, ValueError, TypeError, KeyError):  # it died, or talks nonsense
            if self._closed:
                raise StoppedError from None
            raise BadImageError("image_crashed", "the decoder broke down over the image") from None
        except _SlowError:
            raise BadImageError(
                "image_timeout",
                f"decoding the image took more than {self._timeout_s:g} s (--image-timeout)",
            ) from None
        finally:
            if child is not None and child.broken:
                self._end(child)
                child = None
            self._idle.put(child)

    def close(self) -> None:
        """End all children; whoever waits for one is told that the run stops."""
        with self._lock:
            self._closed = True
            children = list(self._children)
        for child in children:
            child.kill()
        # Those at work are ended by whoever waits for them, and hears now of their death.
        idle: list[_Child | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._idle.get_nowait())
        for free in idle:
            if free is not None:
                self._end(free)
            self._idle.put(None)

    def _start(self) -> _Child:
        try:
            child = _Child(self._greeting)
        except (OSError, EOFError) as error:
            if self._closed:
                raise StoppedError from None
            reason = getattr(error, "strerror", None) or "it ended at once"
            raise DecoderError(f"cannot start a decoder for images: {reason}") from None
        with self._lock:
            if not self._closed:
                self._children.add(child)
                return child
        child.end()
        raise StoppedError

    def _end(self, child: _Child) -> None:
        with self._lock:
            self._children.discard(child)
        child.end()


class _SlowError(Exception):
    """The child took too long."""


class _Child:
    """One child process and the connection to it.

    Attributes:
        broken: It is in no state to take another image.
    """

    def __init__(self, greeting: bytes) -> None:
        from multiprocessing.connection import Pipe

        self._connection, theirs = Pipe()
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    python(_MODULE, str(theirs.fileno())),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment(secrets=False),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C stops the run, which may still need it
                )
        except OSError:
            self._connection.close()
            raise
        self.broken = False
        try:
            self._connection.send_bytes(greeting)
            ready = self._receive(_START_S) == READY
        except (_SlowError, OSError, EOFError):
            ready = False
        if not ready:
            self.end()
            raise EOFError

    def render(
        self, data: bytes, image_overrides: ImageOverrides, timeout_s: float, heavy: threading.Lock
    ) -> tuple[Fitted, ...]:
        self.broken = True  # until there is a whole reply
        self._connection.send_bytes(orjson.dumps((*image_overrides,)))
        self._connection.send_bytes(data)
        reply = self._receive(timeout_s)
        if reply == HEAVY:
            with heavy:
                self._connection.send_bytes(b"go")
                reply = self._receive(timeout_s)
        frames = orjson.loads(reply)
        if isinstance(frames, dict):
            self.broken = False
            raise BadImageError(frames["code"], frames["message"])
        rendered = tuple(
            Fitted(kind, self._receive(timeout_s), width, height) for kind, width, height in frames
        )
        self.broken = False
        return rendered

    def _receive(self, timeout_s: float) -> bytes:
        if not self._connection.poll(timeout_s):
            raise _SlowError
        return self._connection.recv_bytes()

    def kill(self) -> None:
        """Kill it; whoever waits for it hears of that."""
        self._process.kill()

    def end(self) -> None:
        """Kill it and take note of its death."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
