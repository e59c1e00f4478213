"""Images inside the tables of an input, found by their digest.

The tables are read in order, by the reader's child process. The images that pass are kept for a
while: who looks at the rows of an output in order reads its input once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from captioner.core.errors import CaptionerError
from captioner.readers.registry import OpenedInput, open_input

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from captioner.core.types import InputRecord
    from captioner.outputs.viewer.store import ViewerStore

CACHE_BYTES = 64 << 20
LONGEST_S = 15.0
"""Seconds of one search."""

_MOST_MISSING = 10_000


class InputImages:
    """Reads images of the Parquet and Arrow tables that an output was made from."""

    def __init__(self, store: ViewerStore) -> None:
        self._store = store
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0
        self._missing: set[str] = set()
        self._lock = asyncio.Lock()
        self._input: OpenedInput | None = None
        self._batches: AsyncIterator[list[InputRecord]] | None = None

    async def get(self, name: str) -> bytes:
        """Return the image with a digest.

        Raises:
            LookupError: It is not in the input, or was not found in time.
        """
        async with self._lock:
            until = time.monotonic() + LONGEST_S
            ends = 0
            while name not in self._cache:
                if ends == 2 or name in self._missing:
                    if len(self._missing) < _MOST_MISSING:
                        self._missing.add(name)
                    raise LookupError("the image is not in the input any more")
                if time.monotonic() > until:
                    raise LookupError("the image is still looked for in the input; ask again")
                ends += not await self._advance()
            self._cache.move_to_end(name)
            return self._cache[name]

    async def _advance(self) -> bool:
        """Read some records; return False at the end of the input, where it begins again."""
        if self._batches is None:
            self._batches = self._begin()
        try:
            batch = await anext(self._batches, None)
        except (CaptionerError, OSError) as error:
            self._batches = None
            raise LookupError(f"the input cannot be read: {error}") from None
        if batch is None:
            self._batches = None
            return False
        for record in batch:
            for name, data in record.images:
                self._size += len(data) - len(self._cache.pop(name, b""))
                self._cache[name] = data
        while self._size > CACHE_BYTES and len(self._cache) > 1:
            self._size -= len(self._cache.popitem(last=False)[1])
        return True

    def _begin(self) -> AsyncIterator[list[InputRecord]]:
        """Open the input, apart from the reader's, which other threads use."""
        reader = self._store.reader
        if reader.input is None or reader.source is None:
            raise LookupError("the image is inside the input, which cannot be opened any more")
        if reader.input.format not in ("parquet", "arrow"):
            raise LookupError("the image is inside the input, where the page does not read it")
        self._input = open_input(
            reader.source,
            reader.input.format,
            image_field=reader.input.image_field,
            split=reader.settings.get("split"),
        )
        return self._input.source.batches()

    async def close(self) -> None:
        """End the process that reads."""
        stop = getattr(self._input.source, "stop", None) if self._input is not None else None
        if stop is not None:
            await asyncio.to_thread(stop)
        close = getattr(self._batches, "aclose", None)
        if close is not None:
            with contextlib.suppress(Exception):
                await close()
