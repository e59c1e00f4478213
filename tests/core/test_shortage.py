"""What the system refuses is said in words, with what to raise."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from captioner.core.shortage import shortage


def a_thread_without_room() -> None:
    before = threading.stack_size(1 << 46)
    try:
        threading.Thread(target=int).start()
    finally:
        threading.stack_size(before)


def memory_without_end() -> None:
    bytearray(1 << 62)


def a_library_that_does_not_fit() -> None:
    raise ImportError("libX.so: failed to map segment from shared object")


def no_descriptor() -> None:
    raise OSError(24, os.strerror(24))


@pytest.mark.parametrize(
    ("refused", "to_raise"),
    [
        (a_thread_without_room, "ulimit -u"),
        (memory_without_end, "ulimit -v"),
        (a_library_that_does_not_fit, "ulimit -v"),
        (no_descriptor, "ulimit -n"),
    ],
)
def test_what_is_short_is_named(refused: Callable[[], None], to_raise: str) -> None:
    with pytest.raises((RuntimeError, MemoryError, ImportError, OSError)) as caught:
        refused()
    assert to_raise in shortage(caught.value)


@pytest.mark.parametrize("bug", [RuntimeError("a bug"), ImportError("no module"), OSError(5, "")])
def test_other_errors_are_not_a_shortage(bug: Exception) -> None:
    assert shortage(bug) == ""
