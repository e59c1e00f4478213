"""What an endpoint's response means: a completion, or an error named for what it affects.

A response is judged by its shape, not by its status alone: servers respond 200 with an error, with
nothing, or with the notice of a filter. `captioner.endpoints.reply_rules` says what errors mean.
"""

from __future__ import annotations

import html
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

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
from captioner.core.retry import LONGEST_RETRY_AFTER_S, asked_wait_s, retry_after_s
from captioner.core.secrets import without_keys, without_secrets
from captioner.core.types import Completion, Usage
from captioner.endpoints.error_shapes import (
    Stated,
    decoded,
    describe,
    error_in,
    filter_in,
    loads,
    retry_delay_of,
)
from captioner.endpoints.finish_reasons import finish_family
from captioner.endpoints.refused_parameters import named_in
from captioner.endpoints.reply_rules import Verdict, verdict_by_status, verdict_by_words
from captioner.endpoints.stream import assemble, first_of, is_stream, reasoning_of, text_of
from captioner.endpoints.thinking import final_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from captioner.core.types import Response

SHOWN_CHARS = 200

_NAME_CHARS = 200
"""Characters that are kept of a model's name and of a finish reason."""

_MOST_TOKENS = 1 << 48
"""Tokens of a request; a larger number is none, and could not be written into a row."""

_READ_CHARS = 4_000
"""Characters of an error message that are searched for what it means."""

ENOUGH_TOKENS = 256
"""Tokens left for an answer below which smaller images are better than fewer tokens."""

SHORT_REPLY = 1 << 16
"""Bytes of a response, or characters of its text, that are judged outside of a thread."""

LONGEST_QUOTA_S = 40 * 86_400.0
"""A longer wait than this is no quota's: a month's is the longest."""

_ROLE = "messages[0].role"
_QUEUED = ("in_queue", "queued", "in_progress", "pending")


def parse_response(response: Response, parameters: Collection[str] = ()) -> Completion:
    """Return the completion in a response, or raise what the response means.

    Args:
        response: The response.
        parameters: Names of the parameters that were sent, one of which the endpoint may refuse.

    Raises:
        CaptionerError: See `Dialect.judge`.
    """
    body = response.body.strip().removeprefix(b"\xef\xbb\xbf")  # blank lines keep connections alive
    if response.status in (202, 303):
        raise EndpointFaultError(
            f"http_{response.status}", "the endpoint has not finished the request yet",
            retry_after_s(response.headers),
        )  # fmt: skip
    if not 200 <= response.status < 300:
        raise _error(response, response.status, loads(body, lenient=True), parameters)
    streamed = is_stream(body)
    reply = assemble(body, finish_family) if streamed else loads(body)
    if not isinstance(reply, dict):
        raise BadReplyError("bad_reply", f"the response is not JSON: {_excerpt(body)}")
    first = first_of(reply.get("choices"))
    message = first.get("message") if first is not None else None
    if message is None and str(reply.get("status", "")).lower() in _QUEUED:
        raise EndpointFaultError("not_ready", "the endpoint has queued the request")
    if (stated := error_in(reply, first)) is not None:
        raise _stated(response, stated, parameters)
    if first is None or not isinstance(message, dict):
        if reason := filter_in(reply):
            raise RefusedError("filtered", f"a content filter refused the image ({shown(reason)})")
        raise BadReplyError("bad_reply", f"the response has no message: {_excerpt(body)}")
    if streamed and not (reply["done"] or first.get("finish_reason")):
        raise BadReplyError("broken_stream", "the stream ended before the caption did")
    return _completion(reply, first, message)


def usage_of(response: Response) -> Usage:
    """Return the tokens that a response of any kind says it has used, 0 where it does not."""
    body = response.body.strip()
    reply = assemble(body, finish_family) if is_stream(body) else loads(body, lenient=True)
    return _usage(reply) if isinstance(reply, dict) else Usage()


def _usage(reply: dict[str, Any]) -> Usage:
    usage = reply.get("usage")
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get("prompt_tokens_details")
    return Usage(
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
    )


def error_of(response: Response) -> CaptionerError:
    """Return what a response with an error status means, whatever was requested."""
    return _error(response, response.status, loads(response.body, lenient=True), ())


def shown(text: str) -> str:
    """Return the beginning of a text from outside, safe to show: no payload, no key, printable.

    Of a page of HTML only the title, or else its text, is left.
    """
    text = text[: 50 * SHOWN_CHARS]
    if re.search(r"<(?:!doctype|html|head|body)\b", text, re.IGNORECASE):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL | re.IGNORECASE)
        plain = re.sub(r"(?s)<(script|style)\b.*?</\1>|<[^>]*>", " ", text)
        text = html.unescape(title[1] if title and title[1].strip() else plain)
    text = re.sub(r"data:[\w/+.-]*;base64,[\w+/=]*", "data:…", text)
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    clean = without_keys(clean)
    return clean if len(clean) <= SHOWN_CHARS else clean[: SHOWN_CHARS - 1] + "…"


