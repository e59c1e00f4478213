"""A server that hangs is told from one that is busy."""

from __future__ import annotations

from typing import Any

import pytest

from captioner.endpoints.server_load import values_of
from captioner.endpoints.serving.launchers import LAUNCHERS
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


@pytest.mark.parametrize(
    ("server", "before", "after"),
    [
        # Between two looks at a llama-server that writes one long answer.
        (
            "llamacpp",
            (
                "llamacpp:prompt_tokens_total 16\nllamacpp:tokens_predicted_total 0\n"
                "llamacpp:n_decode_total 740\nllamacpp:requests_processing 1\n"
            ),
            (
                "llamacpp:prompt_tokens_total 16\nllamacpp:tokens_predicted_total 0\n"
                "llamacpp:n_decode_total 1480\nllamacpp:requests_processing 1\n"
            ),
        ),
        (
            "sglang",
            (
                'sglang:prompt_tokens_total{model_name="m"} 16\nsglang:num_running_reqs 1\n'
                'sglang:realtime_tokens_total{mode="decode",model_name="m"} 740\n'
            ),
            (
                'sglang:prompt_tokens_total{model_name="m"} 16\nsglang:num_running_reqs 1\n'
                'sglang:realtime_tokens_total{mode="decode",model_name="m"} 1480\n'
            ),
        ),
    ],
)
def test_tokens_of_requests_that_are_not_finished_are_progress(server, before, after) -> None:
    """A slow machine may finish none for minutes, and is busy."""
    launcher = LAUNCHERS[server]
    first, second = (
        sum(sum(values_of(text, name)) for name in launcher.progress) for text in (before, after)
    )
    assert second > first
    assert sum(values_of(after, launcher.running)) == 1
