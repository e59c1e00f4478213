"""File descriptors: how many the process may open, and patience while there are none."""

from __future__ import annotations

import errno
import logging
import os
import resource
import time
from contextlib import suppress
from functools import partial, wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
P = ParamSpec("P")
logger = logging.getLogger(__name__)

MOST = 1 << 16
"""Descriptors that the command asks for at most."""

PATIENCE_S = 60.0
"""Seconds to wait for a free descriptor."""

PAUSE_S = 0.1

TOO_MANY_OPEN = (
    "No file can be opened: too many files and connections are open. Raise the limit (ulimit -n) "
    "or lower --concurrency, then run the same command again."
)


def raise_limit() -> None:
    """Raise the limit of this process to the highest that it may set, up to `MOST`.

    For processes of the command, not for a program that uses captioner as a library.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS allows fewer than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """Return how many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else soft


def left() -> int:
    """Return how many more descriptors this process may open."""
    try:
        used = len(os.listdir("/dev/fd"))  # noqa: PTH208 - of descriptors, not of paths
    except OSError:
        used = 16
    return max(0, limit() - used)


def are_used_up(error: BaseException | None) -> bool:
    """Return whether an error says that this process, or the system, has no descriptor left."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def none_left() -> bool:
    """Return whether no file can be opened now; for libraries that hide the reason."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return are_used_up(error)
    return False


def warn_used_up() -> None:
    """Warn once that descriptors are waited for."""
    global _warned  # noqa: PLW0603 - a warning for the whole process
    if not _warned:
        _warned = True
        logger.warning(
            "no file or connection can be opened: all %d that this process may have are open "
            "(ulimit -n). Waiting for one",
            limit(),
        )


_warned = False


def patiently(work: Callable[[], T], is_over: Callable[[], bool] = bool) -> T:
    """Return the result of work that opens a file; wait while no descriptor is left. Blocks.

    Args:
        work: It can be repeated after an error that `are_used_up` knows.
        is_over: Ends the wait, for example when the run is cancelled.

    Raises:
        OSError: An error of the work, or there was no descriptor for `PATIENCE_S` seconds.
    """
    until = 0.0
    while True:
        try:
            return work()
        except OSError as error:
            if not are_used_up(error):
                raise
            now = time.monotonic()
            until = until or now + PATIENCE_S
            if is_over() or now >= until:
                raise
        warn_used_up()
        time.sleep(PAUSE_S)


def patient(work: Callable[P, T]) -> Callable[P, T]:
    """Make a function that opens a file wait while no descriptor is left."""

    @wraps(work)
    def waiting(*arguments: P.args, **options: P.kwargs) -> T:
        return patiently(partial(work, *arguments, **options))

    return waiting
