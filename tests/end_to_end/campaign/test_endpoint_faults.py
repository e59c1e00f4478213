"""Cases 13 to 22 of the fault campaign: an endpoint that limits, fails, lies and goes away.

In each the fault is shown to have happened, every record is captioned once, and none is failed
that need not be.
"""

from __future__ import annotations

import asyncio
import math
import random
import resource
import time
import zlib
from email.utils import formatdate
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import rows
from endpoint import Call, FakeEndpoint, Reply, completion
from tally import told
from waiting import LIMIT_S

from captioner import run_batch
from captioner.core.progress import Progress
from captioner.core.retry import retry_after_s
from captioner.endpoints.ratelimit_headers import read_limits

SEED = 22


class Seen:
    """What became of the records of a run."""

    def __init__(self, report: Any) -> None:
        self.report = report
        self.done = rows(Path(report.output))
        failures = Path(report.failures)
        self.failed = rows(failures) if failures.exists() else []

    def all_captioned(self, count: int) -> None:
        assert self.failed == []
        assert sorted(row["id"] for row in self.done) == list(range(count))
        for row in self.done:
            assert row["caption"].startswith(f"q{row['id']} ")


async def caption(source: Path, endpoint: FakeEndpoint, **options: Any) -> Seen:
    options = {"base_url": endpoint.base_url, "model": "m", "concurrency": 16, **options}
    async with asyncio.timeout(LIMIT_S):
        return Seen(await run_batch(source, **options))


class FirstTime:
    """Answers each record's first attempts with faults, in turn, then well."""

    def __init__(self, *faults: Reply) -> None:
        self.faults = faults
        self.happened = 0
        self._seen: set[str] = set()

    def __call__(self, call: Call) -> Reply | None:
        question = call.texts[0]
        if question in self._seen:
            return None
        self._seen.add(question)
        self.happened += 1
        return self.faults[self.happened % len(self.faults)]


async def test_13_rate_limits_with_and_without_a_time(make_input, endpoint) -> None:
    """429 with seconds, milliseconds, dates past and near, nonsense, or nothing."""
    now = time.time()
    headers = [
        {"Retry-After": "0.05"},
        {"retry-after-ms": "40"},
        {"Retry-After": formatdate(now - 3600, usegmt=True)},
        {"Retry-After": formatdate(now, usegmt=True)},
        {"Retry-After": "-5"},
        {"Retry-After": "soon"},
        {},
    ]
    behave = endpoint.behave = FirstTime(*(Reply(429, {}, one) for one in headers))
    seen = await caption(make_input(60), endpoint)
    seen.all_captioned(60)
    assert behave.happened == 60
    told.append(f"case 13: {behave.happened} rate limits, 60 captioned")


async def test_13_nothing_but_rate_limits_for_a_while(make_input, endpoint) -> None:
    """100 % 429 for two seconds: few calls meanwhile, and no record fails."""
    until = math.inf  # two seconds after the first request
    limited = 0

    def behave(_: Call) -> Reply | None:
        nonlocal limited, until
        until = min(until, time.monotonic() + 2)
        if time.monotonic() < until:
            limited += 1
            return Reply(429, {"error": {"code": "rate_limit_exceeded", "message": "slow"}})
        return None

    endpoint.behave = behave
    (await caption(make_input(100), endpoint)).all_captioned(100)
    assert 10 <= limited <= 60


async def test_14_half_of_all_replies_are_5xx(make_input, endpoint) -> None:
    """500, 502, 503 and 529 at random: time, not records."""
    dice = random.Random(SEED)
    faults = 0

    def behave(_: Call) -> Reply | None:
        nonlocal faults
        if dice.random() < 0.5:
            faults += 1
            return Reply(dice.choice((500, 502, 503, 529)), b"<html>")
        return None

    endpoint.behave = behave
    (await caption(make_input(60), endpoint, concurrency=32)).all_captioned(60)
    assert faults > 20
    told.append(f"case 14: seed {SEED}, {faults} faults, 60 captioned")


