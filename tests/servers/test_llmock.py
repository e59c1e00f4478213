"""llmock breaks requests on purpose, and judges what its client does then."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import rows
from real_servers import RealServer

from captioner import run_batch

FAULTS: list[dict[str, Any]] = [
    {"type": "fail", "status": 429, "retry_after": 1, "times": 2},
    {"type": "fail", "status": 500, "times": 2},
    {"type": "fail", "status": 503, "retry_after": 1, "times": 2},
    {"type": "fail", "status": 529, "times": 1},
]
BROKEN_STREAMS: list[dict[str, Any]] = [
    {"type": "stream_fault", "kind": kind, "after_chunks": 2, "times": 2}
    for kind in ("truncate", "disconnect", "malformed")
]


@pytest.fixture
def llmock(started: Callable[..., RealServer], monkeypatch: pytest.MonkeyPatch) -> RealServer:
    """The mock; it would count a question for its load as an attempt."""
    monkeypatch.setattr("captioner.endpoints.server_load.POLL_S", 3_600.0)
    return started("llmock")


def ask(server: RealServer, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{server.url}/_llmock/{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


@pytest.mark.parametrize("stream", [False, True])
async def test_its_verdict(llmock, make_input, tmp_path: Path, stream: bool) -> None:
    """Waits are kept, nothing is asked again too soon, and no broken stream counts as a caption."""
    ask(llmock, "reset", {})
    ask(llmock, "scenario", {"behaviors": FAULTS + (BROKEN_STREAMS if stream else [])})
    report = await run_batch(
        make_input(30), base_url=llmock.base_url, model="gpt-4o", stream=stream, concurrency=4
    )
    assert (report.captioned, report.failed) == (30, 0)
    assert sorted(row["id"] for row in rows(Path(report.output))) == [*range(30)]
    assert ask(llmock, "scenario")["pending"] == []
    verdict = ask(llmock, "verdict")
    assert verdict["passed"], verdict
    # It calls waits with jitter constant if they happen to shrink, and a request that repeats one
    # whose broken stream came to an end another call: so requests are counted.
    assert verdict["attempts"] == 30 + verdict["faults_injected"]


async def test_refusals_are_not_repeated(llmock, make_input) -> None:
    """A request that is refused for what it is fails its record at once."""
    source = make_input(12)
    await run_batch(source, base_url=llmock.base_url, model="gpt-4o", limit=3)
    ask(llmock, "reset", {})
    refusal = {"type": "fail", "status": 400, "times": 2}
    ask(llmock, "scenario", {"behaviors": [refusal]})
    report = await run_batch(source, base_url=llmock.base_url, model="gpt-4o")
    assert (report.captioned, report.failed) == (7, 2)
    assert ask(llmock, "verdict")["findings"] == []
