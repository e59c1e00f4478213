"""What it costs to continue a large run: time and peak memory of reading an output back.

Makes an output of N captioned records in the order they might have come in, and an input of which
half is captioned there, then does what a run does before its first call: recover the output and
match the whole input against it.

usage: python benchmarks/resume.py [RECORDS]        default 10,000,000 (about 6 GB of disk)
"""

from __future__ import annotations

import asyncio
import random
import resource
import sys
import tempfile
import time
import zlib
from pathlib import Path

import orjson

from captioner.core.keys import KeyTable, RecordKeys
from captioner.core.progress import Progress
from captioner.core.subprocesses import ease_garbage_collection
from captioner.journal.journal import Journal
from captioner.journal.resume_filter import ResumeFilter
from captioner.readers.jsonl import JsonlSource

CAPTION = "a plain sentence about what is to be seen in a photograph, " * 3


def make(folder: Path, count: int) -> tuple[Path, Path]:
    """Write an input and an output of as many lines; half of either has no match in the other.

    The output is shuffled within windows of 1,000, as completion order is.
    """
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    rng = random.Random(1)
    text = orjson.dumps(CAPTION)
    crc = size = 0
    with source.open("wb") as into, output.open("wb") as done:
        for start in range(0, count, 1_000):
            lines = [
                b'{"id": "img-%010d", "image": "images/%04d/%010d.jpg", "conversation": '
                b'[{"from": "human", "value": "Describe the image."}]}' % (n, n // 10_000, n)
                for n in range(start, min(count, start + 1_000))
            ]
            into.write(b"\n".join(lines) + b"\n")
            rng.shuffle(lines)
            if start >= count // 2:
                lines = [line.replace(b"img-", b"old-") for line in lines]
            rows = b"".join(line[:-1] + b',"caption":' + text + b"}\n" for line in lines)
            crc, size = zlib.crc32(rows, crc), size + len(rows)
            done.write(rows)
    checkpoint = {
        "version": 1,
        "length": size,
        "crc32": crc,
        "next": None,
        "settings": {},
        "input": str(source),
    }
    output.with_name(output.name + ".ckpt").write_bytes(orjson.dumps(checkpoint))
    return source, output


async def resume(source: Path, output: Path) -> dict[str, float]:
    """Open the output and match the whole input against it, as a run does before its first call."""
    began, cpu = time.perf_counter(), time.process_time()
    identity = RecordKeys(("caption",))
    journal = Journal(output, identity, {})
    journal.open()
    opened = time.perf_counter()
    done = len(journal.done)
    progress = Progress()
    resume_filter = ResumeFilter(
        identity,
        journal.done,
        journal.failures.unclaimed,
        journal.contents,
        KeyTable(),
        duplicates="keep",
        progress=progress,
    )
    pending = 0
    longest = 0.0
    async for batch in JsonlSource(source).batches():
        before = time.perf_counter()
        pending += len(resume_filter.pending(batch))
        longest = max(longest, time.perf_counter() - before)
    ended = time.perf_counter()
    journal.close()
    assert progress.resumed == done - len(journal.done)
    return {
        "output lines": done,
        "input records": progress.resumed + pending,
        "of them resumed": progress.resumed,
        "open output, s": opened - began,
        "match input, s": ended - opened,
        "total, s": ended - began,
        "of it CPU, s": time.process_time() - cpu,
        "longest stop of the loop, ms": longest * 1000,
    }


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    with tempfile.TemporaryDirectory(prefix="captioner-resume-") as name:
        source, output = make(Path(name), count)
        ease_garbage_collection()  # as the command does
        figures = asyncio.run(resume(source, output))
    figures["peak RSS, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("| resume | |")
    print("| --- | ---: |")
    for name, value in figures.items():
        print(f"| {name} | {round(value, 1):,} |")


if __name__ == "__main__":
    main()
