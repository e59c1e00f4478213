"""Endpoints as real servers behave, each kind in a run of its own.

A response that is no caption is never one, trouble costs time and no records, and a run that
cannot work stops after few requests.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from conftest import jpeg, rows
from endpoint import Call, Reply, completion
from PIL import Image
from tally import told
from waiting import LIMIT_S

from captioner import run_batch
from captioner.core.errors import EndpointGaveOutError, EndpointRefusedError, RunError

RECORDS = 1_000
STOPS_AFTER = 40
"""Most requests of a run of `RECORDS` that is doomed."""

KEY = "sk-Secret0123456789"
HTML = b"<!doctype html><html><head><title>Chat</title></head><body>Welcome</body></html>"
FEW = {"concurrency": 1, "max_attempts": 2}


class Seen(NamedTuple):
    """What a run left behind."""

    done: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    error: RunError | None = None
    warnings: tuple[str, ...] = ()

    @property
    def codes(self) -> dict[int, str]:
        """The code of each failed record."""
        return {row["record"]["id"]: row["code"] for row in self.failed}


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """An input of `RECORDS` records."""
    folder = tmp_path_factory.mktemp("many")
    lines = []
    for number in range(RECORDS):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
        lines.append(json.dumps({"id": number, "image": f"{number}.jpg", "prompt": f"q{number}"}))
    source = folder / "in.jsonl"
    source.write_text("\n".join(lines) + "\n")
    return source


@pytest.fixture
def caption(endpoint, tmp_path) -> Callable[..., Any]:
    """Run on an input; return what is in its files, and the error that stopped the run."""

    async def run(source: Path, **options: Any) -> Seen:
        output = tmp_path / "out.jsonl"
        warnings: list[str] = []
        options = {"model": "m", "concurrency": 8, "probe": False, **options}
        options = {"base_url": endpoint.base_url, **options}
        error = None
        try:
            async with asyncio.timeout(LIMIT_S):
                await run_batch(source, output, warn=warnings.append, **options)
        except RunError as stopped:
            error = stopped
        failures = output.with_name("out.failed.jsonl")
        done, failed = (rows(path) if path.exists() else [] for path in (output, failures))
        return Seen(done, failed, error, tuple(warnings))

    return run


def text_for(texts: list[Any]) -> Callable[[Call], Reply]:
    """Respond to each record with its own text."""
    return lambda call: Reply(200, completion(texts[int(call.texts[0][1:])]))


def refusal(message: str, status: int = 400, **more: Any) -> Reply:
    return Reply(status, {"error": {"message": message, **more}})


# What a caption is


@pytest.mark.parametrize(
    ("reasons", "code"),
    [
        (("LENGTH", "max_tokens", "MAX_TOKENS", "model_length", "token_limit"), "truncated"),
        (("model_context_window_exceeded", "max_new_tokens", "max-output"), "truncated"),
        (("SAFETY", "RECITATION", "content_filter", "PROHIBITED_CONTENT"), "filtered"),
        (("IMAGE_SAFETY", "sensitive", "content_filter: SPII", "BLOCKLIST"), "filtered"),
        (("abort", {"type": "abort", "message": "x"}, "network_error", "cancelled"), "aborted"),
        (("insufficient_system_resource", "engine_overloaded", "error"), "aborted"),
        (("repetition", "REPETITION_TRUNCATION".lower()), "looping"),
    ],
)
async def test_a_text_that_did_not_end_well_is_no_caption(
    make_input, endpoint, caption, reasons, code
) -> None:
    """Whatever the server calls it: cut off, filtered or broken off."""
    half = "A man walks along a"
    endpoint.behave = lambda call: Reply(
        200, completion(half, finish_reason=reasons[int(call.texts[0][1:])])
    )
    seen = await caption(make_input(len(reasons)), **FEW)
    assert seen.done == []
    assert seen.codes == dict.fromkeys(range(len(reasons)), code)
    assert endpoint.count == len(reasons) * (1 if code == "filtered" else 2)


async def test_a_text_that_ended_well_is_a_caption(make_input, endpoint, caption) -> None:
    """Ends in other words, none at all, and content in parts beside thinking."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "A red square."},
    ]
    choices = [
        completion("A red square.", finish_reason=reason)
        for reason in ("eos", "end_turn", "STOP", "stop_sequence", None, "COMPLETE")
    ]
    choices += [completion(parts), completion(parts[1:])]
    endpoint.behave = lambda call: Reply(200, choices[int(call.texts[0][1:])])
    seen = await caption(make_input(len(choices)), **FEW)
    assert [row["caption"] for row in seen.done] == ["A red square."] * len(choices)
    assert endpoint.count == len(choices)