def _completion(
    reply: dict[str, Any], choice: dict[str, Any], message: dict[str, Any]
) -> Completion:
    reason = choice.get("finish_reason")
    if type(reason) is not str:
        reason = str(reason.get("type", reason) if isinstance(reason, dict) else reason or "")
    family = finish_family(reason)
    refusal = message.get("refusal")
    if refusal and (said := text_of(refusal).strip()):
        raise RefusedError("refused", f"the model refused: {shown(said)}")
    if family == "filter":
        raise RefusedError("filtered", f"a content filter stopped the caption ({shown(reason)})")
    if family == "broken":
        raise BadReplyError("aborted", f"the endpoint broke off the caption ({shown(reason)})")
    text, thought = final_text(text_of(message.get("content")))
    if not text.isascii():
        text = _written(text)
    return Completion(
        text,
        _name(reason[:_NAME_CHARS]),
        _name(str(reply.get("model") or "")[:_NAME_CHARS]),
        _usage(reply),
        thought or (not text and bool(reasoning_of(message))),
        choice.get("logprobs"),
    )


def _written(text: str) -> str:
    """Return a text that can be written: halves of a sign that came in two chunks are one sign."""
    try:
        text.encode()
    except UnicodeEncodeError:
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        return joined.encode("utf-8", "replace").decode()
    return text


_name = lru_cache(maxsize=64)(_written)
"""The same for short texts of which few differ."""


def _stated(
    response: Response, reply: dict[str, Any], parameters: Collection[str]
) -> CaptionerError:
    """Return what an error means that came with a status of success."""
    stated = describe(reply)
    status = stated.status
    ruled = verdict_by_words(status, f"{stated.code}\n{stated.message or reply}"[:_READ_CHARS])
    is_known = ruled or "error" in reply or (status and verdict_by_status(status) != "refused")
    if not is_known:
        said = stated.message or _excerpt(response.body)
        return BadReplyError("bad_reply", f"the response has no message: {shown(said)}")
    return _error(response, status or _STATUS.get(ruled, 400), reply, parameters, ruled)


def _error(
    response: Response,
    status: int,
    reply: Any,
    parameters: Collection[str],
    ruled: Verdict | None = None,
) -> CaptionerError:
    """Return what an error response means; ``ruled`` is its verdict if that is known."""
    stated = describe(reply)
    message = (stated.message or _excerpt(response.body))[:_READ_CHARS]
    text = f"the endpoint responded {status}: {shown(message) or 'an empty body'}"
    if status == 407:
        return EndpointRefusedError(PROXY_REFUSES)
    if 300 <= status < 400:
        place = shown(without_secrets(response.headers.get("location", "elsewhere")))
        return EndpointRefusedError(f"The endpoint redirects to {place}. Check --base-url.")
    code = f"http_{status}"
    words = f"{stated.code}\n{message}"[:_READ_CHARS]
    ruled = ruled or verdict_by_words(status, words)
    verdict = ruled or verdict_by_status(status)
    asked = asked_wait_s(response.headers)
    hint = retry_delay_of(reply)
    if hint and asked is None:
        asked = asked_wait_s({"retry-after": hint})
    if asked is not None and status in (402, 429) and verdict in ("quota", "wait"):
        if LONGEST_RETRY_AFTER_S < asked < LONGEST_QUOTA_S:
            verdict = "day"
        elif hint or status == 402:  # a rate limit in the words of an empty account
            verdict = "wait"
    if (left := _tokens_left(message)) is not None and _LENGTHS & {*parameters}:
        return TokenLimitError(code, text, left)
    if name := _refused_parameter(stated, message, status, verdict, ruled, parameters):
        return ParameterError(code, text, name)
    if verdict == "wait":
        wait = None if asked is None else min(asked, LONGEST_RETRY_AFTER_S)
        fault = EndpointFaultError(code, text, wait)
        fault.is_loading = re.search(r"\bload", message, re.IGNORECASE) is not None
        return fault
    if verdict in ("refused", "schema") and status == 404:
        return NotFoundError(code, text)
    return _ERRORS.get(verdict, RefusedError)(code, text)


