"""Answers that are a gateway's error document, in JSON or HTML, with the status of a success."""

from __future__ import annotations

import re
from typing import Any

import orjson

from captioner.engine.wordings import fault_in

_FENCE = re.compile(r"```\w*\s*")
_ERROR_FIRST = re.compile(
    r"[\[{(\s]+[\"'](?:errors?|fault|exception|traceback|err(?:or)?_?(?:code|msg|message)"
    r"|stack_?trace)[\"']\s*:\s*(?!null\b|none\b|false\b|0\b|\"\"|''|\[\s*\]|\{\s*\})",
    re.IGNORECASE,
)
_ERROR_NAMES = frozenset(
    {"error", "errors", "fault", "exception", "errcode", "errmsg", "error_code", "error_msg",
     "error_message", "errormessage", "errorcode", "traceback"}
)  # fmt: skip
_OTHER_NAMES = _ERROR_NAMES | {
    "message", "msg", "code", "status", "statuscode", "status_code", "type", "param", "detail",
    "details", "success", "ok", "request_id", "requestid", "timestamp", "path", "title", "object",
    "reason", "data", "trace_id", "traceid", "instance", "retry_after", "cause", "hint",
    "documentation_url", "result", "loc", "url",
}  # fmt: skip
_NUMBERS = frozenset({"code", "status", "statuscode", "status_code"})

LONGEST_JSON = 20_000
"""Most characters of a JSON error."""

LONGEST_PAGE = 20_000
"""Most characters of a page's beginning in which its title is looked for."""

_PAGE = re.compile(
    r"(?:<\?xml[^<>]{0,200}>\s*)?<(?:!doctype\s+html|html|head|title)\b", re.IGNORECASE
)
_XML_ERROR = re.compile(
    r"(?:<\?xml[^<>]{0,200}>\s*)?<(?:error|errorresponse|fault)\b[^<>]{0,200}>\s*<\w", re.IGNORECASE
)
_HEADING = re.compile(r"<(title|h1|h2)\b[^<>]{0,200}>([^<]{0,300})", re.IGNORECASE)
_ERROR_WORDS = re.compile(
    r"\b[45]\d\d\b|\berror\b|bad gateway|denied|unavailable|time-?out|timed out|forbidden|not found"
    r"|just a moment|attention required|blocked|unauthori[sz]ed|log ?in\b|sign ?in\b|maintenance"
    r"|too many|captcha|checking your browser|suspended|域名|错误|出错",
    re.IGNORECASE,
)


def is_error_document(text: str) -> bool:
    """Return whether a text is an error in JSON, or the page of an error in HTML."""
    if text[0] == "`" and (fence := _FENCE.match(text)):
        text = text[fence.end() :].removesuffix("```")
    if text[:1] == "<":
        return _is_error_page(text)
    if text[:1] not in ("{", "[", "("):
        return False
    if _ERROR_FIRST.match(text):
        return True
    try:
        value = orjson.loads(text) if len(text) <= LONGEST_JSON else None
    except orjson.JSONDecodeError:
        return False
    return _is_error_object(value[0] if isinstance(value, list) and value else value)


def _is_error_page(text: str) -> bool:
    """Return whether HTML is the page of an error; a page that a model wrote is an answer."""
    if _XML_ERROR.match(text):
        return True
    if not _PAGE.match(text):
        return False
    headings = [found[2] for found in _HEADING.finditer(text, 0, LONGEST_PAGE)]
    return any(map(_ERROR_WORDS.search, headings))


def _is_error_object(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    names = {str(name).lower(): content for name, content in value.items()}
    if any(names.get(name) for name in _ERROR_NAMES) or names.get("object") == "error":
        return True
    if not names.keys() <= _OTHER_NAMES:
        return False
    numbers = [names[name] for name in _NUMBERS if isinstance(names.get(name), int)]
    failed = names.get("success") is False or names.get("ok") is False
    texts = [one for one in names.values() if isinstance(one, str)]
    return (
        failed
        or any(number >= 400 for number in numbers)
        or names.keys() == {"detail"}
        or names.get("status") in ("error", "failed", "failure")
        or any(fault_in(one) == "error" for one in texts)
    )
