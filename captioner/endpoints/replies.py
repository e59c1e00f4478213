"""What an endpoint's response means: a completion, or an error named for what it affects.

A response is judged by its shape, not by its status alone: servers respond 200 with an error, with
nothing, or with the notice of a filter. `captioner.endpoints.reply_rules` says what errors mean.
"""

from __future__ import annotations

import html
import json
import re
from functools import lru_cache
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
    RunError,
    TokenLimitError,
)
from captioner.core.humanize import sentence
from captioner.core.retry import retry_after_s
from captioner.core.secrets import without_secrets
from captioner.core.types import Completion, Usage
from captioner.endpoints.reply_rules import Verdict, verdict_of
from captioner.endpoints.thinking import final_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from captioner.core.types import Response

SHOWN_CHARS = 200

ENOUGH_TOKENS = 256
"""Tokens left for an answer below which smaller images are better than fewer tokens."""

_TEXT_PARTS = (None, "text", "output_text")
_ROLE = "messages[0].role"

_FINISHED = frozenset(
    {"", "none", "stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "completed",
     "finished", "finish_reason_stop", "end", "tool_calls", "function_call", "stop_token"}
)  # fmt: skip
_FINISH = (
    ("length", re.compile(r"length|max_?(?:new_?)?tokens|token_?limit|context_window|max_output")),
    ("filter", re.compile(r"safety|recitation|prohibited|blocklist|spii|sensitive|filter|blocked"
                          r"|refusal|policy|language")),
    ("broken", re.compile(r"abort|error|insufficient|overload|cancel|timeout|interrupt|preempt"
                          r"|malformed|unavailable|disconnect")),
    ("loop", re.compile(r"repetition|repeat|loop")),
)  # fmt: skip
"""Families of finish reasons, compared in lower case; `_FINISHED` are those of a whole text."""


def parse_response(response: Response, parameters: Collection[str] = ()) -> Completion:
    """Return the completion in a response, or raise what the response means.

    Args:
        response: The response.
        parameters: Names of the parameters that were sent, one of which the endpoint may refuse.

    Raises:
        CaptionerError: See `Dialect.judge`.
    """
    body = response.body.strip().removeprefix(b"\xef\xbb\xbf")  # blank lines keep connections alive
    is_stream = body.startswith((b"data:", b":", b"event:", b"id:", b"retry:"))
    reply = _assemble(body) if is_stream else _loads(body)
    if response.status in (202, 303):
        raise EndpointFaultError(
            f"http_{response.status}", "the endpoint has not finished the request yet",
            retry_after_s(response.headers),
        )  # fmt: skip
    if not 200 <= response.status < 300:
        raise _error(response, response.status, reply, parameters)
    if not isinstance(reply, dict):
        raise BadReplyError("bad_reply", f"the response is not JSON: {_excerpt(body)}")
    choices = reply.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    broken = reply.get("error") or (first.get("error") if isinstance(first, dict) else None)
    if broken:
        status = broken.get("code") if isinstance(broken, dict) else None
        if not (isinstance(status, int) and 400 <= status < 600):
            status = 429 if "quota" in str(status) else 502
        raise _error(response, status, {"error": broken}, parameters)
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(first, dict) or not isinstance(message, dict):
        if str(reply.get("status", "")).lower() in ("in_queue", "queued", "in_progress", "pending"):
            raise EndpointFaultError("not_ready", "the endpoint has queued the request")
        raise BadReplyError("bad_reply", f"the response has no message: {_excerpt(body)}")
    if is_stream and not (reply["done"] or first.get("finish_reason")):
        raise BadReplyError("broken_stream", "the stream ended before the caption did")
    return _completion(reply, first, message)


def error_of(response: Response) -> CaptionerError:
    """Return what a response with an error status means, whatever was requested."""
    return _error(response, response.status, _loads(response.body), ())


def shown(text: str) -> str:
    """Return the beginning of a text from outside, safe to show: printable, without payload.

    Of a page of HTML only the title, or else its text, is left.
    """
    text = text[: 50 * SHOWN_CHARS]
    if re.search(r"<(?:!doctype|html|head|body)\b", text, re.IGNORECASE):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL | re.IGNORECASE)
        plain = re.sub(r"(?s)<(script|style)\b.*?</\1>|<[^>]*>", " ", text)
        text = html.unescape(title[1] if title and title[1].strip() else plain)
    text = re.sub(r"data:[\w/+.-]*;base64,[\w+/=]*", "data:…", text)
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return clean if len(clean) <= SHOWN_CHARS else clean[: SHOWN_CHARS - 1] + "…"


