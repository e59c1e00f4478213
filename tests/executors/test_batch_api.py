"""The provider's batch API: every state, every failure, killed at every step."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import command, jpeg, rows
from endpoint import completion
from waiting import LIMIT_S, wait_until

from captioner import SettingsError, run_batch
from captioner.core.errors import EndpointRefusedError, LimitReachedError


def question_of(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"][-1]["text"]


def captions(source: Path) -> list[dict[str, Any]]:
    return rows(source.with_name("input.captions.jsonl"))


def assert_each_once(source: Path, count: int) -> None:
    assert [row["id"] for row in captions(source)] == list(range(count))
    assert not [*source.parent.glob("*.batch/[0-9]*")]


async def test_records_go_through_batches_split_by_size(make_input, stub):
    """Ids are unique, answers come in another order and land where they belong, once."""
    source = make_input(10)
    stub.answer = lambda body: (
        200,
        completion(f"about {body['messages'][-1]['content'][-1]['text']}"),
    )
    report = await run_batch(source, **stub.options(batch_requests=4))
    assert (report.captioned, report.failed, report.complete) == (10, 0, True)
    assert [row["caption"] for row in captions(source)] == [f"about q{n}" for n in range(10)]
    assert sorted(
        len(stub.files[b["input_file_id"]].splitlines()) for b in stub.batches.values()
    ) == [2, 4, 4]
    for batch in stub.batches.values():
        lines = list(map(json.loads, stub.files[batch["input_file_id"]].splitlines()))
        assert len({line["custom_id"] for line in lines}) == len(lines)
        assert {(line["method"], line["url"]) for line in lines} == {
            ("POST", "/v1/chat/completions")
        }
        assert all(len(line["custom_id"]) <= 64 for line in lines)
    assert max(stub.paid.values()) == 1
    assert_each_once(source, 10)
    assert sum(call.startswith("DELETE /files/") for call in stub.requests) == 3


async def test_bytes_split_batches_too(make_input, stub):
    source = make_input(6)
    await run_batch(source, **stub.options(batch_bytes=3_000))
    assert len(stub.batches) > 1
    assert all(len(stub.files[b["input_file_id"]]) <= 3_000 for b in stub.batches.values())
    assert_each_once(source, 6)


@pytest.mark.parametrize("fate", ["expired", "cancelled"])
async def test_what_was_done_of_a_batch_that_ended_early_is_kept(make_input, stub, fate):
    """Expired rows are submitted again; those of a cancelled batch when the user runs again."""
    source = make_input(6)
    stub.fates = [fate]
    report = await run_batch(source, **stub.options())
    if fate == "cancelled":
        assert (report.captioned, report.complete, len(stub.batches)) == (3, False, 1)
        report = await run_batch(source, **stub.options())
        assert report.captioned == 3
    assert report.complete
    assert len(stub.batches) == 2
    assert_each_once(source, 6)
    assert sum(stub.paid.values()) == 9


async def test_failed_rows_are_failures_or_asked_again(make_input, stub):
    """A refusal of one image, a fault of the server that passes, an answer that is cut off."""
    source = make_input(5)
    asked: dict[str, int] = {}

    def answer(body):
        question = question_of(body)
        asked[question] = asked.get(question, 0) + 1
        if question == "q1":
            return 400, {"error": {"message": "no such image"}}
        if question == "q2" and asked[question] == 1:
            return 500, {"error": {"message": "oops"}}
        if question == "q3":
            return 200, completion("cut", finish_reason="length")
        if question == "q4":
            return None, "server_error"
        return 200, completion(f"about {question}")

    stub.answer = answer
    report = await run_batch(source, **stub.options(max_attempts=3))
    assert (report.captioned, report.failed) == (2, 3)
    failures = {f["record"]["id"]: f for f in rows(source.with_name("input.captions.failed.jsonl"))}
    assert failures[1]["code"] == "http_400"
    assert failures[3]["code"] == "truncated"
    assert failures[4]["code"] == "server_error"
    assert (failures[3]["attempts"], asked["q2"], asked["q3"]) == (3, 2, 3)
    assert [row["caption"] for row in captions(source)] == ["about q0", "about q2"]


async def test_enqueued_tokens_are_respected_by_submitting_in_turn(make_input, stub):
    """What is too much now goes again when something has ended, and nothing is lost."""
    source = make_input(9)
    stub.fates = ["completed", "too_many", "too_many"]
    report = await run_batch(source, **stub.options(batch_requests=3))
    assert report.captioned == 9
    assert max(stub.paid.values()) == 1
    assert_each_once(source, 9)


async def test_a_line_that_is_rejected_fails_alone(make_input, stub):
    source = make_input(4)
    stub.fates = ["rejected"]
    report = await run_batch(source, **stub.options())
    assert (report.captioned, report.failed) == (3, 1)
    (failure,) = rows(source.with_name("input.captions.failed.jsonl"))
    assert failure["code"] == "invalid_json_line"


async def test_a_batch_that_is_refused_whole_ends_the_run(make_input, stub):
    stub.fates = ["refused"]
    with pytest.raises(EndpointRefusedError, match="refused it"):
        await run_batch(make_input(2), **stub.options())


async def test_trouble_on_the_way_is_waited_for(make_input, stub):
    source = make_input(2)
    stub.faults = {
        "POST /files": [503], "POST /batches": [], "GET /batches/": [500, 429], "GET /files": [502],
    }  # fmt: skip
    report = await run_batch(source, **stub.options())
    assert report.captioned == 2
    assert max(stub.paid.values()) == 1


async def test_a_wrong_key_ends_the_run(make_input, stub):
    stub.faults = {"POST /files": [401]}
    with pytest.raises(EndpointRefusedError, match="401"):
        await run_batch(make_input(1), **stub.options())


async def test_no_longer_than_the_user_wants(make_input, stub):
    """Exit code 8; another run finds the batch again and submits nothing."""
    source = make_input(3)
    stub.hold = True
    with pytest.raises(LimitReachedError) as error:
        await run_batch(source, **stub.options(batch_max_wait=1e-5))
    assert error.value.exit_code == 8
    stub.hold = False
    report = await run_batch(source, **stub.options())
    assert (report.captioned, len(stub.batches)) == (3, 1)
    assert_each_once(source, 3)


async def test_several_questions_and_samples_make_one_row(make_input, stub):
    source = make_input(2)
    count = 0

    def answer(body):
        nonlocal count
        count += 1
        return 200, completion(question_of(body) + f" {count}")

    stub.answer = answer
    await run_batch(source, **stub.options(ask=("one=What?", "two=Where?"), samples=2))
    (first, _) = captions(source)
    assert [text[:5] for text in first["one"] + first["two"]] == ["What?"] * 2 + ["Where"] * 2
    assert count == 8


async def test_a_record_that_comes_while_others_wait_goes_into_a_batch_of_its_own(make_input, stub):
    source = make_input(3)
    stub.hold = True
    with pytest.raises(LimitReachedError):
        await run_batch(source, **stub.options(batch_max_wait=1e-5))
    source = make_input(5)
    stub.hold = False
    report = await run_batch(source, **stub.options())
    assert report.captioned == 5
    assert sorted(batch["request_counts"]["total"] for batch in stub.batches.values()) == [2, 3]
    assert_each_once(source, 5)


STEPS = [
    "POST /files", "POST /batches", "GET /batches/", "GET /files/", "DELETE /files/",
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("which", [1, 2])
def test_kill_nine_at_each_step(make_input, stub, step, which):
    """Killed just after the provider has done it and before we know: nothing is submitted twice,
    nothing is lost, nothing is doubled."""
    source = make_input(7)
    words = command(
        source, "--base-url", stub.base_url, "--model", "m", "--batch-api", "--batch-poll", 0.01,
        "--batch-requests", 3,
    )  # fmt: skip
    seen = 0
    process: subprocess.Popen[bytes] | None = None

    def kill(call: str) -> None:
        nonlocal seen
        seen += call.startswith(step)
        if call.startswith(step) and seen == which and process is not None:
            process.kill()

    stub.after = kill
    with stub.lock:  # no call is answered before there is a process to be killed
        process = subprocess.Popen(words, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == -signal.SIGKILL, errors
    stub.after = lambda _: None
    ended = subprocess.run(words, capture_output=True, check=False, timeout=LIMIT_S)
    assert ended.returncode == 0, ended.stderr
    assert max(stub.paid.values()) == 1, "a row was submitted twice"
    assert_each_once(source, 7)


def test_kill_nine_at_any_moment(make_input, stub):
    """Again and again, at moments that nobody chose."""
    source = make_input(40)
    words = command(
        source, "--base-url", stub.base_url, "--model", "m", "--batch-api", "--batch-poll", 0.01,
        "--batch-requests", 6,
    )  # fmt: skip
    for moment in range(9, 60, 5):
        process = subprocess.Popen(words, stderr=subprocess.PIPE)
        while process.poll() is None and len(stub.requests) < moment:
            time.sleep(0.001)
        process.kill()
        process.communicate()
    ended = subprocess.run(words, capture_output=True, check=False, timeout=LIMIT_S)
    assert ended.returncode == 0, ended.stderr
    assert max(stub.paid.values()) == 1
    assert_each_once(source, 40)


def test_a_signal_leaves_everything_noted(make_input, stub, run_command):
    source = make_input(3)
    stub.hold = True
    words = ["--base-url", stub.base_url, "--model", "m", "--batch-api", "--batch-poll", 0.01]
    process = subprocess.Popen(command(source, *words), stderr=subprocess.PIPE)
    wait_until(
        lambda: sum(call.startswith("GET /batches/") for call in stub.requests) >= 3, process
    )
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, errors
    stub.hold = False
    assert run_command(source, *words).returncode == 0
    assert len(stub.batches) == 1
    assert_each_once(source, 3)


async def test_a_state_that_came_with_a_data_set_gets_no_key(
    make_input, stub, run_command, monkeypatch
):
    """Its address and the variable of the key are a stranger's until the user names them."""
    source = make_input(1)
    stub.hold = True
    with pytest.raises(LimitReachedError):
        await run_batch(source, **stub.options(batch_max_wait=1e-5))
    output = source.with_name("input.captions.jsonl")
    path = source.with_name("input.captions.jsonl.batch") / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "api_key_env": ["HOME"]}))
    calls = len(stub.requests)
    for word in ("status", "cancel"):
        told = run_command("batch", word, output)
        assert told.returncode == 2
        assert f"The key would be sent to {stub.base_url}" in told.stderr
    assert len(stub.requests) == calls
    monkeypatch.setenv("CAPTIONER_BASE_URL", stub.base_url)
    assert run_command("batch", "status", output).returncode == 0


