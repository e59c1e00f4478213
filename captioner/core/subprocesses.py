"""Starting modules of this package as processes."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
import sysconfig
from pathlib import Path


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module.

    The working directory is not searched for modules (-P): a file such as queue.py among the
    user's data would break the child.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def ease_garbage_collection() -> None:
    """Make Python look for reference cycles less often: records create none.

    For processes of the command, not for a program that uses captioner as a library.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def keep_freed_memory() -> None:
    """Make glibc keep up to 64 MB of freed memory for the next images.

    By default it returns large blocks to the system at once, which costs time for each image.
    For processes of the command, not for a program that uses captioner as a library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(-3, 16 << 20)  # M_MMAP_THRESHOLD of malloc.h
    mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD


_SECRET = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)


def environment(*, secrets: bool = True) -> dict[str, str]:
    """Return an environment in which a child process imports this same package.

    Args:
        secrets: Include variables that may hold keys.
    """
    found = {
        name: value for name, value in os.environ.items() if secrets or not _SECRET.search(name)
    }
    root = str(Path(__file__).resolve().parents[2])
    # An installed package is found without it.
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        paths = (found.get("PYTHONPATH"), root)
        found["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return found
