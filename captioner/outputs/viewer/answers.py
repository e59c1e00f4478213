"""Requests and responses of the page in JSON."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from captioner.outputs.visitors import body_of
from captioner.readers.rows import dumped


async def object_in(request: web.Request) -> dict[str, Any]:
    """Return the object in a request's body.

    Raises:
        TypeError: It is no object.
        ValueError: It is no JSON, or does not arrive in time.
    """
    given: Any = orjson.loads(await body_of(request))
    if not isinstance(given, dict):
        raise TypeError("the body is not an object")
    return given


def answer(value: Any, status: int = 200) -> web.Response:
    """Return a value as a response."""
    return web.Response(body=dumped(value), status=status, content_type="application/json")


def refusal(text: str, status: int) -> web.Response:
    """Return a response that says what is wrong."""
    return answer({"error": text}, status)
