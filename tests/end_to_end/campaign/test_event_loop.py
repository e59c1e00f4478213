"""How long anything that strangers send holds the event loop up, in time of its processor."""

from __future__ import annotations

import asyncio.events
import io
import json
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint import FakeEndpoint, Reply, completion
from PIL import Image
from samples import chunk, saved
from tally import tally

from captioner import run_batch

MOST_S = 1.0
"""Seconds of processor time of one callback; measured 0.07."""

BYTES = 12 << 20
SHORT_LINE = 8 << 20
LONG_LINES = ("numbers", "quotes", "text")
"""What costs most in a line of 40 MB."""

_red = Image.new("RGB", (64, 64), "red")
JPEG, PNG, WEBP, GIF = (saved(_red, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF"))


def webp(chunks: bytes) -> bytes:
    body = WEBP[12:] + chunks
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def directories() -> bytes:
    """Return a TIFF of directories without end, each of a thousand entries."""
    entries = b"".join(struct.pack("<HHII", 256 + n % 300, 3, 1, 64) for n in range(1_000))
    made = io.BytesIO(b"II*\0\x08\0\0\0")
    at = made.seek(0, io.SEEK_END)
    while at < BYTES:
        at += 6 + len(entries)
        made.write(struct.pack("<H", 1_000) + entries + struct.pack("<I", at))
    return made.getvalue()


def images() -> dict[str, bytes]:
    junk = chunk(b"juNk", b"")
    table = 13 + (3 << (GIF[10] & 7) + 1)
    scan = b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0"
    return {
        "JPEG of fill bytes": JPEG[:2] + b"\xff" * BYTES + JPEG[2:],
        "JPEG of comments": JPEG[:2] + b"\xff\xfe\0\2" * (BYTES // 4) + JPEG[2:],
        "JPEG of scans": JPEG[:-2] + scan * (BYTES // 14) + JPEG[-2:],
        "JPEG of escapes": JPEG[:-2] + b"\xff\0" * (BYTES // 2) + JPEG[-2:],
        "PNG of chunks": PNG[:33] + junk * (BYTES // 12) + PNG[33:],
        "PNG of one chunk": PNG[:33] + chunk(b"juNk", bytes(BYTES)) + PNG[33:],
        "PNG with a profile of a gigabyte": PNG[:33]
        + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 30), 9))
        + PNG[33:],
        "WebP of chunks": webp(b"JUNK\0\0\0\0" * (BYTES // 8)),
        "GIF of blocks": GIF[:table] + b"!\xfe" + b"\1a" * (BYTES // 2) + b"\0" + GIF[table:],
        "TIFF of directories": directories(),
    }


def lines(size: int) -> dict[str, bytes]:
    """Return records of a size in bytes, of which some have a caption that is to be replaced."""
    begin = b'{"image":"small.png","caption":"old","x":'
    many = b",".join(b'"k%d":0' % number for number in range(size // 12))
    return {
        "brackets": begin + b"[" + b"[]," * (size // 3) + b"0]}",
        "fields": b'{"image":"small.png","caption":"",' + many + b"}",
        "members": begin + b"{" + many + b"}}",
        "one field": b'{"image":"small.png","caption":""' + b',"k":0' * (size // 6) + b"}",
        "numbers": begin + b"[" + b"1," * (size // 2) + b"0]}",
        "deep": begin + b"[" * (size // 2) + b"]" * (size // 2) + b"}",
        "escapes": b'{"image":"small.png","prompt":"' + rb"\u0041" * (size // 6) + b'"}',
        "quotes": begin + b'"' * size + b"}",
        "text": begin + b'"' + b"a" * size + b'"}',
        "turns": b'{"image":"small.png","conversation":['
        + b",".join([b'{"from":"human","value":"a"}'] * 290_000)
        + b"]}",
    }


REPLIES = [
    "<think>" * 100_000,
    "<" * 300_000,
    " " * 300_000 + "a",
    json.dumps({"x": list(range(15_000))}),
    json.dumps({"x": ["a"] * 15_000}),
    '{"x":' + "[" * 900 + "]" * 900 + "}",
    json.dumps({f"k{number}": 1 for number in range(8_000)}),
]
SCHEMA = {
    "type": "object",
    "properties": {
        "x": {"type": "array", "uniqueItems": True, "items": {"$ref": "#/$defs/item"}},
    },
    "patternProperties": {"^(k+)+$": {"type": "string"}},
    "$defs": {"item": {"anyOf": [{"type": ["string", "number"]}, {"type": "array"}]}},
}


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Return a list with the longest time of a callback of this thread, in seconds."""
    found = [0.0]
    run = asyncio.events.Handle._run
    here = threading.get_ident()

    def timed(handle: asyncio.events.Handle) -> None:
        began = time.thread_time()
        run(handle)
        if threading.get_ident() == here:
            found[0] = max(found[0], time.thread_time() - began)

    monkeypatch.setattr(asyncio.events.Handle, "_run", timed)
    yield found
    tally("31 the longest stop of the event loop", milliseconds=round(1_000 * found[0]))


async def run(folder: Path, endpoint: FakeEndpoint, records: list[bytes], **options: Any) -> Any:
    (folder / "small.png").write_bytes(PNG)
    source = folder / "in.jsonl"
    # In a thread, so that it is not measured.
    await asyncio.to_thread(lambda: source.write_bytes(b"\n".join(records) + b"\n"))
    return await run_batch(
        source, base_url=endpoint.base_url, model="m", existing="replace", **options
    )


async def warmed_up(folder: Path, endpoint: FakeEndpoint, longest: list[float]) -> None:
    """Import what a run needs, and begin to measure."""
    await run(folder, endpoint, [b'{"image":"small.png"}'])
    await asyncio.sleep(0)
    longest[0] = 0.0


async def test_images(tmp_path: Path, endpoint: FakeEndpoint, longest: list[float]) -> None:
    """Structures without end, in files and in the records themselves."""
    records = []
    for name, data in images().items():
        (tmp_path / name).write_bytes(data)
        records.append(json.dumps({"image": name}).encode())
    await warmed_up(tmp_path, endpoint, longest)
    report = await run(tmp_path, endpoint, records, image_timeout=5.0, output=tmp_path / "o.jsonl")
    assert report.captioned + sum(report.codes.values()) == len(records)
    assert longest[0] < MOST_S


@pytest.mark.parametrize("size", [SHORT_LINE, 40 << 20])
async def test_records(
    tmp_path: Path, endpoint: FakeEndpoint, longest: list[float], size: int
) -> None:
    """Lines of megabytes, in a run and in one that finds them done."""
    made = lines(size)
    records = [made[name] for name in (made if size == SHORT_LINE else LONG_LINES)]
    endpoint.behave = lambda _: Reply(body=completion("A red square."))
    await warmed_up(tmp_path, endpoint, longest)
    options = {"max_line": 64 << 20, "output": tmp_path / "o.jsonl"}
    report = await run(tmp_path, endpoint, records, **options)
    assert report.captioned + sum(report.codes.values()) == len(records)
    again = await run(tmp_path, endpoint, records, **options)
    assert (again.resumed, again.captioned) == (report.captioned, 0)
    assert longest[0] < MOST_S


async def test_replies(tmp_path: Path, endpoint: FakeEndpoint, longest: list[float]) -> None:
    """Responses that take long to read or to validate."""
    records = [json.dumps({"image": "small.png", "id": n}).encode() for n in range(len(REPLIES))]
    await warmed_up(tmp_path, endpoint, longest)
    endpoint.behave = lambda call: Reply(body=completion(REPLIES[call.number % len(REPLIES)]))
    await run(
        tmp_path,
        endpoint,
        records,
        schema=json.dumps(SCHEMA),
        dedup=False,
        max_attempts=2,
        output=tmp_path / "o.jsonl",
    )
    assert longest[0] < MOST_S


async def test_errors(tmp_path: Path, endpoint: FakeEndpoint, longest: list[float]) -> None:
    """Messages of errors that are searched for what they mean, and streams of many events."""
    said = [one * (60_000 // len(one)) for one in ("9", "[", "a.", "1 ", "max_tokens ", "prompt (")]
    bodies: list[Any] = [{"error": {"message": one}} for one in said]
    bodies += [
        b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n' * 200_000,
        b"data: x\n" * 1_000_000,
    ]
    records = [json.dumps({"image": "small.png", "id": n}).encode() for n in range(len(bodies))]
    await warmed_up(tmp_path, endpoint, longest)
    endpoint.behave = lambda call: Reply(400, bodies[call.number % len(bodies)])
    options = {"max_attempts": 1, "dedup": False, "output": tmp_path / "o.jsonl"}
    report = await run(tmp_path, endpoint, records, **options)
    assert sum(report.codes.values()) == len(records)
    assert longest[0] < MOST_S
