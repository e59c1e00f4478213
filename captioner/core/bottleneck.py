"""What holds a run back: found by looking at it every second, as a sampling profiler does."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from captioner.core.progress import Progress

LOOK_S = 1.0
"""Seconds between two looks at a run."""

RECENT = 30
"""Looks that the display speaks of."""

FEWEST = 10
"""Looks that say something."""

IDLE = 0.1
"""Part of the workers that wait for records when the preparation of records holds a run back."""

FULL = 0.9
"""Part of ``--concurrency`` that is in flight when that holds a run back."""


class Cause(NamedTuple):
    """What may hold a run back.

    Attributes:
        what: The cause, for a person.
        advice: What to do about it.
    """

    what: str
    advice: str


CAUSES = {
    "quota": Cause(
        "the endpoint's quota",
        "ask for a higher one, add an endpoint with another --base-url, or use --batch-api",
    ),
    "capacity": Cause(
        "the endpoint's capacity: with more requests at once it fails or refuses some",
        "add an endpoint with another --base-url, or ask for less with --resize and --max-tokens",
    ),
    "gpu": Cause(
        "the server's GPU: requests queue for it",
        "add a GPU (--replicas, or another --base-url), take a smaller model, or ask for less "
        "with --resize and --max-tokens",
    ),
    "cache": Cause(
        "the server's memory for requests (KV cache), which is full",
        "send smaller images with --resize, shorten captions with --max-tokens, or give the "
        "server more of the GPU's memory (vLLM: --gpu-memory-utilization)",
    ),
    "front_end": Cause(
        "the way to the model: the server works on less than half of what was sent to it",
        "send smaller images with --resize, or start more front ends (vLLM: --api-server-count)",
    ),
    "upload": Cause(
        "the network to the endpoint: requests are not sent completely yet",
        "send smaller images with --resize, or run captioner nearer to the endpoint",
    ),
    "fetching": Cause(
        "the network from which images are fetched",
        "raise fetch-concurrency in [tuning], or store the images nearer",
    ),
    "preparing": Cause(
        "the preparation of records and images on this machine",
        "use more processes with --processes",
    ),
    "concurrency": Cause("--concurrency: all that it allows is in flight", "raise --concurrency"),
}
"""The causes by name."""


class Bottleneck:
    """Counts what held a run back at each look.

    Args:
        concurrency: Requests that the run may have in flight.
    """

    def __init__(self, concurrency: int = 1) -> None:
        self._concurrency = concurrency
        self._all: Counter[str] = Counter()
        self._recent: deque[str] = deque(maxlen=RECENT)

    def look(self, progress: Progress) -> None:
        """Look at a run.

        One that has no more records says nothing, nor does one that waits for a disk or an outage.
        """
        if progress.complete or progress.stage == "draining":
            return
        cause = self._cause(progress)
        if cause and (cause == "quota" or not progress.waiting):
            self._all[cause] += 1
            self._recent.append(cause)

    def _cause(self, progress: Progress) -> str:
        supply = progress.supply()
        if supply.idle >= max(1.0, IDLE * self._concurrency):
            return "fetching" if supply.fetching else "preparing"
        found = Counter(state.held_by for state in progress.states())
        if found and not found[""]:
            return found.most_common(1)[0][0]
        return "concurrency" if progress.in_flight >= FULL * self._concurrency else ""

    @property
    def now(self) -> str:
        """What holds the run back now; empty if that is not known."""
        return _most(Counter(self._recent))[0]

    @property
    def whole(self) -> tuple[str, float]:
        """What held the whole run back most, and for which part of the looks, 0 to 1."""
        return _most(self._all)


def _most(looks: Counter[str]) -> tuple[str, float]:
    total = looks.total()
    if total < FEWEST:
        return "", 0.0
    ((cause, count),) = looks.most_common(1)
    return cause, count / total
