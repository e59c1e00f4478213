"""A stage that asks the most doubtful records first, until the budget is used."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from conftest import command, jpeg, rows
from endpoint import Call, FakeEndpoint, Reply, completion, kill_in_mid_run

from captioner import run_batch
from captioner.core.errors import SettingsError
from captioner.engine.most_doubtful import FEW

RECORDS = 120
TOKENS = 110
"""What each answer of the test's endpoint uses."""

STAGES = [
    {"name": "quick", "prompt": "Quick {{ n }}", "field": "caption"},
    {
        "name": "strong",
        "prompt": "Strong {{ n }}",
        "when": "doubt > 0.2",
        "order": "doubt",
        "field": "caption",
    },
]


def doubt(n: int) -> float:
    """Return the doubt of a record; neighbours differ much."""
    return n * 37 % RECORDS / RECORDS


def behave(call: Call) -> Reply:
    """Answer the first stage with the doubt of its record."""
    kind, n = " ".join(call.texts).split()
    log = math.log(1 - doubt(int(n)))
    content = [{"token": "a", "logprob": log, "top_logprobs": []}]
    return Reply(200, completion(f"{kind} {n}", logprobs={"content": content}))


@pytest.fixture
def source(tmp_path, endpoint) -> Path:
    endpoint.behave = behave
    path = tmp_path / "in.jsonl"
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    lines = (json.dumps({"image": "a.jpg", "n": n}) + "\n" for n in range(RECORDS))
    path.write_text("".join(lines))
    return path


def asked(endpoint: FakeEndpoint, kind: str) -> list[int]:
    found = [" ".join(call.texts).split() for call in endpoint.calls]
    return [int(n) for one, n in found if one == kind]


async def captioned(source: Path, endpoint: FakeEndpoint, budget: str | None, **options):
    return await run_batch(
        source, base_url=endpoint.base_url, model="m", stage=STAGES, budget=budget,
        concurrency=4, **options,
    )  # fmt: skip


async def test_the_budget_goes_to_the_most_doubtful(source, endpoint, caplog) -> None:
    strong = 50
    report = await captioned(source, endpoint, f"{(RECORDS + strong) * TOKENS}tok")
    assert report.complete
    assert report.captioned == RECORDS
    found = asked(endpoint, "Strong")
    assert strong - 4 <= len(found) <= strong  # what is kept for requests that use more
    most_doubtful = sorted(range(RECORDS), key=doubt)
    assert (
        set(most_doubtful[FEW - len(found) :])
        <= set(found)
        <= set(most_doubtful[-len(found) - FEW :])
    )
    assert sorted(asked(endpoint, "Quick")) == list(range(RECORDS))
    for row in rows(Path(report.output)):
        assert row["caption"] == f"{'Strong' if row['n'] in found else 'Quick'} {row['n']}"
    doubtful = sum(doubt(n) > 0.2 for n in range(RECORDS))
    assert f"the budget is used: {doubtful - len(found)} records" in caplog.text


async def test_a_budget_that_is_enough_leaves_nothing_out(source, endpoint, caplog) -> None:
    report = await captioned(source, endpoint, f"{4 * RECORDS * TOKENS}tok")
    assert report.complete
    assert set(asked(endpoint, "Strong")) == {n for n in range(RECORDS) if doubt(n) > 0.2}
    assert max(Counter(asked(endpoint, "Strong")).values()) == 1
    assert "the budget is used" not in caplog.text


async def test_without_a_budget_the_input_is_read_once(source, endpoint) -> None:
    report = await captioned(source, endpoint, None)
    assert report.complete
    assert len(asked(endpoint, "Strong")) == sum(doubt(n) > 0.2 for n in range(RECORDS))


async def test_equal_records_are_asked_once_and_get_the_same(source, endpoint) -> None:
    source.write_text(source.read_text() * 2)
    report = await captioned(source, endpoint, f"{(RECORDS + 30) * TOKENS}tok")
    assert report.complete
    captions = [row["caption"] for row in rows(Path(report.output))]
    assert sorted(Counter(captions).values()) == [2] * RECORDS
    assert len(asked(endpoint, "Quick")) == RECORDS
    assert max(Counter(asked(endpoint, "Strong")).values()) == 1


async def test_failures_stand_beside_postponed_records(source, endpoint) -> None:
    with source.open("a") as file:
        file.write('{"image": "missing.jpg", "n": 1}\n{"image"\n')
    report = await captioned(source, endpoint, f"{(RECORDS + 30) * TOKENS}tok")
    assert (report.captioned, report.failed, report.complete) == (RECORDS, 2, True)
    again = await captioned(source, endpoint, f"{(RECORDS + 30) * TOKENS}tok", retry="failed")
    assert (again.captioned, again.failed, again.complete) == (0, 2, True)


def test_a_kill_pays_nothing_twice_and_loses_nothing(
    source, endpoint, tmp_path, run_command
) -> None:
    """Killed five times, in the first pass and in later ones."""
    output, config = tmp_path / "out.jsonl", tmp_path / "run.toml"
    tables = (
        "[[stage]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in stage.items())
        for stage in STAGES
    )
    budget = f"{(RECORDS + 70) * TOKENS}tok"
    start = f'base-url = "{endpoint.base_url}"\nmodel = "m"\nbudget = "{budget}"\nconcurrency = 4\n'
    config.write_text(start + "".join(tables))
    words = command(source, "--config", config, "-o", output, "--no-view")
    kill_in_mid_run(endpoint, words, times=5, after=30)
    done = run_command(*words[3:])
    assert done.returncode == 0, done.stderr
    assert sorted(row["n"] for row in rows(output)) == list(range(RECORDS))
    unfinished = 5 * 8  # in flight at a kill
    assert len(asked(endpoint, "Quick")) <= RECORDS + unfinished
    strong = Counter(asked(endpoint, "Strong"))
    assert strong.total() <= len(strong) + unfinished
    best = sorted(range(RECORDS), key=doubt)
    assert set(best[FEW - len(strong) :]) <= set(strong)
    written = {row["n"] for row in rows(output) if row["caption"].startswith("Strong")}
    assert written == set(strong)


@pytest.mark.parametrize(
    ("changed", "options", "words"),
    [
        ({}, {"processes": 2}, "works in one process"),
        ({"order": "size"}, {}, "order"),
        ({"order": "doubt"}, {}, "is for the last stage"),
    ],
)
async def test_what_cannot_be_is_refused(source, endpoint, changed, options, words) -> None:
    stages = [{**STAGES[0], **changed}, STAGES[1]]
    with pytest.raises(SettingsError, match=words):
        await run_batch(source, base_url=endpoint.base_url, model="m", stage=stages, **options)
    assert endpoint.count == 0
