"""Signals of the command: what they do from the moment that it has something to finish."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import FrameType

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_BEAT_S = 0.2


def status_of(number: int) -> int:
    """Return the exit status after a signal; a hang-up counts as a termination."""
    return 128 + (signal.SIGTERM if number == signal.SIGHUP else number)


@contextlib.contextmanager
def handled(handler: Callable[[int], None]) -> Iterator[None]:
    """Call a function in the running loop for each signal, and restore the handlers at the end.

    Ignored signals stay ignored. Outside the main thread nothing is changed.
    """
    loop = asyncio.get_running_loop()
    before = _replaced()
    for number in before:
        loop.add_signal_handler(number, handler, number)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, before)
        try:
            for number, earlier in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, earlier)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, before)


async def awake(work: Awaitable[T]) -> T:
    """Return what is awaited, in a loop that wakes up a few times a second.

    A signal that arrives just before the loop waits is handled when the loop wakes up, and while a
    thread works for long nothing else would wake it.
    """
    loop = asyncio.get_running_loop()

    def beat() -> asyncio.TimerHandle:
        return loop.call_later(_BEAT_S, beat)

    beat()  # until the loop ends
    return await work


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Let a signal raise SystemExit meanwhile, so that temporary files are removed."""
    before = _replaced()
    for number in before:
        signal.signal(number, _unwind)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _replaced() -> dict[int, Callable[[int, FrameType | None], object] | int | None]:
    """Return the handlers that may be replaced."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in SIGNALS}
    return {int(n): handler for n, handler in found.items() if handler is not signal.SIG_IGN}


def _unwind(number: int, frame: FrameType | None) -> None:
    at = frame
    while at is not None:
        if at.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(status_of(number))  # an exception may crash a module written in C
        at = at.f_back
    raise SystemExit(status_of(number))
