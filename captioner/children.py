"""How our own modules are started as child processes."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from pathlib import Path


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module.

    The working directory is not searched (-P): it is the user's data, where a file such as
    queue.py would break the child.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


_SECRET = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)


def environment(*, secrets: bool = True) -> dict[str, str]:
    """Return an environment in which a child finds this same package.

    Args:
        secrets: With the variables that may hold keys.
    """
    found = {
        name: value for name, value in os.environ.items() if secrets or not _SECRET.search(name)
    }
    root = str(Path(__file__).resolve().parents[1])
    # An installed package is found anyway.
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        paths = (found.get("PYTHONPATH"), root)
        found["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return found