async def test_14_only_the_record_that_breaks_the_endpoint_fails(make_input, endpoint) -> None:
    """One record always gets 500 while the others go through."""
    endpoint.behave = lambda call: Reply(500, {}) if call.texts == ["q7"] else None
    seen = await caption(make_input(120), endpoint, concurrency=4)
    assert [row["record"]["id"] for row in seen.failed] == [7]
    assert len(seen.done) == 119
    assert 3 <= seen.failed[0]["attempts"] <= 6


async def test_14_a_record_that_takes_the_whole_engine_down_is_the_only_one_to_fail(
    make_input, endpoint
) -> None:
    """Each time it is sent all requests in flight break off, and for a while nobody is answered."""
    down_until = 0.0
    crashes = 0

    def behave(call: Call) -> Reply | None:
        nonlocal down_until, crashes
        now = time.monotonic()
        if now < down_until:
            return Reply(fault="reset")
        if call.texts == ["q7"]:
            crashes += 1
            down_until = now + 0.2
            return Reply(fault="reset")
        return None

    endpoint.behave = behave
    endpoint.latency_s = 0.01
    seen = await caption(make_input(400), endpoint, concurrency=8)
    assert [row["record"]["id"] for row in seen.failed] == [7]
    assert len(seen.done) == 399
    assert crashes >= 3
    told.append(f"case 14: a record that crashed the engine {crashes} times failed alone")


@pytest.mark.parametrize("fault", ["hang", "stall", "drip"])
async def test_15_replies_that_never_come_end_at_the_deadline(make_input, endpoint, fault) -> None:
    """A total deadline, not an idle one: bytes that drip do not hold a place for ever."""
    behave = endpoint.behave = FirstTime(Reply(fault=fault))
    seen = await caption(make_input(12), endpoint, timeout=1, concurrency=12)
    seen.all_captioned(12)
    assert behave.happened == 12


async def test_16_connections_that_break(make_input, endpoint) -> None:
    """Before the reply, in the middle of it, and whole replies of half a JSON."""
    half = b'{"choices": [{"message": {"content": "q0 half'
    behave = endpoint.behave = FirstTime(
        Reply(fault="reset"), Reply(fault="truncate"), Reply(200, half)
    )
    seen = await caption(make_input(60), endpoint, hedge="off")
    seen.all_captioned(60)
    assert behave.happened == 60
    assert max(endpoint.answered.values()) == 1


async def test_17_replies_that_are_no_captions(make_input, endpoint) -> None:
    """HTML, nothing, null, no choices, empty, cut off, aborted: never a caption."""
    bodies: list[Any] = [
        b"<html>",
        b"",
        b"null",
        {"choices": None},
        completion(None),
        completion([]),
        completion("q0 cut", finish_reason="length"),
        completion("q0 broken", finish_reason="error"),
        completion("<think>q0"),
        completion(None, message={"content": "", "reasoning": "q0 thought"}),
        {"error": {"code": 502, "message": "upstream"}},
    ]
    behave = endpoint.behave = FirstTime(*(Reply(200, body) for body in bodies))
    seen = await caption(make_input(66), endpoint)
    seen.all_captioned(66)
    assert behave.happened == 66
    for row in seen.done:
        assert not any(word in row["caption"] for word in ("cut", "broken", "think", "thought"))


@pytest.mark.parametrize(
    "text",
    [
        "a\nb\r\nc",
        "\u2028a\u2029b",
        "a\x7fb",
        "\u202eabc\x1b[2J",
        '"}\n{"id":9',
        "𝔘ñï",
        "\ufeffa",
    ],
)
async def test_18_odd_characters_come_back_on_one_line(make_input, endpoint, text) -> None:
    """Each record is one valid line whatever its caption holds."""
    text = f"A sign with the words {text} on a wall of red bricks"
    endpoint.behave = lambda _: Reply(200, completion(text))
    source = make_input(2)
    seen = await caption(source, endpoint)
    assert [row["caption"] for row in seen.done] == [text] * 2
    assert Path(seen.report.output).read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("body", [b'{"choices":[{"message":{"content":"\xff"}}]}', b'"\\ud800"'])
