"""What a record costs, counted in function calls: the same on every machine, unlike seconds.

A change that makes the path of every record longer fails here, and has to say why it is worth it
by raising a number. `benchmarks/compare.py` tells what a call costs.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import orjson
import pytest
from conftest import jpeg

from captioner import run_batch
from captioner.core.types import Request, Response
from captioner.endpoints.transport import AiohttpTransport
from captioner.readers.jsonl import JsonlSource

CALLS = 425
"""Calls of Python and C functions for a record with a JPEG that passes as it is, without HTTP."""

RESUMED_CALLS = 36
"""The same for a record that was captioned before: read, known again, put in order."""

EXCHANGE_CALLS = 125
"""The same for one exchange over a connection that is open, HTTP and all, but for the server's."""

REPLY = orjson.dumps(
    {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "a cat"}}]}
)


class Echo:
    async def send(self, _: Request) -> Response:
        return Response(200, {}, REPLY)

    async def close(self) -> None:
        pass


async def calls_of_a_run(source: Path, output: Path) -> int:
    """Return the calls that the event loop's thread makes for a run."""
    count = 0

    def note(_frame, event: str, _argument) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        report = await run_batch(
            source,
            output,
            source=JsonlSource(source),  # without the look at an input that is not given so
            transport=Echo(),
            model="m",
            concurrency=16,
            accept_changes=True,  # without the look for an input in another format
        )
    finally:
        sys.setprofile(None)
    assert (report.complete, report.failed) == (True, 0)
    return count


def write(folder: Path, name: str, count: int) -> Path:
    path = folder / name
    record = '{{"image":"a.jpg","prompt":"Describe the image, please ({})."}}\n'
    path.write_text("".join(record.format(number) for number in range(count)))
    return path


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="calls are counted for Python 3.11")
async def test_a_record_takes_no_more_calls_than_it_did(tmp_path):
    """The difference between long and short runs, so that beginning and end do not count.

    So that short ones do, the looks at the first 1,000 records are left out.
    """
    (tmp_path / "a.jpg").write_bytes(jpeg(1, (64, 48)))
    few, many = write(tmp_path, "few.jsonl", 400), write(tmp_path, "many.jsonl", 1_200)
    await calls_of_a_run(few, tmp_path / "warm.out.jsonl")  # what is made once is made before
    first, again = [], []
    for turn in range(3):
        outputs = tmp_path / f"few{turn}.out.jsonl", tmp_path / f"many{turn}.out.jsonl"
        for found in (first, again):
            short, long = [
                await calls_of_a_run(source, output)
                for source, output in zip((few, many), outputs, strict=True)
            ]
            found.append((long - short) / 800)
    # How many records share a trip to the writer's thread is chance: the more, the fewer calls.
    assert min(first) <= CALLS * 1.03, f"{min(first):.1f} calls a record"
    assert min(again) <= RESUMED_CALLS * 1.03, f"{min(again):.1f} calls for a resumed one"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="calls are counted for Python 3.11")
def test_an_exchange_takes_no_more_calls_than_it_did(endpoint):
    """What HTTP costs: the server is in a separate thread, whose calls are not counted."""
    count = 0
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
    request = Request("POST", "/chat/completions", (body,))

    def note(_frame, event: str, _argument) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    async def exchange(times: int) -> int:
        nonlocal count
        transport = AiohttpTransport(endpoint.base_url, api_key="k", timeout_s=20)
        await transport.send(request)
        count = 0
        sys.setprofile(note)
        for _ in range(times):
            reply = await transport.send(request)
        sys.setprofile(None)
        assert reply.status == 200
        await transport.close()
        return count

    few, many = asyncio.run(exchange(50)), asyncio.run(exchange(250))
    each = (many - few) / 200
    assert EXCHANGE_CALLS * 0.9 <= each <= EXCHANGE_CALLS * 1.05, f"{each:.1f} calls"
