"""Periodic samples of a run's progress, for the viewer's charts."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.core.progress import Progress

EVERY_S = 2.0
KEPT = 900
"""Samples, half an hour of them; then every second one is dropped, to cover a whole long run."""


class Timeline:
    """Samples of a run's progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._began = time.monotonic()
        self._samples: list[tuple[float, int, int, int, float]] = []

    def take(self) -> None:
        """Take a sample."""
        now = self._progress
        tokens = now.prompt_tokens + now.completion_tokens
        done = now.captioned + now.failed
        at = time.monotonic() - self._began
        self._samples.append((at, done, tokens, now.answers, now.answered_s))
        if len(self._samples) > KEPT:
            self._samples = self._samples[::2]

    def as_dict(self) -> dict[str, Any]:
        """Return the current counts, and rates for each span between two samples."""
        now = self._progress
        spans = []
        for before, after in pairwise(self._samples):
            seconds, done, tokens, answers, answered_s = (
                b - a for a, b in zip(before, after, strict=True)
            )
            seconds = max(0.001, seconds)
            spans.append(
                {
                    "at": round(after[0], 1),
                    "rate": round(done / seconds, 2),
                    "tokens": round(tokens / seconds, 1),
                    "latency": round(answered_s / answers, 3) if answers else 0,
                }
            )
        names = ("captioned", "failed", "resumed", "in_flight", "retries", "waiting", "stage")
        counts = {name: getattr(now, name) for name in names}
        cost = None if now.cost is None else round(now.cost, 4)
        return {**counts, "requests": now.calls, "cost": cost, "spans": spans}
