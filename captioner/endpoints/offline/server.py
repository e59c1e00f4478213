"""The describer behind the OpenAI chat completions protocol, over real HTTP."""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import signal
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from captioner.endpoints.offline.describe import Describer, UndecodableImageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

MODEL = "captioner-offline"

_MAX_BODY = 64 * 1024 * 1024  # bytes
_WORKERS = 2  # one decodes and measures while the other reads text
_PATCH = 32  # pixels a side of what counts as one prompt token
_CHARACTERS_PER_TOKEN = 4


class _RequestError(Exception):
    """A request that is answered with an error in the protocol's shape."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class OfflineServer:
    """A running server, as `start` returns it.

    Attributes:
        base_url: What an OpenAI client takes as its base URL, such as
            ``http://127.0.0.1:40123/v1``.
    """

    def __init__(self, base_url: str, runner: web.AppRunner, pool: ThreadPoolExecutor) -> None:
        self.base_url = base_url
        self._runner = runner
        self._pool = pool

    async def close(self) -> None:
        """Stop listening, let running requests finish for up to two seconds, and clean up."""
        await self._runner.cleanup()
        self._pool.shutdown(wait=False, cancel_futures=True)


async def start(
    host: str = "127.0.0.1", port: int = 0, *, max_body: int = _MAX_BODY
) -> OfflineServer:
    """Start the server in the running event loop.

    Args:
        host: Address or name to listen on; only this machine by default.
        port: TCP port; 0, the default, takes a free one.
        max_body: Largest request body in bytes, 64 MiB by default; a larger one is answered 413.

    Returns:
        The running server.

    Raises:
        OSError: If the address cannot be listened on.
    """
    pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="describer")
    endpoint = _Endpoint(Describer(), pool)
    app = web.Application(middlewares=[_errors_as_json], client_max_size=max_body)
    for prefix in ("", "/v1"):
        app.router.add_post(f"{prefix}/chat/completions", endpoint.complete)
        app.router.add_get(f"{prefix}/models", _list_models)
    app.router.add_get("/healthz", _report_health)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2)
    try:
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
    except BaseException:
        await runner.cleanup()
        pool.shutdown(wait=False)
        raise
    return OfflineServer(_base_url(host, runner.addresses[0][1]), runner, pool)


def serve(host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM, saying on standard output where and what this is.

    Args:
        host: Address or name to listen on.
        port: TCP port; 0 takes a free one.

    Raises:
        OSError: If the address cannot be listened on.
    """
    asyncio.run(_serve(host, port))


async def _serve(host: str, port: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    server = await start(host, port)
    try:
        sys.stdout.write(
            f"Serving {server.base_url} (model {MODEL}; no key needed; Ctrl-C stops it)\n"
            "This is a describer, not a vision-language model: it names colours, light and "
            "sharpness and reads text.\n"
        )
        sys.stdout.flush()
        await stopped.wait()
    finally:
        await server.close()


class _Endpoint:
    """Answers chat completion requests in a small pool of threads."""

    def __init__(self, describer: Describer, pool: ThreadPoolExecutor) -> None:
        self._describer = describer
        self._pool = pool

    async def complete(self, request: web.Request) -> web.Response:
        """Answer one request; parsing and image work stay off the event loop."""
        body = await request.read()
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._pool, _complete, self._describer, body)
        except _RequestError as error:
            return _error(400, str(error), param=error.param, code=error.code)
        return _json(200, answer)


def _complete(describer: Describer, body: bytes) -> dict[str, Any]:
    """Turn the body of a request into the body of its answer."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _RequestError(f"The body is not valid JSON: {error}") from error
    if not isinstance(request, dict):
        raise _RequestError("The body must be a JSON object.")
    if request.get("stream"):
        raise _RequestError("The offline describer does not stream.", param="stream")
    characters = 0
    images = []
    for kind, value in _parts(request.get("messages")):
        if kind == "text":
            characters += len(value)
        else:
            images.append(_decode(value))
    if not images:
        raise _RequestError("The messages contain no image.", param="messages")
    try:
        found = [describer.examine(image) for image in images]
    except UndecodableImageError as error:
        raise _RequestError(str(error), param="messages", code="invalid_image") from error
    content = found[0].caption
    if len(found) > 1:
        content = " ".join(f"Image {n}: {one.caption}" for n, one in enumerate(found, start=1))
    patches = sum(math.ceil(one.width / _PATCH) * math.ceil(one.height / _PATCH) for one in found)
    return _answer(content, prompt_tokens=math.ceil(characters / _CHARACTERS_PER_TOKEN) + patches)


def _answer(content: str, *, prompt_tokens: int) -> dict[str, Any]:
    # There is no tokeniser here: one token per four characters is the usual rule of thumb.
    completion_tokens = math.ceil(len(content) / _CHARACTERS_PER_TOKEN)
    message = {"role": "assistant", "content": content}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _parts(messages: Any) -> Iterator[tuple[str, str]]:
    """Yield the text and the image URLs of all messages, as pairs of kind and value."""
    if not isinstance(messages, list):
        raise _RequestError("'messages' must be a list.", param="messages")
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            yield "text", content
        for part in content if isinstance(content, list) else ():
            kind = str(part.get("type")) if isinstance(part, dict) else ""
            value = part.get(kind) if kind in ("text", "image_url") else None
            if kind == "image_url" and isinstance(value, dict):
                value = value.get("url")
            if not isinstance(value, str):
                raise _RequestError(
                    "Every part must be a text or an image_url with its value.", param="messages"
                )
            yield kind, value


def _decode(url: str) -> bytes:
    """Return the bytes that a data URI holds."""
    header, comma, payload = url.partition(",")
    if not header[:5].lower() == "data:":
        raise _RequestError(
            "The offline describer takes data: images only; it does not fetch URLs.",
            param="messages",
            code="invalid_image_url",
        )
    if not comma or not header.lower().endswith(";base64"):
        raise _RequestError("A data: image must be base64-encoded.", param="messages")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _RequestError(
            f"The base64 of a data: image is damaged: {error}.", param="messages"
        ) from error


async def _list_models(request: web.Request) -> web.Response:
    del request
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "captioner"}
    return _json(200, {"object": "list", "data": [model]})


async def _report_health(request: web.Request) -> web.Response:
    del request
    return _json(200, {"status": "ok"})


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer every error in the protocol's shape, also those raised by the web framework."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return _error(413, "The request body is too large.", code="request_too_large")
    except web.HTTPException as error:
        return _error(error.status, f"{error.reason}: {request.method} {request.path}")
    except Exception as error:  # noqa: BLE001 - a client is told what a log would say
        return _error(500, f"{type(error).__name__}: {error}", kind="server_error")


def _error(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> web.Response:
    error = {"message": message, "type": kind, "param": param, "code": code}
    return _json(status, {"error": error})


def _json(status: int, value: dict[str, Any]) -> web.Response:
    return web.Response(
        status=status, body=orjson.dumps(value), content_type="application/json", charset="utf-8"
    )


def _base_url(host: str, port: int) -> str:
    # A client cannot connect to the address that means every interface.
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
