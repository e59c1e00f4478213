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
