"""Which records of an input a run takes: those of ``--where``, ``--sample`` and ``--limit``."""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
from array import array
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import RecordError, SettingsError
from captioner.core.jsonbytes import excess
from captioner.core.keys import digest, off_the_loop
from captioner.core.types import ImageRef
from captioner.core.where import Where
from captioner.engine.conversation import images_of, read_turns
from captioner.engine.engine import image_folders
from captioner.images.archives import Archives

if TYPE_CHECKING:
    from collections.abc import Callable

    from captioner.core.protocols import Source
    from captioner.core.types import InputRecord
    from captioner.settings.settings import Settings

logger = logging.getLogger(__name__)

_BATCH = 100
"""Records between which other tasks run while records are chosen."""


class Selection:
    """The records of a source that a run takes; a source itself.

    ``sample`` chooses among those of ``where``, and ``limit`` takes the first of the rest.

    Args:
        source: The whole input.
        settings: The settings of the run, with the image field of the input.
    """

    def __init__(self, source: Source, settings: Settings) -> None:
        self._source = source
        self._settings = settings
        self._records = records = settings.records
        self._where = Where(records.where, "where") if records.where is not None else None
        self._chosen: array[int] | None = None  # positions of the sample, in order
        self._told = False

    @property
    def size(self) -> int:
        """See `Source`."""
        return self._source.size

    @property
    def is_whole(self) -> bool:
        """Whether it has every record of the source."""
        records = self._records
        return records.where is None and records.sample is None and records.limit is None

    async def batches(self) -> AsyncGenerator[list[InputRecord], None]:
        """Yield the chosen records; see `Source`."""
        if self._records.sample is None:
            batches = self._matching()
        else:
            batches = self._sampled(self._records.sample)
        left = self._records.limit
        try:
            async for batch in batches:
                if found := batch[:left]:
                    yield found
                if left is not None:
                    left -= len(found)
                    if not left:
                        return
        finally:
            await batches.aclose()

    async def _matching(self) -> AsyncGenerator[list[InputRecord], None]:
        """Yield the records for which ``where`` is true."""
        batches = self._source.batches()
        read = found = 0
        try:
            async for batch in batches:
                read += len(batch)
                if self._where is None:
                    yield batch
                    continue
                for at in range(0, len(batch), _BATCH):
                    some = await asyncio.to_thread(self._filtered, batch[at : at + _BATCH])
                    found += len(some)
                    if some:
                        yield some
        finally:
            if isinstance(batches, AsyncGenerator):
                await batches.aclose()
        if self._where is not None and read:
            self._report(self._where, found)

    def _report(self, where: Where, found: int) -> None:
        """Warn of names that no record has: they may be misspelt."""
        unseen = ", ".join(sorted(where.unseen))
        hint = f"no record has a field {unseen}"
        if not found:
            hint = f"; {hint}" if unseen else ""
            raise SettingsError(f"where: it is true for no record: {where.text}{hint}")
        if unseen and not self._told:
            self._told = True
            logger.warning("where: %s", hint)

    async def _sampled(self, count: int) -> AsyncGenerator[list[InputRecord], None]:
        """Yield the records of the sample, in the order of the input."""
        if self._chosen is None:
            self._chosen = await self._choose(count)
        chosen = iter(self._chosen)
        wanted, position = next(chosen, -1), 0
        batches = self._matching()
        try:
            async for batch in batches:
                found = []
                while position <= wanted < position + len(batch):
                    found.append(batch[wanted - position])
                    wanted = next(chosen, -1)
                position += len(batch)
                if found:
                    yield found
                if wanted < 0:
                    return
        finally:
            await batches.aclose()

    async def _choose(self, count: int) -> array[int]:
        """Return the positions of the records whose keys, hashed with the seed, are smallest.

        So the choice does not depend on the order of the input, and changes little if it grows.
        """
        keys = self._settings.record_keys
        seed = str(self._records.seed).encode()
        best: list[tuple[int, int]] = []  # a heap with the largest hash first
        position = 0
        async for batch in self._matching():
            for key in await off_the_loop(keys.of_records, batch):
                entry = -int.from_bytes(digest(seed + b"\0" + key), "big"), -position
                position += 1
                if len(best) < count:
                    heapq.heappush(best, entry)
                elif entry > best[0]:
                    heapq.heapreplace(best, entry)
            await asyncio.sleep(0)
        return array("Q", sorted(-at for _, at in best))

    def _filtered(self, batch: list[InputRecord]) -> list[InputRecord]:
        return [record for record in batch if self._is_wanted(record)]

    def _is_wanted(self, record: InputRecord) -> bool:
        if self._where is None:
            return True
        value: Any = None
        if not excess(record.raw):
            with suppress(orjson.JSONDecodeError):
                value = orjson.loads(record.raw)
        image = _Image(self, record, value)
        computed: dict[str, Callable[[], Any]] = {
            "file": lambda: image.file,
            "folder": lambda: image.folder,
            "size": lambda: image.size,
        }
        return self._where(value, computed)

    def image_of(self, value: Any) -> ImageRef | None:
        """Return the first image of a parsed record."""
        if isinstance(value, dict):
            with suppress(RecordError):
                turns = read_turns(value, self._records, self._settings.prompt)
                return next(iter(images_of(turns)), None)
        return None

    def file_size(self, path: str) -> int | None:
        """Return the bytes of an image file; None if there is none."""
        found = self._folders.find(path)
        with suppress(OSError):
            return os.stat(found).st_size if found else None  # noqa: PTH116 - a path may be anything
        return None

    @cached_property
    def _folders(self) -> Any:
        return image_folders(self._settings, Archives(self._settings.images.max_image_bytes))


class _Image:
    """What an expression may ask about the first image of a record."""

    def __init__(self, selection: Selection, record: InputRecord, value: Any) -> None:
        self._selection = selection
        self._record = record
        self._value = value

    @cached_property
    def _image(self) -> ImageRef:
        return self._selection.image_of(self._value) or ImageRef()

    @property
    def file(self) -> str | None:
        """Its file name."""
        return file_of(self._image)

    @property
    def folder(self) -> str | None:
        """Its folder, as the record gives it; empty for a file beside the input."""
        return folder_of(self._image)

    @property
    def size(self) -> int | None:
        """Its bytes; None if it is elsewhere or missing."""
        image = self._image
        if image.data is not None:
            return len(image.data)
        if image.digest is not None:
            return len(dict(self._record.images).get(image.digest, b"")) or None
        return self._selection.file_size(image.path) if image.path else None


def file_of(image: ImageRef | None) -> str | None:
    """Return the file name of an image; None if it is in no file."""
    path = _path_of(image)
    return path.name if path else None


def folder_of(image: ImageRef | None) -> str | None:
    """Return the folder of an image, as its record gives it; empty for a file beside the input."""
    path = _path_of(image)
    return str(path.parent).removeprefix(".") if path else None


def _path_of(image: ImageRef | None) -> PurePath | None:
    where = (image.path or image.url) if image else None
    return PurePath(where) if where else None
