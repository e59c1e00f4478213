"""The page over HTTP: to this machine only unless told, and only to who knows the token."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Self

import orjson
from aiohttp import web

from captioner.core.errors import CaptionerError, SettingsError
from captioner.outputs.viewer.search import Query
from captioner.outputs.viewer.store import ViewerStore
from captioner.outputs.viewer.thumbnails import SIDES, Thumbnails
from captioner.outputs.viewer.timeline import EVERY_S, Timeline
from captioner.readers.rows import dumped

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from captioner.core.progress import Progress

LOOPBACK = "127.0.0.1"
MOST_ROWS = 200
"""Rows that are handed out at once."""

_PAGE = {
    "": ("index.html", "text/html"),
    "app.js": ("app.js", "text/javascript"),
    "charts.js": ("charts.js", "text/javascript"),
    "style.css": ("style.css", "text/css"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Viewer:
    """The page of one output. An async context manager.

    Args:
        output: The output; it need not exist yet.
        journal: Where its captions are appended; by default as its name says.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        image_root: Where relative paths of images start from.
        progress: Of a run that goes on in this process.
        warn: Called with a sentence when something is worth knowing but no error.

    Attributes:
        url: Of the page, with its token.

    Raises:
        SettingsError: It cannot be listened there.
    """

    def __init__(
        self,
        output: Path,
        *,
        journal: Path | None = None,
        host: str = LOOPBACK,
        port: int = 0,
        image_root: Path | None = None,
        progress: Progress | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.url = ""
        self._token = secrets.token_urlsafe(16)
        self._place = host, port
        self._shelf = ViewerStore(output, journal, image_root=image_root, warn=warn)
        self._timeline = Timeline(progress) if progress is not None else None
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="captioner-view")
        self._charting = ThreadPoolExecutor(1, thread_name_prefix="captioner-charts")
        self._thumbnails = Thumbnails(self._shelf)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Begin to serve."""
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 20)
        base = "/{token}/"
        app.router.add_get(base + "{name:[a-z.]*}", self._page)
        app.router.add_get(base + "api/status", self._status)
        app.router.add_get(base + "api/find/{kind:rows|failures}", self._find)
        app.router.add_get(base + "api/{kind:rows|failures}", self._rows)
        app.router.add_get(base + "api/charts", self._charts)
        app.router.add_post(base + "api/review", self._review)
        app.router.add_get(
            base + r"image/{kind:rows|failures}/{generation:\d+}/{number:\d+}/{which:\d+}/{size}",
            self._image,
        )
        await self._stack.enter_async_context(self._thumbnails)
        silent = logging.getLogger("captioner.outputs.viewer")
        silent.addHandler(logging.NullHandler())  # who sends nonsense gets an answer, no trace
        silent.propagate = False
        runner = web.AppRunner(app, access_log=None, logger=silent, shutdown_timeout=1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        host, port = self._place
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await self._stack.aclose()
            raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{runner.addresses[0][1]}/{self._token}/"
        if self._timeline is not None:
            sampling = asyncio.create_task(self._sample(self._timeline))
            self._stack.callback(sampling.cancel)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Serve no more."""
        self._shelf.end()
        await self._stack.aclose()
        for threads in (self._threads, self._charting):
            threads.shutdown(cancel_futures=True)
        self._shelf.close()

    async def _sample(self, timeline: Timeline) -> None:
        while True:
            timeline.take()
            await asyncio.sleep(EVERY_S)

    # -- requests ------------------------------------------------------------------------------

    @web.middleware
    async def _guard(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Let in who knows the token; whatever goes wrong is said in a sentence."""
        given = request.match_info.get("token", "")
        if not hmac.compare_digest(given.encode(errors="replace"), self._token.encode()):
            return web.Response(status=404, text="not found", headers=_HEADERS)
        try:
            reply = await handler(request)
        except web.HTTPException as error:
            reply = _said(error.reason or "refused", error.status)
        except (ValueError, KeyError, TypeError) as error:
            reply = _said(str(error) or "that cannot be understood", 400)
        except (CaptionerError, OSError) as error:
            reply = _said(str(error), 503)
        except Exception as error:  # noqa: BLE001 - no stack trace before a user
            reply = _said(f"internal error ({type(error).__name__}: {error})", 500)
        reply.headers.update({**_HEADERS, "Cache-Control": "no-store", **reply.headers})
        return reply

    async def _page(self, request: web.Request) -> web.Response:
        found = _PAGE.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound
        name, kind = found
        text = files("captioner.outputs.viewer").joinpath("page", name).read_text("utf-8")
        return web.Response(text=text, content_type=kind, charset="utf-8")

    async def _status(self, _: web.Request) -> web.Response:
        def look() -> dict[str, Any]:
            self._shelf.refresh()
            return self._shelf.counts()

        counts = await self._aside(look)
        counts["run"] = self._timeline.as_dict() if self._timeline is not None else None
        return _json(counts)

    async def _find(self, request: web.Request) -> web.Response:
        asked = request.query
        query = Query(
            asked.get("text", ""),
            asked.get("verdict", ""),
            asked.get("flag", ""),
            _whole(asked.get("shortest")),
            _whole(asked.get("longest")),
            asked.get("code", ""),
        )
        kind, step = request.match_info["kind"], -1 if asked.get("newest") else 1
        first = int(asked["first"])
        return _json((await self._aside(self._shelf.find, kind, query, first, step))._asdict())

    async def _rows(self, request: web.Request) -> web.Response:
        numbers = [int(one) for one in request.query["numbers"].split(",")][:MOST_ROWS]
        kind = request.match_info["kind"]
        return _json(await self._aside(self._shown, kind, numbers))

    def _shown(self, kind: str, numbers: list[int]) -> list[dict[str, Any]]:
        shelf = self._shelf
        lines = shelf.failures if kind == "failures" else shelf.rows
        return [
            shelf.shown(kind, number, line) for number in numbers for line in lines.read(number, 1)
        ]

    async def _charts(self, _: web.Request) -> web.Response:
        loop = asyncio.get_running_loop()
        return _json(await loop.run_in_executor(self._charting, self._shelf.charts))

    async def _review(self, request: web.Request) -> web.Response:
        said: Any = orjson.loads(await request.read())
        if not isinstance(said, dict):
            raise TypeError("a review is an object")
        review = await self._aside(self._shelf.review, said)
        return _json({"verdict": review.verdict, "captions": review.captions})

    async def _image(self, request: web.Request) -> web.Response:
        asked = request.match_info
        if asked["size"] not in SIDES:
            raise web.HTTPNotFound
        shelf = self._shelf
        lines = shelf.failures if asked["kind"] == "failures" else shelf.rows
        if int(asked["generation"]) != lines.generation:
            return _said("the lines have been put in another order; load the page again", 404)
        made = await self._thumbnails.get(
            asked["kind"],
            int(asked["generation"]),
            int(asked["number"]),
            int(asked["which"]),
            asked["size"],
        )
        if not made.data:
            return _said(made.why, 404)
        return web.Response(
            body=made.data,
            content_type=made.media_type,
            headers={"Cache-Control": "private, max-age=86400, immutable"},
        )

    async def _aside(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return what blocking work gives, done in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


class ViewerThread:
    """A page in a thread of its own, for a run that must not wait for who looks at it.

    Args:
        viewer: The page.

    Attributes:
        url: Of the page, with its token.

    Raises:
        SettingsError: It cannot be listened there.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._serve, name="captioner-view", daemon=True)
        self._thread.start()
        self._started.wait()
        self._raise_error()
        self.url = viewer.url

    def _raise_error(self) -> None:
        if self._error is not None:
            self._thread.join()
            raise self._error

    def _serve(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._until_over())

    async def _until_over(self) -> None:
        try:
            async with self._viewer:
                self._started.set()
                await self._over.wait()
        except Exception as error:  # noqa: BLE001 - raised where it was started
            self._error = error
        finally:
            self._started.set()

    def close(self) -> None:
        """Serve no more."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


def _json(value: Any) -> web.Response:
    return web.Response(body=dumped(value), content_type="application/json")


def _said(text: str, status: int) -> web.Response:
    return web.Response(
        body=dumped({"error": text}), status=status, content_type="application/json"
    )


def _whole(text: str | None) -> int:
    return int(text) if text else 0