async def test_status_and_cancel(make_input, stub, run_command):
    source = make_input(4)
    stub.hold = True
    with pytest.raises(LimitReachedError):
        await run_batch(source, **stub.options(batch_max_wait=1e-5))
    output = source.with_name("input.captions.jsonl")
    told = run_command("batch", "status", output)
    assert (told.returncode, "in_progress, 0 of 4 requests" in told.stdout) == (0, True), told
    told = run_command("batch", "cancel", output)
    assert (told.returncode, "cancelling" in told.stdout) == (0, True), told
    stub.hold = False
    report = await run_batch(source, **stub.options())
    assert (report.captioned, report.complete) == (2, False)
    report = await run_batch(source, **stub.options())
    assert report.captioned == 2
    told = run_command("batch", "status", output)
    assert (told.returncode, "there are no batches" in told.stderr) == (2, True)


async def test_files_for_run_batch(make_input, stub, tmp_path):
    """Written, run by somebody else, merged: errors inline, what is missing asked again."""
    source = make_input(5)
    common = {"base_url": stub.base_url, "model": "m"}
    file = tmp_path / "requests.jsonl"
    report = await run_batch(source, to_batch_file=file, **common)
    assert (report.captioned, report.pending) == (0, 5)
    assert not stub.requests
    results = []
    for number, line in enumerate(map(json.loads, file.read_text().splitlines())):
        body: Any = completion(f"about {question_of(line['body'])}")
        status = 200
        if number == 1:
            status, body = 400, {"error": {"message": "no"}}
        if number != 3:
            response = {"status_code": status, "body": body}
            results.append({"id": "x", "custom_id": line["custom_id"], "response": response})
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(one) + "\n" for one in results[::-1]))
    report = await run_batch(source, from_batch_file=answers, **common)
    assert (report.captioned, report.failed, report.complete) == (3, 1, False)
    again = tmp_path / "again.jsonl"
    await run_batch(source, to_batch_file=again, **common)
    assert len(again.read_text().splitlines()) == 1
    assert [row["caption"] for row in captions(source)] == ["about q0", "about q2", "about q4"]


