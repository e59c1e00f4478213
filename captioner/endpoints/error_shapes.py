"""The shapes in which servers state an error, whatever the status it comes with."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import orjson

MESSAGES = ("message", "msg", "error_msg", "status_msg")
_CODES = ("code", "error_code", "status_code", "http_code", "statusCode", "status")
_STATING = frozenset({*MESSAGES, *_CODES[:3], "error", "base_resp"})
"""Members of a reply with a caption that may state an error."""

_FINE = re.compile(
    r"\W*(?:ok|success\w*|succeed\w*|done|finish\w*|complete\w*|成功)?\W*\Z", re.IGNORECASE
)
_FINE_CODES = frozenset({"", "0", "200", "10000", "20000", "none", "null", "ok", "success"})


class Stated(NamedTuple):
    """An error in a reply.

    Attributes:
        code: Its codes and types, and what a provider behind the endpoint said, one a line.
        message: Its message; empty if it has none.
        parameter: The parameter that it is about, as a path; empty if it does not say.
        status: The HTTP status that it claims, None if it claims none.
    """

    code: str
    message: str
    parameter: str
    status: int | None


def loads(data: bytes, *, lenient: bool = False) -> Any:
    """Return the value that JSON states, None if it is not JSON.

    NaN, lone surrogates, a byte-order mark and control characters in texts are read as well, which
    orjson refuses.

    Args:
        data: The JSON.
        lenient: Replace bytes that are not UTF-8 instead of refusing the whole. Only for errors: a
            caption with replaced letters is a wrong one.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(decoded(data, "replace" if lenient else "strict"), strict=False)
    except (ValueError, RecursionError):
        return None


def decoded(data: bytes, errors: str = "replace") -> str:
    """Return a body as text: UTF-8, or UTF-16 and UTF-32 with or without a byte-order mark."""
    return data.decode(json.detect_encoding(data) if b"\0" in data else "utf-8-sig", errors)


def states_error(reply: dict[str, Any], *, beside_choices: bool = False) -> bool:
    """Return whether ``code`` and ``message`` of a reply state an error.

    Args:
        reply: The reply, or a part of it.
        beside_choices: It has a caption as well: then a message alone is no error.
    """
    code = next((reply[name] for name in _CODES[:3] if reply.get(name) is not None), None)
    message = next((reply[name] for name in (*MESSAGES, "detail") if reply.get(name)), "")
    said = isinstance(message, str) and not _FINE.match(message)
    if code is None or isinstance(code, (dict, list)):
        return said and not beside_choices
    return str(code).lower() not in _FINE_CODES and (said or not message)