async def test_an_unknown_end_is_asked_for_twice_and_flagged(make_input, endpoint, caption) -> None:
    """A reason that no table knows proves neither an end nor a fault."""
    endpoint.behave = lambda _: Reply(200, completion("A red square.", finish_reason="zorp"))
    seen = await caption(make_input(3), **FEW)
    assert len(seen.done) == 3
    assert endpoint.count == 6
    assert all("unknown_finish" in row.values() for row in seen.done)


async def test_the_usual_unknown_end_costs_no_second_request(make_input, endpoint, caption) -> None:
    """A server that always ends so is not paid twice for every record."""
    endpoint.behave = lambda _: Reply(200, completion("A red square.", finish_reason="zorp"))
    seen = await caption(make_input(40), **{**FEW, "concurrency": 1})
    assert endpoint.count == 43
    assert all("unknown_finish" in row.values() for row in seen.done)


async def test_thinking_boxes_and_tokens_are_not_the_caption(make_input, endpoint, caption) -> None:
    """The marks of model families; the caption is what is left."""
    texts = [
        "<think>The user wants words.</think>A red square.",
        "<thinking>Words, then.</thinking>\nA red square.",
        "◁think▷A square it is.◁/think▷A red square.",
        "[THINK]A square.[/THINK]A red square.",
        "<seed:think>So.</seed:think>A red square.",
        "<think>one <think>two</think> three</think>A red square.",
        "The mark was in the prompt.</think>A red square.",
        "<think>hm</think><answer>A red square.</answer>",
        "<|begin_of_box|>A red square.<|end_of_box|>",
        (
            "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>"
            "A red square.<|return|>"
        ),
        "A red square.<|im_end|>",
        "A red square.</s>",
        "A red square.<end_of_turn>",
        "<|START_THINKING|>So.<|END_THINKING|><|START_RESPONSE|>A red square.<|END_RESPONSE|>",
        "<s>A red square.</s>",
        "[BEGIN FINAL RESPONSE]A red square.[END FINAL RESPONSE]",
    ]
    endpoint.behave = text_for(texts)
    seen = await caption(make_input(len(texts)), **FEW)
    assert {row["id"]: row["caption"] for row in seen.done} == dict.fromkeys(
        range(len(texts)), "A red square."
    )


async def test_marks_that_a_caption_quotes_stay_in_it(make_input, endpoint, caption) -> None:
    """A photograph of source code has such words."""
    texts = ['A shirt that reads "<think>".', "A page with `</think>` and `<|im_end|>` on it."]
    endpoint.behave = text_for(texts)
    seen = await caption(make_input(2), **FEW)
    assert [row["caption"] for row in seen.done] == texts


async def test_thinking_to_the_end_says_so_by_name(make_input, endpoint, caption) -> None:
    """Unclosed marks, and nothing but reasoning: thinking is switched off and asked again."""
    replies = [
        completion("<think>It never ends"),
        completion("<|channel|>analysis<|message|>So", finish_reason="length"),
        completion(None, message={"content": "", "reasoning_content": "It is red"}),
        completion(None, message={"content": None, "reasoning": "…"}, finish_reason="length"),
    ]
    endpoint.behave = lambda call: Reply(200, replies[int(call.texts[0][1:])])
    seen = await caption(make_input(4), **FEW)
    assert set(seen.codes.values()) == {"thinking"}
    assert any(call.body.get("reasoning_effort") == "none" for call in endpoint.calls)


async def test_thinking_that_is_switched_off_gives_captions(make_input, endpoint, caption) -> None:
    """One record finds out for all that follow."""

    def behave(call: Call) -> Reply:
        off = call.body.get("chat_template_kwargs", {}).get("enable_thinking") is False
        return Reply(200, completion("A red square." if off else "<think>So", finish_reason="stop"))

    endpoint.behave = behave
    seen = await caption(make_input(12), concurrency=1)
    assert len(seen.done) == 12
    assert endpoint.count == 13


async def test_a_run_whose_model_sees_no_image_stops(many, endpoint, caption) -> None:
    """Five records say so, and the message says what to do."""
    texts = [
        "I don't see an image in your message. Could you upload it again?",
        "As a text-only model, I'm not able to look at or view pictures.",
        "Please provide the picture that you would like me to describe.",
        "抱歉,我没有看到您上传的图片。",
        "Es tut mir leid, ich kann kein Bild sehen.",
    ]
    endpoint.behave = lambda call: Reply(200, completion(texts[call.number % len(texts)]))
    seen = await caption(many)
    assert isinstance(seen.error, EndpointRefusedError)
    assert "vision" in str(seen.error)
    assert (seen.done, seen.failed) == ([], [])
    assert endpoint.count <= STOPS_AFTER


