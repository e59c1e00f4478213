"""Records from a JSONL file or from one JSON array, read in blocks."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import aclosing
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from captioner.core.badjson import is_json
from captioner.core.errors import DamagedInputError
from captioner.core.jsonbytes import SHORT, STRING
from captioner.core.keys import KEY_BYTES
from captioner.core.types import InputRecord
from captioner.readers.bytestreams import open_stream
from captioner.readers.disguises import HEAD, check_lines, check_text
from captioner.readers.rows import MAX_LINE, SHOWN, broken_input, too_long_message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from captioner.readers.bytestreams import ByteStream

logger = logging.getLogger(__name__)

T = TypeVar("T")

BLOCK = 1 << 19
_BOM = b"\xef\xbb\xbf"
_TOKEN = re.compile(STRING + rb'|[{}\[\],"]', re.DOTALL)
_STRING_PART = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


class JsonlSource:
    """The records of a file: one JSON object a line, or the elements of one JSON array.

    A file that may be an array is one if its first character is ``[``; another one is, with a
    warning, if it looks like an array of objects that is no line followed by others. Empty lines
    are skipped. A record over ``max_line`` bytes is a fault, and so is the missing end of an array.

    Args:
        file: The file, UTF-8, or its bytes.
        may_be_array: Whether the file may be an array; by default, a ``.json`` file may.
        max_line: Length limit of a record in bytes.
        block: Bytes read at a time.
        name: The file's name, for messages.
    """

    def __init__(
        self,
        file: Path | ByteStream,
        *,
        may_be_array: bool | None = None,
        max_line: int = MAX_LINE,
        block: int = BLOCK,
        name: str = "the input",
    ) -> None:
        if isinstance(file, Path):
            name = file.name
            may_be_array = file.suffix.lower() == ".json" if may_be_array is None else may_be_array
            file = open_stream(file)
        self._stream = file
        self._may_be_array = bool(may_be_array)
        self._max_line = max_line
        self._block = block
        self._name = name
        self._told = False

    @property
    def size(self) -> int:
        """Bytes of the file, 0 if unknown."""
        return self._stream.size

    async def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the records in order, one batch for each block.

        Raises:
            SettingsError: The input is no UTF-8 text.
        """
        splitter: _Lines | _Array | None = None
        parts: list[bytes] = []  # of what is read while it is not known how to split it
        size = enough = 0
        damage = ""
        number = 0
        async with aclosing(self._stream.read(self._block)) as blocks:
            try:
                async for block in blocks:
                    if splitter is None:
                        parts.append(block)
                        size += len(block)
                        if size < enough:
                            continue
                        head = b"".join(parts)
                        splitter = await _by_size(size, self._splitter, head)
                        if splitter is None:
                            parts, enough = [head], 2 * size if size > self._block else 0
                            continue
                        parts = []
                        block = head.removeprefix(_BOM)  # noqa: PLW2901 - with what came before
                    found = await _by_size(splitter.size + len(block), splitter.feed, block)
                    if found:
                        number = found[-1].number
                        yield found
            except DamagedInputError as error:
                damage = str(error)
        found = []
        head = b"".join(parts)
        if splitter is None:
            splitter = await _by_size(size, partial(self._splitter, ended=True), head)
            if splitter is not None:
                found = await _by_size(size, splitter.feed, head.removeprefix(_BOM))
        if splitter is not None:
            found += await asyncio.to_thread(splitter.finish)
        if found:
            number = found[-1].number
            yield found
        if damage:
            yield [broken_input(number + 1, {}, 0, "bad_input", damage)]

    def _splitter(self, head: bytes, *, ended: bool = False) -> _Lines | _Array | None:
        """Return what splits an input that begins so; None if more of it is needed to tell.

        What is longer than a record may be is enough.
        """
        text = head.removeprefix(_BOM)
        lead = text.lstrip()
        is_long = len(text) > self._max_line
        if _BOM.startswith(head) or not (lead or is_long):
            return None
        check_text(self._name, head[:HEAD])
        is_array: bool | None = lead.startswith(b"[")
        if is_array and not self._may_be_array:
            is_array = _seems_array(lead, self._max_line, ended=ended or is_long)
            if is_array is None:
                return None
            if is_array and not self._told:
                self._told = True
                logger.warning("%s is one JSON array, not lines, and is read so", self._name)
        if not is_array:
            check_lines(self._name, text[:HEAD], ended=ended and len(text) <= HEAD)
        return (_Array if is_array else _Lines)(self._max_line, len(head) - len(text))


async def _by_size(size: int, work: Callable[[bytes], T], data: bytes) -> T:
    """Return what some work on so many bytes makes of data; a thread does it if they are many."""
    return await asyncio.to_thread(work, data) if size > SHORT else work(data)


def _seems_array(text: bytes, max_line: int, *, ended: bool) -> bool | None:
    """Return whether a text is one array of objects; None if more of it is needed to tell.

    It is none if a whole array is one line, or if no comma follows the first object.
    """
    inside = text[1:].lstrip()
    if inside and not inside.startswith(b"{"):
        return False
    line, newline, rest = text.partition(b"\n")
    if opens := not line[1:].strip():
        line, newline, rest = inside.partition(b"\n")
    if len(line) > max_line:
        return True
    if not newline and not ended:
        return None
    if not opens and is_json(line):
        return not rest.strip() if ended or rest.strip() else None
    if not is_json(line.removeprefix(b"[")):
        return bool(inside)
    return rest.lstrip()[:1] in (b",", b"]") if ended or rest.strip() else None


class _LongRecord:
    """A record that is too long: its size, its beginning and its key."""

    def __init__(self, data: bytes = b"") -> None:
        self._head = b""
        self._hash = blake2b(digest_size=KEY_BYTES)
        self._size = 0
        self.add(data)

    def add(self, data: bytes) -> None:
        self._head += data[: SHOWN - len(self._head)]
        self._hash.update(data)
        self._size += len(data)

    def fault(self, number: int, end: int, code: str, message: str) -> InputRecord:
        return InputRecord(number, self._head.strip(), end, (code, message), self._hash.digest())

    def too_long(self, number: int, end: int, limit: int) -> InputRecord:
        return self.fault(number, end, "record_too_long", too_long_message(self._size, limit))


class _Lines:
    """Splits blocks into lines."""

    def __init__(self, max_line: int, offset: int) -> None:
        self._max_line = max_line
        self._offset = offset  # of `_rest`, or after the part of `_skipped` that was read
        self._number = 0
        self._rest: list[bytes] = []  # the parts of a line that were read
        self.size = 0  # of all these, in bytes
        self._skipped: _LongRecord | None = None

    def feed(self, block: bytes) -> list[InputRecord]:
        found: list[InputRecord] = []
        if self._skipped is not None:
            line, newline, block = block.partition(b"\n")
            self._skipped.add(line)
            self._offset += len(line) + len(newline)
            if not newline:
                return found
            found.append(self._skipped.too_long(self._number, self._offset, self._max_line))
            self._skipped = None
        self._rest.append(block)
        self.size += len(block)
        if self.size <= self._max_line and b"\n" not in block:
            return found
        lines = b"".join(self._rest).split(b"\n")
        rest = lines.pop()
        self._rest, self.size = [rest], len(rest)
        new = tuple.__new__
        number, offset = self._number, self._offset
        for line in lines:
            number += 1
            offset += len(line) + 1
            if len(line) > self._max_line:
                found.append(_LongRecord(line).too_long(number, offset, self._max_line))
            elif raw := line.strip():
                # The constructor of a named tuple takes twice as long.
                found.append(new(InputRecord, (number, raw, offset, None, None, ())))
        self._number, self._offset = number, offset
        if self.size > self._max_line:
            self._number += 1
            self._offset += self.size
            self._skipped = _LongRecord(rest)
            self._rest, self.size = [], 0
        return found

    def finish(self) -> list[InputRecord]:
        if self._skipped is not None:
            return [self._skipped.too_long(self._number, self._offset, self._max_line)]
        raw = b"".join(self._rest).strip()
        return [InputRecord(self._number + 1, raw, self._offset + self.size)] if raw else []


class _Array:
    """Splits blocks of one JSON array into its elements, without parsing them."""

    def __init__(self, max_line: int, offset: int) -> None:
        self._max_line = max_line
        self._offset = offset  # of `_tail`
        self._number = 0
        self._parts: list[bytes] = []  # of the current element
        self.size = 0  # of all these, in bytes
        self._tail = b""  # a backslash that ended the last block
        self._depth = 0
        self._in_string = False
        self._closed = False
        self._skipped: _LongRecord | None = None

    def feed(self, block: bytes) -> list[InputRecord]:
        found: list[InputRecord] = []
        data = self._tail + block
        begin = at = 0
        while not self._closed:
            if self._in_string:
                part = _STRING_PART.match(data, at)
                at = part.end() if part else at  # before a backslash that ends the block
                if data[at : at + 1] != b'"':
                    break
                self._in_string = False
                at += 1
            token = _TOKEN.search(data, at)
            if token is None:
                at = len(data)
                break
            start, at = token.span()
            char = data[start : start + 1]
            if char == b'"':
                self._in_string = at == start + 1  # the string does not end in this block
            elif char in b"{[":
                self._depth += 1
                begin = at if self._depth == 1 else begin
            elif char in b"}]":
                self._depth -= 1
            self._closed = self._depth == 0
            if self._closed or (self._depth == 1 and char == b","):
                self._keep(data[begin:start])
                self._end_element(self._offset + at, found)
                begin = at
        if self._closed:
            at = len(data)
        self._keep(data[begin:at])
        self._offset += at
        self._tail = data[at:]
        return found

    def _keep(self, part: bytes) -> None:
        """Keep a part of an element, or add it to the record that is skipped."""
        if self._skipped is not None:
            self._skipped.add(part)
        elif self._depth or self._parts or part.strip():
            self._parts.append(part)
            self.size += len(part)
            if self.size > self._max_line:
                self._skipped = _LongRecord(self._whole())

    def _whole(self) -> bytes:
        """Return the parts of the current element, which are no longer kept."""
        whole = b"".join(self._parts)
        self._parts, self.size = [], 0
        return whole

    def _end_element(self, end: int, found: list[InputRecord]) -> None:
        if self._skipped is not None:
            self._number += 1
            found.append(self._skipped.too_long(self._number, end, self._max_line))
            self._skipped = None
        elif (raw := self._whole().strip()) or not self._closed:
            self._number += 1
            found.append(InputRecord(self._number, raw, end))

    def finish(self) -> list[InputRecord]:
        self._keep(self._tail)
        raw = self._whole().strip()
        if self._closed and not raw and self._skipped is None:
            return []
        message = "the array is not closed: the file seems to be cut short"
        if self._closed:
            message = "something follows the end of the array"
        number, end = self._number + 1, self._offset + len(self._tail)
        if self._skipped is None:
            return [InputRecord(number, raw, end, ("bad_json", message))]
        return [self._skipped.fault(number, end, "bad_json", message)]
