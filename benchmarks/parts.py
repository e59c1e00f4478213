"""What the parts of a run manage alone: reader, writer, memory by the length of the input.

usage: python benchmarks/parts.py [read] [write] [growth]        default: all, about ten minutes
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

from captioner import run_batch
from captioner.core.cancellation import CancelToken
from captioner.core.keys import RecordKeys
from captioner.core.progress import Progress
from captioner.core.types import Caption, InputRecord, Request, Response, Usage
from captioner.journal.journal import Journal
from captioner.journal.row_encoder import RowEncoder
from captioner.journal.writer import JournalSink
from captioner.readers.jsonl import JsonlSource

RECORD = b'{"id": %d, "image": "https://example.org/%d.jpg", "prompt": "Describe the image."}'
CAPTION = "a plain sentence about what is to be seen in a photograph, " * 3


def write_input(path: Path, count: int) -> None:
    with path.open("wb") as file:
        for number in range(count):
            file.write(RECORD % (number, number) + b"\n")


async def read(folder: Path) -> None:
    """Lines a second out of a file of a million short ones."""
    path = folder / "in.jsonl"
    write_input(path, 1_000_000)
    begin = time.perf_counter()
    count = 0
    async for batch in JsonlSource(path).batches():
        count += len(batch)
    print(f"| reader, short lines | {count / (time.perf_counter() - begin):,.0f} a second |")


async def write(folder: Path) -> None:
    """Records a second from 256 workers through the journal, synced as in any run."""
    count, workers = 500_000, 256
    identity = RecordKeys(("caption",))
    journal = Journal(folder / "out.jsonl", identity, {})
    journal.open()
    numbers = iter(range(count))

    async def work(sink: JournalSink) -> None:
        for number in numbers:
            line = InputRecord(number, RECORD % (number, number))
            await sink.put([Caption(line, CAPTION, replaces=False, attempts=1, usage=Usage())])

    begin = time.perf_counter()
    async with JournalSink(
        journal,
        RowEncoder(identity, ("caption",)),
        Progress(),
        CancelToken(),
        disk_wait_s=1,
    ) as sink:
        await asyncio.gather(*(work(sink) for _ in range(workers)))
    took = time.perf_counter() - begin
    journal.close()
    print(f"| writer, 256 workers | {count / took:,.0f} a second |")


class Echo:
    """Answers at once, without HTTP."""

    reply = orjson.dumps(
        {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "ok"}}]}
    )

    async def send(self, _: Request) -> Response:
        await asyncio.sleep(0)
        return Response(200, {}, self.reply)

    async def close(self) -> None:
        pass


def run(count: int) -> None:
    """Caption so many records here and print this process's peak RSS in bytes."""
    with tempfile.TemporaryDirectory(prefix="captioner-parts-") as name:
        source = Path(name) / "in.jsonl"
        write_input(source, count)
        report = asyncio.run(
            run_batch(source, transport=Echo(), model="m", pass_urls=True, concurrency=64)
        )
    assert report.captioned == count
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def growth() -> None:
    """Bytes of memory for each record that a run is longer."""
    few, many = 10_000, 1_000_000
    peaks = [
        int(subprocess.check_output([sys.executable, __file__, "run", str(count)]))
        for count in (few, many)
    ]
    each = (peaks[1] - peaks[0]) / (many - few)
    print(f"| peak RSS, 10,000 records | {peaks[0] / 1e6:.0f} MB |")
    print(
        f"| peak RSS, 1,000,000 records | {peaks[1] / 1e6:.0f} MB, {each:.0f} bytes a record more |"
    )


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        run(int(sys.argv[2]))
        return
    chosen = sys.argv[1:] or ["read", "write", "growth"]
    print("| part | |\n| --- | ---: |")
    for name in chosen:
        if name == "growth":
            growth()
            continue
        with tempfile.TemporaryDirectory(prefix="captioner-parts-") as folder:
            asyncio.run({"read": read, "write": write}[name](Path(folder)))


if __name__ == "__main__":
    main()