async def test_what_does_not_go_together_is_refused(make_input, stub):
    source = make_input(1)
    for more in ({"processes": 2}, {"stream": True}, {"to_batch_file": Path("x")}):
        with pytest.raises(SettingsError, match="batch-api"):
            await run_batch(source, **stub.options(**more))
    with pytest.raises(SettingsError, match="batch-api"):
        await run_batch(source, offline=True, batch_api=True)


# -- what a reading with fresh eyes found --------------------------------------------------------


@pytest.mark.parametrize("fault", ["reply lost", "502 after it was done"])
async def test_a_batch_whose_creation_is_unclear_is_looked_for(make_input, stub, fault):
    """The provider has done it, we do not know: no row is submitted twice."""
    source = make_input(3)
    if fault == "reply lost":
        stub.lose_reply = {"POST /batches": 1}
    else:
        stub.create_status = 502
    report = await run_batch(source, **stub.options())
    assert (report.captioned, max(stub.paid.values()), len(stub.batches)) == (3, 1, 1)


async def test_open_batches_are_noticed_by_a_plain_run(make_input, stub):
    """Their rows are paid for: it is refused, and nothing is asked twice."""
    source = make_input(3)
    stub.hold = True
    with pytest.raises(LimitReachedError):
        await run_batch(source, **stub.options(batch_max_wait=1e-5))
    with pytest.raises(SettingsError, match="batches of"):
        await run_batch(source, base_url=stub.base_url, model="m")
    stub.hold = False
    assert (await run_batch(source, **stub.options())).captioned == 3
    assert_each_once(source, 3)


