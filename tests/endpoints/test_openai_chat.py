from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from endpoint import completion

from captioner.core.errors import (
    AttemptError,
    BadReplyError,
    EndpointFaultError,
    EndpointGaveOutError,
    EndpointRefusedError,
    ImageRejectedError,
    NotFoundError,
    RefusedError,
    RunError,
)
from captioner.core.types import EncodedImage, ImageRef, Response, Turn
from captioner.endpoints.openai_chat import OpenAIChat
from captioner.engine.caption_checks import CaptionRules, check

PIXELS = bytes(range(256))
IMAGE = EncodedImage("image/png", base64.b64encode(PIXELS))
FILE = ImageRef(path="a.png")
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


def body_of(dialect: OpenAIChat, turns: list[Turn], images: list[EncodedImage]) -> dict[str, Any]:
    request = dialect.request(dialect.messages(turns, images))
    assert (request.method, request.path) == ("POST", "/chat/completions")
    return orjson.loads(b"".join(request.pieces))


def judge(body: Any, status: int = 200, **headers: str) -> Any:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return check(OpenAIChat("m").judge(Response(status, names, data)), CaptionRules()).completion


def error(code: Any = None, message: str = "no", **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "t", "param": None, "code": code, **more}}


def message(**members: Any) -> dict[str, Any]:
    return completion(None, message={"role": "assistant", **members})


def test_each_image_is_a_part_of_its_own():
    """Texts and images of a turn reach the model as parts, in the order of the record."""
    second = EncodedImage("image/jpeg", base64.b64encode(b"two"))
    turns = [
        Turn("system", ("Be brief.",)),
        Turn("user", ("before", FILE, "between", FILE, FILE)),
        Turn("assistant", ("a cat",)),
        Turn("user", (FILE,)),
    ]
    link = EncodedImage(url='https://example.org/?a="b"&c=ü')
    body = body_of(OpenAIChat("m"), turns, [IMAGE, second, link, IMAGE])

    def part(url: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": url}}

    one = part("data:image/png;base64," + base64.b64encode(PIXELS).decode())
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "before"},
                    one,
                    {"type": "text", "text": "between"},
                    part("data:image/jpeg;base64,dHdv"),
                    part('https://example.org/?a="b"&c=ü'),
                ],
            },
            {"role": "assistant", "content": "a cat"},
            {"role": "user", "content": [one]},
        ],
    }


@pytest.mark.parametrize(
    "text",
    ["", '"', "\\", "}", "]}", "[", '"}},{"role":"system"', "a\nb\r\t\0\x1b", "ünï \U0001f600 "],
)
def test_any_text_is_sent_as_it_is(text):
    """No text of a record can break the request or add to it; characters arrive unchanged."""
    turns = [
        Turn("system", (text,)),
        Turn("user", (text, FILE, text, text, FILE)),
        Turn("user", (text,)),
    ]
    messages = body_of(OpenAIChat(text), turns, [IMAGE, IMAGE])["messages"]
    assert [turn["role"] for turn in messages] == ["system", "user", "user"]
    assert messages[0]["content"] == messages[2]["content"] == text
    assert [part.get("text") for part in messages[1]["content"]] == [text, None, text, text, None]


def test_turn_of_texts_only_is_a_string():
    """A turn without images is a plain string, which every server takes."""
    body = body_of(OpenAIChat("m"), [Turn("user", ("a", "b")), Turn("user", ())], [])
    assert [turn["content"] for turn in body["messages"]] == ["a\nb", ""]


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, {}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"temperature": 0.0}, {"temperature": 0.0}),
        ({"max_tokens": 1, "temperature": 0.5}, {"max_tokens": 1, "temperature": 0.5}),
    ],
)
def test_only_what_was_set_is_sent(options, sent):
    """Models that reject a parameter never see one the user did not set; zero is set."""
    body = body_of(OpenAIChat('m"/\\', **options), [Turn("user", ("a",))], [])
    del body["messages"]
    assert body == {"model": 'm"/\\', **sent}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a cat", "a cat"),
        ("  a cat\n\n", "a cat"),
        ("a\ncat", "a\ncat"),
        ("Error 404 on a screen", "Error 404 on a screen"),
        ("<p>a cat</p>", "<p>a cat</p>"),
        ("the sign says <think>", "the sign says <think>"),
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "cat"}], "a cat"),
        ([{"type": "text", "text": "a cat"}, {"type": "x"}, None, 7], "a cat"),
        ("<think>hm</think>a cat", "a cat"),
        ("\n <think>\nlong\nthought\n</think>\n\na cat ", "a cat"),
        ("<think></think>a <think>b</think>", "a"),
        ([{"type": "text", "text": "<think>hm</think>a cat"}], "a cat"),
    ],
)
def test_captions(content, text):
    """The caption is the model's text: trimmed, without its thoughts, nothing else taken away."""
    assert judge(completion(content)).text == text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("I see fur, so it is a cat.\n</think>\n\na cat", "a cat"),
        ("<think>one</think>\n<think>two</think>a cat", "a cat"),
        ([{"type": "reasoning", "text": "I see fur"}, {"type": "text", "text": "a cat"}], "a cat"),
        ([{"type": "thinking", "text": "I see fur"}, {"type": "text", "text": "a cat"}], "a cat"),
    ],
)
def test_thoughts_in_other_clothes_are_no_part_of_the_caption(content, text):
    """Reasoning whose opening tag was in the prompt, in two blocks or in typed parts is cut off."""
    assert judge(completion(content)).text == text


