"""Small images, made when somebody looks: fetched, drawn and bounded as for a caption request."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple, Self

from captioner.core.cancellation import StoppedError
from captioner.core.errors import DecoderError, RecordError
from captioner.core.memory import MemoryBudget
from captioner.core.types import ImageOverrides
from captioner.images.archives import Archives
from captioner.images.decoder_pool import DecoderPool
from captioner.images.fetch.fetcher import Fetcher
from captioner.images.fit import FitOptions
from captioner.settings.options import ImageSettings

if TYPE_CHECKING:
    from captioner.core.types import ImageRef
    from captioner.outputs.viewer.store import ViewerStore

SIDES = {"small": 320, "large": 1_280}
"""Longer side in pixels."""

KEPT = 64 << 20
"""Bytes of images that are kept, those used last."""

AT_ONCE = 2
_REDRAW = ImageOverrides(1.0, redraw=True)


class Image(NamedTuple):
    """An image as it is sent to the page; ``data`` is empty where there is none, and why."""

    media_type: str
    data: bytes
    why: str = ""


def _why_not(image: ImageRef) -> str:
    if image.path is None:
        return "the image is inside the input, and not looked for there"
    return f"there is no {image.path[-200:]} here, or not any more (--image-root)"


class Thumbnails:
    """Makes and keeps small images. An async context manager.

    Args:
        shelf: Whose images they are.
    """

    def __init__(self, shelf: ViewerStore) -> None:
        self._shelf = shelf
        self._kept: OrderedDict[tuple[str, int, int, int, str], Image] = OrderedDict()
        self._size = 0
        self._making: dict[tuple[str, int, int, int, str], asyncio.Task[Image]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="captioner-thumbnail")
        self._stack = AsyncExitStack()
        self._archives = Archives(ImageSettings().max_image_bytes)

    async def __aenter__(self) -> Self:
        """Get ready; decoders start when they are first needed."""
        self._decoders = {
            name: self._stack.enter_context(
                DecoderPool(FitOptions(ImageSettings(max_side=side, min_side=1)), AT_ONCE)
            )
            for name, side in SIDES.items()
        }
        budget = MemoryBudget(KEPT)
        fetcher = Fetcher(ImageSettings(), budget, self._archives)
        self._fetcher = await self._stack.enter_async_context(fetcher)
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the decoders and close all connections."""
        await self._stack.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._archives.close()

    async def get(self, kind: str, generation: int, number: int, which: int, size: str) -> Image:
        """Return an image of a row or of a failure.

        Args:
            kind: ``rows`` or ``failures``.
            generation: Of its lines.
            number: Of the row.
            which: Of its images.
            size: One of `SIDES`.
        """
        place = kind, generation, number, which, size
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        if place not in self._making:
            self._making[place] = asyncio.create_task(self._find(place))
            self._making[place].add_done_callback(lambda _: self._making.pop(place))
        return await asyncio.shield(self._making[place])

    async def _find(self, place: tuple[str, int, int, int, str]) -> Image:
        kind, _, number, which, size = place
        loop = asyncio.get_running_loop()
        async with self._slots:  # so many images are in memory, as they are and drawn
            images = await loop.run_in_executor(self._threads, self._shelf.images, kind, number)
            if which >= len(images):
                return Image("", b"", "the record has no such image")
            made = await self._make(images[which], size)
        if made.data:  # what is not there may come
            self._kept[place] = made
            self._size += len(made.data)
        while self._size > KEPT:
            _, oldest = self._kept.popitem(last=False)
            self._size -= len(oldest.data)
        return made

    async def _make(self, image: ImageRef, size: str) -> Image:
        try:
            data = await self._data(image)
            if data is None:
                return Image("", b"", _why_not(image))
            loop = asyncio.get_running_loop()
            drawn = await loop.run_in_executor(
                self._threads, self._decoders[size].render, data, _REDRAW
            )
        except (RecordError, DecoderError, StoppedError) as error:
            return Image("", b"", str(error))
        return Image(drawn[0].media_type, drawn[0].data)

    async def _data(self, image: ImageRef) -> bytes | None:
        if image.url is not None:
            found = (await self._fetcher.fetch((image.url,), reserve=False)).images[image.url]
            if isinstance(found, Exception):
                raise found
            return found
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._shelf.data, image)
