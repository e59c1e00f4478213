"""Stragglers at the end of a run: the first of two answers counts, and each record has one row."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from conftest import rows
from endpoint import FakeEndpoint, Reply, completion

from captioner import run_batch

RECORDS = 150


async def caption(source: Path, endpoint: FakeEndpoint, **options):
    async with asyncio.timeout(60):
        return await run_batch(
            source,
            **{"base_url": endpoint.base_url, "model": "m", "concurrency": 8, "dedup": False}
            | options,
        )


def straggles(endpoint: FakeEndpoint, *later: Reply | None) -> None:
    """Let the first request of the last record hang; `later` answers those that follow."""
    answers = iter((Reply(fault="hang"), *later))

    def behave(call):
        return next(answers, None) if call.texts[-1].endswith(f" {RECORDS - 1}?") else None

    endpoint.behave = behave


@pytest.fixture
def source(tmp_path, make_input) -> Path:
    lines = make_input(RECORDS).read_text().splitlines()
    path = tmp_path / "asked.jsonl"
    path.write_text(
        "".join(f'{line[:-1]}, "prompt": "What is {n}?"}}\n' for n, line in enumerate(lines))
    )
    return path


async def test_a_straggler_is_sent_again(source, endpoint) -> None:
    """A request that hangs ends no run an hour late; its record has one row."""
    straggles(endpoint)
    report = await caption(source, endpoint)
    assert (report.captioned, report.failed) == (RECORDS, 0)
    assert len(rows(Path(report.output))) == RECORDS
    assert (report.calls, report.retries) == (RECORDS + 1, 1)
    assert report.prompt_tokens == 100 * (RECORDS + 1)


async def test_the_first_answer_counts_although_it_comes_late(source, endpoint) -> None:
    """The second request hangs as well; the first one is answered after a second."""
    straggles(endpoint)
    answers = iter([Reply(200, completion("late"), delay_s=1.0), Reply(fault="hang")])
    endpoint.behave = lambda call: (
        next(answers, None) if call.texts[-1].endswith(f" {RECORDS - 1}?") else None
    )
    report = await caption(source, endpoint)
    assert [row["caption"] for row in rows(Path(report.output))].count("late") == 1
    assert report.captioned == RECORDS
    assert report.prompt_tokens == 100 * (RECORDS + 1)


async def test_a_second_request_that_fails_harms_nothing(source, endpoint) -> None:
    late = Reply(200, completion("late"), delay_s=1.0)
    answers = iter([late, Reply(500, {"error": {"message": "no"}})])
    endpoint.behave = lambda call: (
        next(answers, None) if call.texts[-1].endswith(f" {RECORDS - 1}?") else None
    )
    report = await caption(source, endpoint)
    assert (report.captioned, report.failed) == (RECORDS, 0)
    assert [row["caption"] for row in rows(Path(report.output))].count("late") == 1


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({"hedge": "off"}, RECORDS),
        ({"prices": True}, RECORDS),
        ({"prices": True, "hedge": "on"}, RECORDS + 1),
    ],
)
async def test_where_requests_cost_money_it_must_be_asked_for(
    source, endpoint, tmp_path, options, calls
) -> None:
    """Both requests are paid for: the cost says so."""
    if "prices" in options:
        options = options | {"prices": tmp_path / "prices.toml"}
        options["prices"].write_text("[m]\ninput = 10_000.0\noutput = 0.0\n")
    late = Reply(200, completion("late"), delay_s=1.5)
    answers = iter([late])
    endpoint.behave = lambda call: (
        next(answers, None) if call.texts[-1].endswith(f" {RECORDS - 1}?") else None
    )
    report = await caption(source, endpoint, **options)
    assert (report.captioned, report.calls) == (RECORDS, calls)
    if "prices" in options:
        assert report.cost == pytest.approx(calls)


async def test_few_requests_say_nothing_about_what_is_slow(make_input, endpoint) -> None:
    answers = iter([Reply(200, completion("late"), delay_s=1.0)])
    endpoint.behave = lambda _: next(answers, None)
    report = await caption(make_input(20), endpoint)
    assert (report.captioned, report.calls) == (20, 20)
