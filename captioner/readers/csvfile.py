"""Records from CSV and TSV files."""

from __future__ import annotations

import csv
import io
import logging
import re
import threading
from collections import deque
from typing import IO, TYPE_CHECKING

from captioner.core.errors import SettingsError
from captioner.core.humanize import exactly
from captioner.readers.bytestreams import FILE_ERRORS, open_binary, position
from captioner.readers.imagefiles import is_media
from captioner.readers.rows import RecordSource, fault_record, record_of
from captioner.readers.tables import name_twice

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from captioner.core.types import InputRecord

logger = logging.getLogger(__name__)

MOST_READ_AGAIN = 64
"""Of the length limit of a row: how much of a file is read again after rows that are broken."""

_EXCEL = re.compile(r'"?sep=(.)"?')
"""The line in which Excel names the separator."""

_REASONS = {
    "unexpected end of data": "its quote is not closed up to the end of the file: close it",
    "expected after": "text follows a closing quote: write a quote inside of a value twice",
}
"""What the errors of the csv module mean."""

_STEP = 1 << 16
_SEPARATORS = ",;\t|"
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_BLANK = _SEPARATORS + " \r\n"
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""Surrogates that stand for bytes that are not UTF-8."""


class CsvSource(RecordSource):
    """The rows of a CSV or TSV file (RFC 4180); all values are text.

    If the header does not contain the separator but another common one, that is used.

    Args:
        path: The file: UTF-8, possibly compressed.
        delimiter: The character between two values.
        max_line: Length limit of a row in bytes.

    Raises:
        SettingsError: The header cannot be read, or names a column twice.
    """

    def __init__(self, path: Path, delimiter: str, *, max_line: int) -> None:
        self._path = path
        self._delimiter = delimiter
        self._stopped = threading.Event()
        self.max_line = max_line
        # It is the same for the whole process. Rows are limited by their lines.
        csv.field_size_limit(max(csv.field_size_limit(), max_line))
        self._header: list[str] = []
        self._rows_before = 1  # the header, and before it the line with the separator
        try:
            with open_binary(path) as raw:
                lines = _Lines(raw, max_line, self._stopped)
                self._read_header(lines)
        except FILE_ERRORS:
            return  # reported as a failure, where the rows are read

    @property
    def size(self) -> int:
        """Bytes of the file on disk."""
        return self._path.stat().st_size

    def stop(self) -> None:
        """End the lines, also in the middle of one without an end."""
        self._stopped.set()

    def _read_header(self, lines: _Lines) -> None:
        try:
            first = next((line for line in lines if line.strip(_BLANK)), "")
            if not first:
                return
            if excel := _EXCEL.fullmatch(first.strip()):
                self._delimiter = excel[1]
                self._rows_before = 2
                first = next((line for line in lines if line.strip(_BLANK)), "")
            lines.again([first])
            lines.begin()
            self._take_separator(first)
            header = next(csv.reader(lines, delimiter=self._delimiter, strict=True), [])
        except (csv.Error, _TooLongError) as error:
            raise SettingsError(
                f"{self._path.name}: the header cannot be read: {error or 'it is too long'}"
            ) from None
        self._header = [name.strip() for name in header]
        if _NOT_UTF8.search("".join(header)):
            raise SettingsError(
                f"{self._path.name}: the header is not UTF-8: convert the file, for example with "
                "iconv -f WINDOWS-1252 -t UTF-8"
            )
        if file := next(filter(is_media, self._header), ""):
            raise SettingsError(
                f"{self._path.name}: the first line has the file {file!r}, not the name of a "
                "column: put a line with names above it, such as image,text"
            )
        if twice := name_twice(self._header):
            raise SettingsError(f"{self._path.name}: the header names {twice!r} twice")

    def _take_separator(self, line: str) -> None:
        """Take the separator that the header has, if it is another one."""
        found = max(_SEPARATORS, key=line.count)
        if self._delimiter in line or found not in line:
            return
        logger.warning(
            "%s is separated by %s, not by %s, and is read so",
            self._path.name,
            _NAMES[found],
            _NAMES[self._delimiter],
        )
        self._delimiter = found

    def _records(self) -> Generator[InputRecord, None, None]:
        number = 0
        rows_before = self._rows_before
        read_again = 0
        with open_binary(self._path) as raw:
            lines = _Lines(raw, self.max_line, self._stopped)
            rows = csv.reader(lines, delimiter=self._delimiter, strict=True)
            while True:
                lines.begin()
                try:
                    row = next(rows, None)
                except (csv.Error, _TooLongError) as error:
                    number += 1
                    yield self._broken(number, lines, error)
                    read_again += lines.row_size if lines.back() else 0
                    rows = csv.reader(lines, delimiter=self._delimiter, strict=True)
                    if read_again > MOST_READ_AGAIN * self.max_line:
                        place = {"file": self._path.name, "line": lines.number + 1}
                        message = "too many rows are broken: what follows is not read"
                        yield fault_record(number + 1, place, self.size, "bad_input", message)
                        return
                    continue
                except FILE_ERRORS as error:
                    place = {"file": self._path.name, "line": lines.number}
                    message = f"{self._path.name} breaks off: {error}"
                    yield fault_record(number + 1, place, self.size, "bad_input", message)
                    return
                if row is None:
                    return
                if rows_before:
                    rows_before -= any(value.strip() for value in row)
                elif row:
                    number += 1
                    yield self._record(number, row, lines.first, position(raw))

    def _broken(self, number: int, lines: _Lines, error: Exception) -> InputRecord:
        place = {"file": self._path.name, "line": lines.first}
        where = f"the row that begins in line {lines.first} of {self._path.name}"
        if isinstance(error, _TooLongError):
            hint = ": a quote may not be closed" if lines.row_lines > 1 else ""
            message = f"{where} is longer than --max-line ({self.max_line} bytes){hint}"
            return fault_record(number, place, 0, "record_too_long", message)
        reason = next((why for begin, why in _REASONS.items() if begin in str(error)), str(error))
        return fault_record(number, place, 0, "bad_row", f"{where} is broken: {reason}")

    def _record(self, number: int, row: list[str], line: int, end: int) -> InputRecord:
        header = self._header
        if len(row) != len(header):
            count = exactly(len(row), "value")
            message = f"the row in line {line} has {count}, the header {len(header)}"
            return fault_record(number, {"row": list(map(_text, row))}, end, "bad_row", message)
        if any(not value.isascii() and _NOT_UTF8.search(value) for value in row):
            values = dict(zip(header, map(_text, row), strict=True))
            message = f"the row in line {line} is not UTF-8: convert the file, as with iconv"
            return fault_record(number, values, end, "bad_encoding", message)
        return record_of(number, dict(zip(header, row, strict=True)), end)


def _text(value: str) -> str:
    return value.encode(errors="surrogateescape").decode(errors="replace")


class _TooLongError(Exception):
    """The lines of a row are too long."""


class _Lines:
    """The lines of a file, for `csv.reader`; those of a broken row can be read again.

    Attributes:
        number: The last line that was read, from 1.
        first: The line in which the current row begins.
        row_size: Bytes of the current row so far.
        row_lines: How many lines it has so far.
    """

    def __init__(self, raw: IO[bytes], most: int, stopped: threading.Event) -> None:
        self._text = io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="")
        self._most = most
        self._stopped = stopped
        self._is_inside = False  # of a line of which the rest is to be skipped
        self._waiting: deque[str] = deque()
        self._row: list[str] = []
        self.number = 0
        self.first = 1
        self.row_size = 0
        self.row_lines = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else self._text.readline(self._most + 2)
        if not line or self._stopped.is_set():
            raise StopIteration
        self.number += 1
        self.row_lines += 1
        self.row_size += len(line) if line.isascii() else len(line.encode(errors="surrogateescape"))
        self._row.append(line)
        if self.row_size > self._most + 1:  # one for the end of the line
            self._is_inside = self.row_lines == 1 and line[-1] not in "\r\n"
            raise _TooLongError
        return line

    def begin(self) -> None:
        """Begin a row, after the rest of a line that was too long."""
        while self._is_inside and not self._stopped.is_set():
            rest = self._text.readline(_STEP)
            self._is_inside = bool(rest) and rest[-1] not in "\r\n"
        self._row.clear()
        self.first = self.number + 1
        self.row_size = self.row_lines = 0

    def back(self) -> bool:
        """Go back to the second line of a broken row; return whether there is one."""
        return self.again(self._row[1:])

    def again(self, lines: list[str]) -> bool:
        """Let lines that were read last be read again."""
        self._waiting.extendleft(reversed(lines))
        self.number -= len(lines)
        return bool(lines)
