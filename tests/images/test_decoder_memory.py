"""All decoder processes together take no more memory than one, plus what small images take."""

from __future__ import annotations

import io
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import orjson
import pytest
from PIL import Image
from tally import LONG

from captioner.core.errors import BadImageError
from captioner.core.subprocesses import environment, python
from captioner.core.types import UNCHANGED
from captioner.images.decoder_pool import DecoderPool
from captioner.images.fit import HEAVY, MEMORY, READY, FitOptions
from captioner.settings.options import ImageSettings

MOST = ImageSettings().max_image_pixels
SIDE = int(MOST**0.5)
LARGEST: dict[str, tuple[str, int, dict[str, Any]]] = {
    "PNG": ("RGB", SIDE, {"compress_level": 1}),
    "JPEG": ("RGB", SIDE, {"progressive": True, "subsampling": 0}),
    "WEBP": ("RGB", SIDE, {"lossless": True, "quality": 0, "method": 0}),
    "GIF": ("L", SIDE, {}),
    "BMP": ("L", SIDE, {}),
    "TIFF": ("RGB", SIDE, {"compression": "tiff_lzw"}),
    "AVIF": ("RGB", SIDE, {"speed": 10}),
    "JPEG2000": ("RGB", SIDE, {}),
}
"""The mode, the side in pixels and how it is written."""

NEED_MORE = {"WEBP": "image_too_large", "JPEG2000": "image_too_large"}
"""The failure of formats whose largest images need more memory than a decoder may have."""

KINDS = LARGEST if LONG else ("PNG", "WEBP", "TIFF")
"""Formats that are tried; the long fault campaign tries all."""

MB = 1 << 20


def largest(kind: str) -> bytes:
    mode, side, options = LARGEST[kind]
    out = io.BytesIO()
    Image.new(mode, (side, side)).save(out, kind, **options)
    return out.getvalue()


def outcome(pool: DecoderPool, image: bytes) -> tuple[int, int] | str:
    """Return the size that an image gets, or the code of its failure."""
    try:
        (frame,) = pool.render(image, UNCHANGED)
    except BadImageError as error:
        return error.code
    return frame.width, frame.height


def memory(pid: int, what: str) -> int:
    """Return a number of bytes from the status of a process; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(what))


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    return request.param, largest(request.param)


def test_no_memory_is_taken_before_the_turn(made: tuple[str, bytes]) -> None:
    """A decoder that asks for its turn has the file and no more."""
    _, image = made
    ours, theirs = Pipe()
    command = python("captioner.images.decoder", str(theirs.fileno()))
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment()) as process:
        ours.send_bytes(orjson.dumps((ImageSettings(), None)))
        assert ours.recv_bytes() == READY
        before = memory(process.pid, "VmPeak")
        ours.send_bytes(orjson.dumps((*UNCHANGED,)))
        ours.send_bytes(image)
        assert ours.recv_bytes() == HEAVY
        taken = memory(process.pid, "VmPeak") - before
        process.kill()
    assert taken < 4 * len(image) + 200 * MB


def test_two_of_the_largest_take_no_more_than_one(
    made: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one decoder has its turn, another one holds the file and no more."""
    kind, image = made
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    done = threading.Event()
    together = [0]

    def watch() -> None:
        while not done.wait(0.002):
            together.append(sum(memory(process.pid, "VmRSS") for process in started))

    watcher = threading.Thread(target=watch)
    watcher.start()
    wanted = FitOptions(ImageSettings(image_timeout=300.0, max_side=1_000))
    try:
        with DecoderPool(wanted, 2) as pool, ThreadPoolExecutor(2) as threads:
            for found in threads.map(lambda _: outcome(pool, image), range(2)):
                assert found in ((1_000, 1_000), NEED_MORE.get(kind))
            peaks = [memory(process.pid, "VmHWM") for process in started]
    finally:
        done.set()
        watcher.join()
    assert len(peaks) == 2
    assert max(peaks) < MEMORY
    assert max(together) < max(peaks) + 4 * len(image) + 150 * MB, (max(together) // MB, peaks)
