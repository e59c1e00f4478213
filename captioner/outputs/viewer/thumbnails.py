"""Small versions of images, and of the middle frame of videos, for the viewer and the report."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

from captioner.core.memory import MemoryBudget
from captioner.core.types import ImageOverrides, ImageRef
from captioner.images.archives import Archives
from captioner.images.decoder_pool import DecoderPool
from captioner.images.fetch import Fetcher
from captioner.images.fit import FitOptions, Fitted
from captioner.outputs.viewer.input_images import InputImages
from captioner.settings.options import ImageSettings

if TYPE_CHECKING:
    from captioner.outputs.viewer.store import ViewerStore

SIDES = {"small": 320, "large": 1_280, "full": 8_192}
"""Longer side in pixels."""

CACHE_BYTES = 64 << 20
AT_ONCE = 2


def thumbnail_decoders(side: int, count: int) -> DecoderPool:
    """Return decoders for images of at most ``side`` pixels."""
    return DecoderPool(FitOptions(ImageSettings(max_side=side, min_side=1, frames=1)), count)


def thumbnail(decoders: DecoderPool, data: bytes) -> Fitted:
    """Return a small version of an image.

    Raises:
        RecordError: The image is invalid.
        DecoderError: The decoder failed.
    """
    return decoders.render(data, ImageOverrides(1.0, reencode=True))[0]


class Thumbnails:
    """Makes and caches small images. An async context manager."""

    def __init__(self, store: ViewerStore) -> None:
        self._store = store
        self._cache: OrderedDict[tuple[str, int, int, int, str], Fitted] = OrderedDict()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._stack = AsyncExitStack()
        self._inside = InputImages(store)

    async def __aenter__(self) -> Self:
        """Prepare decoders and connections; both start on first use."""
        self._decoders = {
            name: self._stack.enter_context(thumbnail_decoders(side, AT_ONCE))
            for name, side in SIDES.items()
        }
        self._stack.push_async_callback(self._inside.close)
        images = ImageSettings()
        archives = Archives(images.max_image_bytes, images.max_video_bytes)
        self._stack.callback(archives.close)
        fetcher = Fetcher(images, MemoryBudget(CACHE_BYTES), archives)
        self._fetcher = await self._stack.enter_async_context(fetcher)
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the decoders and close all connections."""
        await self._stack.aclose()

    async def get(self, kind: str, generation: int, number: int, which: int, size: str) -> Fitted:
        """Return a small image of a row or a failure.

        Args:
            kind: ``rows`` or ``failures``.
            generation: The generation of their lines.
            number: The number of the row or failure.
            which: The number of the image in it.
            size: A key of `SIDES`.

        Raises:
            LookupError: There is no such image.
            CaptionerError: The image cannot be fetched or decoded.
        """
        place = kind, generation, number, which, size
        if place not in self._cache:
            async with self._slots:  # bounds the memory for full-size images
                images = await asyncio.to_thread(self._store.images, kind, number)
                if which >= len(images):
                    raise LookupError("the record has no such image")
                data = await self._read(images[which])
                self._cache[place] = await asyncio.to_thread(thumbnail, self._decoders[size], data)
        found = self._cache[place]
        self._cache.move_to_end(place)
        while sum(len(one.data) for one in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return found

    async def _read(self, image: ImageRef) -> bytes:
        if image.url is not None:
            found = (await self._fetcher.fetch((image.url,), reserve=False)).images[image.url]
            if isinstance(found, Exception):
                raise found
            return found
        if image.digest is not None:
            return await self._inside.get(image.digest)
        data = await asyncio.to_thread(self._store.reader.contents.image_bytes, image, {})
        if data is None:
            raise LookupError(f"there is no file {str(image.path)[-200:]} (--image-root)")
        return data
