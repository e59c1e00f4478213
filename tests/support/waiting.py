"""Wait for what a process does, without a guess at how long it takes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 120.0
"""An upper bound for anything that ends by itself. A busy machine may need most of it."""


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until a condition holds; fail if the process ends first."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert process is None or process.poll() is None, f"the process ended: {process.returncode}"
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.002)