@pytest.mark.parametrize("reason", [None, "", "stop", "eos", "tool_calls"])
def test_unknown_finish_reasons_are_no_error(reason):
    """Servers that name the end in their own way, or not at all, are understood."""
    assert judge(completion("a cat", finish_reason=reason)).finish_reason == (reason or "")


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 3}, (7, 3, 0)),
        ({"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 1}}, (7, 0, 1)),
        ({"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": None}}, (7, 0, 0)),
        ({"prompt_tokens": 7, "prompt_tokens_details": [1]}, (7, 0, 0)),
        ({"prompt_tokens": None, "completion_tokens": "3"}, (0, 0, 0)),
        ({"prompt_tokens": -1, "completion_tokens": 2.5}, (0, 0, 0)),
        ([], (0, 0, 0)),
        (None, (0, 0, 0)),
    ],
)
def test_tokens_as_far_as_they_are_told(usage, found):
    """Missing or odd token counts never cost a caption."""
    reply = completion("a cat")
    reply["usage"] = usage
    assert judge(reply).usage == found
    del reply["usage"]
    del reply["model"]
    assert judge(reply).usage == (0, 0, 0)


NOT_CAPTIONS = [
    (b"", "bad_reply"),
    (b"OK", "bad_reply"),
    (b"null", "bad_reply"),
    (b'"a cat"', "bad_reply"),
    (b"[]", "bad_reply"),
    (b"{}", "bad_reply"),
    (HTML, "bad_reply"),
    (b"\xff\xfe\0", "bad_reply"),
    (orjson.dumps(completion("a cat"))[:-9], "bad_reply"),
    (b'data: {"choices":[]}\n\ndata: [DONE]\n\n', "bad_reply"),
    (b"[" * 100_000, "bad_reply"),
    ([completion("a cat")], "bad_reply"),
    ({"choices": None}, "bad_reply"),
    ({"choices": []}, "bad_reply"),
    ({"choices": {}}, "bad_reply"),
    ({"choices": "a cat"}, "bad_reply"),
    ({"choices": [None]}, "bad_reply"),
    ({"choices": ["a cat"]}, "bad_reply"),
    ({"choices": [{}]}, "bad_reply"),
    ({"choices": [{"text": "a cat"}]}, "bad_reply"),
    ({"choices": [{"message": None}]}, "bad_reply"),
    ({"choices": [{"message": "a cat"}]}, "bad_reply"),
    ({"choices": [{"delta": {"content": "a cat"}}]}, "bad_reply"),
    ({"object": "error", "message": "boom", "code": 400}, "bad_reply"),
    ({"detail": "boom"}, "bad_reply"),
    ([{"error": {"code": 503, "message": "boom"}}], "bad_reply"),
    (completion(None), "empty"),
    (completion(""), "empty"),
    (completion(" \n\t "), "empty"),
    (completion([]), "empty"),
    (completion({"type": "image", "text": "a cat"}), "empty"),
    (completion(7), "empty"),
    (completion("<think>hm</think>"), "thinking"),
    (completion("<think>hm</think>\n \n"), "thinking"),
    (completion([{"type": "image_url", "image_url": {"url": "x"}}]), "empty"),
    (message(), "empty"),
    (message(content=None, reasoning_content="I see fur"), "thinking"),
    (message(content="", reasoning="I see fur"), "thinking"),
    (message(content=None, refusal=None), "empty"),
    (message(content=None, tool_calls=[{"id": "1"}]), "empty"),
    (completion("a cat with", finish_reason="length"), "truncated"),
    (completion("<think>so", finish_reason="length"), "thinking"),
    (completion("", finish_reason="length"), "truncated"),
]


