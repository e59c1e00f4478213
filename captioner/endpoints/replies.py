"""What an endpoint's reply means: one judge, from status, headers and body to one verdict.

A reply is judged by its shape, not by its status alone: servers answer 200 with an error, with
nothing, or with a filter's notice. The verdict is a `Completion` or one exception, whose class
says who suffers: this record, this endpoint or this run (`captioner.core.errors`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import (
    PROXY_REFUSES,
    BadReplyError,
    CaptionerError,
    EndpointFaultError,
    EndpointGaveOutError,
    EndpointRefusedError,
    ImageRejectedError,
    NotFoundError,
    ParameterError,
    RefusedError,
)
from captioner.core.retry import retry_after_s
from captioner.core.secrets import without_secrets
from captioner.core.types import Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from captioner.core.types import Response

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

_TOO_LARGE_CODES = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
)
_TOO_LARGE = re.compile(
    r"context (?:length|window|size)|prompt is too long|too many tokens"
    r"|maximum (?:allowed )?(?:sequence|input|prompt|number of (?:input )?tokens)"
    r"|\b(?:request|payload|entity|body)(?: entity| body| payload)?(?: size)?(?: is)? too large"
    r"|\b(?:image|file)\b.{0,40}\b(?:too large|too big)"
    r"|exceeds .{0,60}\b(?:MB|MiB|bytes|pixels|size limit)\b",
    re.IGNORECASE | re.DOTALL,
)
_BAD_IMAGE_CODES = frozenset({"invalid_image_format", "invalid_image", "unsupported_image"})
_BAD_IMAGE = re.compile(
    r"(?:unsupported|invalid|unknown|unrecognized|not a valid|corrupt\w*) (?:or corrupt\w* )?image"
    r"|image (?:format|type|media type)\b.{0,40}(?:not|un|invalid)"
    r"|(?:cannot|could not|unable to|failed to) (?:identify|process|decode|load|open)"
    r" (?:the |input )*image"
    r"|media_?type.{0,60}image",
    re.IGNORECASE | re.DOTALL,
)
_NOT_FETCHED = re.compile(
    r"(?:timeout|timed out|failed|error|unable).{0,40}(?:download|fetch)", re.IGNORECASE | re.DOTALL
)
_UNSUPPORTED = re.compile(
    r"(?:un|not |n't )support|unknown|unrecogni[sz]ed|unexpected|extra (?:inputs|fields)"
    r"|not permitted|not allowed|deprecated|cannot find field|only the default"
    r"|invalid parameter|forbidden",
    re.IGNORECASE,
)
_UNSUPPORTED_CODES = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter"})
_NO_MODEL_CODES = frozenset({"model_not_found", "DeploymentNotFound"})
_NO_MODEL = re.compile(
    r"\b(?:models?|deployment)\b\W{0,3}\S{0,80}\s+(?:is |was |does |has been )?"
    r"(?:not exist|not found|unknown|deprecated|retired|no longer)"
    r"|\b(?:unknown|no such) model\b|\Amodel: |no endpoints found for",
    re.IGNORECASE,
)
_ROLE = re.compile(r"\brole\b", re.IGNORECASE)


def judge(response: Response, parameters: Iterable[str] = ()) -> Completion:
    """Return the answer in a reply, or raise what the reply means; see `interfaces.Dialect`.

    Args:
        response: The reply.
        parameters: Names of the parameters that were sent, one of which the reply may refuse.
    """
    body = response.body.strip()  # some send blank lines to keep a connection alive
    streamed = body.startswith((b"data:", b":", b"event:"))
    reply = _assemble(body) if streamed else _loads(body)
    if not 200 <= response.status < 300:
        raise _error(response, response.status, reply, parameters)
    if not isinstance(reply, dict):
        raise BadReplyError("bad_reply", f"the reply is not JSON: {_excerpt(body)}")
    choices = reply.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    broken = reply.get("error") or (first.get("error") if isinstance(first, dict) else None)
    if broken:
        status = broken.get("code") if isinstance(broken, dict) else None
        status = status if isinstance(status, int) and 400 <= status < 600 else 502
        raise _error(response, status, {"error": broken}, parameters)
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(first, dict) or not isinstance(message, dict):
        raise BadReplyError("bad_reply", f"the reply holds no message: {_excerpt(body)}")
    if streamed and not (reply["done"] and first.get("finish_reason")):
        raise BadReplyError("broken_stream", "the stream ended before the caption did")
    return _completion(reply, first, message)


def error_of(response: Response) -> CaptionerError:
    """Return what a response with an error status means, whatever was requested."""
    return _error(response, response.status, _loads(response.body), ())


def shown(text: str) -> str:
    """Return the beginning of a text from outside, safe to show: printable, without payload."""
    text = text[: 10 * _SHOWN]
    text = re.sub(r"data:[\w/+.-]*;base64,[\w+/=]*", "data:…", text)
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return clean if len(clean) <= _SHOWN else clean[: _SHOWN - 1] + "…"


def _loads(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _assemble(body: bytes) -> dict[str, Any]:
    """Return a streamed reply as if it had come whole, with ``done`` telling whether it ended.

    Lines that begin with a colon are comments (OpenRouter sends some); the last chunk may hold
    usage and no choices.
    """
    text: list[str] = []
    refusal: list[str] = []
    choice: dict[str, Any] = {}
    whole: dict[str, Any] = {"done": False}
    for line in body.splitlines():
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            whole["done"] = True
            break
        event = _loads(data)
        if not isinstance(event, dict):
            return {**whole, "choices": None}
        if event.get("error") or event.get("object") == "error":
            return {"error": event.get("error") or event}
        for name in ("model", "usage"):
            whole[name] = event.get(name) or whole.get(name)
        choices = event.get("choices")
        part = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(part, dict):
            continue
        if part.get("error"):
            return {"error": part["error"]}
        choice["finish_reason"] = part.get("finish_reason") or choice.get("finish_reason")
        delta = part.get("delta")
        if isinstance(delta, dict):
            text.append(_text(delta.get("content")))
            refusal.append(_text(delta.get("refusal")))
    choice["message"] = {"content": "".join(text), "refusal": "".join(refusal)}
    return {**whole, "choices": [choice] if len(choice) > 1 else None}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(
        part["text"]
        for part in content
        if isinstance(part, dict)
        and part.get("type") in _TEXTS
        and isinstance(part.get("text"), str)
    )


def _completion(
    reply: dict[str, Any], choice: dict[str, Any], message: dict[str, Any]
) -> Completion:
    reason = str(choice.get("finish_reason") or "")
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        raise RefusedError("refused", f"the model refused: {shown(refusal)}")
    if reason == "content_filter":
        raise RefusedError("filtered", "the endpoint's content filter stopped the caption")
    if reason in ("error", "abort"):
        raise BadReplyError("aborted", f"the endpoint broke off the caption ({reason})")
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    text = _text(message.get("content"))
    if "<" in text:
        text = _THINKING.sub("", text)
    return Completion(
        text.strip(),
        reason,
        str(reply.get("model") or ""),
        Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))),
    )


def _error(  # noqa: C901, PLR0911, PLR0912 - one row of the table after the other reads best
    response: Response, status: int, reply: Any, parameters: Iterable[str]
) -> CaptionerError:
    """Return what an error reply means."""
    code, message, parameter = _describe(reply, response.body)
    told = f"the endpoint answered {status}: {shown(message) or 'an empty body'}"
    wait = retry_after_s(response.headers)
    if (hint := _retry_delay_s(reply)) is not None and wait is None:
        wait = hint  # Gemini says so in the body, with the words others use for an empty account
    if (code in _OUT_OF_QUOTA and hint is None) or (status == 402 and wait is None):
        return EndpointGaveOutError(
            f"The endpoint is out of quota or credit ({shown(message)}). Top it up and run the "
            "same command again."
        )
    if "credit balance is too low" in message.lower():
        return EndpointGaveOutError(f"The endpoint is out of credit ({shown(message)}).")
    if code == "content_filter" or (status == 403 and _moderated(reply)):
        return RefusedError("filtered", told)
    if status in (401, 403) or "api key not valid" in message.lower():
        return EndpointRefusedError(
            f"The endpoint refused the key ({status}: {shown(message)}). Check the key and "
            "--api-key-env."
        )
    if status == 407:
        return EndpointRefusedError(PROXY_REFUSES)
    if status in (404, 410):
        certain = code in _NO_MODEL_CODES or _NO_MODEL.search(message) is not None
        return NotFoundError(f"http_{status}", told, certain=certain)
    if 300 <= status < 400:
        place = shown(without_secrets(response.headers.get("location", "elsewhere")))
        return EndpointRefusedError(f"The endpoint redirects to {place}. Check --base-url.")
    if status in (402, 408, 409, 425, 429, 498) or status in range(500, 600):
        if status == 501:
            return RefusedError("http_501", told)
        return EndpointFaultError(f"http_{status}", told, wait)
    if "content_filter" in message:
        return RefusedError("filtered", told)
    if status == 413 or code in _TOO_LARGE_CODES or _TOO_LARGE.search(message):
        return ImageRejectedError("too_large" if status != 413 else "http_413", told, smaller=True)
    if status in (400, 415, 422):
        if _NOT_FETCHED.search(message):
            return BadReplyError(f"http_{status}", told)
        if code in _BAD_IMAGE_CODES or _BAD_IMAGE.search(message):
            return ImageRejectedError(f"http_{status}", told, smaller=False)
        if not (code in _UNSUPPORTED_CODES or _UNSUPPORTED.search(message)):
            return RefusedError(f"http_{status}", told)  # a value out of range, perhaps
        if name := parameter or _named(message, parameters):
            return ParameterError(f"http_{status}", told, name)
    return RefusedError(f"http_{status}", told)


def _named(message: str, parameters: Iterable[str]) -> str:
    """Return the parameter that a message says is not supported, empty if it names none."""
    for name in parameters:
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message):
            return name
    if _ROLE.search(message) and re.search(r"\b(?:system|developer)\b", message):
        return "messages[0].role"
    return ""


def _moderated(reply: Any) -> bool:
    error = reply.get("error") if isinstance(reply, dict) else None
    metadata = error.get("metadata") if isinstance(error, dict) else None
    return isinstance(metadata, dict) and bool(metadata.get("reasons"))


def _retry_delay_s(reply: Any) -> float | None:
    """Return the wait that Gemini's ``RetryInfo`` asks for (``"retryDelay": "21s"``)."""
    error = _error_of(reply)
    details = error.get("details") if isinstance(error, dict) else None
    for detail in details if isinstance(details, list) else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and re.fullmatch(r"\d+(\.\d+)?s", delay):
            return retry_after_s({"retry-after": delay[:-1]})
    return None


def _error_of(reply: Any) -> Any:
    if isinstance(reply, list) and reply:
        reply = reply[0]
    if isinstance(reply, dict):
        return reply.get("error", reply.get("detail", reply))
    return reply


def _describe(reply: Any, body: bytes) -> tuple[str, str, str]:
    """Return code, message and parameter of any of the known error shapes."""
    error = _error_of(reply)
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        code, parameter = error.get("code"), error.get("param")
        code = code if isinstance(code, str) and code else error.get("type")
        return str(code or ""), error["message"], parameter if isinstance(parameter, str) else ""
    if isinstance(error, str):
        return "", error, ""
    if isinstance(error, list) and error and isinstance(error[0], dict):  # FastAPI's validation
        place = error[0].get("loc")
        if isinstance(place, list) and place[:1] == ["body"] and len(place) > 1:
            return "", _excerpt(body), str(place[1])
    return "", _excerpt(body), ""


def _excerpt(body: bytes) -> str:
    return shown(body[: 4 * _SHOWN].decode(errors="replace")) or "an empty body"


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