@pytest.mark.parametrize("more", [{"model": "other"}, {"ask": ("a=What?", "b=Where?")}])
async def test_other_settings_while_batches_are_open_are_refused(make_input, stub, more):
    source = make_input(2)
    stub.hold = True
    with pytest.raises(LimitReachedError):
        await run_batch(source, **stub.options(batch_max_wait=1e-5))
    with pytest.raises(SettingsError, match="other settings"):
        await run_batch(source, **{**stub.options(), **more})


async def test_answers_are_taken_by_the_requests_they_belong_to_alone(make_input, stub, tmp_path):
    """A file of somebody else's, one that is not there, and requests at the provider."""
    source = make_input(3)
    common = {"base_url": stub.base_url, "model": "m"}
    await run_batch(source, to_batch_file=tmp_path / "r.jsonl", **common)
    strange = tmp_path / "strange.jsonl"
    response = {"status_code": 200, "body": completion("not ours")}
    strange.write_text(json.dumps({"custom_id": "0.0.0", "response": response}) + "\n")
    for path in (strange, tmp_path / "no.jsonl"):
        with pytest.raises(SettingsError, match="from-batch-file"):
            await run_batch(source, from_batch_file=path, **common)
    for more in ({"batch_api": True}, {"to_batch_file": tmp_path / "again.jsonl"}):
        with pytest.raises(SettingsError, match="wait for their answers"):
            await run_batch(source, **common, **more)
    answers = [
        {
            "custom_id": json.loads(line)["custom_id"],
            "response": {"status_code": 200, "body": completion(f"c{number}")},
        }
        for number, line in enumerate((tmp_path / "r.jsonl").read_text().splitlines())
    ]
    strange.write_text("".join(json.dumps(one) + "\n" for one in answers))
    assert (await run_batch(source, from_batch_file=strange, **common)).captioned == 3
    assert not stub.requests


