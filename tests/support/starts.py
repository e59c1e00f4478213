"""The starts of the fake servers, and which of them still run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Started:
    """The starts of the fake servers."""

    def __init__(self, log: Path) -> None:
        self._log = log

    @property
    def all(self) -> list[dict[str, Any]]:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [json.loads(line) for line in lines]

    def argument(self, name: str) -> list[str]:
        """Return the value of an argument at each start."""
        return [one["argv"][one["argv"].index(name) + 1] for one in self.all]

    @property
    def left(self) -> list[int]:
        """The processes that still run."""
        return [one["pid"] for one in self.all if is_running(one["pid"])]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # What nobody has waited for is a zombie: it holds nothing.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
