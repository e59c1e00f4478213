"""The decoders: children that may crash, hang or swell, at the price of one image each."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import jpeg
from PIL import Image

from captioner.core.cancellation import StoppedError
from captioner.core.errors import BadImageError, DecoderError
from captioner.core.subprocesses import environment
from captioner.core.types import ImageOverrides
from captioner.images import decoder_pool as decoders
from captioner.images.decoder_pool import DecoderPool
from captioner.images.fit import DECODE_ONLY, UNCHANGED, FitOptions, fit
from captioner.images.render import render
from captioner.settings.options import ImageSettings


def pool(count: int = 1, **options: Any) -> DecoderPool:
    return DecoderPool(FitOptions(ImageSettings(**options)), count)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Put a script into the children's place: it has `connection`; images come in as usual."""

    def put(script: str) -> None:
        begin = (
            "import sys, os, time, signal; from multiprocessing.connection import Connection;"
            "connection = Connection(int(sys.argv[1])); connection.recv_bytes();"
            "connection.send_bytes(b'ready')\n"
        )
        command = [sys.executable, "-c", begin + script]
        monkeypatch.setattr(decoders, "python", lambda _, number: [*command, number])

    return put


class Turns:
    """A lock that counts who takes it, and how many hold it at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = self.most = self.count = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._held += 1
        self.count += 1
        self.most = max(self.most, self._held)

    def __exit__(self, *_: object) -> None:
        self._held -= 1
        self._lock.release()


def bmp(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "BMP")
    return out.getvalue()


def test_a_child_draws_what_this_process_would() -> None:
    """The result does not depend on where an image is rendered."""
    wanted = FitOptions(ImageSettings(max_side=100))
    data = jpeg(3, (400, 300))
    with DecoderPool(wanted, 1) as rendered:
        assert fit(data, wanted, rendered.render) == render(data, wanted, UNCHANGED)
        assert fit(data, wanted, rendered.render, ImageOverrides(0.5)) == render(
            data, wanted, ImageOverrides(0.5)
        )
        assert rendered.render(data, DECODE_ONLY) == ()
        with pytest.raises(BadImageError) as caught:
            rendered.render(b"nothing", UNCHANGED)
        assert caught.value.code == "image_unknown_type"
        assert rendered.render(data, DECODE_ONLY) == ()


def test_children_are_used_again_and_no_more_than_are_wanted() -> None:
    """Fifty images from eight threads take two processes."""
    with pool(2) as rendered, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: rendered.render(bmp(), UNCHANGED)[0].data, range(50)))
        assert len(rendered._children) <= 2
        assert len(set(found)) == 1
        pids = [child._process.pid for child in rendered._children]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_crash_costs_one_image() -> None:
    """A decoder that dies takes one image with it; the next one gets a new decoder."""
    with pool() as rendered:
        assert rendered.render(bmp(), UNCHANGED)
        (child,) = rendered._children
        os.kill(child._process.pid, signal.SIGSEGV)
        child._process.wait()
        with pytest.raises(BadImageError, match="crashed") as caught:
            rendered.render(bmp(), UNCHANGED)
        assert caught.value.code == "image_crashed"
        assert rendered.render(bmp(), UNCHANGED)


@pytest.mark.parametrize(
    "script",
    [
        "connection.recv_bytes(); os.kill(os.getpid(), signal.SIGSEGV)",
        "[connection.recv_bytes() for _ in 'xx']; connection.send_bytes(b'[[')",
        "[connection.recv_bytes() for _ in 'xx']; connection.send_bytes(b'[[\"image/jpeg\",1,1]]')",
    ],
)
def test_whatever_a_decoder_does_is_one_failed_image(stand_in, script) -> None:
    """Dying before, while or after it has the image, or talking nonsense."""
    stand_in(script)
    with pool() as rendered:
        for _ in range(2):
            with pytest.raises(BadImageError) as caught:
                rendered.render(bmp(), UNCHANGED)
            assert caught.value.code == "image_crashed"


def test_a_decoder_that_cannot_start_stops_the_run(monkeypatch) -> None:
    """A machine that starts no processes is no fault of a million images."""
    monkeypatch.setattr(
        decoders, "python", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"]
    )
    with pool() as rendered, pytest.raises(DecoderError, match="cannot start"):
        rendered.render(bmp(), UNCHANGED)
    monkeypatch.setattr(decoders, "python", lambda *_: ["/nowhere/python"])
    with pool() as rendered, pytest.raises(DecoderError, match="No such file"):
        rendered.render(bmp(), UNCHANGED)


def test_a_child_knows_no_keys(stand_in, monkeypatch, tmp_path) -> None:
    """What meets the bytes of strangers has no access to what they may want."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hush")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    stand_in(f"open({str(tmp_path / 'env')!r}, 'w').write(repr(dict(os.environ)))")
    with pool() as rendered, pytest.raises(BadImageError):
        rendered.render(bmp(), UNCHANGED)
    assert "hush" not in (tmp_path / "env").read_text()


