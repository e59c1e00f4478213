"""Replies in the shapes that servers document or were seen to send, each to its one verdict.

The files beside this one hold them by server: status, headers, body, and what they must mean.
"""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest

from captioner.core import errors
from captioner.core.types import Response
from captioner.endpoints.openai_chat import OpenAIChat
from captioner.engine.caption_checks import CaptionRules, check

REPLIES = [
    pytest.param(reply, id=f"{path.stem}: {reply['name']}")
    for path in sorted((Path(__file__).parent / "replies").glob("*.json"))
    for reply in json.loads(path.read_text("utf-8"))
]


@pytest.mark.parametrize("reply", REPLIES)
def test_one_reply_has_one_verdict(reply) -> None:
    """This record, this endpoint or this run: each reply says which, and nothing else."""
    body = reply["body"]
    data = body.encode() if isinstance(body, str) else orjson.dumps(body)
    response = Response(reply["status"], reply["headers"], data)
    dialect = OpenAIChat(
        "m", max_tokens=300, temperature=0.2, detail="low", schema={"type": "object"}
    )
    if reply["verdict"] == "Completion":
        assert check(dialect.judge(response), CaptionRules()).value == reply["text"]
        return
    kind = getattr(errors, reply["verdict"])
    with pytest.raises(kind) as caught:
        check(dialect.judge(response), CaptionRules())
    assert type(caught.value) is kind
    if not isinstance(caught.value, errors.RunError):
        assert caught.value.code == reply.get("code", "")
    for name in ("smaller", "parameter", "excess"):
        if name in reply:
            assert getattr(caught.value, name) == reply[name]
    assert str(caught.value).isprintable()


def test_all_servers_are_there() -> None:
    """Whoever removes a file notices."""
    names = {path.stem for path in (Path(__file__).parent / "replies").glob("*.json")}
    expected = (
        "anthropic azure bedrock cloudflare dashscope deepseek fireworks gemini groq "
        "huggingface litellm llama.cpp lmdeploy lmstudio misread mistral moonshot ollama "
        "openai openrouter others proxies sglang siliconflow tgi together transformers vllm "
        "volcengine xai zhipu"
    )
    assert names == set(expected.split())


def test_the_wait_in_geminis_body_is_a_wait() -> None:
    """`retryDelay` is where others send Retry-After."""
    (reply,) = [p.values[0] for p in REPLIES if "in the words of" in p.id]
    with pytest.raises(errors.EndpointFaultError) as caught:
        OpenAIChat("m").judge(Response(429, {}, orjson.dumps(reply["body"])))
    assert caught.value.retry_after_s == 21


def test_numbers_of_thousands_of_digits_are_no_crash() -> None:
    """Python refuses to read them, and nothing could be done with them."""
    many = "9" * 5_000
    for said in (
        f"maximum context length is {many} tokens, {many} in the messages",
        f"max_tokens must be at most {many}",
        f"prompt is too long: {many} tokens > {many} maximum",
    ):
        body = orjson.dumps({"error": {"message": said}})
        with pytest.raises(errors.CaptionerError):
            OpenAIChat("m").judge(Response(400, {}, body))


def test_what_a_response_says_beside_the_caption_can_be_written() -> None:
    """Half signs, endless names and numbers that are too large for a row."""
    body = (
        rb'{"model":"m\ud800%s","choices":[{"message":{"content":"A cat."},"x":NaN,'
        rb'"finish_reason":"stop\udfff"}],"usage":{"prompt_tokens":%d,"completion_tokens":true}}'
    ) % (b"m" * 9_000, 10**30)
    found = OpenAIChat("m").judge(Response(200, {}, body))
    assert found.text == "A cat."
    assert len(orjson.dumps([found.model, found.finish_reason])) < 300
    assert found.usage.total == 0
