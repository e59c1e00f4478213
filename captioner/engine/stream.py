"""Captions without files: for a stream of records, or one image at a time."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson

from captioner.core.errors import CaptionerError, SettingsError
from captioner.core.types import Caption, InputRecord, PreparedRecord
from captioner.engine.engine import Engine
from captioner.settings.context import RunContext
from captioner.settings.options import CONVERSATION_FIELDS
from captioner.settings.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from captioner.core.protocols import Dialect, Transport
    from captioner.core.types import Outcome

Record = Mapping[str, Any] | str | Path
"""A record as in a JSONL file, or the path or URL of an image."""

_BATCH = 16


async def caption_stream(
    records: Iterable[Record] | AsyncIterable[Record],
    settings: Settings | None = None,
    *,
    dialect: Dialect | None = None,
    transport: Transport | None = None,
    **options: Any,
) -> AsyncIterator[Outcome]:
    """Yield an outcome for every record as it is settled, in no particular order.

    ``outcome.record.number`` counts the records from 1; ``outcome.ok`` is true for a `Caption` and
    false for a `Failure`. Nothing is written and nothing is resumed. If the caller leaves the loop
    early, requests in flight are given up when Python closes the generator; use
    ``contextlib.aclosing`` to close it at once.

    Args:
        records: Records or paths. They are read only as fast as they are captioned.
        settings: The settings; None makes them from ``options``.
        dialect: Builds requests and parses responses instead of OpenAI's chat completions.
        transport: Sends requests instead of aiohttp.
        **options: Options by name, as in `Settings.create`.

    Raises:
        SettingsError: The settings cannot work.
        RunError: The endpoint will caption no record.
    """
    context = RunContext(_settings(settings, options))
    outcomes = _QueueSink(context.settings.run.concurrency)
    async with Engine.open(context, dialect, transport) as engine:
        pipeline = engine.pipeline(context, outcomes)
        task = asyncio.create_task(pipeline.run(_lines(records)))
        task.add_done_callback(outcomes.end)
        try:
            while (outcome := await outcomes.get()) is not None:
                yield outcome
            await task
        finally:
            context.cancel.force()
            await asyncio.gather(task, return_exceptions=True)


class Captioner:
    """Captions one image per call; calls may run concurrently.

    Args:
        settings: The settings; None makes them from ``options``.
        dialect: Builds requests and parses responses instead of OpenAI's chat completions.
        transport: Sends requests instead of aiohttp.
        **options: Options by name, as in `Settings.create`.

    Example:
        ::

            async with Captioner(base_url="http://localhost:8000/v1") as captioner:
                print(await captioner.caption("photo.jpg"))
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        dialect: Dialect | None = None,
        transport: Transport | None = None,
        **options: Any,
    ) -> None:
        self._settings = _settings(settings, options)
        self._dialect = dialect
        self._transport = transport
        self._stack = AsyncExitStack()
        self._engine: Engine | None = None
        field = self._settings.records.conversation_field
        self._questions = frozenset({field} if field else CONVERSATION_FIELDS)

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            SettingsError: The settings cannot work.
        """
        self._engine = await self._stack.enter_async_context(
            Engine.open(RunContext(self._settings), self._dialect, self._transport)
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Disconnect."""
        self._engine = None
        await self._stack.aclose()

    async def caption(self, image: Record | bytes, *, prompt: str | None = None) -> Any:
        """Return the caption of one image: text, or what `Caption.text` may be.

        Args:
            image: A path, a URL, the image's bytes, or a whole record.
            prompt: The question; by default that of the record or the settings.

        Raises:
            CaptionError: The image cannot be captioned; ``code`` and ``message`` say why.
            RunError: The endpoint will caption no record.
        """
        if self._engine is None:
            raise SettingsError("use the Captioner as an async context manager")
        try:
            record = _record(image)
            if prompt is not None:
                record = {name: record[name] for name in record if name not in self._questions}
                record["prompt"] = prompt
            found = InputRecord(1, _dump(record))
        except (TypeError, ValueError) as error:
            raise CaptionError(
                "bad_record", f"the record cannot be written as JSON: {error}"
            ) from None
        prepared = await self._engine.async_preparer.prepare(found)
        outcome: Outcome
        if isinstance(prepared, PreparedRecord):
            try:
                outcome = await self._engine.deduplicator.caption(prepared)
            finally:
                self._engine.memory.release(prepared.reserved)
        else:
            outcome = prepared
        if isinstance(outcome, Caption):
            return outcome.text
        raise CaptionError(outcome.code, outcome.message)


class CaptionError(CaptionerError):
    """One image could not be captioned.

    Args:
        code: Machine-readable code, as in the failures file.
        message: One plain sentence for a person.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _QueueSink:
    """Hands outcomes to the iterating caller; a worker waits until its outcome is taken."""

    def __init__(self, size: int) -> None:
        self._queue: asyncio.Queue[Outcome | None] = asyncio.Queue(size)
        self._ended = False

    async def put(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            await self._queue.put(outcome)

    def end(self, _: object) -> None:
        self._ended = True
        if self._queue.empty():
            self._queue.put_nowait(None)

    async def get(self) -> Outcome | None:
        if self._ended and self._queue.empty():
            return None
        return await self._queue.get()


def _settings(settings: Settings | None, options: dict[str, Any]) -> Settings:
    if settings is None:
        # A stream overwrites nothing: the caller has the record and its earlier caption.
        settings = Settings.create(**{"existing": "replace", **options})
    elif options:
        raise SettingsError("give either settings or single options, not both")
    if settings.run.processes > 1:
        raise SettingsError("processes: more than one is only for runs into files")
    return settings


async def _lines(
    records: Iterable[Record] | AsyncIterable[Record],
) -> AsyncIterator[list[InputRecord]]:
    number = 0
    if isinstance(records, AsyncIterable):
        async for record in records:
            number += 1
            yield [_line(number, record)]
        return
    batch: list[InputRecord] = []
    for record in records:
        number += 1
        batch.append(_line(number, record))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _line(number: int, record: Record) -> InputRecord:
    try:
        return InputRecord(number, _dump(_record(record)))
    except (TypeError, ValueError) as error:
        return InputRecord(
            number, b"", fault=("bad_record", f"the record cannot be written as JSON: {error}")
        )


def _record(image: Record | bytes) -> dict[str, Any]:
    if isinstance(image, Mapping):
        return dict(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return {"image": {"bytes": base64.b64encode(image).decode()}}
    if isinstance(image, str | os.PathLike):
        return {"image": os.fspath(image)}
    raise TypeError(f"{type(image).__name__} is neither a record nor an image")


def _dump(record: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(record)
    except TypeError:  # integers above 64 bits, among others
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
