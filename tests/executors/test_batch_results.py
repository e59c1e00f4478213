"""What a provider may put into files of results, and signals while these are merged."""

from __future__ import annotations

import asyncio
import base64
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from conftest import rows
from endpoint import completion

from captioner import CancelToken, Progress, run_batch
from captioner.core.cancellation import StoppedError
from captioner.core.errors import BadReplyError, EndpointRefusedError
from captioner.executors.batch_api.ledger import Batch
from captioner.executors.batch_api.results import MAX_LINE, Results, is_complete

KEY = "sk-batch-KEYKEY-4711"


def failures(source: Path) -> dict[int, dict[str, Any]]:
    found = rows(source.with_name("input.captions.failed.jsonl"))
    return {failure["record"]["id"]: failure for failure in found}


def results(*paths: Path, requests: int = 3) -> Results:
    batch = Batch(1, token="t", requests=requests)
    return Results(paths, [batch], lambda: None)


async def test_a_response_that_is_too_long_fails_alone(make_input, stub):
    source = make_input(3)
    stub.answer = lambda body: (
        200,
        completion("long " * (MAX_LINE // 4) if "q1" in str(body) else "a caption"),
    )
    report = await run_batch(source, **stub.options(max_attempts=1))
    assert (report.captioned, report.failed, report.complete) == (2, 1, True)
    assert failures(source)[1]["code"] == "reply_too_large"


def test_a_line_without_an_end_is_not_held(tmp_path):
    """Of a quarter of a gigabyte in one line, its beginning is in memory; the next one is found."""
    path = tmp_path / "r.jsonl"
    with path.open("wb") as file:
        file.write(b'{"custom_id": "t.0.0.0", "response": "')
        file.seek(1 << 28, 1)  # a hole, which reads as zeros
        file.write(b'"}\n{"custom_id": "t.1.0.0", "response": {}}\n')
    tracemalloc.start()
    try:
        with results(path) as found:
            assert found.get("t.1.0.0") == {"custom_id": "t.1.0.0", "response": {}}
            assert found.get("t.2.0.0") is None
            with pytest.raises(BadReplyError, match=f"longer than {MAX_LINE} bytes"):
                found.get("t.0.0.0")
        assert is_complete(path)
        assert tracemalloc.get_traced_memory()[1] < 6 * MAX_LINE
    finally:
        tracemalloc.stop()


def test_lines_of_no_request_of_ours_are_not_kept(tmp_path):
    """Neither of other batches, nor more than there are requests; of equal ids the first one."""
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    ids = ["x.0.0.0", "t.0.0.0", "t.0.0.0", "t.7.0.0", "", 5, None]
    lines = [json.dumps({"custom_id": name, "n": n}) for n, name in enumerate(ids)]
    first.write_text("\n".join(["no JSON", "[]", *lines]) + "\n")
    second.write_text("".join(f'{{"custom_id": "t.{n}.0.0"}}\n' for n in range(1000)))
    with results(first, second) as found:
        assert found.get("t.0.0.0") == {"custom_id": "t.0.0.0", "n": 1}
        assert [found.get(f"t.{n}.0.0") is None for n in (1, 2, 999)] == [False, True, True]
        assert (found.has("t"), found.has("x")) == (True, False)


async def test_a_file_of_results_that_does_not_end(make_input, stub, monkeypatch):
    """More than the requests can have is not written to the disk, and the batch stays open."""
    source = make_input(2)
    text = " ".join(f"a photo of {number} dogs" for number in range(200))
    stub.answer = lambda _: (200, completion(text))
    with monkeypatch.context() as patched:
        patched.setattr("captioner.executors.batch_api.steps.MAX_LINE", 1_000)
        with pytest.raises(EndpointRefusedError, match="more than 2000 bytes"):
            await run_batch(source, **stub.options())
    folder = source.with_name("input.captions.jsonl.batch")
    assert not [path for path in folder.iterdir() if "output" in path.name]
    report = await run_batch(source, **stub.options())
    assert (report.captioned, max(stub.paid.values())) == (2, 1)


@pytest.mark.parametrize("from_file", [False, True])
async def test_a_key_in_results_is_masked(make_input, stub, tmp_path, monkeypatch, from_file):
    """In captions, in errors and in their codes; as it is, escaped and in base64."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    source = make_input(4)
    encoded = base64.b64encode(f"Bearer {KEY}".encode()).decode()
    echoed = f"a photo of {KEY} and {encoded}"
    replies = [
        (200, completion(echoed)),
        (400, {"error": {"message": echoed}}),
        (None, f"code_{KEY}"),
        (200, completion("a dog")),
    ]
    stub.answer = lambda body: replies[int(body["messages"][-1]["content"][-1]["text"][1:])]
    if from_file:
        common = {"base_url": stub.base_url, "model": "m"}
        await run_batch(source, to_batch_file=tmp_path / "requests.jsonl", **common)
        stub.files["f"] = (tmp_path / "requests.jsonl").read_bytes()
        batch = {"input_file_id": "f", "request_counts": {}, "output_file_id": None}
        stub.end({**batch, "error_file_id": None}, "completed")
        del stub.files["f"]
        content = b"".join(stub.files.values()).replace(KEY[:4].encode(), b"\\u0073k-b")
        (tmp_path / "answers.jsonl").write_bytes(content)
        report = await run_batch(source, from_batch_file=tmp_path / "answers.jsonl", **common)
    else:
        report = await run_batch(source, **stub.options(max_attempts=1))
    assert (report.captioned, report.failed) == (2, 2)
    (row,) = [row for row in rows(source.with_name("input.captions.jsonl")) if row["id"] == 0]
    assert row["caption"].startswith("a photo of *** and ")
    failed = failures(source)
    assert failed[2]["code"] == "code_***"
    ours = [path for path in tmp_path.glob("input.*") if path.is_file()]
    written = "".join(path.read_text() for path in ours)
    assert KEY not in written
    assert encoded[12:-8] not in written


async def test_merging_lets_others_run_and_stops_when_it_is_told(make_input, stub):
    """What was merged is kept, and the next run merges the rest: nothing is submitted again."""
    source = make_input(200)
    progress, cancel = Progress(), CancelToken()

    async def stop_at_the_first() -> None:
        while not progress.captioned:
            await asyncio.sleep(0)
        cancel.request()

    watching = asyncio.create_task(stop_at_the_first())
    report = await run_batch(source, **stub.options(), progress=progress, cancel=cancel)
    await watching
    assert 0 < report.captioned < 200
    assert (report.stopped, report.complete) == ("interrupted", False)
    report = await run_batch(source, **stub.options())
    assert report.complete
    assert sorted(row["id"] for row in rows(source.with_name("input.captions.jsonl"))) == list(
        range(200)
    )
    assert max(stub.paid.values()) == 1


def test_reading_results_stops_when_it_is_told(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"custom_id": "t.0.0.0"}\n')
    cancel = CancelToken()
    cancel.request()
    with pytest.raises(StoppedError):
        Results([path], [Batch(1)], cancel.raise_if_requested)