def error_in(reply: dict[str, Any], choice: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the error in a reply that came with a status of success, None if there is none.

    Args:
        reply: The reply.
        choice: Its first choice, None if it has none.

    Returns:
        What `describe` takes. An error that the reply has as a member is a member ``error``.
    """
    if choice is not None and "error" not in choice and reply.keys().isdisjoint(_STATING):
        return reply if reply.get("object") == "error" else None
    for error in (reply.get("error"), choice and choice.get("error")):
        if error and not _is_empty(error):
            return {"error": error}
    if (base := reply.get("base_resp")) and not _is_empty(base):  # MiniMax
        return base if isinstance(base, dict) else None
    if reply.get("object") == "error" or states_error(reply, beside_choices=choice is not None):
        return reply
    return reply if choice is None and (reply.get("errors") or reply.get("detail")) else None


def _is_empty(error: Any) -> bool:
    """Return whether an error says that all is well, as some servers do beside each caption."""
    return isinstance(error, dict) and all(
        str(value).lower() in _FINE_CODES for value in error.values()
    )


def filter_in(reply: dict[str, Any]) -> str:
    """Return why a filter left a reply without choices (Azure, Gemini), empty if none did."""
    feedback = reply.get("promptFeedback") or reply.get("prompt_feedback")
    if isinstance(feedback, dict):
        reason = feedback.get("blockReason") or feedback.get("block_reason")
        if reason:
            return str(reason)
    results = reply.get("prompt_filter_results")
    for result in results if isinstance(results, list) else ():
        kinds = result.get("content_filter_results") if isinstance(result, dict) else None
        for kind, found in kinds.items() if isinstance(kinds, dict) else ():
            if isinstance(found, dict) and found.get("filtered") is True:
                return str(kind)
    return ""


def describe(reply: Any) -> Stated:
    """Return what an error says, in any of the known shapes."""
    error = _member(reply)
    codes = [reply.get(name) for name in ("code", "type")] if isinstance(reply, dict) else []
    message = parameter = ""
    status = _status(reply)
    if isinstance(error, str):
        message = error
    elif isinstance(error, list) and error and isinstance(error[0], dict):  # FastAPI's validation
        parts = [(_path(one.get("loc")), one.get("msg")) for one in error if isinstance(one, dict)]
        message = "; ".join(f"{place}: {said}" if place else f"{said}" for place, said in parts)
        parameter = parts[0][0]
        codes.append(error[0].get("type"))
    elif isinstance(error, dict):
        codes += [error.get(name) for name in ("code", "type", "status", "error_code")]
        message = next((error[name] for name in MESSAGES if isinstance(error.get(name), str)), "")
        parameter = error["param"] if isinstance(error.get("param"), str) else ""
        status = _status(error) or status
        codes += _quota_ids(error)
        for extra in (error.get("metadata"), error.get("innererror")):
            codes.append(orjson.dumps(extra).decode()[:500] if isinstance(extra, dict) else None)
        for inner in (_behind(error.get("metadata")), _inside(error.get("message"))):
            if inner is not None:
                codes += [inner.code, inner.message]
                parameter = parameter or inner.parameter
                message = message or inner.message
    code = "\n".join(code for code in codes if isinstance(code, str))
    return Stated(code, message, parameter, status)


def retry_delay_of(reply: Any) -> str:
    """Return the wait that Gemini's ``RetryInfo`` asks for (``21s``), empty if there is none."""
    error = _member(reply)
    for detail in _details(error):
        delay = detail.get("retryDelay")
        if isinstance(delay, str):
            return delay
    return ""


def _member(reply: Any) -> Any:
    """Return the part of a reply that states the error."""
    if isinstance(reply, list) and reply:
        reply = reply[0]
    if not isinstance(reply, dict):
        return reply
    errors = reply.get("errors")
    if "error" not in reply and errors:
        return errors[0] if isinstance(errors, list) else errors
    error = reply.get("error") or reply.get("detail") or reply
    if (
        isinstance(error, dict)
        and error is not reply
        and isinstance(error.get("error"), str | dict)
    ):
        return error["error"]
    return error


def _status(error: Any) -> int | None:
    """Return the HTTP status of an error that an error claims, also as a text of digits."""
    if isinstance(error, dict):
        for name in _CODES:
            value = error.get(name)
            if isinstance(value, str) and value.isdecimal() and len(value) == 3:
                value = int(value)
            if type(value) is int and 400 <= value < 600:
                return value
    return None


def _details(error: Any) -> list[dict[str, Any]]:
    details = error.get("details") if isinstance(error, dict) else None
    return [one for one in details if isinstance(one, dict)] if isinstance(details, list) else []


def _quota_ids(error: dict[str, Any]) -> list[str]:
    """Return the names of the quotas that are used up, as Gemini names them."""
    found: list[str] = []
    for detail in _details(error):
        violations = detail.get("violations")
        for violation in violations if isinstance(violations, list) else ():
            quota = violation.get("quotaId") if isinstance(violation, dict) else None
            found += [quota] if isinstance(quota, str) else []
    return found


def _behind(metadata: Any) -> Stated | None:
    """Return what the provider behind a router said (OpenRouter's ``metadata.raw``)."""
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    if isinstance(raw, str):
        raw = loads(raw.encode(errors="replace"))
    return describe(raw) if isinstance(raw, dict) else None


def _inside(message: Any) -> Stated | None:
    """Return the error in a message that is itself an error (Mistral)."""
    return describe(message) if isinstance(message, dict) else None


def _path(place: Any) -> str:
    """Return a place in a request body as a path: ``messages[0].role``."""
    if not isinstance(place, list):
        return ""
    if place[:1] == ["body"]:
        place = place[1:]
    parts = (f"[{one}]" if isinstance(one, int) else f".{one}" for one in place)
    return "".join(parts).removeprefix(".")
