"""The viewer's HTTP server. It requires a token and listens on this machine by default."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import socket
import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from captioner.core.cancellation import StoppedError
from captioner.core.errors import CaptionerError, SettingsError
from captioner.journal.reviews import verdict_of
from captioner.outputs.viewer.again import Recaptioner
from captioner.outputs.viewer.answers import answer, object_in, refusal
from captioner.outputs.viewer.comparing import ComparisonRoutes
from captioner.outputs.viewer.comparison import Comparison
from captioner.outputs.viewer.editing import Edit
from captioner.outputs.viewer.finding import find
from captioner.outputs.viewer.search import Query
from captioner.outputs.viewer.store import ViewerStore
from captioner.outputs.viewer.thumbnails import SIDES, Thumbnails
from captioner.outputs.viewer.timeline import EVERY_S, Timeline
from captioner.outputs.visitors import ServerThread, Visitors
from captioner.settings.locations import is_loopback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from captioner.core.progress import Progress

LOOPBACK = "127.0.0.1"
_EVERYWHERE = ("0.0.0.0", "::", "")  # noqa: S104 - who gives it wants it
_MOVED = "the rows are in another order now; load the page again"
_EDITS = ("find", "replacement", "prefix", "suffix")
_TEXTS = ("text", "verdict", "flag", "code", "repeated", "opening", "prompt", "model")
_FOLLOW_EVERY_S = 1.0
"""Seconds between two looks for new rows."""

MOST_ROWS = 200
"""Rows in one response."""

_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
"""Types of the page's files by their suffix."""

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
    """Serves the page of one output. An async context manager.

    Args:
        output: The output; it may not exist yet.
        journal: The file with its rows; by default derived from the output's name.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        image_root: Where relative image paths start.
        versus: Another output: the page compares the two.
        progress: The progress of a run in this process.

    Attributes:
        url: The page's address, with the token.
        origin: The same without it.
        port: The port that the page listens on.
        comparison: The votes between the two outputs; None with one output.

    Raises:
        SettingsError: The server cannot listen on the address.
    """

    def __init__(
        self,
        output: Path,
        *,
        journal: Path | None = None,
        host: str = LOOPBACK,
        port: int = 0,
        image_root: Path | None = None,
        versus: ViewerStore | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.url = self.origin = ""
        self.port = port
        self._token = secrets.token_urlsafe(16)
        self._host = host
        self._store = ViewerStore(output, journal, image_root=image_root)
        self.comparison = None if versus is None else Comparison(self._store, versus)
        self._timeline = Timeline(progress) if progress is not None else None
        self._thumbnails = Thumbnails(self._store)
        self._recaptioner = Recaptioner(self._store, is_private=is_loopback(host))
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start the server."""
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 20)
        image = r"image/{kind:rows|failures}/{generation:\d+}/{number:\d+}/{which:\d+}/{size}"
        for path, handler in {
            "{name:[a-z.]*}": self._page,
            "api/status": self._status,
            "api/find/{kind:rows|failures}": self._find,
            "api/{kind:rows|failures}": self._rows,
            "api/charts": self._charts,
            "api/choices": self._choices,
            image: self._image,
        }.items():
            app.router.add_get("/{token}/" + path, handler)
        for path, handler in {
            "review": self._review,
            "edit": self._edit,
            "judge": self._judge,
            "undo": self._undo,
            "command": self._command,
            "again": self._again,
        }.items():
            app.router.add_post("/{token}/api/" + path, handler)
        self._stack.callback(self._store.close)
        if self.comparison is not None:
            ComparisonRoutes(self.comparison).add_to(app.router)
            self._stack.callback(self.comparison.close)
        self._stack.push_async_callback(self._recaptioner.close)
        await self._stack.enter_async_context(self._thumbnails)
        try:
            visitors = await self._stack.enter_async_context(Visitors(app, self._host, self.port))
        except OSError as error:
            await self._stack.aclose()
            place = f"{self._host}:{self.port}"
            raise SettingsError(f"cannot listen on {place}: {error.strerror}") from None
        self.port = visitors.port
        host = socket.gethostname() if self._host in _EVERYWHERE else self._host
        shown = f"[{host}]" if ":" in host else host
        self.origin = f"http://{shown}:{self.port}/"
        self.url = f"{self.origin}{self._token}/"
        if self._timeline is not None:
            sampling = asyncio.create_task(self._sample(self._timeline))
            self._stack.callback(sampling.cancel)
        followed = [self._store.indexer.advance]
        if self.comparison is not None:
            followed.append(self.comparison.pairs.advance)
        for advance in followed:
            following = asyncio.create_task(self._follow(advance))
            self._stack.push_async_callback(_ended, following)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the server."""
        self._store.stop()
        if self.comparison is not None:
            self.comparison.stop()
        await self._stack.aclose()

    async def _sample(self, timeline: Timeline) -> None:
        while True:
            timeline.take()
            await asyncio.sleep(EVERY_S)

    async def _follow(self, advance: Callable[[], bool]) -> None:
        """Follow the rows; beside a run in this process half of the time is the run's."""
        while True:
            began = time.monotonic()
            more = False
            with contextlib.suppress(CaptionerError, OSError):  # the page's requests report it
                more = await asyncio.to_thread(advance)
            took = time.monotonic() - began if self._timeline is not None else 0
            await asyncio.sleep(took if more else _FOLLOW_EVERY_S)

    # -- requests ------------------------------------------------------------------------------

    @web.middleware
    async def _guard(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Check the token, and turn every error into a JSON response."""
        given = request.match_info.get("token", "")
        if not hmac.compare_digest(given.encode(errors="replace"), self._token.encode()):
            return web.Response(status=404, text="not found", headers=_HEADERS)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = refusal(error.reason or "refused", error.status)
        except (ValueError, KeyError, TypeError) as error:
            response = refusal(str(error) or "invalid request", 400)
        except (CaptionerError, OSError) as error:
            response = refusal(str(error), 503)
        except Exception as error:  # noqa: BLE001 - users get a message, not a stack trace
            response = refusal(f"internal error ({type(error).__name__}: {error})", 500)
        response.headers.update({**_HEADERS, "Cache-Control": "no-store", **response.headers})
        return response

    async def _page(self, request: web.Request) -> web.Response:
        first = "index.html" if self.comparison is None else "compare.html"
        name = request.match_info["name"] or first
        kind = _TYPES.get(f".{name.rpartition('.')[2]}")
        page = files("captioner.outputs.viewer").joinpath("page", name)
        if kind is None or not page.is_file():
            raise web.HTTPNotFound
        return web.Response(text=page.read_text("utf-8"), content_type=kind, charset="utf-8")

    async def _status(self, _: web.Request) -> web.Response:
        status = await asyncio.to_thread(self._store.status)
        status["again"] = self._recaptioner.status()
        status["run"] = self._timeline.as_dict() if self._timeline is not None else None
        return answer(status)

    async def _find(self, request: web.Request) -> web.Response:
        given = request.query
        query = Query(
            **{name: given.get(name, "") for name in _TEXTS},
            shortest=int(given.get("shortest") or 0),
            longest=int(given.get("longest") or 0),
        )
        kind, step = request.match_info["kind"], -1 if given.get("newest") else 1
        first = int(given["first"])
        found = await asyncio.to_thread(find, self._store, kind, query, first, step)
        return answer(found._asdict())

    async def _rows(self, request: web.Request) -> web.Response:
        numbers = [int(one) for one in request.query["numbers"].split(",")][:MOST_ROWS]
        kind = request.match_info["kind"]
        return answer(await asyncio.to_thread(self._store.display, kind, numbers))

    async def _choices(self, _: web.Request) -> web.Response:
        return answer(await asyncio.to_thread(self._store.indexer.choices))

    async def _charts(self, _: web.Request) -> web.Response:
        return answer(await asyncio.to_thread(self._store.charts))

    async def _review(self, request: web.Request) -> web.Response:
        given = await object_in(request)
        review = await asyncio.to_thread(self._store.review, given)
        return answer({"verdict": review.verdict, "captions": review.captions})

    async def _edit(self, request: web.Request) -> web.Response:
        given = await object_in(request)
        numbers = self._numbers(given)
        edit = Edit(
            **{name: str(given.get(name) or "") for name in _EDITS},
            is_pattern=bool(given.get("is_pattern")),
        )
        apply = bool(given.get("apply"))
        return answer(await asyncio.to_thread(self._store.editor.edit, numbers, edit, apply=apply))

    async def _judge(self, request: web.Request) -> web.Response:
        given = await object_in(request)
        verdict, numbers = verdict_of(given.get("verdict")), self._numbers(given)
        changed = await asyncio.to_thread(self._store.editor.judge, numbers, verdict)
        return answer({"records": changed})

    async def _undo(self, _: web.Request) -> web.Response:
        return answer({"records": await asyncio.to_thread(self._store.editor.undo)})

    async def _command(self, request: web.Request) -> web.Response:
        question = str((await object_in(request)).get("question") or "")
        return answer(await asyncio.to_thread(self._recaptioner.shown, question))

    async def _again(self, request: web.Request) -> web.Response:
        await self._recaptioner.start(str((await object_in(request)).get("question") or ""))
        return answer(self._recaptioner.status())

    def _numbers(self, given: dict[str, Any]) -> list[int]:
        """Return the selected rows of a request."""
        if given.get("generation") != self._store.rows.generation:
            raise ValueError(_MOVED)
        return [int(number) for number in given["numbers"]]

    async def _image(self, request: web.Request) -> web.Response:
        given = request.match_info
        kind, size = given["kind"], given["size"]
        generation, number, which = (int(given[x]) for x in ("generation", "number", "which"))
        if size not in SIDES:
            raise web.HTTPNotFound
        if generation != self._store.lines(kind).generation:
            return refusal(_MOVED, 404)
        try:
            image = await self._thumbnails.get(kind, generation, number, which, size)
        except (LookupError, CaptionerError, StoppedError) as error:
            return refusal(str(error), 404)
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return web.Response(body=image.data, content_type=image.media_type, headers=headers)


class ViewerThread(ServerThread):
    """Runs a viewer in a separate thread, so that it cannot delay a run.

    Attributes:
        url: The page's address, with the token.
        origin: The same without it.

    Raises:
        SettingsError: The server cannot listen on the address.
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer, "captioner-view")
        self.url, self.origin = viewer.url, viewer.origin


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
