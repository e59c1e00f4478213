"""Parameters for thinking that a gateway refuses without naming them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from endpoint import completion
from fakes import IMAGE

from captioner import caption_stream
from captioner.core.types import Request, Response

GOOD = Response(200, {}, orjson.dumps(completion("a cat")))

LITELLM_422 = Response(
    422,
    {},
    b'{"error":{"message":"litellm.BadRequestError: OpenAIException - Error code: 422 LiteLLM: '
    b"model group 'tiny' failed with the error above. No fallback was attempted.\\nReceived Model "
    b'Group=tiny","type":null,"param":null,"code":"422"}}',
)
"""LiteLLM in front of ``transformers serve``, which takes no ``chat_template_kwargs``."""


class Gateway:
    """Refuses requests by their body, and answers others."""

    def __init__(self, refuses: Callable[[dict[str, Any]], bool]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._refuses = refuses

    async def send(self, request: Request) -> Response:
        body = orjson.loads(b"".join(request.pieces))
        self.bodies.append(body)
        await asyncio.sleep(0)
        return LITELLM_422 if self._refuses(body) else GOOD

    async def close(self) -> None:
        pass

    @property
    def with_thinking(self) -> int:
        return sum("chat_template_kwargs" in body for body in self.bodies)


async def outcomes(gateway: Gateway, count: int, **options: Any) -> list[bool]:
    records = [{"image": IMAGE, "prompt": f"q{number}"} for number in range(count)]
    stream = caption_stream(
        records, base_url="http://x/v1", model="m", thinking="off", transport=gateway, **options
    )
    return [outcome.ok async for outcome in stream]


async def test_thinking_that_a_gateway_refuses_without_a_word_is_left_out(caplog):
    """Many at once are refused, which stops nothing; each is sent again, and it is said once."""
    gateway = Gateway(lambda body: "chat_template_kwargs" in body)
    assert await outcomes(gateway, 60, concurrency=480) == [True] * 60
    assert gateway.with_thinking <= 30
    assert len(gateway.bodies) == 60 + gateway.with_thinking
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "refuses parameters for thinking" in warning
    assert "Error code: 422" in warning


async def test_what_the_user_gave_is_sent_all_the_same():
    """Only the parameters that --thinking adds are left out."""
    gateway = Gateway(lambda body: "reasoning_effort" in body)
    extra = '{"chat_template_kwargs":{"mine":1}}'
    assert await outcomes(gateway, 2, concurrency=1, extra_body=extra) == [True] * 2
    assert [body["chat_template_kwargs"] for body in gateway.bodies] == [{"mine": 1}] * 3


async def test_refusals_for_another_reason_keep_thinking(caplog):
    """A record that is refused with and without the parameters is at fault itself."""
    gateway = Gateway(lambda body: "q0" in str(body["messages"]))
    assert sorted(await outcomes(gateway, 4, concurrency=1)) == [False, True, True, True]
    assert (len(gateway.bodies), gateway.with_thinking) == (5, 4)
    assert not caplog.records
    late = Gateway(lambda body: "q3" in str(body["messages"]))
    assert sorted(await outcomes(late, 4, concurrency=1)) == [False, True, True, True]
    assert (len(late.bodies), late.with_thinking) == (4, 4)
