"""OpenAI's chat completions, as OpenAI, vLLM, SGLang, llama.cpp, Ollama and many others serve them.

The body is assembled as bytes around the images' base64, which is never parsed or copied by a
JSON encoder. Models differ in the parameters they accept: a parameter that the model refuses is
renamed or left out from then on.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.jsonbytes import quoted
from captioner.core.types import NO_OVERRIDES, ImageRef, Request, RequestOverrides, Turn
from captioner.endpoints.replies import THINKING, parse_response

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from captioner.core.types import Completion, EncodedImage, Response, Role

logger = logging.getLogger(__name__)

_LENGTHS = ("max_tokens", "max_completion_tokens")
"""Names of one parameter: o-series and GPT-5 models of OpenAI refuse the first."""

_ROLE = "system role"
_SYSTEM_THEN_USER = re.compile(
    rb'(\A\[)\{"role":"system","content":("(?:[^"\\]|\\.)*")\},\{"role":"user","content":\['
)
_THINKING_OFF = {
    "chat_template_kwargs": {"enable_thinking": False, "thinking": False},
    "reasoning_effort": "none",
    "think": False,
}
"""Thinking off, for vLLM, SGLang and llama.cpp, for OpenAI and others, and for Ollama."""

_TOGETHER = {"stream": ("stream_options",), "logprobs": ("top_logprobs",)}
"""Parameters that make no sense without another one."""

_THINKING_ON = {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}, "think": True}
IN_WORDS = "Answer with nothing but one JSON object that follows this JSON Schema:"
_OPENINGS: dict[Role, bytes] = {
    "system": b'{"role":"system","content":',
    "user": b'{"role":"user","content":',
    "assistant": b'{"role":"assistant","content":',
}


class OpenAIChat:
    """Builds requests, parses responses, and adapts to what a model refuses.

    Args:
        model: Model to ask for.
        max_tokens: Most tokens of a caption; None leaves it to the endpoint.
        temperature: Sampling temperature; None leaves it to the endpoint.
        detail: ``detail`` of each image: ``auto``, ``low`` or ``high``; None sends none.
        stream: Have replies sent in pieces.
        schema: JSON Schema of the answer, asked for by ``response_format``.
        extra: Further fields of the body. They replace the fields above.
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
        self._kept: set[str] = set()  # leaving them out did not help
        self._thinking = False  # requests have had parameters for thinking
        self._detail = b',"detail":' + quoted(detail) if detail else b""
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
        """Return the request for one caption."""
        if self._refused:
            messages = self._adapted(messages)
        turns = overrides.turns
        if self._schema is not None and "response_format" in self._refused:
            wanted = orjson.dumps(self._schema).decode()
            turns = (Turn("user", (f"{IN_WORDS} {wanted}",)), *turns)
        if turns:
            more = self.messages(turns, ())[0]
            messages = (*messages[:-1], messages[-1][:-1] + b"," + more[1:])
        tail = self._tail if overrides == NO_OVERRIDES else self._closing(overrides)
        return Request("POST", "/chat/completions", (self._head, *messages, tail))

    def _adapted(self, messages: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Return messages without what the model refuses in them.

        Quotes in a text are escaped and base64 has none, so the patterns match at the head of a
        turn or behind an image only.
        """
        if "detail" in self._refused:
            messages = tuple(piece.replace(self._detail + b"}}", b"}}") for piece in messages)
        if _ROLE in self._refused:
            merged = rb'\1{"role":"user","content":[{"type":"text","text":\2},'
            first = _SYSTEM_THEN_USER.sub(merged, messages[0])
            messages = tuple(
                piece.replace(_OPENINGS["system"], _OPENINGS["user"])
                for piece in (first, *messages[1:])
            )
        return messages

    def judge(self, response: Response) -> Completion:
        """Return the completion in a response, or raise what the response means."""
        return parse_response(response, self._parameters())

    def adapt(self, parameter: str) -> str:
        """Leave a parameter out from now on, or rename it; return what changed, in words.

        A parameter that is refused although it was left out was not the cause, but a word about
        one image: it is sent again, and not left out any more.
        """
        name = re.split(r"[.\[]", parameter)[0]
        if name == "messages" and parameter.endswith(".role"):
            name = _ROLE
        if name in self._kept or name not in self._parameters():
            return ""
        together = {name, *_TOGETHER.get(name, ())}
        if name in self._refused:
            if name not in _LENGTHS:
                self._kept |= together
                self._refused -= together
                self._changed()
                logger.warning("leaving out %s did not help: sending it again", name)
            return ""
        self._refused |= together
        self._changed()
        if name == _ROLE:
            change = "the system prompt as part of the user's message"
        elif name in _LENGTHS and (other := self._length_name()):
            change = f"{other} for {name}"
        elif name == "response_format":
            change = "the JSON Schema in words"
        elif name == THINKING:
            change = "nothing that switches thinking"
        else:
            change = f"no {name}"
        return change

    def _changed(self) -> None:
        self.version += 1
        self._tail = self._closing(NO_OVERRIDES)

    def _length_name(self) -> str:
        """Return the name of the length parameter that is not refused, empty if both are."""
        return next((name for name in _LENGTHS if name not in self._refused), "")

    def _parameters(self) -> tuple[str, ...]:
        """Return the names of all parameters that a request may have."""
        detail = ("detail",) if self._detail else ()
        thinking = (*_THINKING_OFF, THINKING) if self._thinking else ()
        return (*self._options, "temperature", *_LENGTHS, *thinking, *detail, _ROLE)

    def _sent(self, overrides: RequestOverrides) -> dict[str, Any]:
        """Return the parameters of a request, without those that are refused."""
        options = dict(self._options)
        if overrides.temperature is not None:
            options["temperature"] = overrides.temperature
        if overrides.max_tokens is not None:
            options["max_tokens"] = overrides.max_tokens
        if overrides.thinking is not None and THINKING not in self._refused:
            self._thinking = True
            options = {**(_THINKING_ON if overrides.thinking else _THINKING_OFF), **options}
        for name in self._refused & options.keys():
            value = options.pop(name)
            if name in _LENGTHS and (other := self._length_name()):
                options[other] = value
        return options

    def _closing(self, overrides: RequestOverrides) -> bytes:
        options = self._sent(overrides)
        return b"," + orjson.dumps(options)[1:] if options else b"}"

    def _image(self, image: EncodedImage, text: list[bytes], pieces: list[bytes]) -> None:
        """Add an image: its bytes are a separate piece, after the text before them."""
        if image.url:
            text += (
                b'{"type":"image_url","image_url":{"url":',
                quoted(image.url),
                self._detail + b"}}",
            )
            return
        kind = image.media_type.encode()
        text.append(b'{"type":"image_url","image_url":{"url":"data:%b;base64,' % kind)
        pieces += (b"".join(text), image.base64)
        text[:] = (b'"', self._detail + b"}}")
