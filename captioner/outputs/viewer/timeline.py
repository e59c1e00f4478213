"""How a run went: a sample of its numbers each few seconds, for the page's charts."""

from __future__ import annotations

import time
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.core.progress import Progress

EVERY_S = 2.0
KEPT = 900
"""Samples: half an hour; older ones are thinned out by half, so that a long run is seen whole."""


class Timeline:
    """Samples of a run's progress.

    Args:
        progress: Of the run.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._began = time.monotonic()
        self._samples: deque[tuple[float, int, int, int, float]] = deque()

    def take(self) -> None:
        """Take a sample."""
        now = self._progress
        tokens = now.prompt_tokens + now.completion_tokens
        settled = now.captioned + now.failed
        self._samples.append(
            (time.monotonic() - self._began, settled, tokens, now.answers, now.answered_s)
        )
        if len(self._samples) > KEPT:
            self._samples = deque(list(self._samples)[::2])

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers of now, and for each time between two samples what happened in it."""
        now = self._progress
        spans = []
        samples = list(self._samples)
        for before, after in pairwise(samples):
            seconds = max(0.001, after[0] - before[0])
            answers = after[3] - before[3]
            spans.append(
                {
                    "at": round(after[0], 1),
                    "rate": round((after[1] - before[1]) / seconds, 2),
                    "tokens": round((after[2] - before[2]) / seconds, 1),
                    "latency": round((after[4] - before[4]) / answers, 3) if answers else 0,
                }
            )
        return {
            "captioned": now.captioned,
            "failed": now.failed,
            "resumed": now.resumed,
            "in_flight": now.in_flight,
            "requests": now.calls,
            "retries": now.retries,
            "cost": round(now.cost, 4),
            "waiting": now.waiting,
            "stage": now.stage,
            "spans": spans,
        }
