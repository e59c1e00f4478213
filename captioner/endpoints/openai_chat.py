"""OpenAI's chat completions, as OpenAI, vLLM, SGLang, llama.cpp, Ollama and many others speak it.

The body is assembled as bytes around the images' base64, which is never parsed or copied by a
JSON encoder. Models differ in the parameters they take: what one refuses is named otherwise or
left out from then on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.jsonbytes import quoted
from captioner.core.types import NO_OVERRIDES, ImageRef, Request, RequestOverrides, Turn
from captioner.endpoints.replies import judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from captioner.core.types import Completion, EncodedImage, Response, Role

_LENGTHS = ("max_tokens", "max_completion_tokens")
"""Names of one parameter: o-series and GPT-5 models of OpenAI refuse the first."""

_SYSTEM_ROLES = (b"system", b"developer", b"user")
IN_WORDS = "Answer with nothing but one JSON object that follows this JSON Schema:"
_NEEDED = frozenset({"model", "messages"})
_OPENINGS: dict[Role, bytes] = {
    "system": b'{"role":"system","content":',
    "user": b'{"role":"user","content":',
    "assistant": b'{"role":"assistant","content":',
}


class OpenAIChat:
    """Builds requests, judges replies, and adapts to what a model refuses.

    Args:
        model: Model to ask for.
        max_tokens: Most tokens of a caption; None leaves it to the endpoint.
        temperature: Sampling temperature; None leaves it to the endpoint.
        detail: ``detail`` of each image: ``auto``, ``low`` or ``high``; None sends none.
        stream: Have replies sent in pieces.
        schema: JSON Schema of the answer, asked for by ``response_format``.
        extra: Further members of the body; they go before ours.
    """

    def __init__(
        self,
        model: str,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        detail: str | None = None,
        stream: bool = False,
        schema: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        options: dict[str, Any] = {}
        if max_tokens is not None:
            options["max_tokens"] = max_tokens
        if temperature is not None:
            options["temperature"] = temperature
        if stream:
            options |= {"stream": True, "stream_options": {"include_usage": True}}
        if schema is not None:
            form = {"name": "caption", "schema": dict(schema), "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": form}
        self.version = 0
        self._options = {**options, **(extra or {})}
        self._head = b'{"model":' + quoted(model) + b',"messages":'
        self._refused: set[str] = set()
        self._system_roles = list(_SYSTEM_ROLES)
        self._end = b',"detail":' + quoted(detail) + b"}}" if detail else b"}}"
        self._schema = schema
        self._tail = self._closing(NO_OVERRIDES)

    def messages(self, turns: Sequence[Turn], images: Sequence[EncodedImage]) -> tuple[bytes, ...]:
        """Return the messages as JSON, in pieces; ``images`` are those of the turns, in order."""
        left = iter(images)
        pieces: list[bytes] = []
        text: list[bytes] = [b"["]
        for turn in turns:
            text.append(_OPENINGS[turn.role])
            if ImageRef in map(type, turn.parts):
                opened = b"["
                for part in turn.parts:
                    text.append(opened)
                    opened = b","
                    if isinstance(part, ImageRef):
                        self._image(next(left), text, pieces)
                    else:
                        text += (b'{"type":"text","text":', quoted(part), b"}")
                text.append(b"]")
            else:
                text.append(quoted("\n".join(map(str, turn.parts))))
            text += (b"}", b",")
        text[-1] = b"]"
        return (*pieces, b"".join(text))

    def request(
        self, messages: tuple[bytes, ...], overrides: RequestOverrides = NO_OVERRIDES
    ) -> Request:
        """Return the request that asks for one caption."""
        if self._system_roles[0] != _SYSTEM_ROLES[0]:
            # Quotes within a text are escaped, so these bytes stand at the head of a turn only;
            # and base64 has none.
            named = b'{"role":"%b","content":' % self._system_roles[0]
            messages = tuple(piece.replace(_OPENINGS["system"], named) for piece in messages)
        turns = overrides.turns
        if self._schema is not None and "response_format" in self._refused:
            wanted = orjson.dumps(self._schema).decode()
            turns = (Turn("user", (f"{IN_WORDS} {wanted}",)), *turns)
        if turns:
            more = self.messages(turns, ())[0]
            messages = (*messages[:-1], messages[-1][:-1] + b"," + more[1:])
        tail = self._tail if overrides == NO_OVERRIDES else self._closing(overrides)
        return Request("POST", "/chat/completions", (self._head, *messages, tail))

    def judge(self, response: Response) -> Completion:
        """Return the answer in a reply, or raise what the reply means."""
        return judge(response, (*self._options, *_LENGTHS))

    def adapt(self, parameter: str) -> str:
        """Leave a parameter out from now on, or name it otherwise; tell what was changed."""
        name = re.split(r"[.\[]", parameter)[0]
        if name == "messages" and parameter.endswith(".role") and len(self._system_roles) > 1:
            refused = self._system_roles.pop(0).decode()
            change = f"{self._system_roles[0].decode()} turns for {refused} turns"
        elif (
            name in _NEEDED
            or name in self._refused
            or name not in self._sent(RequestOverrides(0.0, 1))
        ):
            return ""
        else:
            self._refused.add(name)
            other = [length for length in _LENGTHS if length not in self._refused]
            change = f"no {name}"
            if name in _LENGTHS and other:
                change = f"{other[0]} for {name}"
        self.version += 1
        self._tail = self._closing(NO_OVERRIDES)
        return change

    def _sent(self, overrides: RequestOverrides) -> dict[str, Any]:
        """Return the parameters that go out, those that are refused left out or renamed."""
        options = dict(self._options)
        if overrides.temperature is not None:
            options["temperature"] = overrides.temperature
        if overrides.max_tokens is not None:
            options["max_tokens"] = overrides.max_tokens
        for name in self._refused & options.keys():
            value = options.pop(name)
            other = [length for length in _LENGTHS if length not in self._refused]
            if name in _LENGTHS and other:
                options[other[0]] = value
        return options

    def _closing(self, overrides: RequestOverrides) -> bytes:
        options = self._sent(overrides)
        return b"," + orjson.dumps(options)[1:] if options else b"}"

    def _image(self, image: EncodedImage, text: list[bytes], pieces: list[bytes]) -> None:
        """Add an image: its bytes are a piece of their own, after the text before them."""
        if image.url:
            text += (b'{"type":"image_url","image_url":{"url":', quoted(image.url), self._end)
            return
        kind = image.media_type.encode()
        text.append(b'{"type":"image_url","image_url":{"url":"data:%b;base64,' % kind)
        pieces += (b"".join(text), image.base64)
        text[:] = (b'"', self._end)