def _loads(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:  # NaN and lone surrogates, which orjson refuses
        return json.loads(data.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return None


def _assemble(body: bytes) -> dict[str, Any]:
    """Return a streamed response as if it had come whole; ``done`` says whether it ended.

    Lines that begin with a colon are comments. The last chunk may hold usage and no choices, or
    the whole message.
    """
    text: list[str] = []
    refusal: list[str] = []
    choice: dict[str, Any] = {}
    whole: dict[str, Any] = {"done": False}
    thinks = False
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
            thinks = thinks or bool(_reasoning(delta))
        message = part.get("message")
        if isinstance(message, dict) and (content := _text(message.get("content"))):
            text = [content] if len(content) >= len("".join(text)) else text
    choice["message"] = {
        "content": "".join(text), "refusal": "".join(refusal), "reasoning": thinks or None,
    }  # fmt: skip
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
        and part.get("type") in _TEXT_PARTS
        and isinstance(part.get("text"), str)
    )


def _reasoning(message: dict[str, Any]) -> Any:
    return message.get("reasoning_content") or message.get("reasoning") or message.get("thinking")


@lru_cache(256)
def finish_family(reason: str) -> str:
    """Return the family of a finish reason: stop, length, filter, broken, loop or unknown."""
    word = reason.strip().lower().replace("-", "_").replace(" ", "_")
    if word in _FINISHED:
        return "stop"
    return next((family for family, marks in _FINISH if marks.search(word)), "unknown")


def _completion(
    reply: dict[str, Any], choice: dict[str, Any], message: dict[str, Any]
) -> Completion:
    reason = choice.get("finish_reason")
    if type(reason) is not str:
        reason = str(reason.get("type", reason) if isinstance(reason, dict) else reason or "")
    family = finish_family(reason[:100])
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        raise RefusedError("refused", f"the model refused: {shown(refusal)}")
    if family == "filter":
        raise RefusedError("filtered", f"a content filter stopped the caption ({shown(reason)})")
    if family == "broken":
        raise BadReplyError("aborted", f"the endpoint broke off the caption ({shown(reason)})")
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    text, thought = final_text(_text(message.get("content")))
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be written
    return Completion(
        text,
        reason,
        str(reply.get("model") or ""),
        Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))),
        thought or (not text and bool(_reasoning(message))),
    )


def _error(
    response: Response, status: int, reply: Any, parameters: Collection[str]
) -> CaptionerError:
    """Return what an error response means."""
    words, message, parameter = _describe(reply, response.body)
    said = shown(message) or "an empty body"
    text = f"the endpoint responded {status}: {said}"
    if status == 407:
        return EndpointRefusedError(PROXY_REFUSES)
    if 300 <= status < 400:
        place = shown(without_secrets(response.headers.get("location", "elsewhere")))
        return EndpointRefusedError(f"The endpoint redirects to {place}. Check --base-url.")
    wait = retry_after_s(response.headers)
    if (hint := _retry_delay_s(reply)) is not None and wait is None:
        wait = hint
    verdict = verdict_of(status, f"{words}\n{message}"[:4_000])
    if hint is not None and status == 429 and verdict == "quota":
        verdict = "wait"  # Gemini words a rate limit like an empty account
    if status == 402 and wait is not None:
        verdict = "wait"
    if (left := _tokens_left(message)) is not None and _LENGTHS & {*parameters}:
        return TokenLimitError(f"http_{status}", text, left)
    parts = (parameter, *re.split(r"[.\[\]]+", parameter))
    name = next((part for part in parts if part in parameters), "") or _named(message, parameters)
    code = f"http_{status}"
    if parameter.endswith(".role"):
        name = _ROLE
    about_field = ("refused", "encode", "stop", "fetch", "smaller", "role")
    if name and status < 500 and verdict in about_field and (name, verdict) not in _ABOUT_SIZE:
        return ParameterError(code, text, name)
    if verdict == "schema" and "response_format" in parameters:
        return ParameterError(code, text, "response_format")
    if verdict == "wait":
        fault = EndpointFaultError(code, text, wait)
        fault.is_loading = re.search(r"\bload", message, re.IGNORECASE) is not None
        return fault
    if verdict in ("refused", "schema") and status == 404:
        return NotFoundError(code, text)
    return _ERRORS.get(verdict, RefusedError)(code, text)


def _largest(text: str) -> int | None:
    """Return the most tokens that a message allows, None if it does not say."""
    found = re.search(
        r"(?:at most|<=|less than or equal to|maximum(?: is| of)?|up to|\[\d+,) (\d+)",
        text,
    )
    return int(found[1]) if found else None