async def test_18_what_is_no_text_is_no_caption(make_input, endpoint, body) -> None:
    """Invalid UTF-8 and lone surrogates are asked for again."""
    behave = endpoint.behave = FirstTime(Reply(200, body))
    (await caption(make_input(5), endpoint)).all_captioned(5)
    assert behave.happened == 5


async def test_18_a_name_that_cannot_be_written_costs_no_caption(make_input, endpoint) -> None:
    """The model's name is stored beside the caption."""
    said = orjson.dumps(completion("A red door."))[:-1] + rb',"model":"m\ud800"}'
    endpoint.behave = lambda _: Reply(200, said)
    seen = await caption(make_input(2), endpoint, with_=["model"])
    assert [row["caption_model"] for row in seen.done] == ["m?"] * 2


async def test_19_replies_without_measure(make_input, endpoint) -> None:
    """Endless, enormous or a gzip bomb: read up to a bound, then asked for again."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([*(packer.compress(b" " * (1 << 20)) for _ in range(200)), packer.flush()])
    behave = endpoint.behave = FirstTime(
        Reply(fault="endless"),
        Reply(200, b" " * (11 << 20)),
        Reply(200, bomb, {"Content-Encoding": "gzip"}),
        Reply(200, b"{}", {"X-Long": "x" * 100_000}),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = await caption(make_input(12), endpoint, concurrency=4)
    seen.all_captioned(12)
    assert behave.happened == 12
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KB


async def test_20_an_outage_fails_no_record(make_input, endpoint) -> None:
    """The server goes away in the middle of a run and comes back: all are captioned."""
    endpoint.latency_s = 0.02
    endpoint.on_request[120] = lambda: setattr(endpoint, "hold", True)
    progress = Progress()
    run = asyncio.create_task(caption(make_input(400), endpoint, progress=progress))
    while not endpoint.hold:
        await asyncio.sleep(0.005)
    await asyncio.to_thread(endpoint.stop)
    given, endpoint.hold = endpoint.given, False
    while not progress.waiting:
        assert not run.done()
        await asyncio.sleep(0.005)
    await asyncio.to_thread(endpoint.start)
    seen = await run
    seen.all_captioned(400)
    assert given < 400
    told.append(f"case 20: away after {given} of 400, all captioned")


async def test_21_names_that_move_or_vanish(make_input, endpoint, monkeypatch) -> None:
    """DNS fails for a while, then tells another address than before: an endpoint's fault only."""
    asked = 0
    port = int(endpoint.base_url.split(":")[2].split("/")[0])

    class Resolver:
        async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
            nonlocal asked
            asked += 1
            assert host == "vlm.test"
            if asked <= 4:
                raise OSError(None, "Temporary failure in name resolution")
            host_info = {"hostname": host, "host": "127.0.0.1", "port": port}
            return [{**host_info, "family": 2, "proto": 0, "flags": 0}]

        async def close(self) -> None:
            pass

    monkeypatch.setattr("aiohttp.connector.DefaultResolver", lambda *_, **__: Resolver())
    address = f"http://vlm.test:{port}/v1"
    (await caption(make_input(20), endpoint, base_url=address)).all_captioned(20)
    assert asked > 4


@pytest.mark.parametrize("off", [3600.0, -3600.0, None])
async def test_22_the_wall_clock_may_be_wrong(make_input, endpoint, monkeypatch, off) -> None:
    """An hour ahead, an hour back, 1970: a date to come back at is what the server means by it."""
    clock = time.time
    wrong = (lambda: 5.0) if off is None else (lambda: clock() + off)
    monkeypatch.setitem(retry_after_s.__kwdefaults__, "now", wrong)
    monkeypatch.setitem(read_limits.__kwdefaults__, "now", wrong)

    class Dated(FirstTime):
        def __call__(self, call: Call) -> Reply | None:
            if (reply := super().__call__(call)) is None:
                return None
            later = formatdate(clock() + 1, usegmt=True)
            return Reply(429, {}, {**reply.headers, "Retry-After": later})

    behave = endpoint.behave = Dated(Reply(429, {}))
    # Taken by the wrong clock the date would be an hour away, beyond the bound of 50 s.
    (await caption(make_input(8), endpoint, concurrency=8)).all_captioned(8)
    assert behave.happened == 8
