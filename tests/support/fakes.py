"""Stand-ins for the seams: no files, no sockets, no waiting."""

from __future__ import annotations

import base64
import errno
import io
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import orjson
from PIL import Image

from captioner.core.types import InputRecord, Request, Response
from captioner.journal.disk import Files

_FILE = io.BytesIO()
Image.new("RGB", (32, 32), "red").save(_FILE, "PNG")
IMAGE = "data:image/png;base64," + base64.b64encode(_FILE.getvalue()).decode()


class EchoTransport:
    """Answers every request at once with a caption that names its question."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.refuse: Callable[[str], bool] = lambda _: False

    async def send(self, request: Request) -> Response:
        messages = orjson.loads(b"".join(request.pieces))["messages"]
        parts = messages[-1]["content"]
        question = "".join(part["text"] for part in parts if part["type"] == "text")
        self.calls[question] += 1
        if self.refuse(question):
            return Response(400, {}, b'{"error":{"message":"no"}}')
        message = {"role": "assistant", "content": f"about {question}"}
        reply = {"choices": [{"finish_reason": "stop", "message": message}]}
        return Response(200, {}, orjson.dumps(reply))

    async def close(self) -> None:
        pass


class ListSource:
    """Records at hand, each with the same image in it."""

    def __init__(self, questions: list[str]) -> None:
        self._lines = [
            InputRecord(n, orjson.dumps({"id": q, "image": IMAGE, "prompt": q}), n)
            for n, q in enumerate(questions, 1)
        ]

    @property
    def size(self) -> int:
        return len(self._lines)

    async def batches(self) -> AsyncIterator[list[InputRecord]]:
        for at in range(0, len(self._lines), 100):
            yield self._lines[at : at + 100]


class FaultyFiles(Files):
    """The real disk, but the n-th call of one kind fails.

    Args:
        kind: ``write``, ``short`` (a write that takes half), ``sync``, ``truncate``,
            ``replace``, ``sync_folder`` or ``open``.
        number: Which call of that kind fails, from 1; 0 never.
        code: The errno.
        lasting: All later calls of that kind fail as well.
    """

    def __init__(self, kind: str, number: int, code: int, *, lasting: bool = False) -> None:
        self.kind_of_fault = kind
        self.number = number
        self.code = code
        self.lasting = lasting
        self.counts: Counter[str] = Counter()
        self.happened = 0

    def _fails(self, kind: str) -> bool:
        if kind != self.kind_of_fault:
            return False
        self.counts[kind] += 1
        due = self.counts[kind] == self.number
        if due or (self.lasting and 0 < self.number < self.counts[kind]):
            self.happened += 1
            return True
        return False

    def _maybe(self, kind: str) -> None:
        if self._fails(kind):
            raise OSError(self.code, os.strerror(self.code))

    def open(
        self, path: Path, *, create: bool = False, new: bool = False, private: bool = False
    ) -> int:
        self._maybe("open")
        return super().open(path, create=create, new=new, private=private)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        if self._fails("short"):
            # A full disk takes what fits and fails the next call.
            done = super().write(fd, data[: len(data) // 2], offset)
            self.kind_of_fault, self.number = "write", self.counts["write"] + 1
            return done
        self._maybe("write")
        return super().write(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        self._maybe("truncate")
        super().truncate(fd, size)

    def sync(self, fd: int) -> None:
        self._maybe("sync")
        super().sync(fd)

    def sync_folder(self, folder: Path) -> None:
        self._maybe("sync_folder")
        super().sync_folder(folder)

    def replace(self, source: Path, target: Path) -> None:
        self._maybe("replace")
        super().replace(source, target)


FULL = errno.ENOSPC