async def test_one_image_that_was_not_seen_is_one_failure(make_input, endpoint, caption) -> None:
    """Once a caption has come the model has eyes."""
    endpoint.behave = lambda call: (
        Reply(200, completion("I'm sorry, but I don't see any image attached."))
        if call.texts[0] in ("q5", "q11")
        else None
    )
    seen = await caption(make_input(20), concurrency=1)
    assert seen.codes == {5: "no_image_seen", 11: "no_image_seen"}
    assert len(seen.done) == 18


async def test_garbage_is_no_caption(make_input, endpoint, caption) -> None:
    """Signs, invisible characters and loops of a broken kernel."""
    texts = ["!" * 300, "?" * 300, "@" * 300, "HHHH" * 80, "\u200b\u200b", "\ufffd" * 150]
    texts += ["of of " * 80, ". . . " * 60, "2. \n" * 60, "<unk>" * 60, "A dog. " + "!" * 400]
    endpoint.behave = text_for(texts)
    seen = await caption(make_input(len(texts)), **FEW)
    assert seen.done == []
    assert set(seen.codes.values()) <= {"garbage", "looping", "empty"}


async def test_garbage_to_the_end_asks_for_bounded_tokens(make_input, endpoint, caption) -> None:
    """A loop that ran into the limit is no reason to ask for more."""
    reply = completion("!" * 32_000, finish_reason="length")
    reply["usage"] = {"prompt_tokens": 700, "completion_tokens": 32_000}
    endpoint.behave = lambda _: Reply(200, reply)
    seen = await caption(make_input(1))
    assert set(seen.codes.values()) <= {"garbage", "looping"}
    assert endpoint.count <= 5
    asked = [call.body.get("max_tokens", 0) for call in endpoint.calls[1:]]
    assert all(0 < tokens <= 2_048 for tokens in asked)


# Whose fault it is


@pytest.mark.parametrize(
    "reply",
    [
        Reply(403, {"code": "no permission for it", "error": "Content violates usage guidelines."}),
        refusal("Your input was flagged by moderation", 403),
        Reply(403, b"<html><head><title>403 Forbidden</title></head></html>"),
        refusal("Input may contain inappropriate content", code="data_inspection_failed"),
    ],
)
async def test_the_refusal_of_one_record_is_its_own(make_input, endpoint, caption, reply) -> None:
    """The same key gives captions before and after it."""
    endpoint.behave = lambda call: reply if call.texts[0] == "q20" else None
    seen = await caption(make_input(40))
    assert (seen.error, [*seen.codes]) == (None, [20])
    assert len(seen.done) == 39


async def test_eight_poisoned_of_a_hundred_fail_and_no_others(
    make_input, endpoint, caption
) -> None:
    """In bounded requests, whatever their share."""
    poison = Reply(500, {"error": {"message": "GGML_ASSERT(a->ne[2] == b->ne[0]) failed"}})
    endpoint.behave = lambda call: poison if int(call.texts[0][1:]) % 12 == 5 else None
    seen = await caption(make_input(100))
    assert len(seen.done) == 92
    assert sorted(seen.codes) == [*range(5, 100, 12)]
    assert endpoint.count <= 300
    told.append(f"real endpoints: 8 poisoned of 100 cost {endpoint.count} requests")


DOOMED = {
    "unknown model": refusal("no-such-vlm is not a valid model ID", code=400),
    "budget": refusal("Budget has been exceeded! Current cost: 3.1", type="budget_exceeded"),
    "suspended": refusal("Account z is suspended: monthly spending limit", 412),
    "arrears": refusal("make sure your account is in good standing", code="Arrearage"),
    "credit": refusal("Insufficient Balance", 402),
    "no money, as 429": refusal("余额不足", 429, code="1113"),
    "paused": Reply(400, b"Bad Request: Invalid state: the endpoint is paused"),
    "page": Reply(200, HTML, {"Content-Type": "text/html"}),
    "other JSON": Reply(200, {"status": "ok"}),
    "other error in 200": Reply(200, {"error": "Unexpected endpoint or method. (POST /x)"}),
    "405": Reply(405, b"<html><head><title>405 Not Allowed</title></head></html>"),
    "method": Reply(422, {"detail": [{"loc": ["query", "token"], "msg": "Field required"}]}),
    "region": Reply(400, [{"error": {"code": 400, "message": "User location is not supported"}}]),
    "key expired": Reply(400, [{"error": {"code": 400, "message": "API key expired."}}]),
    "key revoked": refusal("Invalid token", 401),
    "forbidden": Reply(403, b"<html><head><title>403 Forbidden</title></head></html>"),
    "gone": Reply(410, {"detail": "Gone"}),
    "text model": refusal("Model does not support images"),
}


