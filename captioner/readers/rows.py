"""Conversion of rows to records, and delivery of the records in batches.

Images inside a row do not become part of its JSON, because Base64 makes them a third larger.
The JSON names them by their digest, and the record carries their bytes.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import math
from abc import ABC, abstractmethod
from contextlib import closing
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.keys import digest
from captioner.core.types import DIGEST, InputRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator

MAX_LINE = 16 << 20
"""Bytes of JSON; a longer record is a fault."""

SHOWN = 200
"""Bytes shown of a record that is too long."""

BATCH_ROWS = 256
BATCH_BYTES = 8 << 20
"""A batch is full at this number of rows, or of bytes with their images."""


async def batches_from_thread(
    records: Generator[InputRecord, None, None],
    max_line: int = MAX_LINE,
    stop: Callable[[], None] = lambda: None,
) -> AsyncIterator[list[InputRecord]]:
    """Yield the records of a generator that blocks, in batches.

    Args:
        records: The generator.
        max_line: Length limit of a record in bytes, without images.
        stop: Called if the run was stopped while the generator blocks.
    """
    batches = _batches(records, max_line)

    def close(step: asyncio.Future[Any]) -> None:
        if not step.cancelled():  # as it is when the loop ends while the thread still reads
            step.exception()  # an error after the run was stopped is not reported
            batches.close()

    while True:
        step = asyncio.ensure_future(asyncio.to_thread(next, batches, None))
        try:
            batch = await asyncio.shield(step)
        except asyncio.CancelledError:
            # A generator cannot be closed while the thread runs it.
            step.add_done_callback(close)
            stop()
            raise
        if batch is None:
            return
        try:
            yield batch
        except GeneratorExit:
            batches.close()
            raise


class RecordSource(ABC):
    """A source whose subclass reads its records one after the other, in a thread.

    Attributes:
        max_line: Length limit of a record in bytes, without images.
    """

    max_line = MAX_LINE

    @property
    def size(self) -> int:
        """Bytes of the input, 0 if unknown."""
        return 0

    def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the records in order."""
        return batches_from_thread(self._records(), self.max_line, self.stop)

    def stop(self) -> None:  # noqa: B027 - most sources have nothing to end
        """End what a thread waits for, if the source can; its records end there."""

    @abstractmethod
    def _records(self) -> Generator[InputRecord, None, None]:
        """Yield the records in order, in a thread."""


def _batches(
    records: Generator[InputRecord, None, None], max_line: int
) -> Generator[list[InputRecord], None, None]:
    batch: list[InputRecord] = []
    size = 0
    with closing(records):
        for record in records:
            if len(record.raw) > max_line and record.fault is None:
                record = _too_long(record, max_line)  # noqa: PLW2901 - takes its place
            batch.append(record)
            size += len(record.raw) + sum(len(data) for _, data in record.images)
            if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _too_long(record: InputRecord, limit: int) -> InputRecord:
    fault = "record_too_long", too_long_message(len(record.raw), limit)
    return InputRecord(record.number, record.raw[:SHOWN], record.end, fault, digest(record.raw))


def too_long_message(size: int, limit: int) -> str:
    """Return the message about a record that is too long."""
    return f"the record has {size} bytes; the most is {limit} (--max-line)"


def record_of(
    number: int, row: dict[str, Any], end: int, image_columns: frozenset[str] = frozenset()
) -> InputRecord:
    """Return a row as a record.

    Args:
        number: Position in the input, from 1.
        row: Values by column.
        end: See `InputRecord`.
        image_columns: Columns whose bytes are images. A value ``{bytes, path}`` is an image in
            any column.
    """
    images: list[tuple[str, bytes]] = []
    record = {
        name: _plain(value, images, is_image=name in image_columns) for name, value in row.items()
    }
    return InputRecord(number, dumped(record), end, images=tuple(images))


def plain(row: dict[str, Any], *, is_image: bool = False) -> dict[str, Any]:
    """Return a row as JSON values, with its images as ``{"bytes": "<base64>"}``.

    Args:
        row: Values by column.
        is_image: All bytes are images. By default only those in ``{bytes, path}`` are.
    """
    values: dict[str, Any] = _plain(row, None, is_image=is_image)
    return values


def fault_record(
    number: int, content: dict[str, Any], end: int, code: str, message: str
) -> InputRecord:
    """Return the record of a part of the input that cannot be read.

    Its key is computed from ``content`` and ``message``: resumed runs find it only if both stay
    the same.
    """
    raw = dumped(content)
    key = digest(raw + message.encode(errors="replace"))
    return InputRecord(number, raw, end, (code, message), key)


def broken_input(
    number: int, place: dict[str, str], end: int, code: str, message: str
) -> InputRecord:
    """Return the fault of an input that cannot be read after record ``number - 1``."""
    return fault_record(number, {**place, "after": number - 1}, end, code, message)


def one_line(error: Exception, length: int = 200) -> str:
    """Return the first characters of an error's message in one line."""
    return " ".join(str(error).split())[:length]


def dumped(record: Any) -> bytes:
    """Return a value as JSON; integers may have more than 64 bits."""
    try:
        return orjson.dumps(record)
    except TypeError:
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(
            errors="replace"
        )


def _plain(  # noqa: PLR0911 - one return for each type
    value: Any, images: list[tuple[str, bytes]] | None, *, is_image: bool
) -> Any:
    """Return a value as a JSON value; add its images to ``images``, or include them."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        data = value.get("bytes")
        if isinstance(data, bytes) and value.keys() <= {"bytes", "path"}:
            return _image(data, images, value.get("path"))
        return {str(name): _plain(one, images, is_image=is_image) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, images, is_image=is_image) for one in value]
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return _image(data, images) if is_image else base64.b64encode(data).decode()
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if hasattr(value, "tolist"):  # a NumPy array or scalar
        return _plain(value.tolist(), images, is_image=is_image)
    return str(value)  # a decimal number, among others


def _image(data: bytes, images: list[tuple[str, bytes]] | None, path: str | None = None) -> Any:
    if images is None:
        return {"bytes": base64.b64encode(data).decode()}
    name = digest(data).hex()
    images.append((name, data))
    return {"path": path, DIGEST: name} if path else {DIGEST: name}
