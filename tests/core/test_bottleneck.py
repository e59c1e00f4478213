"""What holds a run back, told from what a look at it sees."""

from __future__ import annotations

import math
from typing import Any

import pytest

from captioner.core.bottleneck import FEWEST, Bottleneck
from captioner.core.progress import EndpointState, Progress, Supply

CONCURRENCY = 40


def state(held_by: str = "") -> EndpointState:
    return EndpointState(
        "http://gpu/v1", 20, 40, math.inf, 0.0, circuit_open=False, held_by=held_by
    )


def found(looks: int = FEWEST, supply: Supply | None = None, **seen: Any) -> tuple[str, float]:
    """Return what holds a run back that looks the same each time."""
    bottleneck = Bottleneck(CONCURRENCY)
    progress = Progress(stage="captioning", supply=lambda: supply or Supply(), **seen)
    for _ in range(looks):
        bottleneck.look(progress)
    return bottleneck.whole


@pytest.mark.parametrize(
    ("supply", "in_flight", "states", "cause"),
    [
        (Supply(idle=20), 20, [state()], "preparing"),
        (Supply(idle=20, fetching=32), 20, [state("gpu")], "fetching"),
        (Supply(idle=1), 39, [state()], "concurrency"),
        (Supply(), 40, [state()], "concurrency"),
        (Supply(), 40, [state("gpu"), state()], "concurrency"),
        (Supply(), 30, [state("gpu"), state("gpu"), state("quota")], "gpu"),
        (Supply(), 10, [state()], ""),
        (Supply(), 0, [], ""),
    ],
)
def test_what_is_seen_here(supply, in_flight, states, cause) -> None:
    """Workers without records come first, then what all endpoints say."""
    assert found(supply=supply, in_flight=in_flight, states=lambda: states)[0] == cause


def test_what_says_nothing() -> None:
    """A run that waits, or has no more records, is slow for another reason; a few looks too."""
    seen = {"states": lambda: [state("gpu")], "in_flight": 40}
    assert found(FEWEST - 1, **seen) == ("", 0.0)
    assert found(**seen, waiting="the disk is full") == ("", 0.0)
    assert found(**seen, complete=True) == ("", 0.0)
    quota = {"states": lambda: [state("quota")], "in_flight": 3}
    assert found(**quota, waiting="HTTP 429") == ("quota", 1.0)


def test_the_display_speaks_of_now_and_the_report_of_the_whole_run() -> None:
    bottleneck = Bottleneck(CONCURRENCY)
    held_by = "gpu"
    progress = Progress(stage="captioning", states=lambda: [state(held_by)], in_flight=40)
    for _ in range(60):
        bottleneck.look(progress)
    held_by = "quota"
    for _ in range(20):
        bottleneck.look(progress)
    assert (bottleneck.now, bottleneck.whole) == ("quota", ("gpu", 0.75))