@pytest.mark.parametrize(
    ("code", "reply"),
    [
        ("http_403", Reply(403, {"error": {"message": "This key may not read it."}})),
        ("http_401", Reply(401, {"error": {"message": "Unauthorized"}})),
        ("http_429", Reply(429, {"error": {"message": "Request too large: limit 3, need 4"}})),
        ("http_500", Reply(500, {"error": {"message": "Internal Server Error"}})),
    ],
)
async def test_the_last_record_of_a_run_does_not_hold_it(
    make_input, endpoint, caption, code, reply
) -> None:
    """Refused again and again with no other record left, it fails; the endpoint is asked to show
    that it works."""
    count = 30
    endpoint.behave = lambda call: reply if call.texts[-1] == f"q{count - 1}" else None
    seen = await caption(make_input(count))
    assert seen.error is None
    assert (len(seen.done), seen.codes) == (count - 1, {count - 1: code})
    assert endpoint.count <= count + 25


@pytest.mark.parametrize("status", [200, 401, 403, 501])
async def test_a_moment_in_which_all_is_refused_costs_no_record(
    make_input, endpoint, caption, status
) -> None:
    """Thirty requests in flight are refused at once, and nothing after them: no record fails."""
    count, first = 200, 60
    endpoint.latency_s = 0.02
    page = Reply(status, HTML, {"Content-Type": "text/html"})
    seen_before: set[str] = set()

    def refuse_new_ones(call: Call) -> Reply | None:
        is_new = call.texts[-1] not in seen_before
        seen_before.add(call.texts[-1])
        return page if is_new and first <= len(seen_before) < first + 30 else None

    endpoint.behave = refuse_new_ones
    seen = await caption(make_input(count), concurrency=64)
    assert seen.error is None
    assert (len(seen.done), seen.failed) == (count, [])


async def test_a_run_of_unusable_answers_stops(many, endpoint, caption) -> None:
    """A model that writes nothing is not paid five times for every record."""
    endpoint.behave = lambda _: Reply(200, completion(""))
    seen = await caption(many)
    assert isinstance(seen.error, EndpointRefusedError)
    assert (seen.done, seen.failed) == ([], [])
    assert endpoint.count <= STOPS_AFTER


async def test_identifiers_make_no_refusal_unlike_the_others(many, endpoint, caption) -> None:
    """Servers put the number of the request into their words."""

    def refuse(call: Call) -> Reply:
        name = f"req_{call.number:08x}abcdef"
        return Reply(400, {"error": {"message": f"Something went wrong (request id: {name})"}})

    endpoint.behave = refuse
    seen = await caption(many)
    assert isinstance(seen.error, EndpointRefusedError)
    assert endpoint.count <= STOPS_AFTER


async def test_a_test_image_is_no_caption_of_a_record(
    make_input, endpoint, caption, monkeypatch
) -> None:
    """If the test image works and no record does, the run never worked: exit code 2."""
    monkeypatch.setattr("captioner.engine.vision_probe.RECORDS", 20)
    refused = Reply(400, {"error": {"message": "Something about your request"}})
    endpoint.behave = lambda call: refused if call.texts[-1].startswith("q") else None
    seen = await caption(make_input(100), probe=True)
    assert isinstance(seen.error, EndpointRefusedError)
    assert endpoint.count <= STOPS_AFTER


@pytest.mark.parametrize("name", DOOMED)
async def test_a_run_that_never_worked_stops_with_2(many, endpoint, caption, name) -> None:
    """At most `STOPS_AFTER` requests, and no record is called a failure."""
    endpoint.behave = lambda _: DOOMED[name]
    seen = await caption(many)
    assert isinstance(seen.error, EndpointRefusedError | EndpointGaveOutError)
    money = name in ("budget", "suspended", "arrears", "credit", "no money, as 429")
    assert seen.error.exit_code == (7 if money else 2)
    assert (seen.done, seen.failed) == ([], [])
    assert endpoint.count <= STOPS_AFTER
    told.append(f"real endpoints: {name}: {endpoint.count} requests for {RECORDS} records")


@pytest.mark.parametrize("name", DOOMED)
async def test_a_run_that_worked_stops_with_7(many, endpoint, caption, name, short_pauses) -> None:
    """The records that were refused are pending for the next run."""
    endpoint.behave = lambda call: None if call.number <= 30 else DOOMED[name]
    seen = await caption(many)
    assert isinstance(seen.error, EndpointGaveOutError)
    assert seen.error.exit_code == 7
    assert (len(seen.done), seen.failed) == (30, [])
    assert endpoint.count <= 30 + STOPS_AFTER


# Transient is transient


