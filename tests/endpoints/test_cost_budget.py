"""A run that may not spend more than it was told."""

from __future__ import annotations

import pytest
from conftest import rows
from endpoint import Reply, completion

from captioner import SettingsError, run_batch
from captioner.core.errors import LimitReachedError
from captioner.core.types import Usage
from captioner.endpoints.prices import Price, price_at, price_of

MANY = {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100}


def costly(call):
    return Reply(body={**completion(f"c{call.number}"), "usage": MANY})


@pytest.fixture
def prices(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text("[m]\ninput = 1.0\noutput = 10.0\n")
    return path


@pytest.mark.parametrize("processes", [1, 2])
async def test_money_is_never_spent_beyond_the_cap(make_input, endpoint, prices, processes):
    """A request costs 0.2 cents: of 10 cents about 50 are sent, and the next run sends the rest.

    Two processes have half the budget each, and the first one to use it up ends the run.
    """
    endpoint.behave = costly
    source = make_input(80)
    options = {"base_url": endpoint.base_url, "model": "m", "concurrency": 8, "prices": prices}
    with pytest.raises(LimitReachedError, match="--budget") as error:
        await run_batch(source, budget=0.1, **options, processes=processes)
    assert error.value.exit_code == 8
    report = error.value.report
    assert (45 if processes == 1 else 25) <= endpoint.count <= 50
    assert report.captioned == endpoint.count == len(rows(source.with_name("input.captions.jsonl")))
    assert report.cost == pytest.approx(endpoint.count * 0.002)
    report = await run_batch(source, budget=1.0, **options, processes=processes)
    assert (report.complete, endpoint.count) == (True, 80)


async def test_tokens_are_never_spent_beyond_the_cap(make_input, endpoint):
    endpoint.behave = costly
    with pytest.raises(LimitReachedError, match=r"tokens \(--budget\)"):
        await run_batch(make_input(80), base_url=endpoint.base_url, model="m", budget_tokens=22_000)
    assert 18 <= endpoint.count <= 20


async def test_replies_that_are_not_kept_cost_as_well(make_input, endpoint, prices):
    endpoint.behave = lambda _: Reply(body={**completion(""), "usage": MANY})
    report = await run_batch(
        make_input(2), base_url=endpoint.base_url, model="m", prices=prices, max_attempts=3
    )
    assert (report.failed, report.cost) == (2, pytest.approx(0.012))


def test_the_command_says_what_is_left(make_input, endpoint, prices, run_command):
    endpoint.behave = costly
    options = ["--base-url", endpoint.base_url, "--model", "m", "--prices", prices]
    ended = run_command(make_input(60), *options, "--budget", "0.05")
    assert ended.returncode == 8
    assert "The budget of $0.05" in ended.stderr
    assert "$0.0" in ended.stderr
    assert "not finished" in ended.stderr


def test_prices_of_ones_own_go_before_those_of_the_library(tmp_path, prices):
    assert price_of("m", "https://api.openai.com/v1", prices) == Price(1.0, 10.0)
    assert price_of("gpt-4o-mini", "https://api.openai.com/v1", prices) == Price(0.15, 0.6)
    assert Price(1.0, 10.0).of(Usage(1_000_000, 100_000)) == 2.0
    with pytest.raises(SettingsError, match="no price is known for my/model"):
        price_of("my/model", "http://localhost:8000/v1", prices)
    for text in ("[m]\ninput = 1", "[m]\ninput = -1\noutput = 1", "no"):
        prices.write_text(text)
        with pytest.raises(SettingsError, match="prices"):
            price_of("m", "http://localhost/v1", prices)
    with pytest.raises(SettingsError, match="cannot read"):
        price_of("m", "http://localhost/v1", tmp_path / "no.toml")


def test_a_budget_goes_without_what_cannot_keep_it():
    from captioner import Settings

    for more in ({"batch_api": True}, {"engine": "ray"}):
        with pytest.raises(SettingsError, match="budget"):
            Settings.create("in.jsonl", budget=1.0, **more)


async def test_an_endpoint_that_does_not_say_what_it_used(make_input, endpoint):
    """The budget goes by estimates then, and that is said."""
    endpoint.behave = lambda call: Reply(body={**completion(f"c{call.number}"), "usage": None})
    warnings: list[str] = []
    with pytest.raises(LimitReachedError):
        await run_batch(
            make_input(40), base_url=endpoint.base_url, model="m", budget_tokens=17_000,
            warn=warnings.append,
        )  # fmt: skip
    assert 8 <= endpoint.count <= 10
    assert any("does not report" in text for text in warnings)


async def test_a_small_budget_is_no_dead_end(make_input, endpoint):
    """A first request goes, and tells what the next ones cost: also the next run."""
    endpoint.behave = costly
    source = make_input(6)
    options = {"base_url": endpoint.base_url, "model": "m"}
    for _ in range(3):
        with pytest.raises(LimitReachedError, match=r"raise it .* --budget-per-run"):
            await run_batch(source, **options, budget_tokens=1_500)
    assert endpoint.count == 1
    for _ in range(2):
        with pytest.raises(LimitReachedError, match=r"\(--budget-per-run\).*Run the same command"):
            await run_batch(source, **options, budget_per_run="3ktok")
    assert endpoint.count == 3


@pytest.mark.parametrize("processes", [1, 2])
async def test_the_budget_is_that_of_all_runs(make_input, endpoint, prices, processes):
    """What was spent is kept beside the output: the second run has the rest, the third nothing."""
    endpoint.behave = costly
    source = make_input(60)
    options = {"base_url": endpoint.base_url, "model": "m", "prices": prices}
    options |= {"processes": processes, "concurrency": 4}
    first = await run_batch(source, **options, budget=0.1, limit=20)
    assert first.total_cost == first.cost == pytest.approx(0.04)
    with pytest.raises(LimitReachedError) as error:
        await run_batch(source, **options, budget=0.1)
    report = error.value.report
    assert endpoint.count <= 50
    assert report.cost == pytest.approx((endpoint.count - 20) * 0.002)
    assert report.total_cost == pytest.approx(endpoint.count * 0.002)
    with pytest.raises(LimitReachedError):
        await run_batch(source, **options, budget=report.total_cost)
    report = await run_batch(source, **options, budget_per_run="1usd")
    assert (report.complete, report.total_cost) == (True, pytest.approx(0.12))


async def test_nothing_else_is_sent_until_the_first_response_says_what_a_request_costs(
    make_input, endpoint, prices
):
    """Each request costs 30 cents of 50: with 16 at once, $4.80 would be in flight."""
    huge = {"prompt_tokens": 300_000, "completion_tokens": 0, "total_tokens": 300_000}
    endpoint.behave = lambda call: Reply(
        body={**completion(f"c{call.number}"), "usage": huge}, delay_s=0.1
    )
    with pytest.raises(LimitReachedError):
        await run_batch(
            make_input(40), base_url=endpoint.base_url, model="m", prices=prices, budget=0.5,
            concurrency=16,
        )  # fmt: skip
    assert endpoint.count == 1


async def test_requests_that_turn_out_larger_do_not_break_the_budget(make_input, endpoint, prices):
    """Only as many are in flight as responses came, so a growing size is noticed in time."""

    def behave(call):
        tokens = 1_000 if call.number < 3 else 20_000
        usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        return Reply(body={**completion(f"c{call.number}"), "usage": usage})

    endpoint.behave = behave
    with pytest.raises(LimitReachedError) as error:
        await run_batch(
            make_input(60), base_url=endpoint.base_url, model="m", prices=prices, budget=0.2,
            concurrency=32,
        )  # fmt: skip
    assert 0.1 < error.value.report.cost <= 0.2


async def test_a_refusal_is_paid_for_as_well(make_input, endpoint, prices):
    """Of two records one is refused by a content filter, and the other asked for twice."""

    def behave(call):
        if call.number == 1:
            reply = completion("", finish_reason="content_filter")
        else:
            reply = completion("" if call.number == 2 else "a cat")
        return Reply(body={**reply, "usage": MANY})

    endpoint.behave = behave
    report = await run_batch(
        make_input(2), base_url=endpoint.base_url, model="m", prices=prices, concurrency=1
    )
    assert (report.captioned, report.failed, report.calls) == (1, 1, 3)
    assert (report.prompt_tokens, report.completion_tokens) == (3_000, 300)
    assert report.cost == pytest.approx(0.006)


async def test_a_cost_that_is_not_known_is_not_zero(make_input, endpoint):
    report = await run_batch(make_input(1), base_url=endpoint.base_url, model="gpt-4o-mini")
    assert report.as_dict()["cost"] is report.as_dict()["total_cost"] is None


def test_a_price_is_taken_from_the_provider_only_where_it_is_the_endpoint():
    """A local server may give its model any name."""
    assert price_at("gpt-4o-mini", "https://api.openai.com/v1", None) == Price(0.15, 0.6)
    for url in (
        "http://localhost:8000/v1",
        "http://10.0.0.7:8000/v1",
        "https://gateway.example/v1",
    ):
        assert price_at("gpt-4o-mini", url, None) is None
