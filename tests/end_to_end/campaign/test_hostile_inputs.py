"""Cases 25 to 28: records, images, paths and URLs that mean harm, through the command."""

from __future__ import annotations

import http.server
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import command, jpeg, rows
from endpoint import FakeEndpoint
from samples import bomb, png
from tally import tally
from web import http_server

CEILING = 2_500 << 20
"""Bytes of memory that a run takes at most, all its processes together, whatever its images."""


def failures(source: Path) -> list[dict[str, Any]]:
    path = source.with_name(f"{source.stem}.captions.failed.jsonl")
    return rows(path) if path.exists() else []


def captions(source: Path) -> list[dict[str, Any]]:
    return rows(source.with_name(f"{source.stem}.captions.jsonl"))


# -- case 25: hostile JSON -------------------------------------------------------------------------

GOOD = b'{"image": "a.jpg", "prompt": "q"}'
DEEP = b'{"image": "a.jpg", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

LINES: list[tuple[bytes, str]] = [
    (GOOD, ""),
    (b'{"image": "a.jpg", "n": 123456789012345678901234567890}', ""),
    (b'{"image": "a.jpg", "n": 1e308, "m": -0.0}', ""),
    (b'{"image": "a.jpg", "n": 1e999}', "bad_json"),
    (b'{"image": "a.jpg", "prompt": "twice", "prompt": "once"}', ""),
    (b'{"image": "a.jpg", "prompt": "\\ud83d\\ude00 \\u2028"}', ""),
    (b'{"image": "a.jpg", "prompt": "a NUL \\u0000"}', "garbage"),  # the caption repeats it
    (b'  {"image": "a.jpg", "prompt": "space"}\t', ""),
    (b'{"image": "a.jpg", "prompt": "cr"}\r', ""),
    (b'{"image": "a.jpg", "x": NaN}', "bad_json"),
    (b'{"image": "a.jpg", "x": Infinity}', "bad_json"),
    (b'{"image": "a.jpg", "prompt": "\\ud800"}', "bad_json"),
    (b'{"image": "a.jpg", "prompt": "\xff\xfe"}', "bad_json"),
    (b'{"image": "a.jpg", "prompt": "\xed\xa0\x80"}', "bad_json"),
    (b'{"image": "a.jpg",}', "bad_json"),
    (b"{'image': 'a.jpg'}", "bad_json"),
    (b'{"image": "a.jpg"', "bad_json"),
    (b'{"image": "a.jpg"} {"image": "a.jpg"}', "bad_json"),
    (b'{"image": "a.jpg"}\r{"image": "a.jpg"}', "bad_json"),  # lines that end in CR only
    (b'\x00{"image": "a.jpg"}', "bad_json"),
    (b'{"image": "a\x00.jpg"}', "bad_json"),
    ('{"image": "a.jpg"}'.encode("utf-16"), "bad_json"),
    (DEEP, "bad_json"),
    (b'["a.jpg"]', "bad_record"),
    (b'"a.jpg"', "bad_record"),
    (b"null", "bad_record"),
    (b"7", "bad_record"),
    (b"{}", "no_image"),
    (b'{"image": 7}', "bad_image_reference"),
    (b'{"image": {"path": ["a.jpg"]}}', "bad_image_reference"),
    (b'{"image": "a\\u0000.jpg"}', "image_missing"),
    (b'{"image": "\\u2028.jpg"}', "image_missing"),
    (b'{"image": "' + b"x" * 100_000 + b'.jpg"}', "image_unreadable"),
    (b'{"image": "data:image/jpeg;base64,%%%"}', "bad_image_reference"),
    (b'{"image": "a.jpg", "conversation": {"from": "human"}}', "bad_conversation"),
    (b'{"image": "a.jpg", "prompt": ["q"]}', "bad_prompt"),
    (GOOD.replace(b'"q"', b'"last"'), ""),
]


@pytest.mark.parametrize("last", [b"\n", b""])
def test_hostile_lines(
    tmp_path: Path, endpoint: FakeEndpoint, run_command: Any, last: bytes
) -> None:
    """Each bad line is counted with its number and its kind, and the run goes on to the last."""
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    source = tmp_path / "in.jsonl"
    lines = [line for line, _ in LINES]
    source.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(lines) + last)
    done = run_command(source, "--base-url", endpoint.base_url, "--model=m")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    wanted = {}
    for place, (_, code) in enumerate(LINES):
        number = 2 * place + 1
        if code:
            wanted[number] = code
    assert {one["line"]: one["code"] for one in failures(source)} == wanted
    good = len(LINES) - len(wanted)
    assert len(captions(source)) == good
    again = run_command(source, "--base-url", endpoint.base_url, "--model=m")
    assert again.stderr.startswith("0 captioned in")
    assert f"; {good} were done before" in again.stderr
    tally("25 hostile lines", bad=len(wanted), captioned=good)