@pytest.mark.parametrize(
    "fault",
    [
        Reply(404, b"404 page not found"),
        Reply(408, b""),
        Reply(409, {"detail": "Conflict"}),
        Reply(424, {"error": "generation failed", "error_type": "generation"}),
        Reply(425, b"Too Early"),
        Reply(499, b"<html><title>499</title></html>"),
        Reply(202, b""),
        Reply(200, {"id": "job-1", "status": "IN_QUEUE"}),
        refusal("Incorrect API key provided", 401),
        Reply(400, {"error": "Model is unloaded."}),
        Reply(400, {"detail": "(ThrottlingException) Too many tokens, please wait"}),
        refusal("You exceeded your quota: error-code#token-limit", 429, code="insufficient_quota"),
    ],
)
async def test_trouble_of_a_moment_costs_no_record(make_input, endpoint, caption, fault) -> None:
    """After captions with the same key, model and address."""
    endpoint.behave = lambda call: fault if 15 <= call.number < 18 else None
    seen = await caption(make_input(40), concurrency=4)
    assert (seen.error, seen.failed, len(seen.done)) == (None, [], 40)
    assert endpoint.count == 43


async def test_the_quota_of_a_day_in_headers_is_no_rate(make_input, endpoint, caption) -> None:
    """14,400 requests a day, of which few are used, do not hold the run back."""
    left = 14_380

    def behave(call: Call) -> Reply:
        nonlocal left
        left -= 1
        headers = {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-reset-requests": f"{(14_400 - left) * 6}s",
        }
        return Reply(200, completion(f"{call.texts[0]} is red"), headers)

    endpoint.behave = behave
    async with asyncio.timeout(LIMIT_S / 4):
        seen = await caption(make_input(120))
    assert len(seen.done) == 120


# Adapting

SCHEMA_REFUSALS = [
    refusal("This model does not support response format `json_schema`.", param="response_format"),
    refusal("This response_format type is unavailable now"),
    Reply(400, {"error": "'response_format.type' must be 'json_object' or 'text'"}),
    refusal("Invalid schema for response_format 'caption': 'required' is required"),
    refusal("JSON schema conversion failed:\nUnrecognized schema: {}", code=400),
    refusal("Grammar error: Unimplemented keys: ['maxLength']"),
    refusal("Unknown name 'x' at 'generation_config.response_schema': Cannot find field."),
    refusal("'messages' must contain the word 'json' in some form"),
    refusal("invalid JSON schema in format", 500),
    refusal("Structured output is not supported with thinking enabled"),
    Reply(400, {"object": "error", "message": "Failed to compile json grammar", "code": 400}),
    refusal("guided decoding is disabled on this server"),
]


@pytest.mark.parametrize("reply", SCHEMA_REFUSALS)
async def test_a_refused_response_format_goes_into_words(
    make_input, endpoint, caption, tmp_path, reply
) -> None:
    """The answer follows the schema all the same."""
    schema = tmp_path / "schema.json"
    schema.write_text('{"type":"object","properties":{"short":{"type":"string"}}}')
    good = Reply(200, completion('{"short": "A red square."}'))
    endpoint.behave = lambda call: reply if "response_format" in call.body else good
    seen = await caption(make_input(4), schema=str(schema), concurrency=1)
    assert len(seen.done) == 4
    assert endpoint.count == 5


@pytest.mark.parametrize(
    "reply",
    [
        refusal("invalid temperature: only 1 is allowed for this model"),
        refusal("Unsupported value: 'temperature' does not support 0.2", param="temperature"),
        Reply(400, {"detail": "(ValidationException): `temperature` is deprecated"}),
        refusal("litellm.UnsupportedParamsError: o3 models don't support temperature=0.2."),
        refusal("`temperature` may only be set to 1 when thinking is enabled."),
        Reply(422, {"detail": [{"loc": ["body", "temperature"], "msg": "Extra inputs"}]}),
    ],
)
async def test_a_refused_temperature_is_left_out(make_input, endpoint, caption, reply) -> None:
    """For all records, after one refusal."""
    endpoint.behave = lambda call: reply if "temperature" in call.body else None
    seen = await caption(make_input(4), temperature=0.2, concurrency=1)
    assert len(seen.done) == 4
    assert endpoint.count == 5


@pytest.mark.parametrize(
    "reply",
    [
        refusal("System role not supported"),
        refusal("Conversation roles must alternate user/assistant/user/assistant/..."),
        refusal("Only user and assistant roles are supported!"),
        refusal("1 validation error: unexpected role 'system'"),
        refusal("Developer instruction is not enabled for models/gemma-3-4b-it"),
        refusal("Jinja Exception: System role not supported", 500),
        Reply(422, {"error": "Template error: System role not supported (in <string>:1)"}),
    ],
)
async def test_a_refused_system_role_joins_the_users_turn(
    make_input, endpoint, caption, reply
) -> None:
    """Its words are kept."""
    endpoint.behave = lambda call: (
        reply if any(turn["role"] == "system" for turn in call.body["messages"]) else None
    )
    seen = await caption(make_input(4), system_prompt="Be brief.", concurrency=1)
    assert len(seen.done) == 4
    assert "Be brief." in orjson.dumps(endpoint.calls[-1].body["messages"][0]).decode()