async def test_requests_are_not_written_over_what_is_there(make_input, stub):
    source = make_input(2)
    before = source.read_bytes()
    with pytest.raises(SettingsError, match="to-batch-file"):
        await run_batch(source, base_url=stub.base_url, model="m", to_batch_file=source)
    assert source.read_bytes() == before


async def test_images_larger_than_the_memory_together(make_input, stub):
    """One after the other they have room."""
    source = make_input(8)
    for number in range(8):
        (source.parent / "images" / f"{number}.jpg").write_bytes(
            jpeg(number, (500, 400), quality=100)
        )
    size = (source.parent / "images" / "0.jpg").stat().st_size
    report = await run_batch(source, **stub.options(memory=3 * size))
    assert report.captioned == 8


async def test_a_completed_batch_without_answers_is_not_paid_for_again(make_input, stub):
    """Its rows fail, by a code of their own; asking again is the user's word."""
    source = make_input(2)
    stub.answer = lambda _: None
    stub.fates = ["completed"]
    report = await run_batch(source, **stub.options())
    assert (report.codes, len(stub.batches)) == ({"batch_no_answer": 2}, 1)


@pytest.mark.parametrize("what", ["batch", "file"])
async def test_what_the_provider_has_forgotten_fails_its_rows(make_input, stub, what):
    source = make_input(4)
    prefix = "GET /batches/" if what == "batch" else "GET /files/"
    stub.faults = {prefix: [404]}
    report = await run_batch(source, **stub.options(batch_requests=2))
    assert (report.captioned, report.codes) == (2, {"batch_lost": 2})


async def test_a_run_that_continues_finds_its_batch_forgotten(make_input, stub, run_command):
    """Its first request of all gets a 404: the batch is lost, the endpoint has a batch API."""
    source = make_input(2)
    stub.hold = True
    with pytest.raises(LimitReachedError):
        await run_batch(source, **stub.options(batch_max_wait=1e-5))
    stub.faults = {"GET /batches/": [404, 404]}
    status = run_command("batch", "status", source.with_name("input.captions.jsonl"))
    assert "the provider no longer has it" in status.stdout, status
    report = await run_batch(source, **stub.options())
    assert (report.captioned, report.codes) == (0, {"batch_lost": 2})


async def test_an_endpoint_that_knows_no_files_has_no_batch_api(make_input, stub):
    stub.faults = {"POST /files": [404]}
    with pytest.raises(EndpointRefusedError, match="no batch API"):
        await run_batch(make_input(1), **stub.options())


async def test_an_endpoint_that_creates_no_batches_ends_the_run(make_input, stub):
    """A file that is gone is uploaded again; one that is never found means that nothing will be."""
    stub.faults = {"POST /batches": [404]}
    report = await run_batch(make_input(1), **stub.options())
    assert report.captioned == 1
    stub.faults = {"POST /batches": [404] * 10}
    with pytest.raises(EndpointRefusedError, match="creates no batch"):
        await run_batch(make_input(3), **stub.options())


