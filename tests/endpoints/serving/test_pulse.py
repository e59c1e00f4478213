"""A server that hangs is told from one that is busy."""

from __future__ import annotations

from typing import Any

from captioner.endpoints.serving.pulse import HANG_S, Pulse

WELL = {"healthy": True, "working": False, "progress": 0.0, "answers": 0}


def faults(*signs: dict[str, Any]) -> list[str]:
    """Return what a pulse says of signs that come a minute after each other."""
    pulse = Pulse(0.0)
    return [pulse.fault(60.0 * number, **{**WELL, **sign}) for number, sign in enumerate(signs, 1)]


def test_no_response_is_a_fault_only_after_a_while() -> None:
    assert HANG_S == 180
    assert faults({}, *[{"healthy": False}] * 3) == ["", "", "", "did not respond for 3 min 00 s"]


def test_one_that_answers_requests_is_busy_however_late_it_says_that_it_is_well() -> None:
    busy = [{"healthy": False, "working": True, "answers": number} for number in range(9)]
    assert not any(faults(*busy[1:]))


def test_one_that_works_on_a_long_request_is_busy() -> None:
    assert not any(faults(*({"working": True, "progress": float(n)} for n in range(1, 9))))


def test_one_that_works_without_progress_hangs_although_it_says_that_it_is_well() -> None:
    said = faults({}, *[{"working": True, "progress": 5.0}] * 4)
    assert said[-1] == "made no progress for 3 min 00 s"
    assert not any(said[:-1])


def test_one_without_requests_makes_no_progress_and_is_well() -> None:
    assert not any(faults(*[{"progress": 5.0}] * 9))