@pytest.mark.parametrize(
    "reply",
    [
        Reply(422, {"detail": [{"loc": ["body", "messages", 0, "image_url", "detail"]}]}),
        refusal("Invalid value: 'low'.", param="messages[1].content[0].image_url.detail"),
    ],
)
async def test_a_refused_detail_is_left_out(make_input, endpoint, caption, reply) -> None:
    """Named by its path only."""
    endpoint.behave = lambda call: reply if '"detail"' in json.dumps(call.body) else None
    seen = await caption(make_input(4), detail="low", concurrency=1)
    assert len(seen.done) == 4


async def test_max_tokens_above_the_context_become_fewer(make_input, endpoint, caption) -> None:
    """The images stay as they are."""

    def behave(call: Call) -> Reply | None:
        tokens = call.body["max_tokens"]
        message = f"'max_tokens' is too large: {tokens}. This model's maximum context length is "
        message += "4096 tokens and your request has 900 input tokens."
        return refusal(message) if tokens > 3_196 else None

    endpoint.behave = behave
    seen = await caption(make_input(6), max_tokens=4_096, concurrency=1)
    assert len(seen.done) == 6
    assert [call.body["max_tokens"] for call in endpoint.calls] == [4_096, *[3_196] * 6]
    assert len({call.urls[0] for call in endpoint.calls}) == 6


def noise_input(folder: Path, count: int) -> Path:
    """Write an input of noisy images, every second one large."""
    for number in range(count):
        size = (600, 450) if number % 2 else (60, 45)
        image = Image.frombytes("RGB", size, os.urandom(size[0] * size[1] * 3))
        image.save(folder / f"n{number}.jpg")
    source = folder / "noise.jsonl"
    lines = [json.dumps({"id": n, "image": f"n{n}.jpg", "prompt": f"q{n}"}) for n in range(count)]
    source.write_text("\n".join(lines) + "\n")
    return source


@pytest.mark.parametrize(
    "reply",
    [
        refusal("The decoder prompt (length 5000) is longer than the maximum model length of 4096"),
        Reply(422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000"}),
        Reply(400, {"message": "The input prompt length 9000 exceeds the session_len 8192"}),
        refusal("The sum of prompt length should not exceed max_num_tokens (8192)"),
        refusal("prompt too long; exceeded max context length by 10 tokens", 500),
        refusal("an image item with length 5000, which exceeds the encoder cache size 4096"),
        refusal("image dimensions exceed max allowed size: 8000 pixels"),
        refusal("image exceeds 5 MB maximum"),
        Reply(400, {"detail": "image too large: base64 string exceeds 180000 characters"}),
        Reply(413, b"<html><title>413 Request Entity Too Large</title></html>"),
        refusal("Your request exceeded model token limit: 8192 (requested: 9500)"),
        refusal("Range of input length should be [1, 30720]"),
    ],
)
async def test_what_is_too_large_is_sent_smaller(tmp_path, endpoint, caption, reply) -> None:
    """Bytes, pixels, tokens, caches and sessions."""
    endpoint.behave = lambda call: (
        reply if Image.open(io.BytesIO(call.images[0])).width > 500 else None
    )
    seen = await caption(noise_input(tmp_path, 6))
    assert (seen.failed, len(seen.done)) == ([], 6)


@pytest.mark.parametrize("status", [400, 500])
async def test_an_image_format_that_is_unknown_becomes_jpeg(
    tmp_path, endpoint, caption, status
) -> None:
    """WebP, told as a fault of the server."""
    lines = []
    for number in range(8):
        kind = "webp" if number % 2 else "jpg"
        Image.new("RGB", (32, 32), (30 * number, 9, 9)).save(tmp_path / f"{number}.{kind}")
        lines.append(json.dumps({"id": number, "image": f"{number}.{kind}"}) + "\n")
    (tmp_path / "in.jsonl").write_text("".join(lines))
    reply = refusal("failed to process inputs: image: unknown format", status)
    endpoint.behave = lambda call: reply if call.images[0][8:12] == b"WEBP" else None
    seen = await caption(tmp_path / "in.jsonl")
    assert (seen.failed, len(seen.done)) == ([], 8)


# The wire


def stream(*events: Any, done: bool = False) -> Reply:
    lines = [b"data: " + orjson.dumps(event) + b"\n\n" for event in events]
    body = b"".join(lines) + b"data: [DONE]\n\n" * done
    return Reply(200, body, {"Content-Type": "text/event-stream"})


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


@pytest.mark.parametrize(
    "reply",
    [
        stream(piece("A red "), piece("square."), piece("", "stop")),
        stream(piece("A red "), piece("square."), done=True),
        Reply(200, b"\xef\xbb\xbfid: 1\nretry: 9\n"
              + stream(piece("A red square.", "stop")).body),
        stream(piece("A red"), {"choices": [{"finish_reason": "stop", "message": {
            "role": "assistant", "content": "A red square."}}]}),
    ],
)  # fmt: skip
async def test_streams_end_with_a_reason_or_with_done(make_input, endpoint, caption, reply) -> None:
    """Either will do."""
    endpoint.behave = lambda _: reply
    seen = await caption(make_input(4), stream=True, **FEW)
    assert [row["caption"] for row in seen.done] == ["A red square."] * 4


async def test_a_stream_without_an_end_is_no_caption(make_input, endpoint, caption) -> None:
    """Half a sentence is none."""
    endpoint.behave = lambda _: stream(piece("A red "), piece("squ"))
    seen = await caption(make_input(2), stream=True, **FEW)
    assert set(seen.codes.values()) == {"broken_stream"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"choices":[{"message":{"content":"A dog."},"logprobs":NaN}]}', "A dog."),
        (b'\xef\xbb\xbf{"choices":[{"message":{"content":"A dog."}}]}', "A dog."),
        (b'{"choices":[{"message":{"content":"A \\ud83d dog."}}]}', "A ? dog."),
        (b'{"choices":[{"message":{"content":"A dog."}}],"usage":{"x":Infinity}}', "A dog."),
    ],
)
async def test_json_that_is_nearly_right_is_read(make_input, endpoint, caption, body, text) -> None:
    """The caption in it was paid for."""
    endpoint.behave = lambda _: Reply(200, body)
    seen = await caption(make_input(2), **FEW)
    assert [row["caption"] for row in seen.done] == [text] * 2
    assert endpoint.count == 2