def test_a_hang_costs_one_image(stand_in) -> None:
    """A decoder that does not come back is killed when its time is over, the first time too."""
    stand_in("connection.recv_bytes(); connection.recv_bytes(); time.sleep(600)")
    with pool(image_timeout=0.5) as rendered:
        with pytest.raises(BadImageError, match=r"more than 0\.5 s") as caught:
            rendered.render(bmp(), UNCHANGED)
        assert caught.value.code == "image_timeout"
        assert not rendered._children


def test_closing_ends_whoever_waits(stand_in) -> None:
    """A run that stops is not held up by a decoder that hangs; its image has not failed."""
    stand_in("connection.recv_bytes(); connection.recv_bytes(); time.sleep(600)")
    rendered = pool()
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            rendered.render(bmp(), UNCHANGED)
        except BaseException as error:  # noqa: BLE001 - it is looked at
            caught.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not rendered._children:
        time.sleep(0.01)
    rendered.close()
    waiting.join(10)
    assert [type(error) for error in caught] == [StoppedError]
    with pytest.raises(StoppedError):
        rendered.render(bmp(), UNCHANGED)


def test_memory_is_bounded() -> None:
    """An image whose decoding takes more than a decoder may have fails; the decoder lives on."""
    out = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(out, "TIFF", compression="group4")
    with pool(max_image_pixels=2_000_000_000) as rendered:
        with pytest.raises(BadImageError, match="more memory") as caught:
            rendered.render(out.getvalue(), UNCHANGED)
        assert caught.value.code == "image_too_large"
        assert rendered.render(bmp(), UNCHANGED)


def test_large_images_are_decoded_one_at_a_time() -> None:
    """Two threads with large images take turns, so that memory holds one of them."""
    out = io.BytesIO()
    Image.new("L", (6_000, 5_000)).save(out, "PNG", compress_level=1)
    data = out.getvalue()
    with pool(2, max_side=64) as rendered, ThreadPoolExecutor(2) as threads:
        rendered._heavy = turns = Turns()
        both = [threads.submit(rendered.render, data, UNCHANGED) for _ in range(2)]
        assert all(len(one.result(30)) == 1 for one in both)
        assert (turns.count, turns.most) == (2, 1)
        assert rendered.render(bmp(), UNCHANGED)
        assert turns.count == 2


def test_a_child_ends_with_its_parent() -> None:
    """A parent that is killed leaves no decoder behind."""
    script = (
        "import os, sys, time; from captioner.images.decoder_pool import DecoderPool;"
        "from captioner.core.types import UNCHANGED;"
        "from captioner.images.fit import FitOptions;"
        "from captioner.settings.options import ImageSettings;"
        "pool = DecoderPool(FitOptions(ImageSettings()), 1);"
        "pool.render(sys.stdin.buffer.read(), UNCHANGED);"
        "print([c._process.pid for c in pool._children][0], flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        input=bmp(),
        capture_output=True,
        env=environment(),
        timeout=30,
    )
    pid = int(done.stdout)
    for _ in range(500):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":
            return
        time.sleep(0.01)
    pytest.fail("the decoder lives on")
