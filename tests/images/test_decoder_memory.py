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

from captioner.core.subprocesses import environment, python
from captioner.core.types import UNCHANGED
from captioner.images.decoder import MEMORY
from captioner.images.decoder_pool import DecoderPool
from captioner.images.fit import HEAVY, READY, FitOptions
from captioner.settings.options import ImageSettings

MOST = ImageSettings().max_image_pixels
SIDE = int(MOST**0.5)
LARGEST: dict[str, tuple[str, int, dict[str, Any]]] = {
    "PNG": ("RGB", SIDE, {"compress_level": 1}),
    "JPEG": ("RGB", SIDE, {}),
    "WEBP": ("RGB", SIDE, {"lossless": True, "quality": 0, "method": 0}),
    "GIF": ("L", SIDE, {}),
    "BMP": ("L", SIDE, {}),
    "TIFF": ("RGB", SIDE, {"compression": "tiff_lzw"}),
    "AVIF": ("RGB", SIDE, {"speed": 10}),
    "JPEG2000": ("RGB", SIDE, {}),
}
"""The mode, the side in pixels and how it is written."""

MB = 1 << 20


def largest(kind: str) -> bytes:
    mode, side, options = LARGEST[kind]
    out = io.BytesIO()
    Image.new(mode, (side, side)).save(out, kind, **options)
    return out.getvalue()


def memory(pid: int, what: str) -> int:
    """Return the bytes that a process holds, or the most it held (``VmHWM``); 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(what))


@pytest.fixture(scope="module", params=LARGEST)
def image(request: pytest.FixtureRequest) -> bytes:
    return largest(request.param)


def test_no_memory_is_taken_before_the_turn(image: bytes) -> None:
    """A decoder that asks for its turn has the file and no more."""
    ours, theirs = Pipe()
    command = python("captioner.images.decoder", str(theirs.fileno()))
    with subprocess.Popen(
        command, pass_fds=[theirs.fileno()], env=environment(secrets=False)
    ) as process:
        ours.send_bytes(orjson.dumps((ImageSettings(), None)))
        assert ours.recv_bytes() == READY
        before = memory(process.pid, "VmHWM")
        ours.send_bytes(orjson.dumps((*UNCHANGED,)))
        ours.send_bytes(image)
        assert ours.recv_bytes() == HEAVY
        taken = memory(process.pid, "VmHWM") - before
        process.kill()
    assert taken < 4 * len(image) + 20 * MB


def test_two_of_the_largest_take_no_more_than_one(
    image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one decoder has its turn, another one holds the file and no more."""
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
            for frames in threads.map(lambda _: pool.render(image, UNCHANGED), range(2)):
                assert (frames[0].width, frames[0].height) == (1_000, 1_000)
            peaks = [memory(process.pid, "VmHWM") for process in started]
    finally:
        done.set()
        watcher.join()
    assert len(peaks) == 2
    assert max(peaks) < MEMORY
    assert max(together) < max(peaks) + 4 * len(image) + 150 * MB, (max(together) // MB, peaks)
