"""One request finds a model that sees no images, before a thousand are paid for."""

from __future__ import annotations

import pytest
from endpoint import FakeEndpoint, Reply, completion

from captioner import EndpointRefusedError, run_batch
from captioner.engine import vision_probe


@pytest.fixture(autouse=True)
def _probing(monkeypatch) -> None:
    monkeypatch.setattr(vision_probe, "RECORDS", 20)


def asks_for_the_shape(call) -> bool:
    return vision_probe.QUESTION in str(call.body)


async def caption(source, endpoint: FakeEndpoint, **options):
    warnings: list[str] = []
    report = await run_batch(
        source, base_url=endpoint.base_url, model="m", warn=warnings.append, **options
    )
    return report, warnings


async def test_a_model_that_sees_costs_one_request(make_input, endpoint) -> None:
    endpoint.behave = lambda call: Reply(
        body=completion("A red circle." if asks_for_the_shape(call) else f"c{call.number}")
    )
    report, warnings = await caption(make_input(25), endpoint)
    assert (report.captioned, endpoint.count, warnings) == (25, 26, [])


async def test_a_model_that_sees_nothing_stops_the_run(make_input, endpoint) -> None:
    endpoint.behave = lambda _: Reply(body=completion("I don't see any image. Please upload it."))
    with pytest.raises(EndpointRefusedError, match="test image"):
        await caption(make_input(25), endpoint)
    assert endpoint.count == 1


async def test_an_answer_about_something_else_is_a_warning(make_input, endpoint) -> None:
    endpoint.behave = lambda call: Reply(body=completion(f"A sunset over the sea {call.number}."))
    report, warnings = await caption(make_input(25), endpoint)
    assert report.captioned == 25
    assert len(warnings) == 1
    assert "may not see images" in warnings[0]


@pytest.mark.parametrize(("count", "options"), [(19, {}), (25, {"probe": False})])
async def test_short_runs_and_no_probe_send_none(make_input, endpoint, count, options) -> None:
    report, _ = await caption(make_input(count), endpoint, **options)
    assert report.captioned == endpoint.count == count


@pytest.mark.parametrize("busy", [1, 2])
async def test_a_rate_limit_does_not_skip_the_test(make_input, endpoint, busy) -> None:
    """It is sent once more; if that is limited too, the test is said to be skipped."""
    left = [None] * busy

    def behave(call) -> Reply:
        if not asks_for_the_shape(call):
            return Reply(body=completion(f"c{call.number}"))
        if left:
            left.pop()
            return Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"})
        return Reply(body=completion("A red circle."))

    endpoint.behave = behave
    report, warnings = await caption(make_input(25), endpoint)
    assert (report.captioned, sum(map(asks_for_the_shape, endpoint.calls))) == (25, 2)
    if busy == 1:
        assert warnings == []
    else:
        assert "slow down" in warnings[0]
        assert "was skipped" in warnings[0]
