"""Records from a JSONL file or from one top-level JSON array, streamed in large blocks."""

from __future__ import annotations

import re
from contextlib import aclosing
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.core.errors import DamagedInputError
from captioner.core.jsonbytes import STRING
from captioner.core.keys import KEY_BYTES
from captioner.core.types import InputRecord
from captioner.readers.bytestreams import open_stream
from captioner.readers.rows import broken_input

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from captioner.readers.bytestreams import ByteStream

BLOCK = 1 << 19
MAX_LINE = 16 << 20
"""Bytes: a longer record is skipped without being held in memory."""

_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_KEPT = 200


class JsonlSource:
    """The records of a file: one JSON object a line, or the elements of one JSON array.

    Which of the two it is, the first character of a ``.json`` file tells; other files are lines.
    Empty lines are no records. A record over ``max_line`` bytes is a fault, and so is an array
    that ends too early.

    Args:
        file: The file, UTF-8, or its bytes.
        may_be_array: It may be an array; by default a ``.json`` file may.
        max_line: Longest record in bytes.
        block: Bytes read at a time.
    """

    def __init__(
        self,
        file: Path | ByteStream,
        *,
        may_be_array: bool | None = None,
        max_line: int = MAX_LINE,
        block: int = BLOCK,
    ) -> None:
        if isinstance(file, Path):
            may_be_array = file.suffix.lower() == ".json" if may_be_array is None else may_be_array
            file = open_stream(file)
        self._blocks = file
        self._may_be_array = bool(may_be_array)
        self._max_line = max_line
        self._block = block

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._blocks.size

    async def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the records in order, one block's worth at a time."""
        splitter: _Lines | _Array | None = None
        head = b""
        damage = ""
        number = 0
        async with aclosing(self._blocks.read(self._block)) as blocks:
            try:
                async for block in blocks:
                    if splitter is None:
                        head += block
                        lead = len(_BOM) if head.startswith(_BOM) else 0
                        text = head[lead:]
                        if _BOM.startswith(head) or not text.strip():
                            continue
                        is_array = self._may_be_array and text.lstrip()[:1] == b"["
                        splitter = (_Array if is_array else _Lines)(self._max_line, lead)
                        found = splitter.feed(text)
                    else:
                        found = splitter.feed(block)
                    if found:
                        number = found[-1].number
                        yield found
            except DamagedInputError as error:
                damage = str(error)
        if splitter is not None and (found := splitter.finish()):
            number = found[-1].number
            yield found
        if damage:
            yield [broken_input(number + 1, {}, 0, "bad_input", damage)]


class _TooLong:
    """Stands for a record that is skipped: its beginning, and the key of all of it."""

    def __init__(self, data: bytes = b"") -> None:
        self._head = b""
        self._hash = blake2b(digest_size=KEY_BYTES)
        self.size = 0
        self.add(data)

    @property
    def head(self) -> bytes:
        return self._head.strip()

    def add(self, data: bytes) -> None:
        if len(self._head) < _KEPT:
            self._head += data[: _KEPT - len(self._head)]
        self._hash.update(data)
        self.size += len(data)

    def digest(self) -> bytes:
        return self._hash.digest()

    def line(self, number: int, end: int, max_line: int) -> InputRecord:
        fault = (
            "record_too_long",
            f"the record has {self.size:,} bytes; the most is {max_line:,}",
        )
        return InputRecord(number, self.head, end, fault, self._hash.digest())


class _Lines:
    """Splits blocks into lines."""

    def __init__(self, max_line: int, offset: int) -> None:
        self._max_line = max_line
        self._offset = offset  # of the first byte not yet handed out
        self._number = 0
        self._rest = b""
        self._skipped: _TooLong | None = None

    def feed(self, block: bytes) -> list[InputRecord]:
        found: list[InputRecord] = []
        if self._skipped is not None:
            end = block.find(b"\n")
            if end < 0:
                self._skipped.add(block)
                self._offset += len(block)
                return found
            self._skipped.add(block[:end])
            self._offset += end + 1
            found.append(self._skipped.line(self._number, self._offset, self._max_line))
            self._skipped = None
            block = block[end + 1 :]
        lines = (self._rest + block).split(b"\n")
        self._rest = lines.pop()
        new = tuple.__new__
        number, offset = self._number, self._offset
        for line in lines:
            number += 1
            offset += len(line) + 1
            if len(line) > self._max_line:
                found.append(_TooLong(line).line(number, offset, self._max_line))
            elif raw := line.strip():
                # The constructor of a named tuple costs twice as much, and this is every record.
                found.append(new(InputRecord, (number, raw, offset, None, None, ())))
        self._number, self._offset = number, offset
        if len(self._rest) > self._max_line:
            self._number += 1
            self._offset += len(self._rest)
            self._skipped = _TooLong(self._rest)
            self._rest = b""
        return found

    def finish(self) -> list[InputRecord]:
        if self._skipped is not None:
            return [self._skipped.line(self._number, self._offset, self._max_line)]
        raw = self._rest.strip()
        return [InputRecord(self._number + 1, raw, self._offset + len(self._rest))] if raw else []