def _stop(kind: type[RunError], code: str, reason: str, problem: str, advice: str) -> RunError:
    error = kind(f"{problem} {sentence(reason)} {advice}")
    error.code, error.reason = code, reason
    return error


_ERRORS: dict[Verdict, Callable[[str, str], CaptionerError]] = {
    "filtered": lambda _, text: RefusedError("filtered", text),
    "quota": lambda code, text: _stop(
        EndpointGaveOutError, code, text, "The endpoint has no credit or quota left.",
        "Top it up or wait, then run the same command again.",
    ),
    "stop": lambda code, text: _stop(
        EndpointRefusedError, code, text, "The endpoint will caption no record.",
        "Check --base-url, --model, the key and --api-key-env.",
    ),
    "tokens": lambda code, text: TokenLimitError(code, text, _largest(text)),
    "smaller": lambda code, text: ImageRejectedError(
        code if code == "http_413" else "too_large", text, smaller=True
    ),
    "encode": lambda code, text: ImageRejectedError(code, text, smaller=False),
    "role": lambda code, text: ParameterError(code, text, _ROLE),
    "fetch": BadReplyError,
}  # fmt: skip
"""The error of each verdict that needs no more than the response's code and text."""

_LENGTHS = frozenset({"max_tokens", "max_completion_tokens"})
_ABOUT_SIZE = frozenset((name, "smaller") for name in _LENGTHS)
_CONTEXT = re.compile(
    r"(?:context length|max_model_len|context window)\D{0,30}?(\d+)", re.IGNORECASE
)
_INPUT = re.compile(
    r"(\d+)\s*(?:tokens? )?(?:input tokens|tokens? (?:from|in|of) (?:the |your )?(?:input|prompt"
    r"|messages?)|in (?:the|your) (?:messages?|prompt|input)|(?:prompt|input) tokens)",
    re.IGNORECASE,
)


def _tokens_left(message: str) -> int | None:
    """Return the tokens that a context leaves for the answer; None if the message does not say."""
    context, used = _CONTEXT.search(message), _INPUT.search(message)
    left = int(context[1]) - int(used[1]) if context and used else 0
    return left if left >= ENOUGH_TOKENS else None


def _named(message: str, parameters: Collection[str]) -> str:
    """Return the sent parameter that a message names, empty if it names none."""
    for name in parameters:
        # "detail" is a common word: it counts in quotes or in a path only.
        before = r"['\"`.]" if name == "detail" else r"(?<![\w-])"
        if re.search(rf"{before}{re.escape(name)}(?!\w)", message):
            return name
    return ""


def _retry_delay_s(reply: Any) -> float | None:
    """Return the wait that Gemini's ``RetryInfo`` asks for (``"retryDelay": "21s"``)."""
    error = _error_of(reply)
    details = error.get("details") if isinstance(error, dict) else None
    for detail in details if isinstance(details, list) else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str):
            return retry_after_s({"retry-after": delay})
    return None


def _error_of(reply: Any) -> Any:
    if isinstance(reply, list) and reply:
        reply = reply[0]
    if isinstance(reply, dict):
        errors = reply.get("errors")
        if isinstance(errors, list) and errors and "error" not in reply:
            return errors[0]
        return reply.get("error", reply.get("detail", reply))
    return reply


def _describe(reply: Any, body: bytes) -> tuple[str, str, str]:
    """Return code, message and parameter of any of the known error shapes."""
    error = _error_of(reply)
    codes = [reply.get(name) for name in ("code", "type")] if isinstance(reply, dict) else []
    if isinstance(error, dict):
        codes += [error.get(name) for name in ("code", "type", "status")]
        parameter = error.get("param")
        message = error.get("message") or error.get("msg")
        if not isinstance(message, str):
            message = _excerpt(body)
        for extra in (error.get("metadata"), error.get("innererror")):
            codes.append(orjson.dumps(extra).decode()[:500] if isinstance(extra, dict) else None)
        code = "\n".join(code for code in codes if isinstance(code, str))
        return code, message, parameter if isinstance(parameter, str) else ""
    code = "\n".join(code for code in codes if isinstance(code, str))
    if isinstance(error, str):
        return code, error, ""
    if isinstance(error, list) and error and isinstance(error[0], dict):  # FastAPI's validation
        place = error[0].get("loc")
        message = _excerpt(orjson.dumps(error))  # without the word "detail", a parameter of ours
        if isinstance(place, list) and place[:1] == ["body"] and len(place) > 1:
            return code, message, str(place[-1])
        return code, message, ""
    return code, _excerpt(body), ""


def _excerpt(body: bytes) -> str:
    return shown(body[: 50 * SHOWN_CHARS].decode(errors="replace")) or "an empty body"


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
