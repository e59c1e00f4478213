"""Starting modules of this package as processes."""

from __future__ import annotations

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

    Saves a tenth of a resume and a few per cent of a run. For our own processes, not for libraries.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def keep_freed_memory() -> None:
    """Make glibc keep up to 64 MB of freed memory for the next images.

    By default it returns large blocks to the system at once; getting them back takes a fifth of the
    time for an image of 3 MB. For our own processes, not for libraries.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(_MMAP_THRESHOLD, 16 << 20)
    mallopt(_TRIM_THRESHOLD, 64 << 20)


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # malloc.h

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
