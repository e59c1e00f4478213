"""From a row of a table to a record: JSON that tells it from every other row.

Images inside a row stay out of the JSON, which would grow by a third of them: it names them by
their digest, and they come along with the record.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
import math
from typing import Any

import orjson

from captioner.core.keys import digest
from captioner.core.types import DIGEST, InputRecord

BATCH_ROWS = 256
BATCH_BYTES = 8 << 20
"""Rows, and bytes of images, that are handed on together."""


def line_of(
    number: int, row: dict[str, Any], end: int, image_columns: frozenset[str] = frozenset()
) -> InputRecord:
    """Return a row as a record.

    Args:
        number: Position in the input, from 1.
        row: Values by column.
        end: See `InputRecord`.
        image_columns: Columns whose bytes are images; ``{bytes, path}`` is one anywhere.
    """
    images: list[tuple[str, bytes]] = []
    record = {
        name: _plain(value, images, is_image=name in image_columns) for name, value in row.items()
    }
    return InputRecord(number, dumped(record), end, images=tuple(images))


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as JSON has it, images in it as ``{"bytes": "<base64>"}``."""
    images: list[tuple[str, bytes]] = []
    found: dict[str, Any] = _plain(row, images, is_image=False)
    if not images:
        return found
    held = dict(images)

    def unfold(value: Any) -> Any:
        if isinstance(value, dict):
            if value.get(DIGEST) in held:
                return {"bytes": base64.b64encode(held[value[DIGEST]]).decode()}
            return {name: unfold(one) for name, one in value.items()}
        return [unfold(one) for one in value] if isinstance(value, list) else value

    unfolded: dict[str, Any] = unfold(found)
    return unfolded


def fault_line(number: int, what: dict[str, Any], end: int, code: str, message: str) -> InputRecord:
    """Return what stands for a piece of the input that cannot be read."""
    raw = dumped(what)
    return InputRecord(
        number, raw, end, (code, message), digest(raw + message.encode(errors="replace"))
    )


def dumped(record: Any) -> bytes:
    """Return a value as JSON, integers beyond 64 bits as they are."""
    try:
        return orjson.dumps(record)
    except TypeError:
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(
            errors="replace"
        )


def _plain(  # noqa: PLR0911 - a row for each type
    value: Any, images: list[tuple[str, bytes]], *, is_image: bool
) -> Any:
    """Return a value as JSON has it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        data = value.get("bytes")
        if isinstance(data, bytes) and value.keys() <= {"bytes", "path"}:
            return _named(data, images, value.get("path"))
        return {str(name): _plain(one, images, is_image=is_image) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, images, is_image=is_image) for one in value]
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return _named(data, images) if is_image else base64.b64encode(data).decode()
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's
        return _plain(value.tolist(), images, is_image=is_image)
    return str(value)


def _named(data: bytes, images: list[tuple[str, bytes]], path: str | None = None) -> Any:
    name = digest(data).hex()
    images.append((name, data))
    return {"path": path, DIGEST: name} if path else {DIGEST: name}


class Batching:
    """Gathers lines until there are enough to be handed on."""

    def __init__(self) -> None:
        self._lines: list[InputRecord] = []
        self._bytes = 0

    def add(self, line: InputRecord) -> list[InputRecord] | None:
        """Take a line; return those gathered if they are enough."""
        self._lines.append(line)
        self._bytes += len(line.raw) + sum(len(data) for _, data in line.images)
        if len(self._lines) < BATCH_ROWS and self._bytes < BATCH_BYTES:
            return None
        return self.rest()

    def rest(self) -> list[InputRecord]:
        """Return those gathered."""
        lines, self._lines, self._bytes = self._lines, [], 0
        return lines
