"""OpenAI's chat completions, as OpenAI, vLLM, SGLang, llama.cpp, Ollama and many others speak it.

The body is assembled as bytes around the pictures' base64, which is never parsed or copied by a
JSON encoder. A reply is judged by its shape, not by its status alone: servers answer 200 with an
error, with nothing, or with a filter's notice.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from captioner.errors import (
    BadReplyError,
    CaptionerError,
    EndpointFaultError,
    EndpointGaveOutError,
    EndpointRefusedError,
    RefusedError,
)
from captioner.rawjson import quoted
from captioner.records import Completion, ImageRef, Request, Usage
from captioner.retry import retry_after_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.records import EncodedImage, Response, Turn

_OUT_OF_QUOTA = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "billing_hard_limit_reached",
    }
)
_THINKING = re.compile(
    r"\A(?:\s*<think>.*?(?:</think>|\Z))+|\A(?:(?!<think>).)*?</think>", re.DOTALL
)
_TEXTS = (None, "text", "output_text")
_SHOWN = 200


class OpenAIChat:
    """Builds requests and judges replies.

    Args:
        model: Model to ask for.
        max_tokens: Most tokens of a caption; None leaves it to the endpoint.
        temperature: Sampling temperature; None leaves it to the endpoint.
    """

    def __init__(
        self, model: str, *, max_tokens: int | None = None, temperature: float | None = None
    ) -> None:
        options: dict[str, Any] = {}
        if max_tokens is not None:
            options["max_tokens"] = max_tokens
        if temperature is not None:
            options["temperature"] = temperature
        self._head = b'{"model":' + quoted(model) + b',"messages":'
        self._tail = b"," + orjson.dumps(options)[1:] if options else b"}"

    def messages(self, turns: Sequence[Turn], images: Sequence[EncodedImage]) -> bytes:
        """Return the messages as JSON; ``images`` are those of the turns, in order."""
        left = iter(images)
        pieces: list[bytes] = [b"["]
        for turn in turns:
            pieces.append(b'{"role":"%b","content":' % turn.role.encode())
            if any(isinstance(part, ImageRef) for part in turn.parts):
                for part in turn.parts:
                    pieces.append(b"," if pieces[-1].endswith(b"}") else b"[")
                    if isinstance(part, ImageRef):
                        pieces += _image(next(left))
                    else:
                        pieces += (b'{"type":"text","text":', quoted(part), b"}")
                pieces.append(b"]")
            else:
                pieces.append(quoted("\n".join(str(part) for part in turn.parts)))
            pieces += (b"}", b",")
        pieces[-1] = b"]"
        return b"".join(pieces)

    def request(self, messages: bytes) -> Request:
        """Return the request that asks for one caption."""
        return Request("POST", "/chat/completions", (self._head, messages, self._tail))

    def judge(self, response: Response) -> Completion:
        """Return the caption in a reply, or raise what the reply means.

        Raises:
            RefusedError: This record will never be captioned.
            BadReplyError: This reply is no caption; another may be.
            EndpointFaultError: The endpoint is in trouble.
            RunError: No record will be captioned.
        """
        try:
            reply = orjson.loads(response.body)
        except orjson.JSONDecodeError:
            reply = None
        if not 200 <= response.status < 300:
            raise _error(response, response.status, reply)
        if not isinstance(reply, dict):
            raise BadReplyError("bad_reply", f"the reply is not JSON: {_excerpt(response.body)}")
        choices = reply.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        broken = reply.get("error") or (first.get("error") if isinstance(first, dict) else None)
        if broken:
            status = broken.get("code") if isinstance(broken, dict) else None
            status = status if isinstance(status, int) and 400 <= status < 600 else 502
            raise _error(response, status, {"error": broken})
        message = first.get("message") if isinstance(first, dict) else None
        if not isinstance(first, dict) or not isinstance(message, dict):
            raise BadReplyError(
                "bad_reply", f"the reply holds no message: {_excerpt(response.body)}"
            )
        return _completion(reply, first, message)


def _image(image: EncodedImage) -> tuple[bytes, ...]:
    if image.url:
        return b'{"type":"image_url","image_url":{"url":', quoted(image.url), b"}}"
    kind = image.media_type.encode()
    head = b'{"type":"image_url","image_url":{"url":"data:%b;base64,' % kind
    return head, image.base64, b'"}}'


def _completion(
    reply: dict[str, Any], choice: dict[str, Any], message: dict[str, Any]
) -> Completion:
    reason = str(choice.get("finish_reason") or "")
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        raise RefusedError("refused", f"the model refused: {_clean(refusal)}")
    if reason == "content_filter":
        raise RefusedError("filtered", "the endpoint's content filter stopped the caption")
    if reason == "length":
        raise BadReplyError("truncated", "the caption was cut off at the token limit")
    if reason in ("error", "abort"):
        raise BadReplyError("aborted", f"the endpoint broke off the caption ({reason})")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(
            part["text"]
            for part in content
            if isinstance(part, dict)
            and part.get("type") in _TEXTS
            and isinstance(part.get("text"), str)
        )
    text = _THINKING.sub("", content).strip() if isinstance(content, str) else ""
    if not text:
        raise BadReplyError("empty", "the endpoint gave an empty caption")
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Completion(
        text,
        reason,
        str(reply.get("model") or ""),
        Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))),
    )


def _error(response: Response, status: int, reply: Any) -> CaptionerError:  # noqa: PLR0911
    """Return what an error reply means; one return a row of the table is the clearest form."""
    code, message = _describe(reply, response.body)
    said = f"the endpoint answered {status}: {message}"
    wait = retry_after_s(response.headers)
    if code in _OUT_OF_QUOTA or (status == 402 and wait is None):
        return EndpointGaveOutError(
            f"The endpoint is out of quota or credit ({message}). Top it up and run the same "
            "command again."
        )
    if "credit balance is too low" in message.lower():
        return EndpointGaveOutError(f"The endpoint is out of credit ({message}).")
    if code == "content_filter" or (status == 403 and _moderated(reply)):
        return RefusedError("filtered", said)
    if status in (401, 403) or "api key not valid" in message.lower():
        return EndpointRefusedError(
            f"The endpoint refused the key ({status}: {message}). Check the key and --api-key-env."
        )
    if status in (404, 410):
        return EndpointRefusedError(
            f"The endpoint does not know the model or the address ({status}: {message}). "
            "Check --model and --base-url."
        )
    if 300 <= status < 400:
        place = response.headers.get("location", "elsewhere")
        return EndpointRefusedError(f"The endpoint redirects to {place}. Check --base-url.")
    if status in (402, 408, 409, 425, 429, 498) or status in range(500, 600):
        if status == 501:
            return RefusedError("http_501", said)
        return EndpointFaultError(f"http_{status}", said, wait)
    if code == "content_filter" or "content_filter" in message:
        return RefusedError("filtered", said)
    return RefusedError(f"http_{status}", said)


def _moderated(reply: Any) -> bool:
    error = reply.get("error") if isinstance(reply, dict) else None
    metadata = error.get("metadata") if isinstance(error, dict) else None
    return isinstance(metadata, dict) and bool(metadata.get("reasons"))


def _describe(reply: Any, body: bytes) -> tuple[str, str]:
    """Return code and message of any of the known error shapes."""
    if isinstance(reply, list) and reply:
        reply = reply[0]
    error = reply
    if isinstance(reply, dict):
        error = reply.get("error", reply.get("detail", reply))
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error.get("code") or error.get("type") or ""), _clean(error["message"])
    if isinstance(error, str):
        return "", _clean(error)
    return "", _excerpt(body)


def _excerpt(body: bytes) -> str:
    return _clean(body[: 4 * _SHOWN].decode(errors="replace")) or "an empty body"


def _clean(text: str) -> str:
    """Return the beginning of a text from outside, safe to show: printable, without payload."""
    text = text[: 10 * _SHOWN]
    text = re.sub(r"data:[\w/+.-]*;base64,[\w+/=]*", "data:…", text)
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
