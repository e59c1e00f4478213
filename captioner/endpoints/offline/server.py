"""The describer as an OpenAI-compatible HTTP server."""

from __future__ import annotations

import asyncio
import base64
import math
import re
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from captioner.endpoints.offline.describe import RequestError, describe_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

MODEL = "captioner-offline"

_MAX_BODY = 64 << 20  # bytes
_threads = ThreadPoolExecutor(2)  # one decodes an image while the other reads text


@asynccontextmanager
async def running(
    host: str = "127.0.0.1", port: int = 0, *, max_body: int = _MAX_BODY
) -> AsyncIterator[str]:
    """Serve while the context is open and yield the base URL; port 0 takes a free one."""
    app = web.Application(middlewares=[_errors_as_json], client_max_size=max_body)
    app.router.add_post("/v1/chat/completions", _complete)
    app.router.add_get("/v1/models", _list_models)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2)
    try:
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        name = f"[{host}]" if ":" in host else host
        yield f"http://{name}:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def serve(host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM and print the base URL; port 0 takes a free one."""

    async def until_signalled() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        async with running(host, port) as base_url:
            print(  # noqa: T201 - the command's output
                f"Serving {base_url} (model {MODEL}; no key needed; Ctrl-C stops it)\n"
                "This is a describer, not a vision-language model: it names colours, light and "
                "sharpness and reads text.",
                flush=True,
            )
            await stopped.wait()

    asyncio.run(until_signalled())


async def _complete(request: web.Request) -> web.Response:
    body = await request.read()
    # Parsing and image work stay off the event loop.
    return await asyncio.get_running_loop().run_in_executor(_threads, _answer, body)


def _answer(body: bytes) -> web.Response:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not valid JSON: {error}") from error
    if not isinstance(request, dict):
        raise RequestError("The body must be a JSON object.")
    texts, images = _parts(request.get("messages"))
    found = [describe_file(image) for image in images]
    if not found:
        raise RequestError("The messages contain no image.")
    content = found[0][0]
    if len(found) > 1:
        content = " ".join(f"Image {n}: {caption}" for n, (caption, _) in enumerate(found, 1))
    # A token stands for four characters, or for a patch of 32 x 32 pixels.
    prompt = math.ceil(sum(map(len, texts)) / 4)
    prompt += sum(math.ceil(width / 32) * math.ceil(height / 32) for _, (width, height) in found)
    answer = math.ceil(len(content) / 4)
    reply = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": MODEL}
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop"}
    if not request.get("stream"):
        reply |= {"object": "chat.completion", "choices": [{**choice, "message": message}]}
        return web.json_response({**reply, "usage": usage})
    reply |= {"object": "chat.completion.chunk", "choices": [{**choice, "delta": message}]}
    chunks = [reply, {**reply, "choices": [], "usage": usage}]
    events = b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks)
    return web.Response(body=events + b"data: [DONE]\n\n", content_type="text/event-stream")


def _parts(messages: Any) -> tuple[list[str], list[bytes]]:
    """Return the texts and the encoded images of all messages."""
    if not isinstance(messages, list):
        raise RequestError("'messages' must be a list.")
    texts, images = [], []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts if isinstance(parts, list) else ():
            match part:
                case {"type": "text", "text": str(text)}:
                    texts.append(text)
                case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
                    images.append(_decode(url))
                case _:
                    raise RequestError("Every part must be a text or an image_url with its value.")
    return texts, images


def _decode(url: str) -> bytes:
    """Return the bytes in a data URI."""
    header, _, payload = url.partition(",")
    if not re.fullmatch("data:.*;base64", header, re.IGNORECASE):
        raise RequestError("The describer takes base64 data: images only; it fetches no URLs.")
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError as error:
        raise RequestError(f"The base64 of a data: image is damaged: {error}.") from error


async def _list_models(_: web.Request) -> web.Response:
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "captioner"}
    return web.json_response({"object": "list", "data": [model]})


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer every error in the protocol's form."""
    code = None
    try:
        return await handler(request)
    except RequestError as error:
        status, message, code = 400, str(error), error.code
    except web.HTTPRequestEntityTooLarge:
        status, message, code = 413, "The request body is too large.", "request_too_large"
    except web.HTTPException as error:
        status, message = error.status, f"{error.reason}: {request.method} {request.path}"
    except Exception as error:  # noqa: BLE001 - the client sees what a log would say
        status, message = 500, f"{type(error).__name__}: {error}"
    kind = "server_error" if status >= 500 else "invalid_request_error"
    shown = {"message": message, "type": kind, "param": None, "code": code}
    return web.json_response({"error": shown}, status=status)
