"""Stragglers at the end of a run: the first of two answers counts, and each record has one row."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from conftest import rows
from endpoint import FakeEndpoint, Reply, completion

from captioner import run_batch

RECORDS = 150
LATE = Reply(200, completion("late"), delay_s=1.0)
HANGS = Reply(fault="hang")


def last_record(endpoint: FakeEndpoint, *replies: Reply) -> None:
    """Reply to the first requests of the last record like that, then as usual."""
    left = iter(replies)
    last = f"q{RECORDS - 1}"
    endpoint.behave = lambda call: next(left, None) if call.texts[-1] == last else None


async def caption(source: Path, endpoint: FakeEndpoint, **options):
    options = {"base_url": endpoint.base_url, "model": "m", "concurrency": 8, **options}
    async with asyncio.timeout(60):
        report = await run_batch(source, **options)
    return report, [row["caption"] for row in rows(Path(report.output))]


async def test_a_straggler_is_sent_again(make_input, endpoint) -> None:
    """A request that hangs ends no run minutes late; its record has one row."""
    last_record(endpoint, HANGS)
    report, captions = await caption(make_input(RECORDS), endpoint)
    assert (report.captioned, report.failed, len(captions)) == (RECORDS, 0, RECORDS)
    assert (report.calls, report.retries) == (RECORDS + 1, 1)
    assert report.prompt_tokens == 100 * (RECORDS + 1)


async def test_the_first_answer_counts_although_it_comes_late(make_input, endpoint) -> None:
    """The second request hangs; it is cancelled, and its tokens count all the same."""
    last_record(endpoint, LATE, HANGS)
    report, captions = await caption(make_input(RECORDS), endpoint)
    assert (report.captioned, captions.count("late")) == (RECORDS, 1)
    assert (report.calls, report.prompt_tokens) == (RECORDS + 1, 100 * (RECORDS + 1))


async def test_a_second_request_that_fails_harms_nothing(make_input, endpoint) -> None:
    last_record(endpoint, LATE, Reply(500, {"error": {"message": "no"}}))
    report, captions = await caption(make_input(RECORDS), endpoint)
    assert (report.captioned, report.failed) == (RECORDS, 0)
    assert captions.count("late") == 1


async def test_a_first_request_that_fails_waits_for_the_second(make_input, endpoint) -> None:
    """The record needs no third request."""
    fails = Reply(500, {"error": {"message": "no"}}, delay_s=1.0)
    slow = Reply(200, completion("second"), delay_s=2.0)
    last_record(endpoint, fails, slow)
    report, captions = await caption(make_input(RECORDS), endpoint)
    assert (report.captioned, captions.count("second")) == (RECORDS, 1)
    assert report.calls == RECORDS + 1


@pytest.mark.parametrize(
    ("priced", "hedge", "calls"),
    [
        (False, "off", RECORDS),
        (True, "auto", RECORDS),
        (True, "on", RECORDS + 1),
    ],
)
async def test_where_requests_cost_money_it_must_be_asked_for(
    make_input, endpoint, tmp_path, priced, hedge, calls
) -> None:
    """Both requests are paid for: the cost says so."""
    prices = None
    if priced:
        prices = tmp_path / "prices.toml"
        prices.write_text("[m]\ninput = 10_000.0\noutput = 0.0\n")
    last_record(endpoint, LATE)
    report, _ = await caption(make_input(RECORDS), endpoint, hedge=hedge, prices=prices)
    assert (report.captioned, report.calls) == (RECORDS, calls)
    assert report.cost == (pytest.approx(calls) if priced else None)


async def test_few_requests_do_not_say_what_is_slow(make_input, endpoint) -> None:
    replies = iter([LATE])
    endpoint.behave = lambda _: next(replies, None)
    report, _ = await caption(make_input(20), endpoint)
    assert (report.captioned, report.calls) == (20, 20)