def test_a_line_of_a_gigabyte(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    """It is skipped without being held, fails as too long, and its neighbours are captioned."""
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    source = tmp_path / "in.jsonl"
    with source.open("wb") as file:
        file.write(GOOD + b'\n{"image": "')
        file.seek(1 << 30, os.SEEK_CUR)  # a hole, which reads as zeros
        file.write(b'"}\n' + GOOD.replace(b'"q"', b'"after"') + b"\n")
    peak, status, said = watched(source, "--base-url", endpoint.base_url, "--model=m")
    assert status == 3, said
    assert [(one["line"], one["code"]) for one in failures(source)] == [(2, "record_too_long")]
    assert [row["prompt"] for row in captions(source)] == ["q", "after"]
    assert peak < 200 << 20
    tally("25 a line of a gigabyte", peak_mb=peak >> 20)


def test_the_longest_line_is_an_option(
    tmp_path: Path, endpoint: FakeEndpoint, run_command: Any
) -> None:
    """Records with large images inside are read when they are allowed to be."""
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"image": "a.jpg", "note": "' + b"x" * 5_000 + b'"}\n' + GOOD + b"\n")
    arguments = (source, "--base-url", endpoint.base_url, "--model=m")
    assert run_command(*arguments, "--max-line=4000").returncode == 3
    assert [one["code"] for one in failures(source)] == ["record_too_long"]
    retried = run_command(*arguments, "--retry", "failed", "--max-line=8000")
    assert retried.returncode == 0
    assert len(captions(source)) == 2


# -- case 26: hostile images ---------------------------------------------------------------------


def solid(width: int, height: int, channels: int = 4) -> bytes:
    """Return a real PNG of one colour, without ever holding its pixels."""
    packed = zlib.compressobj(1)
    row = bytes(1 + width * channels)
    data = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    return png(width, height, data, colours={3: 2, 4: 6}[channels])


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"


def watched(*arguments: object) -> tuple[int, int, str]:
    """Run the command; return the most memory all its processes held, its status and its words.

    A process counts with what it held at two looks in a row: the looks at several processes are
    not simultaneous, and one that ends holds its memory for a moment.
    """
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True)
    peak = 0
    before: dict[int, int] = {}
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(process.stderr.read()))  # type: ignore[union-attr]
    reader.start()
    while process.poll() is None:
        held = {pid: resident(pid) for pid in (process.pid, *children(process.pid))}
        peak = max(peak, sum(min(size, before.get(pid, 0)) for pid, size in held.items()))
        before = held
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    reader.join()
    assert process.stderr is not None
    process.stderr.close()
    return peak, process.returncode, said[0]


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError):
        return 0