@pytest.mark.parametrize(("body", "code"), NOT_CAPTIONS, ids=range(len(NOT_CAPTIONS)))
def test_replies_that_are_no_captions(body, code):
    """Whatever a server answers with 200, what is no whole caption is tried again, never stored."""
    with pytest.raises(BadReplyError) as caught:
        judge(body)
    assert caught.value.code == code
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("reason", ["stop", None])
def test_thoughts_that_never_end_are_no_caption(reason):
    """A model that was stopped while it was thinking has not captioned anything."""
    with pytest.raises(BadReplyError):
        judge(completion("<think>\nI see fur, so", finish_reason=reason))


@pytest.mark.parametrize("reason", ["error", "abort"])
def test_captions_cut_off_by_the_server_are_no_captions(reason):
    """What a failing server (OpenRouter) or an aborted request (SGLang) had said is not stored."""
    with pytest.raises((BadReplyError, EndpointFaultError)):
        judge(completion("a cat sits on the", finish_reason=reason))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (message(content=None, refusal="I cannot help with that."), "refused"),
        (message(content="a cat", refusal="I cannot."), "refused"),
        (completion("a cat", finish_reason="content_filter"), "filtered"),
        (completion(None, finish_reason="content_filter"), "filtered"),
    ],
)
def test_refusals_fail_the_record(body, code):
    """A refusal or a filter's stop is final for the record and never its caption."""
    with pytest.raises(RefusedError) as caught:
        judge(body)
    assert caught.value.code == code


def test_refusals_are_safe_to_show():
    """A refusal cannot send control codes to the terminal that shows it."""
    with pytest.raises(RefusedError) as caught:
        judge(message(content=None, refusal="no\x1b[2J\nway" + "!" * 1000))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


ERRORS = [
    # status, body, headers, exception, code
    (400, error("invalid_value"), RefusedError, "http_400"),
    (400, error("content_filter"), RefusedError, "filtered"),
    (
        400,
        {"error": {"code": 400, "message": "x", "type": "exceed_context_size_error"}},
        ImageRejectedError,
        "too_large",
    ),
    (400, {"object": "error", "message": "too long", "code": 400}, RefusedError, "http_400"),
    (
        400,
        [{"error": {"code": 400, "message": "bad", "status": "INVALID_ARGUMENT"}}],
        RefusedError,
        "http_400",
    ),
    (400, {"detail": "bad"}, RefusedError, "http_400"),
    (400, b"", RefusedError, "http_400"),
    (413, HTML, ImageRejectedError, "http_413"),
    (415, {}, ImageRejectedError, "http_415"),
    (422, {"detail": [{"loc": ["body"], "msg": "wrong", "type": "x"}]}, RefusedError, "http_422"),
    (501, b"", RefusedError, "http_501"),
    (401, error("invalid_api_key"), EndpointRefusedError, None),
    (401, b"", EndpointRefusedError, None),
    (403, {"error": "forbidden"}, RefusedError, "http_403"),
    (404, error("model_not_found"), EndpointRefusedError, None),
    (404, HTML, NotFoundError, "http_404"),
    (410, {}, RefusedError, "http_410"),
    (301, b"", EndpointRefusedError, None),
    (307, HTML, EndpointRefusedError, None),
    (402, {}, EndpointGaveOutError, None),
    (407, {}, EndpointRefusedError, None),
    (429, error("insufficient_quota"), EndpointGaveOutError, None),
    (429, error("credit_balance_exhausted"), EndpointGaveOutError, None),
    (429, error("project_spend_limit_exceeded"), EndpointGaveOutError, None),
    (400, error("billing_hard_limit_reached"), EndpointGaveOutError, None),
    (400, error(message="Your credit balance is too low to access"), EndpointGaveOutError, None),
    (429, error("rate_limit_exceeded"), EndpointFaultError, "http_429"),
    (429, error("slow_down"), EndpointFaultError, "http_429"),
    (429, b"", EndpointFaultError, "http_429"),
    (408, b"", EndpointFaultError, "http_408"),
    (409, b"", EndpointFaultError, "http_409"),
    (498, b"", EndpointFaultError, "http_498"),
    (
        500,
        {"error": {"code": 500, "message": "x", "type": "server_error"}},
        EndpointFaultError,
        "http_500",
    ),
    (502, HTML, EndpointFaultError, "http_502"),
    (
        503,
        {"error": "Model is overloaded", "error_type": "overloaded"},
        EndpointFaultError,
        "http_503",
    ),
    (504, b"", EndpointFaultError, "http_504"),
    (
        529,
        {"type": "error", "error": {"type": "overloaded_error", "message": "x"}},
        EndpointFaultError,
        "http_529",
    ),
    (500, completion("a cat"), EndpointFaultError, "http_500"),
    (400, completion("a cat"), RefusedError, "http_400"),
]


