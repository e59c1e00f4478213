"""Decoder processes that crash, hang or take too much memory fail one image each."""

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

from captioner.core import subprocesses
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
    """Replace the decoder by a script, which has a `connection`."""

    def put(script: str) -> None:
        begin = (
            "import sys, os, time, signal; from multiprocessing.connection import Connection;"
            "connection = Connection(int(sys.argv[1])); connection.recv_bytes();"
            "connection.send_bytes(b'ready')\n"
        )
        command = [sys.executable, "-c", begin + script]
        monkeypatch.setattr(subprocesses, "python", lambda _, number: [*command, number])

    return put


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """List the processes that are started."""
    processes: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        processes.append(popen(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return processes


def bmp(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "BMP")
    return out.getvalue()


def test_a_child_renders_as_this_process_would() -> None:
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


def test_children_are_used_again_and_no_more_than_are_wanted(started) -> None:
    """Fifty images from eight threads take two processes, which end with the pool."""
    with pool(2) as rendered, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: rendered.render(bmp(), UNCHANGED)[0].data, range(50)))
        assert len(set(found)) == 1
    assert len(started) <= 2
    for process in started:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_a_crash_costs_one_image(started) -> None:
    """A decoder that dies takes one image with it; the next one gets a new decoder."""
    with pool() as rendered:
        assert rendered.render(bmp(), UNCHANGED)
        (process,) = started
        process.send_signal(signal.SIGSEGV)
        process.wait()
        assert rendered.render(bmp(), UNCHANGED)


def test_a_killed_decoder_costs_its_image_one_more_try(stand_in, started, tmp_path) -> None:
    """An image whose decoder is killed at work is decoded by the next one."""
    mark = str(tmp_path / "killed")
    stand_in(
        "[connection.recv_bytes() for _ in 'xx']\n"
        f"if not os.path.exists({mark!r}): open({mark!r}, 'w'); os.kill(os.getpid(), 9)\n"
        "connection.send_bytes(b'[]'); connection.recv_bytes()"
    )
    with pool() as rendered:
        assert rendered.render(bmp(), UNCHANGED) == ()
    assert len(started) == 2


def test_a_decoder_that_is_killed_while_it_starts_is_started_again(
    monkeypatch, stand_in, tmp_path
) -> None:
    """A run does not stop because the system kills some processes."""
    stand_in("[connection.recv_bytes() for _ in 'xx']; connection.send_bytes(b'[]')")
    works = subprocesses.python
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    commands = iter([killed] * 4)
    monkeypatch.setattr(decoders, "PAUSE_S", 0.001)
    monkeypatch.setattr(subprocesses, "python", lambda *given: next(commands, works(*given)))
    with pool() as rendered:
        assert rendered.render(bmp(), UNCHANGED) == ()


def test_a_decoder_waits_for_a_file_descriptor(monkeypatch) -> None:
    """An image does not fail because all descriptors are in use; closing the pool ends the wait."""
    import resource

    monkeypatch.setattr(decoders, "PAUSE_S", 0.001)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    data = bmp()
    with pool() as rendered, ThreadPoolExecutor(1) as threads:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            waiting = threads.submit(rendered.render, data, UNCHANGED)
            with pytest.raises(TimeoutError):
                waiting.result(0.05)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert waiting.result(60)


@pytest.mark.parametrize(
    "script",
    [
        "connection.recv_bytes(); os.kill(os.getpid(), signal.SIGSEGV)",
        "[connection.recv_bytes() for _ in 'xx']; connection.send_bytes(b'[[')",
        "[connection.recv_bytes() for _ in 'xx']; connection.send_bytes(b'[[\"image/jpeg\",1,1]]')",
    ],
)
def test_a_broken_decoder_fails_one_image(stand_in, script) -> None:
    """A decoder that crashes or sends an invalid reply fails the image it has."""
    stand_in(script)
    with pool() as rendered:
        for _ in range(2):
            with pytest.raises(BadImageError) as caught:
                rendered.render(bmp(), UNCHANGED)
            assert caught.value.code == "image_crashed"


