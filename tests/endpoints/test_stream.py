"""Streams as servers send them: what is half is never a caption, what is whole is never lost."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from captioner.core.errors import (
    BadReplyError,
    CaptionerError,
    EndpointFaultError,
    EndpointRefusedError,
    RefusedError,
)
from captioner.core.types import Completion, Response
from captioner.endpoints import stream
from captioner.endpoints.openai_chat import OpenAIChat
from captioner.engine.caption_checks import CaptionRules, check

HALF = "A plain field with"
WHOLE = "A plain field."
DONE = "data: [DONE]\n\n"


def chunk(text: str, finish: Any = None, index: int | None = 0, **more: Any) -> str:
    """Return an event with a piece of a choice."""
    choice = {"delta": {"content": text}, "finish_reason": finish, **more}
    return event({"choices": [choice if index is None else {"index": index, **choice}]})


def event(data: Any) -> str:
    return f"data: {orjson.dumps(data).decode()}\n\n"


def judge(body: str | bytes) -> Completion:
    data = body if isinstance(body, bytes) else body.encode()
    return OpenAIChat("m", stream=True).judge(Response(200, {}, data))


def judged(body: str | bytes) -> str:
    """Return the caption in a body."""
    return str(check(judge(body), CaptionRules()).value)


ERRORS = [
    'event: error\ndata: {"detail": "CUDA out of memory"}\n\n',
    'event: error\ndata: {"type": "internal_server_error", "message": "engine dead"}\n\n',
    "event: error\ndata: engine dead\n\n",
    "event: error\ndata: [1]\n\n",
    event({"code": "InternalError", "message": "An internal error has occured", "request_id": "x"}),
    event({"code": 500, "msg": "boom"}),
    event({"detail": "boom"}),
    event({"message": "the engine died"}),
    event({"error_code": 336100, "error_msg": "try later"}),
    event({"object": "error", "message": "engine dead"}),
    event({"error": "Request failed during generation"}),
    event({"choices": [{"index": 0, "delta": {}, "error": {"code": 502, "message": "idle"}}]}),
    event({"choices": [{"index": 1, "delta": {}, "error": {"code": 502, "message": "idle"}}]}),
    '{"error": {"message": "boom", "code": 500}}\n\n',
    '{"code": 500, "message": "boom"}\n\n',
    "<html><title>502 Bad Gateway</title></html>\n\n",
    "data: Internal Server Error\n\n",
    'data: {"choices": [{"delta"\n\n',
]


@pytest.mark.parametrize("end", ["", DONE, chunk("", "stop") + DONE])
@pytest.mark.parametrize("error", ERRORS)
def test_what_came_before_an_error_is_no_caption(error, end) -> None:
    """Whatever the error is called, and whatever follows, the half caption is not kept."""
    with pytest.raises((BadReplyError, EndpointFaultError)):
        judge(chunk(HALF) + error + end)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (event({"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}),
         EndpointRefusedError),
        (event({"code": "DataInspectionFailed", "message": "inappropriate content"}), RefusedError),
        ('{"error": {"message": "Rate limit reached", "code": 429}}\n\n', EndpointFaultError),
    ],
)  # fmt: skip
def test_the_words_of_an_error_in_a_stream_are_read(error, kind) -> None:
    """An error is the same error in a stream and outside."""
    with pytest.raises(kind):
        judge(chunk(HALF) + error + DONE)


@pytest.mark.parametrize(
    "body",
    [
        ": hello\n\nevent: message\nid: 1\n" + chunk(WHOLE, "stop"),
        event({"code": 0, "message": "success", "request_id": "x"}) + chunk(WHOLE, "stop"),
        event({"type": "ping"}) + chunk(WHOLE, "stop"),
        event({"choices": [], "usage": {"completion_tokens": 3}}) + chunk(WHOLE, "stop"),
        chunk(WHOLE, "stop") + event({"usage": {"completion_tokens": 3}, "message": ""}) + DONE,
        chunk(WHOLE, "stop", error=None) + event({"choices": [], "error": None}) + DONE,
        chunk("A plain ", "null") + chunk("field.", "stop"),
        chunk("A plain ", "") + chunk("field.") + DONE,
        chunk("A plain ", index=None) + chunk("field.", "stop", index=None),
        'data: {"choices": [{"delta":\ndata: {"content": "A plain field."}}]}\n\n' + DONE,
        (chunk("A plain ") + chunk("field.", "stop")).replace("\n\n", "\n"),
        (chunk("A plain ") + chunk("field.", "stop") + DONE).replace("\n", "\r\n"),
        chunk("A plain ") + chunk("Other", "stop", 1) + chunk("field.", "stop"),
        chunk("Other", "stop", 1) + chunk(WHOLE, "stop"),
    ],
)  # fmt: skip
def test_whole_captions_are_read(body) -> None:
    """What servers add around a caption, and how they cut it, does not cost it."""
    assert judged(body) == WHOLE


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (["content_filter", "stop"], "filtered"),
        (["SAFETY", None, "STOP"], "filtered"),
        (["content_filter", "length"], "filtered"),
        (["error", "stop"], "aborted"),
        (["length", "stop"], "truncated"),
        (["stop", "content_filter"], "filtered"),
    ],
)
def test_the_worst_end_counts(ends, code) -> None:
    """A stop after the end by a filter, an error or a limit makes nothing whole."""
    body = chunk(HALF) + "".join(chunk("", end) for end in ends) + DONE
    with pytest.raises(CaptionerError) as caught:
        judged(body)
    assert caught.value.code == code


def test_the_end_of_another_choice_ends_nothing() -> None:
    """The stream broke off in the choice that is kept."""
    with pytest.raises(BadReplyError) as caught:
        judge(chunk(HALF) + chunk("", "stop", 1))
    assert caught.value.code == "broken_stream"


def test_an_emoji_in_two_chunks_is_one() -> None:
    """Halves of a sign are put together; a half alone costs no caption."""
    half = 'data: {"choices": [{"index": 0, "delta": {"content": "%s"}}]}\n\n'
    assert judged(half % r"A cat \ud83d" + half % r"\ude00" + DONE) == "A cat \U0001f600"
    assert judged(half % r"A cat \ud83d" + half % "." + DONE) == "A cat ?."


def test_an_event_of_many_lines_is_read_once(monkeypatch) -> None:
    """The work grows with the length of a stream, not with its square."""
    read = []
    loads = stream.loads
    monkeypatch.setattr(stream, "loads", lambda data: read.append(len(data)) or loads(data))
    for body in (b"data: x\n" * 5_000, b'data: {"a":\n' * 5_000):
        read.clear()
        with pytest.raises(BadReplyError):
            judge(body)
        assert sum(read) < 3 * len(body)
    whole = {
        "choices": [
            {"index": n, "delta": {"content": "A cat."}, "finish_reason": "stop"} for n in range(9)
        ]
    }
    lines = orjson.dumps(whole, option=orjson.OPT_INDENT_2).splitlines()
    assert judged(b"".join(b"data: " + line + b"\n" for line in lines) + b"\n") == "A cat."


def test_letters_that_are_not_utf8_are_no_caption() -> None:
    """A caption with replaced letters would be a wrong one."""
    for body in (chunk("Un café.", "stop"), '{"choices":[{"message":{"content":"Un café."}}]}'):
        with pytest.raises(BadReplyError):
            judge(body.encode("latin-1"))
        assert judged(body) == "Un café."