_TOKEN = re.compile(STRING + rb'|[{}\[\],"]', re.DOTALL)
_STRING_END = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class _Array:
    """Splits blocks of one JSON array into its elements, without parsing them.

    The scan stops before a string that a block cuts in two and goes on there with the next one.
    """

    def __init__(self, max_line: int, offset: int) -> None:
        self._max_line = max_line
        self._number = 0
        self._depth = 0
        self._rest = b""  # from the current element's beginning on
        self._scanned = 0  # bytes of it that are behind us
        self._in_string = False
        self._skipped: _TooLong | None = None
        self._closed = False
        self._offset = offset  # of `_rest`

    def feed(self, block: bytes) -> list[InputRecord]:
        found: list[InputRecord] = []
        data = self._rest + block
        begin = 0
        at = self._scanned
        while not self._closed:
            token = _STRING_END.match(data, at) if self._in_string else _TOKEN.search(data, at)
            if token is None:
                # A string that is only partly here is scanned again, unless it is being skipped.
                at = at if self._in_string else len(data)
                break
            char = data[token.start() : token.start() + 1]
            if self._in_string:
                self._in_string = False
            elif char == b'"' and len(token.group()) == 1:
                at = token.start()
                if self._skipped is not None:
                    self._in_string = True
                    at += 1
                    continue
                break
            elif char in b"{[":
                self._depth += 1
                if self._depth == 1:
                    begin = token.end()
            elif char in b"}]":
                self._depth -= 1
                if self._depth == 0:
                    self._closed = True
                    self._element(data[begin : token.start()], token.end(), found)
                    begin = token.end()
            elif char == b"," and self._depth == 1:
                self._element(data[begin : token.start()], token.end(), found)
                begin = token.end()
            at = token.end()
        self._keep(data, begin, at)
        return found

    def _keep(self, data: bytes, begin: int, at: int) -> None:
        self._offset += begin
        rest = data[begin:]
        if self._depth == 0 and not rest.strip():
            self._offset += len(rest)
            self._rest, self._scanned = b"", 0
            return
        if self._skipped is None and len(rest) > self._max_line:
            self._skipped = _TooLong()
            if at < len(data) and not self._closed:  # stopped before a string that has no end yet
                self._in_string = True
                at += 1
        if self._skipped is not None:
            # Keep a backslash that escapes what the next block begins with.
            slashes = len(rest) - len(rest.rstrip(b"\\"))
            keep = slashes % 2 if self._in_string else 0
            self._skipped.add(rest[: len(rest) - keep])
            self._offset += len(rest) - keep
            self._rest = rest[len(rest) - keep :]
            self._scanned = 0
        else:
            self._rest = rest
            self._scanned = at - begin

    def _element(self, raw: bytes, end: int, found: list[InputRecord]) -> None:
        if self._skipped is not None or len(raw) > self._max_line:
            self._number += 1
            self._skipped = self._skipped or _TooLong()
            self._skipped.add(raw)
            found.append(self._skipped.line(self._number, self._offset + end, self._max_line))
            self._skipped = None
        elif (raw := raw.strip()) or not self._closed:
            self._number += 1
            found.append(InputRecord(self._number, raw, self._offset + end))

    def finish(self) -> list[InputRecord]:
        rest = self._rest.strip()
        if self._closed and not rest and self._skipped is None:
            return []
        what = (
            "something follows the end of the array"
            if self._closed
            else "the array is not closed: the file seems to be cut short"
        )
        key = None
        if self._skipped is not None:
            self._skipped.add(self._rest)
            rest, key = self._skipped.head, self._skipped.digest()
        end = self._offset + len(self._rest)
        return [InputRecord(self._number + 1, rest, end, ("bad_json", what), key)]