async def test_a_list_that_is_not_there_leaves_it_open_whether_a_batch_was_created(
    make_input, stub
):
    """Submitting again might be paid for twice."""
    source = make_input(2)
    stub.lose_reply = {"POST /batches": 1}
    stub.faults = {"GET /batches": [404]}
    with pytest.raises(EndpointRefusedError, match="does not list"):
        await run_batch(source, **stub.options())
    report = await run_batch(source, **stub.options())
    assert (report.captioned, max(stub.paid.values())) == (2, 1)


async def test_rows_of_a_rejected_batch_lose_no_attempt(make_input, stub):
    source = make_input(5)
    stub.fates = ["rejected"] * 3
    report = await run_batch(source, **stub.options(max_attempts=3))
    assert (report.captioned, report.failed) == (2, 3)


async def test_a_batch_beyond_the_limit_of_tokens_says_so(make_input, stub):
    """And smaller ones then go."""
    source = make_input(4)
    stub.fates = ["too_many"] * 3
    with pytest.raises(EndpointRefusedError, match="--batch-requests"):
        await run_batch(source, **stub.options())
    report = await run_batch(source, **stub.options(batch_requests=2))
    assert report.captioned == 4
    assert max(stub.paid.values()) == 1


@pytest.mark.parametrize("call", ["POST /files", "GET /files/", "GET /batches/", "POST /batches"])
async def test_no_key_is_told(make_input, stub, monkeypatch, call):
    monkeypatch.setenv("OPENAI_API_KEY", "my-secret-key-123")
    stub.faults = {call: [401]}
    with pytest.raises(EndpointRefusedError) as error:
        await run_batch(make_input(1), **stub.options())
    assert "trouble with Bearer" in str(error.value)
    assert "my-secret-key-123" not in str(error.value)


async def test_failures_are_not_doubled_by_a_merge_that_was_cut_short(
    make_input, stub, monkeypatch
):
    from captioner.journal.writer import JournalSink

    source = make_input(3)
    stub.answer = lambda _: (400, {"error": {"message": "no"}})
    commit = JournalSink.commit

    async def crash(self) -> None:
        await commit(self)
        raise RuntimeError("killed")

    monkeypatch.setattr(JournalSink, "commit", crash)
    with pytest.raises(RuntimeError):
        await run_batch(source, **stub.options())
    monkeypatch.setattr(JournalSink, "commit", commit)
    report = await run_batch(source, **stub.options())
    assert (report.failed, report.pending, report.complete) == (3, 0, True)
    assert len(rows(source.with_name("input.captions.failed.jsonl"))) == 3


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}"])
def test_what_is_no_batch_api_is_told_without_a_stack_trace(make_input, stub, run_command, body):
    stub.nonsense = body
    ended = run_command(
        make_input(1),
        "--base-url",
        stub.base_url,
        "--model",
        "m",
        "--batch-api",
        "--max-outage",
        20,
    )
    assert ended.returncode == 2
    assert "no batch API" in ended.stderr


def test_a_signal_does_not_wait_for_a_reply(make_input, stub):
    source = make_input(1)
    stub.hang = True
    words = ["--base-url", stub.base_url, "--model", "m", "--batch-api"]
    process = subprocess.Popen(command(source, *words), stderr=subprocess.PIPE)
    wait_until(lambda: bool(stub.requests), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT_S)
    stub.hang = False
    assert process.returncode == 130, errors


async def test_captions_of_batches_have_their_shape(make_input, stub):
    """What a row needs is kept with the batch; words are asked for again once."""
    source = make_input(2)
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    lines[0]["caption"] = "mine"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    stub.answer = lambda _: (200, completion("An image of a cat. It sleeps."))
    shape = {"existing": "append", "forbid": "image of", "with_": "prompt,raw"}
    report = await run_batch(
        source, **stub.options(**shape, caption_template="{{ id }}: {{ caption }}")
    )
    assert (report.captioned, report.failed) == (2, 0)
    assert [row["caption"] for row in captions(source)] == ["0: mine, It sleeps.", "1: It sleeps."]
    assert [row["caption_prompt"] for row in captions(source)] == ["q0", "q1"]
    assert len(stub.batches) == 2