@pytest.mark.parametrize(
    "headers", [{"X-Long": "x" * 9_000}, {f"x-proxy-{n}": "v" for n in range(150)}]
)
async def test_large_headers_are_read(make_input, endpoint, caption, headers) -> None:
    """Gateways add them by the dozen."""
    endpoint.behave = lambda _: Reply(200, completion("A red square."), headers)
    seen = await caption(make_input(10))
    assert (len(seen.done), endpoint.count) == (10, 10)


async def test_a_413_that_comes_before_the_body_was_read(tmp_path, caption) -> None:
    """The proxy closes at once, which may reset the connection: smaller images get through."""
    good = orjson.dumps(completion("A red square."))
    refused = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refused
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                found = re.search(rb"(?i)content-length: *(\d+)", head)
                length = int(found[1]) if found else 0
                if length > 100_000:
                    refused += 1
                    writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n"
                                 b"Connection: close\r\n\r\n")  # fmt: skip
                    await writer.drain()
                    return
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                             b"Content-Length: %d\r\n\r\n%b" % (len(good), good))  # fmt: skip
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    port = server.sockets[0].getsockname()[1]
    seen = await caption(noise_input(tmp_path, 6), base_url=f"http://127.0.0.1:{port}/v1")
    server.close()
    assert (seen.failed, len(seen.done)) == ([], 6)
    assert refused > 0


# Addresses and keys


@pytest.mark.parametrize(
    "path",
    ["/v1/", "/v1//", "/v1/chat/completions", "/v1/chat/completions/", "", "/", " /v1 ",
     "/v1/completions"],
)  # fmt: skip
async def test_addresses_as_people_paste_them(make_input, endpoint, caption, path) -> None:
    """The right one is found."""
    root = endpoint.base_url.removesuffix("/v1")
    lead = " " if path.startswith(" ") else ""
    seen = await caption(make_input(2), base_url=f"{lead}{root}{path.lstrip()}")
    assert (len(seen.done), endpoint.count) == (2, 2)


