"""Reading files of results, which come from the provider: nothing in them is trusted."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from typing import IO, TYPE_CHECKING, Any

import orjson

from captioner.core.errors import BadReplyError
from captioner.core.keys import KeyTable, digest
from captioner.core.regular import reading
from captioner.endpoints.http1 import MAX_REPLY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from captioner.executors.batch_api.ledger import Batch

MAX_LINE = MAX_REPLY + (1 << 16)
"""Bytes of a line: the longest response that is read, and what stands around it."""

_ID = re.compile(rb'"custom_id"\s*:\s*"([\w.]+)"')


class Results(contextlib.ExitStack):
    """The lines of result files, by the ids of requests; it closes the files at its end.

    Args:
        paths: The files. If several have a line for a request, the first counts.
        batches: The batches whose results they are; lines of others are ignored.
        raise_if_stopped: Called between blocks; raises to end the reading.
    """

    def __init__(
        self, paths: Sequence[Path], batches: Sequence[Batch], raise_if_stopped: Callable[[], None]
    ) -> None:
        super().__init__()
        self._requests = {batch.token: batch.requests for batch in batches}
        self._found: Counter[str] = Counter()
        self._places = KeyTable()  # of lines, by the digests of their ids: offset, file
        with contextlib.ExitStack() as stack:
            self._files = [stack.enter_context(reading(path)) for path in paths if path.exists()]
            for number, file in enumerate(self._files):
                for at, line in _lines(file, raise_if_stopped):
                    self._note(_id(line), at * len(self._files) + number)
            self.push(stack.pop_all())

    def _note(self, name: str, place: int) -> None:
        """Note where the line of a request is: of no more lines than there are requests."""
        token = name.partition(".")[0]
        key = digest(name.encode())
        if self._found[token] < self._requests.get(token, 0) and key not in self._places:
            self._found[token] += 1
            self._places.add(key, place)

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the line of a request, None if there is none.

        Raises:
            BadReplyError: The line is too long.
        """
        place = self._places.find(digest(name.encode()))
        if place is None:
            return None
        at, number = divmod(place, len(self._files))
        file = self._files[number]
        file.seek(at)
        line = file.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            text = f"the line with the response is longer than {MAX_LINE} bytes"
            raise BadReplyError("reply_too_large", text)
        value = _parsed(line)
        return value if value.get("custom_id") == name else None

    def has(self, token: str) -> bool:
        """Return whether there is a line for a batch's requests."""
        return self._found[token] > 0


def is_complete(path: Path) -> bool:
    """Return whether the last line of a file of results is not cut off."""
    with reading(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - MAX_LINE))
        last = file.read().rpartition(b"\n")[2]
    return not last or len(last) == MAX_LINE or bool(_parsed(last))


def _lines(file: IO[bytes], raise_if_stopped: Callable[[], None]) -> Iterator[tuple[int, bytes]]:
    """Yield the beginning of each line, of a usual one all of it, with its offset."""
    at, is_new = 0, True
    while line := file.readline(MAX_LINE + 1):
        raise_if_stopped()
        if is_new:
            yield at, line
        at += len(line)
        is_new = line.endswith(b"\n")


def _id(line: bytes) -> str:
    """Return the id of the request that a line is about; empty if there is none."""
    if len(line) > MAX_LINE:  # quotes inside a text would have a backslash
        found = _ID.search(line)
        return found[1].decode() if found else ""
    name = _parsed(line).get("custom_id")
    return name if isinstance(name, str) else ""


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = None
    return value if isinstance(value, dict) else {}
