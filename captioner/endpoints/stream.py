"""Put a streamed response together, and read the parts of a message."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from captioner.endpoints.error_shapes import loads, states_error

if TYPE_CHECKING:
    from collections.abc import Callable

_STREAM = re.compile(rb"(?:data|event|id|retry)?:")
_WORSE = {"loop": 1, "length": 2, "broken": 3, "filter": 4}
"""Families of finish reasons: a later chunk never replaces a reason by a better one."""

_NOT_YET = frozenset({"", "null", "none"})
"""Finish reasons of chunks before the last one, as DashScope and others write them."""

_MOST_LINES = 16
"""Lines of an event after each of which it may be complete; later only at an empty line."""

_TEXT_PARTS = (None, "text", "output_text")


def is_stream(body: bytes) -> bool:
    """Return whether a body is a stream of server-sent events."""
    return _STREAM.match(body) is not None


def text_of(content: Any) -> str:
    """Return the text of a message's content: a string, a part, or a list of either."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(part if isinstance(part, str) else _text_of_part(part) for part in parts)


def _text_of_part(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS:
        return ""
    text = part.get("text")
    text = text.get("value") if isinstance(text, dict) else text  # OpenAI's assistants
    return text if isinstance(text, str) else ""


def reasoning_of(message: dict[str, Any]) -> Any:
    """Return what a message holds of the model's thinking, nothing if that is empty."""
    return message.get("reasoning_content") or message.get("reasoning") or message.get("thinking")


def first_of(choices: Any) -> dict[str, Any] | None:
    """Return the choice whose index is 0, or else the first one."""
    if not isinstance(choices, list) or not choices:
        return None
    first = choices[0]
    if len(choices) > 1:
        indexed = (one for one in choices if isinstance(one, dict) and one.get("index") == 0)
        first = next(indexed, first)
    return first if isinstance(first, dict) else None


def assemble(body: bytes, family_of: Callable[[str], str]) -> dict[str, Any]:
    """Return a streamed response as if it had come whole.

    ``done`` says whether it ended. ``choices`` is None if it was not understood, and ``error`` is
    the error that it states: in an event of that name, in a chunk or in a separate line.

    Args:
        body: The stream.
        family_of: Returns the family of a finish reason.
    """
    stream = _Stream(family_of)
    pending, lines = bytearray(), 0
    name = b""
    for line in chain(body.splitlines(), (b"",)):
        if line.startswith(b"data:"):
            pending += line[5:].strip()
            lines += 1
            if pending == b"[DONE]":
                stream.whole["done"] = True
                break
        elif line[:1] in (b"{", b"<"):  # an error that a gateway wrote into the stream
            pending, name = bytearray(line), name or b"error"
        elif line.startswith(b"event:"):
            name = line[6:].strip()
            continue
        elif line:
            continue
        if pending:
            may_go_on = line.startswith(b"data:") and b"error" not in name
            is_tried = lines <= _MOST_LINES or not may_go_on
            event = loads(bytes(pending)) if is_tried else None
            if event is None and may_go_on:
                pending += b"\n"  # an event may have several lines
                continue
            stream.add(event if event is not None else pending.decode(errors="replace"), name)
            if stream.is_over:
                break
            pending, lines = bytearray(), 0
        if not line:
            name = b""
    if bytes(pending.strip()) not in (b"", b"[DONE]"):
        stream.whole["choices"] = None
        return stream.whole
    return stream.reply()


class _Stream:
    """What the events of a stream say so far."""

    def __init__(self, family_of: Callable[[str], str]) -> None:
        self.whole: dict[str, Any] = {"done": False}
        self.is_over = False
        self._family_of = family_of
        self._choices: dict[int, _Choice] = {}

    def add(self, event: Any, name: bytes) -> None:
        """Take an event."""
        is_error = b"error" in name
        if not isinstance(event, dict):
            self.whole["error" if is_error else "choices"] = event if is_error else None
            self.is_over = True
            return
        choices = event.get("choices")
        if error := _error_in(event, is_error=is_error and not choices):
            self.whole["error"] = error
            self.is_over = True
            return
        for key in ("model", "usage"):
            self.whole[key] = event.get(key) or self.whole.get(key)
        for position, part in enumerate(choices if isinstance(choices, list) else ()):
            if not isinstance(part, dict):
                continue
            if part.get("error"):
                self.whole["error"] = part["error"]
                self.is_over = True
                return
            index = part.get("index", position)
            self._choices.setdefault(
                index if type(index) is int else 0, _Choice(self._family_of)
            ).add(part)

    def reply(self) -> dict[str, Any]:
        """Return the response."""
        if "choices" not in self.whole:
            choice = self._choices[min(self._choices)].whole() if self._choices else None
            self.whole["choices"] = [choice] if choice else None
        return self.whole


class _Choice:
    """One choice of a stream so far."""

    def __init__(self, family_of: Callable[[str], str]) -> None:
        self._family_of = family_of
        self._rank = 0
        self._text: list[str] = []
        self._chars = 0
        self._refusal: list[str] = []
        self._finish: Any = None
        self._thinks = False

    def add(self, part: dict[str, Any]) -> None:
        """Take one chunk: a further piece, or the whole message."""
        reason = part.get("finish_reason")
        if reason and str(reason).lower() not in _NOT_YET:
            rank = _WORSE.get(self._family_of(str(reason)[:100]), 0)
            if rank >= self._rank:
                self._finish, self._rank = reason, rank
        delta = part.get("delta")
        if isinstance(delta, dict):
            self._text.append(text := text_of(delta.get("content")))
            self._chars += len(text)
            self._refusal.append(text_of(delta.get("refusal")))
            self._thinks = self._thinks or bool(reasoning_of(delta))
        message = part.get("message")
        content = text_of(message.get("content")) if isinstance(message, dict) else ""
        if content and len(content) >= self._chars:
            self._text, self._chars = [content], len(content)

    def whole(self) -> dict[str, Any]:
        """Return the choice as if it had come whole."""
        message = {
            "content": "".join(self._text),
            "refusal": "".join(self._refusal),
            "reasoning": self._thinks or None,
        }
        return {"finish_reason": self._finish, "message": message}


def _error_in(event: dict[str, Any], *, is_error: bool) -> Any:
    """Return the error that a chunk states, None if it states none."""
    error = event.get("error")
    if error or is_error or event.get("object") == "error":
        return error or event
    if "choices" not in event and not event.get("usage") and states_error(event):
        return event
    return None
