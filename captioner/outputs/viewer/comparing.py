"""What the page of a comparison asks the server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from captioner.outputs.viewer.answers import answer, object_in

if TYPE_CHECKING:
    from aiohttp import web

    from captioner.outputs.viewer.comparison import Comparison


class ComparisonRoutes:
    """Serves a comparison."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes to a router."""
        router.add_get("/{token}/api/pair", self._pair)
        router.add_get("/{token}/api/result", self._result)
        router.add_post("/{token}/api/vote", self._vote)
        router.add_post("/{token}/api/adopt", self._adopt)

    async def _pair(self, request: web.Request) -> web.Response:
        place = int(request.query.get("from") or "0", 16)
        return answer(await asyncio.to_thread(self._comparison.next, place))

    async def _result(self, _: web.Request) -> web.Response:
        return answer(await asyncio.to_thread(self._comparison.result))

    async def _vote(self, request: web.Request) -> web.Response:
        given = await object_in(request)
        return answer(await asyncio.to_thread(self._comparison.vote, given))

    async def _adopt(self, _: web.Request) -> web.Response:
        return answer(await asyncio.to_thread(self._comparison.adopt))
