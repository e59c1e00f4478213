"""What to say when the system refuses this process memory, threads or descriptors."""

from __future__ import annotations

import errno
import resource

from captioner.core.descriptors import TOO_MANY_OPEN, are_used_up, limit
from captioner.core.errors import SettingsError

FEWEST_FILES = 24
"""Descriptors of the smallest run: one request at a time, one image in a decoder."""

LEAST_MEMORY = 256 << 20
"""Bytes of address space below which the libraries that a run loads may end the process."""

_NO_MEMORY = (
    "The system gives this process no more memory{limit}. Close other programs or raise the limit "
    "(ulimit -v), or lower --concurrency, then run the same command again."
)
_NO_THREAD = (
    "The system gives this process no more threads. Raise the limits on processes (ulimit -u) and "
    "memory (ulimit -v), then run the same command again."
)


def refuse_too_little() -> None:
    """Refuse to start a run under limits that it cannot work with.

    Raises:
        SettingsError: Too few descriptors or too little memory are allowed.
    """
    if (files := limit()) < FEWEST_FILES:
        raise SettingsError(
            f"this process may open {files} files and connections, and a run needs at least "
            f"{FEWEST_FILES}: raise the limit (ulimit -n)"
        )
    memory = _most_memory()
    if 0 <= memory < LEAST_MEMORY:
        raise SettingsError(
            f"this process may have {memory >> 20} MB of memory, and a run needs at least "
            f"{LEAST_MEMORY >> 20} MB: raise the limit (ulimit -v)"
        )


def shortage(error: BaseException) -> str:
    """Return what is short and what to raise, if the system refused it; else an empty text."""
    if are_used_up(error):
        return TOO_MANY_OPEN
    words = str(error)
    if isinstance(error, RuntimeError) and "start new thread" in words:
        return _NO_THREAD
    is_refused = isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    )
    # The loader's words, where a library does not fit into the address space.
    if is_refused or (isinstance(error, ImportError) and "failed to map segment" in words):
        memory = _most_memory()
        return _NO_MEMORY.format(limit=f" than {memory >> 20} MB" if memory >= 0 else "")
    return ""


def _most_memory() -> int:
    """Return the bytes of address space that this process may have, negative for any number."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return -1 if soft == resource.RLIM_INFINITY else soft