@pytest.mark.parametrize(
    "written",
    [f"{KEY}\n", f"{KEY}\r\n", f"\ufeff{KEY}", f"Bearer {KEY}", f'"{KEY}"', f"'{KEY}'",
     f"{KEY}\u00a0", f' "Bearer {KEY}" '],
)  # fmt: skip
async def test_keys_as_people_paste_them(
    make_input, endpoint, caption, monkeypatch, written
) -> None:
    """What surrounds a key is no part of it."""
    monkeypatch.setenv("OPENAI_API_KEY", written)
    seen = await caption(make_input(1))
    assert len(seen.done) == 1
    assert endpoint.calls[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("key", "echo"),
    [
        (KEY, KEY),
        ("sk-ab/cd/0123456789", "sk-ab\\/cd\\/0123456789"),
        (KEY, "".join(f"\\u{ord(c):04x}" for c in KEY)),
        (KEY, KEY.replace("0", "\\u0030")),
        ('sk-"quoted"-0123456789', 'sk-\\"quoted\\"-0123456789'),
    ],
)
def test_a_key_that_is_echoed_is_never_shown(
    make_input, endpoint, run_command, monkeypatch, key, echo
) -> None:
    """In no escape, on the terminal and in files."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    body = b'{"error":{"message":"Incorrect API key provided: %b"}}' % echo.encode()
    endpoint.behave = lambda _: Reply(401, body)
    source = make_input(2)
    result = run_command(source, "--base-url", endpoint.base_url, "--model", "m", "--no-probe")
    assert result.returncode == 2
    written = result.stdout + result.stderr
    written += "".join(p.read_text(errors="replace") for p in source.parent.glob("input.*"))
    for form in {key, echo, json.dumps(key)[1:-1]}:
        assert form not in written


# Errors that do not look like one


@pytest.mark.parametrize(
    "broken",
    [
        b'event: error\ndata: {"detail": "CUDA out of memory"}\n\n',
        b'data: {"code": "InternalError", "message": "An internal error has occured"}\n\n',
        b'{"error": {"message": "boom", "code": 500}}\n\n',
    ],
)
async def test_a_stream_that_breaks_off_is_asked_for_again(
    make_input, endpoint, caption, broken
) -> None:
    """Whatever the error is called, the half caption before it is in no row."""
    half = Reply(
        200,
        stream(piece("A red")).body + broken + b"data: [DONE]\n\n",
        {"Content-Type": "text/event-stream"},
    )
    whole = stream(piece("A red "), piece("square.", "stop"))
    endpoint.behave = lambda call: half if call.number % 3 == 1 else whole
    seen = await caption(make_input(4), stream=True, **{**FEW, "max_attempts": 5})
    assert [row["caption"] for row in seen.done] == ["A red square."] * 4


async def test_half_a_text_beside_an_error_is_in_no_row(make_input, endpoint, caption) -> None:
    """An error in a member of its own counts, and one that says that all is well does not."""
    half = {**completion("A red"), "base_resp": {"status_code": 1013, "status_msg": "internal"}}
    well = {**completion("A red square."), "error": {"code": 0, "message": ""}}
    endpoint.behave = lambda call: Reply(200, half if call.number == 1 else well)
    seen = await caption(make_input(3), **FEW)
    assert [row["caption"] for row in seen.done] == ["A red square."] * 3


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("cannot identify image: broken data stream when reading image file", {"stream": True}),
        ("the thermometer image: temperature reading not a valid image", {"temperature": 0.2}),
        ("This image of seed packets was rejected", {"extra_body": '{"seed": 5}'}),
        ("max_tokens must be at least 1, got -120.", {"max_tokens": 300}),
    ],
)
async def test_words_about_one_image_change_no_other_request(
    make_input, endpoint, caption, said, options
) -> None:
    """Only that record fails; all others are asked as the user wants."""
    refused = Reply(400, {"error": {"message": said, "type": "invalid_request_error"}})
    fine = stream(piece("A red square.", "stop"))
    plain = Reply(200, completion("A red square."))

    def behave(call: Call) -> Reply:
        if "q1" in json.dumps(call.body["messages"][-1]["content"][-1]):
            return refused
        return fine if call.body.get("stream") else plain

    endpoint.behave = behave
    seen = await caption(make_input(4), **options, **FEW)
    assert (len(seen.done), list(seen.codes)) == (3, [1])
    (name,) = ["seed"] if "extra_body" in options else options
    assert all(name in call.body for call in endpoint.calls)


async def test_a_filter_without_choices_costs_one_request(make_input, endpoint, caption) -> None:
    """What Azure and Gemini held back is not asked for again."""
    found = [{"content_filter_results": {"violence": {"filtered": True}}}]
    endpoint.behave = lambda _: Reply(200, {"choices": [], "prompt_filter_results": found})
    seen = await caption(make_input(3), **FEW)
    assert seen.codes == dict.fromkeys(range(3), "filtered")
    assert endpoint.count == 3


@pytest.mark.parametrize(
    "reply",
    [
        Reply(429, {"error": {"message": "Too many requests."}}, {"retry-after": "41234"}),
        Reply(429, {"error": {"message": "Rate limit of 50 per 86400s exceeded"}}),
        Reply(429, {"errors": {"message": "you have exceeded today's quota"}}),
        Reply(500, {"error": {"message": "insufficient balance (1008)"}}),
        Reply(200, {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}),
    ],
)
async def test_a_days_quota_or_an_empty_account_is_not_waited_for(
    many, endpoint, caption, reply
) -> None:
    """Whatever the status it comes with."""
    endpoint.behave = lambda _: reply
    seen = await caption(many)
    assert isinstance(seen.error, EndpointGaveOutError)
    assert endpoint.count <= STOPS_AFTER