@pytest.mark.xdist_group("heavy")  # it takes gigabytes
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_64_hostile_images_at_once(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    """Bombs, giants and rubbish, 64 in flight: memory has a ceiling, each has an outcome."""
    giant = solid(13_000, 13_000)
    large = solid(5_100, 5_000, 3)
    images = {
        "giant": (giant, 4, ""),
        "large": (large, 8, ""),
        "bomb": (bomb(30_000, 60_000), 12, "image_too_large"),
        "gif": (gif(65_535, 65_535), 12, "image_too_large"),
        "gif wide": (gif(40_000, 4_000), 4, ""),
        "cut": (giant[: len(giant) // 2], 12, "image_corrupt"),
        "small": (jpeg(1), 12, ""),
    }
    records = []
    for name, (data, count, _) in images.items():
        (tmp_path / name).write_bytes(data)
        records += [{"image": name, "prompt": f"{name} {n}"} for n in range(count)]
    assert len(records) == 64
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = ("--base-url", endpoint.base_url, "--model=m", "--concurrency=64")
    peak, status, said = watched(source, *options, "--image-timeout=600")
    assert status == 3, said
    assert "Traceback" not in said
    failed = {one["record"]["prompt"]: one["code"] for one in failures(source)}
    done = {row["prompt"] for row in captions(source)}
    for name, (_, count, code) in images.items():
        for number in range(count):
            prompt = f"{name} {number}"
            if code:
                assert failed[prompt].startswith(code), (prompt, failed[prompt])
            else:
                assert prompt in done, (prompt, failed.get(prompt))
    assert peak <= CEILING
    tally("26 hostile images", images=64, failed=len(failed), peak_mb=peak >> 20)


# -- case 27: hostile paths ------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [True, False])
def test_hostile_paths(
    tmp_path: Path, endpoint: FakeEndpoint, run_command: Any, bound: bool
) -> None:
    """Nothing but regular files is read, and inside a root nothing outside it; nothing blocks."""
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "secret.jpg").write_bytes(jpeg(2))
    (root / "out").symlink_to(tmp_path)
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "fine.jpg").symlink_to(root / "a.jpg")
    (root / "loop").symlink_to(root / "loop")
    (root / "zero").symlink_to("/dev/zero")
    os.mkfifo(root / "fifo")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(root / "s"))
    outside = ["../secret.jpg", "in/../../secret.jpg", "out/secret.jpg", "link.jpg"]
    outside += [str(tmp_path / "secret.jpg"), f"file://{tmp_path}/secret.jpg"]
    never = ["fifo", "s", "in", "loop", "zero", "/dev/zero", "/dev/stdin", "/proc/self/mem"]
    never += ["/proc/self/environ", "/proc/kmsg", "/etc", "~/a.jpg", "a.jpg/x"]
    never += ["gopher://x/a.jpg", "file://elsewhere/a.jpg", "ftp://x/a", "memory://a.jpg"]
    source = root / "in.jsonl"
    names = ["a.jpg", "fine.jpg", "in/../a.jpg", *outside, *never]
    source.write_text("".join(json.dumps({"image": n, "prompt": n}) + "\n" for n in names))
    options = ["--image-root", root] if bound else []
    done = run_command(
        source, "--base-url", endpoint.base_url, "--model=m", *options, stdin=subprocess.DEVNULL
    )
    listening.close()
    assert done.returncode == 3, done.stderr
    failed = {one["record"]["prompt"]: one["code"] for one in failures(source)}
    assert not {"a.jpg", "fine.jpg", "in/../a.jpg"} & failed.keys()
    assert set(never) <= failed.keys()
    if bound:
        assert {failed[name] for name in outside} == {"image_outside_root"}
    else:
        assert not set(outside) & failed.keys()
    tally(f"27 hostile paths, {'a' if bound else 'no'} root", refused=len(failed))


# -- case 28: hostile URLs -------------------------------------------------------------------------


class Inside(http.server.BaseHTTPRequestHandler):
    """What only this machine can reach."""

    hits: list[str] = []  # noqa: RUF012 - the server makes the handlers

    def do_GET(self) -> None:
        self.hits.append(self.path)
        if self.path.startswith("/to"):
            self.send_response(302)
            self.send_header("Location", "/a.jpg")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(jpeg(5))


@pytest.fixture
def inside() -> Iterator[int]:
    Inside.hits.clear()
    with http_server(Inside) as address:
        yield int(address.rpartition(":")[2])


@pytest.mark.parametrize("allowed", [False, True])
def test_hostile_urls(
    tmp_path: Path, endpoint: FakeEndpoint, inside: int, allowed: bool, run_command: Any
) -> None:
    """By default no spelling of a private address is connected to; who means it may."""
    hosts = ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "me:hush@127.0.0.1", "0.0.0.0"]
    if not allowed:
        hosts += ["2130706433", "0x7f000001", "017700000001", "127.1", "example.org@127.0.0.1"]
    names = [f"http://{host}:{inside}/a.jpg" for host in hosts]
    names += [f"HTTP://127.0.0.1:{inside}/to?sig=hush"]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"image": n, "prompt": n}) + "\n" for n in names))
    options = ["--allow-private-urls"] if allowed else []
    done = run_command(source, "--base-url", endpoint.base_url, "--model=m", *options)
    failed = failures(source)
    if allowed:
        assert done.returncode == 0, (done.stderr, failed)
        assert {tuple(call.images) for call in endpoint.calls} == {(jpeg(5),)}
    else:
        assert done.returncode == 3, done.stderr
        assert not Inside.hits
        assert {one["code"] for one in failed} == {"image_url_refused"}
        assert len(failed) == len(names)
        assert not any("hush" in one["message"] for one in failed)
    assert "hush" not in done.stderr
    tally(f"28 hostile URLs, {'allowed' if allowed else 'refused'}", urls=len(names))