def test_a_decoder_that_cannot_start_stops_the_run(monkeypatch) -> None:
    """If no process can be started, the run stops; the images have not failed."""
    monkeypatch.setattr(
        subprocesses, "python", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"]
    )
    with pool() as rendered, pytest.raises(DecoderError, match="cannot start"):
        rendered.render(bmp(), UNCHANGED)
    monkeypatch.setattr(subprocesses, "python", lambda *_: ["/nowhere/python"])
    with pool() as rendered, pytest.raises(DecoderError, match="No such file"):
        rendered.render(bmp(), UNCHANGED)


def test_a_child_knows_no_keys(stand_in, monkeypatch, tmp_path) -> None:
    """The process that decodes untrusted bytes has no secrets in its environment."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hush")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    stand_in(f"open({str(tmp_path / 'env')!r}, 'w').write(repr(dict(os.environ)))")
    with pool() as rendered, pytest.raises(BadImageError):
        rendered.render(bmp(), UNCHANGED)
    assert "hush" not in (tmp_path / "env").read_text()


def test_a_hang_costs_one_image(stand_in, started) -> None:
    """A decoder that hangs is killed after the timeout, also on its first image."""
    stand_in("connection.recv_bytes(); connection.recv_bytes(); time.sleep(600)")
    with pool(image_timeout=0.5) as rendered:
        with pytest.raises(BadImageError, match=r"more than 0\.5 s") as caught:
            rendered.render(bmp(), UNCHANGED)
        assert caught.value.code == "image_timeout"
        (process,) = started
        assert process.returncode == -signal.SIGKILL


def test_closing_ends_waiting_calls(stand_in, started) -> None:
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
    while not started:
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
        with pytest.raises(BadImageError, match="of memory") as caught:
            rendered.render(out.getvalue(), UNCHANGED)
        assert caught.value.code == "image_too_large"
        assert rendered.render(bmp(), UNCHANGED)


def test_large_images_are_decoded_one_at_a_time(stand_in, tmp_path) -> None:
    """Decoders of large images take turns, so that memory holds one of them."""
    turn = str(tmp_path / "turn")
    stand_in(
        "while True:\n"
        "    connection.recv_bytes(); connection.recv_bytes()\n"
        "    connection.send_bytes(b'heavy'); connection.recv_bytes()\n"
        f"    os.close(os.open({turn!r}, os.O_CREAT | os.O_EXCL))\n"  # fails if it is taken
        f"    time.sleep(0.05); os.unlink({turn!r})\n"
        "    connection.send_bytes(b'[]')"
    )
    with pool(2) as rendered, ThreadPoolExecutor(2) as threads:
        several = [threads.submit(rendered.render, bmp(), UNCHANGED) for _ in range(6)]
        assert [one.result(30) for one in several] == [()] * 6


def test_a_decoder_waits_before_it_decodes_a_large_image() -> None:
    """Only large images take turns, and they are decoded when it is their turn."""
    out = io.BytesIO()
    Image.new("L", (6_000, 5_000)).save(out, "PNG", compress_level=1)
    waits: list[bool] = []
    wanted = FitOptions(ImageSettings(max_side=64))
    render(bmp(), wanted, UNCHANGED, lambda: waits.append(False))
    assert not waits
    large = render(out.getvalue(), wanted, UNCHANGED, lambda: waits.append(True))
    assert waits == [True]
    with pool(max_side=64) as rendered:
        assert rendered.render(out.getvalue(), UNCHANGED) == large


def test_a_child_ends_with_its_parent() -> None:
    """A parent that is killed leaves no decoder behind."""
    script = (
        "import os, sys, subprocess; from captioner.images.decoder_pool import DecoderPool;"
        "from captioner.core.types import UNCHANGED;"
        "from captioner.images.fit import FitOptions;"
        "from captioner.settings.options import ImageSettings;"
        "started = []; Popen = subprocess.Popen;"
        "subprocess.Popen = lambda *a, **k: started.append(Popen(*a, **k)) or started[0];"
        "pool = DecoderPool(FitOptions(ImageSettings()), 1);"
        "pool.render(sys.stdin.buffer.read(), UNCHANGED);"
        "print(started[0].pid, flush=True); os.kill(os.getpid(), 9)"
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