def _refused_parameter(
    stated: Stated,
    message: str,
    status: int,
    verdict: Verdict,
    ruled: Verdict | None,
    parameters: Collection[str],
) -> str:
    """Return the sent parameter that an error is about, empty if it is about none."""
    if verdict == "schema" and "response_format" in parameters:
        return "response_format"
    if verdict == "thinking":
        return THINKING if THINKING in parameters else ""
    if status >= 500 and ruled is not None:
        return ""
    said = stated.parameter
    parts = (said, *re.split(r"[.\[\]]+", said))
    name = next((part for part in parts if part in parameters), "")
    if said.endswith(".role"):
        name = _ROLE
    if not name:
        # Words about an image are about the image, whatever else they name.
        quoted = status < 500 and bool(stated.message)
        if verdict in _ABOUT_FIELDS or (verdict == "wait" and status >= 500):
            name = named_in(f"{message}\n{stated.code}", parameters, quoted=quoted)
    elif status >= 500:
        name = ""
    if name and (verdict in _ABOUT_FIELDS or status >= 500) and (name, verdict) not in _ABOUT_SIZE:
        return name
    return ""


def _largest(text: str) -> int | None:
    """Return the most tokens that a message allows, None if it does not say."""
    found = re.search(
        r"(?:at most|<=|less than or equal to|maximum(?: is| of)?|up to|\[\d+,) (\d{1,9})",
        text,
    )
    return int(found[1]) if found else None


def _stop(kind: type[RunError], code: str, reason: str, problem: str, advice: str) -> RunError:
    error = kind(f"{problem} {sentence(reason)} {advice}")
    error.code, error.reason = code, reason
    return error


def _quota(code: str, text: str) -> RunError:
    return _stop(
        EndpointGaveOutError,
        code,
        text,
        "The endpoint has no credit or quota left.",
        "Top it up or wait, then run the same command again.",
    )


def _never(code: str, text: str) -> RunError:
    advice = "Check --base-url, --model, the key and --api-key-env."
    if re.search(r"only supports? stream|enable the stream", text):
        advice = "Run with --stream."
    problem = "The endpoint will caption no record."
    return _stop(EndpointRefusedError, code, text, problem, advice)


_ERRORS: dict[Verdict, Callable[[str, str], CaptionerError]] = {
    "filtered": lambda _, text: RefusedError("filtered", text),
    "day": _quota,
    "quota": _quota,
    "stop": _never,
    "tokens": lambda code, text: TokenLimitError(code, text, _largest(text)),
    "smaller": lambda code, text: ImageRejectedError(
        code if code == "http_413" else "too_large", text, smaller=True, excess=_excess(text)
    ),
    "encode": lambda code, text: ImageRejectedError(code, text, smaller=False),
    "role": lambda code, text: ParameterError(code, text, _ROLE),
    "fetch": BadReplyError,
}
"""The error of each verdict that needs no more than the response's code and text."""

_STATUS: dict[Verdict | None, int] = {None: 502, "wait": 502, "quota": 429, "day": 429}
"""Statuses of errors that come with a status of success and claim none, if it is not 400."""

THINKING = "thinking"
"""Stands for all parameters that switch a model's thinking on or off."""

_ABOUT_FIELDS = frozenset({"refused", "encode", "stop", "fetch", "smaller", "role"})
_LENGTHS = frozenset({"max_tokens", "max_completion_tokens"})
_ABOUT_SIZE = frozenset((name, "smaller") for name in _LENGTHS)
_CONTEXT = re.compile(
    r"(?:context (?:length|window|size)|max_model_len|maximum (?:model|input) length)"
    r"\D{0,30}?(\d{1,9})"
    r"|tokens > (\d{1,9}) maximum",
    re.IGNORECASE,
)
_INPUT = re.compile(
    r"(?<!\d)(\d{1,9})\s{0,9}(?:tokens? )?"
    r"(?:input tokens|tokens? (?:from|in|of) (?:the |your )?(?:input|prompt|messages?)"
    r"|in (?:the|your) (?:messages?|prompt|input)|(?:prompt|input) tokens)"
    r"|(?:prompt|input|request) \((?:total )?(?:length )?(\d{1,9})|prompt length \((\d{1,9})"
    r"|messages resulted in (\d{1,9})|prompt is too long: (\d{1,9})",
    re.IGNORECASE,
)


def _context_of(message: str) -> tuple[int, int]:
    """Return the tokens of a context and those of the prompt, 0 and 0 if a message says neither."""
    context, used = _CONTEXT.search(message), _INPUT.search(message)
    if context is None or used is None:
        return 0, 0
    return int(next(filter(None, context.groups()))), int(next(filter(None, used.groups())))


def _tokens_left(message: str) -> int | None:
    """Return the tokens that a context leaves for the answer; None if the message does not say."""
    context, used = _context_of(message)
    return context - used if context - used >= ENOUGH_TOKENS else None


def _excess(message: str) -> int:
    """Return the tokens by which a prompt exceeds the context, 0 if a message does not say."""
    context, used = _context_of(message)
    return max(0, used - context)


def _excerpt(body: bytes) -> str:
    return shown(decoded(body[: 50 * SHOWN_CHARS])) or "an empty body"


def _count(value: Any) -> int:
    return value if type(value) is int and 0 < value < _MOST_TOKENS else 0
