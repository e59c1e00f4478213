"""Several endpoints: the work goes where it is done soonest, and one that fails costs its share."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import rows
from endpoint import FakeEndpoint, Reply

from captioner import run_batch
from captioner.core.errors import EndpointRefusedError
from captioner.endpoints.pool import EndpointPool


@pytest.fixture
def second():
    server = FakeEndpoint()
    server.start()
    yield server
    server.stop()


async def caption(source: Path, *endpoints: FakeEndpoint, **options):
    said: list[str] = []
    urls = [endpoint.base_url for endpoint in endpoints]
    options = {"model": "m", "concurrency": 16, **options}
    if "endpoints" not in options:
        options["base_url"] = urls
    report = await run_batch(source, warn=said.append, **options)
    return report, said


async def test_the_work_is_spread(make_input, endpoint, second) -> None:
    """Two equal endpoints share the records, each captioned once."""
    endpoint.latency_s = second.latency_s = 0.02
    report, _ = await caption(make_input(200), endpoint, second)
    assert (report.captioned, report.failed) == (200, 0)
    assert endpoint.given + second.given == 200
    assert min(endpoint.given, second.given) > 50


async def test_weights_count(make_input, endpoint, second) -> None:
    """An endpoint with four times the weight gets most of the work."""
    endpoint.latency_s = second.latency_s = 0.02
    tables = [{"base-url": endpoint.base_url, "weight": 4.0}, {"base_url": second.base_url}]
    report, _ = await caption(make_input(200), endpoints=tables)
    assert report.captioned == 200
    assert endpoint.given > 2 * second.given > 0


@pytest.mark.parametrize(
    ("wait_s", "load", "is_open", "stays"),
    [
        (0.0, 0.75, False, True),
        (0.5, 0.5, False, True),
        (0.0, 1.25, False, False),
        (60.0, 0.5, False, False),
        (0.0, 0.5, True, False),
    ],
)
def test_a_question_follows_its_image_unless_that_costs_time(
    wait_s: float, load: float, is_open: bool, stays: bool
) -> None:
    """The server of the first question may have the image in its cache."""

    def endpoint(load: tuple[float, float], *, is_open: bool = False) -> SimpleNamespace:
        breaker = SimpleNamespace(
            is_open=is_open, probing=False, probe_due=lambda: False, sharers=set()
        )
        return SimpleNamespace(load=load, breaker=breaker, limiter=SimpleNamespace(sharers=set()))

    idle, before = endpoint((0.0, 0.5)), endpoint((wait_s, load), is_open=is_open)
    pool = EndpointPool([idle, before])
    assert pool.choose() is idle
    assert (pool.choose(before) is before) is stays


async def test_a_second_question_does_not_wait_for_a_slow_endpoint(
    make_input, endpoint, second
) -> None:
    """A cache is not worth an hour: a paused endpoint keeps no question."""
    hour = {"Retry-After": "3600"}
    second.behave = lambda call: Reply(429, None, hour) if "Where" in call.texts[-1] else None
    questions = ["name=What is it?", "place=Where is it?"]
    async with asyncio.timeout(30):
        report, _ = await caption(make_input(60), endpoint, second, ask=questions)
    assert report.captioned == 60


async def test_a_slow_endpoint_gets_less(make_input, endpoint, second) -> None:
    """Least loaded: one that takes five times as long does not hold up the other."""
    endpoint.latency_s, second.latency_s = 0.02, 0.1
    report, _ = await caption(make_input(200), endpoint, second)
    assert report.captioned == 200
    assert endpoint.given > second.given > 0


async def test_a_dead_endpoint_costs_nothing_but_its_share(make_input, endpoint, second) -> None:
    """With nobody listening at one address all records are captioned by the other."""
    second.stop()
    report, _ = await caption(make_input(100), endpoint, second)
    assert (report.captioned, report.failed) == (100, 0)
    assert endpoint.given == 100
    assert report.calls < 200


async def test_one_that_comes_back_is_used_again(make_input, endpoint, second) -> None:
    """A probe finds out that a resting endpoint is well."""
    endpoint.latency_s = 0.05
    second.behave = lambda call: Reply(503, {}) if call.number <= 11 else None
    report, _ = await caption(make_input(600), endpoint, second, concurrency=8)
    assert (report.captioned, report.failed) == (600, 0)
    assert second.given > 10


async def test_when_all_rest_the_first_to_come_back_gets_the_work(
    make_input, endpoint, second
) -> None:
    """Nobody waits for an endpoint that stays away while another is well again."""
    endpoint.latency_s = second.latency_s = 0.02
    away = False
    behave = endpoint.behave = lambda _: Reply(503, {}) if away else None
    second.behave = behave
    run = asyncio.create_task(caption(make_input(300), endpoint, second))
    while endpoint.given + second.given < 60:
        await asyncio.sleep(0.005)
    away = True
    while endpoint.count + second.count < 60 + 22:
        await asyncio.sleep(0.005)
    second.behave = lambda _: None
    before = endpoint.given
    report, _ = await asyncio.wait_for(run, 30)
    assert (report.captioned, report.failed) == (300, 0)
    assert endpoint.given <= before + 16  # what was on the wire
    assert endpoint.count - before < 100


async def test_a_refused_key_takes_one_endpoint_out(make_input, endpoint, second) -> None:
    """The others go on, and one sentence says so; with none left the run stops."""
    second.behave = lambda _: Reply(401, {"error": {"message": "bad key"}})
    endpoint.latency_s = 0.01
    source = make_input(60)
    report, said = await caption(source, endpoint, second)
    assert (report.captioned, report.failed) == (60, 0)
    assert len(said) == 1
    assert said[0].startswith(f"going on without {second.base_url}")
    endpoint.behave = second.behave
    with pytest.raises(EndpointRefusedError):
        await caption(make_input(70, "other.jsonl"), endpoint, second)


async def test_a_pause_sends_the_waiting_elsewhere(make_input, endpoint, second) -> None:
    """One that wants to be left alone for an hour holds nobody while the other is well."""
    hour = Reply(429, {"error": {"message": "slow"}}, {"Retry-After": "3600"})
    second.behave = lambda _: hour
    endpoint.latency_s = 0.01
    async with asyncio.timeout(30):
        report, _ = await caption(make_input(100), endpoint, second)
    assert (report.captioned, endpoint.given) == (100, 100)


async def test_each_endpoint_has_its_own_model_key_and_headers(
    make_input, endpoint, second, monkeypatch
) -> None:
    """A table says what is its own; the rest is as for all."""
    monkeypatch.setenv("KEY_A", "aaa")
    monkeypatch.setenv("KEY_B", "bbb")
    endpoint.latency_s = second.latency_s = 0.01
    tables = [
        {"base-url": endpoint.base_url, "model": "one", "api-key-env": "KEY_A"},
        {
            "base-url": second.base_url,
            "api_key_env": "KEY_B",
            "header": ["X-Team: vision"],
            "extra-body": {"seed": 7},
        },
    ]
    report, _ = await caption(make_input(60), endpoints=tables, header=["X-All: yes"])
    assert report.captioned == 60
    for call in endpoint.calls:
        assert (call.body["model"], call.headers["authorization"]) == ("one", "Bearer aaa")
        assert call.headers["x-all"] == "yes"
        assert "seed" not in call.body
    for call in second.calls:
        assert (call.body["model"], call.headers["authorization"]) == ("m", "Bearer bbb")
        assert call.headers["x-team"] == "vision"
        assert call.body["seed"] == 7
    assert endpoint.calls
    assert second.calls


async def test_several_keys_for_one_address(make_input, endpoint, monkeypatch) -> None:
    """Each key has permits of its own."""
    monkeypatch.setenv("KEY_A", "aaa")
    monkeypatch.setenv("KEY_B", "bbb")
    endpoint.latency_s = 0.01
    keys = ["KEY_A", "KEY_B"]
    report, _ = await caption(make_input(60), endpoint, api_key_env=keys)
    used = {call.headers["authorization"] for call in endpoint.calls}
    assert (report.captioned, used) == (60, {"Bearer aaa", "Bearer bbb"})
    assert rows(Path(report.output))