@pytest.mark.parametrize(("status", "body", "kind", "code"), ERRORS, ids=range(len(ERRORS)))
def test_error_statuses(status, body, kind, code):
    """Each status and shape of error ends the record, the run or the wait, as it should."""
    with pytest.raises(kind) as caught:
        judge(body, status)
    assert type(caught.value) is kind
    if code is not None:
        assert caught.value.code == code


IN_A_200 = [
    ({"code": 429, "message": "slow"}, EndpointFaultError, "http_429"),
    ({"code": 502, "message": "upstream"}, EndpointFaultError, "http_502"),
    ({"code": None, "message": "upstream"}, EndpointFaultError, "http_502"),
    ({"code": 0, "message": "odd"}, EndpointFaultError, "http_502"),
    ({"code": 200, "message": "odd"}, EndpointFaultError, "http_502"),
    ("upstream", EndpointFaultError, "http_502"),
    (["upstream"], EndpointFaultError, "http_502"),
    ({"code": 400, "message": "bad"}, RefusedError, "http_400"),
    ({"code": 401, "message": "bad key"}, EndpointRefusedError, None),
    ({"code": "insufficient_quota", "message": "x"}, EndpointGaveOutError, None),
    ({"code": 402, "message": "x"}, EndpointGaveOutError, None),
    ({"code": "content_filter", "message": "x"}, RefusedError, "filtered"),
]


@pytest.mark.parametrize("place", ["reply", "choice", "both"])
@pytest.mark.parametrize(("broken", "kind", "code"), IN_A_200, ids=range(len(IN_A_200)))
def test_errors_with_status_200(broken, kind, code, place):
    """An error that comes with status 200, even beside a text, is never a caption."""
    reply = {"error": broken} if place == "reply" else completion("a cat", error=broken)
    if place == "both":
        reply = {**completion("a cat"), "error": broken}
    with pytest.raises(kind) as caught:
        judge(reply)
    if code is not None:
        assert caught.value.code == code


def test_null_error_beside_a_caption_is_no_error():
    """Servers that always send an `error` member, empty when all is well, are understood."""
    assert judge({**completion("a cat", error=None), "error": None}).text == "a cat"


def test_moderation_fails_the_record_not_the_run():
    """One image that a router's moderation flags with 403 does not stop all the others."""
    metadata = {"reasons": ["sexual"], "flagged_input": "…", "provider_name": "OpenAI"}
    flagged = error(403, "Your chosen model requires moderation and your input was flagged")
    flagged["error"]["metadata"] = metadata
    with pytest.raises(RefusedError):
        judge(flagged, 403)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry_after": "7"}, 7),
        ({"retry_after": "7", "retry_after_ms": "250"}, 0.25),
        ({"retry_after": "soon"}, None),
    ],
)
def test_waits_that_servers_ask_for_are_passed_on(headers, wait):
    """How long a server wants to be left alone comes with the fault."""
    for status in (429, 503, 529):
        with pytest.raises(EndpointFaultError) as caught:
            judge(b"", status, **headers)
        assert caught.value.retry_after_s == wait
    with pytest.raises(EndpointFaultError) as caught:
        judge(error(429), 200, **headers)
    assert caught.value.retry_after_s == wait


def test_payment_required_with_a_time_is_a_wait():
    """OpenRouter's 402 that says when to come back does not end the run."""
    with pytest.raises(EndpointFaultError):
        judge(b"", 402, retry_after="5")


@pytest.mark.parametrize(
    "body",
    [
        error(message="the cause"),
        {"object": "error", "message": "the cause", "code": 500},
        [{"error": {"code": 500, "message": "the cause"}}],
        {"error": "the cause"},
        {"detail": "the cause"},
        {"detail": [{"msg": "the cause"}]},
        {"error": {"message": None, "reason": "the cause"}},
        b"<b>the cause</b>",
        [["the cause"]],
        b"\xff\xfethe cause",
    ],
)
def test_the_cause_is_told(body):
    """Whatever the shape of an error, its cause is in the message."""
    with pytest.raises(EndpointFaultError, match="the cause"):
        judge(body, 500)


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
def test_messages_are_safe_to_show(status):
    """A message from outside is short, printable and holds no image."""
    nasty = "\x1b[2J\r\n\0\u202e" + "data:image/png;base64," + "QUJD" * 100 + " end " + "x" * 5000
    with pytest.raises((RefusedError, AttemptError, RunError)) as caught:
        judge(error(message=nasty), status)
    shown = str(caught.value)
    assert shown.isprintable()
    assert len(shown) < 400
    assert "QUJD" not in shown
    assert " end " in shown


def test_an_empty_error_says_so():
    """An error without a word is still a sentence."""
    with pytest.raises(EndpointFaultError, match="500: an empty body"):
        judge(b"", 500)
