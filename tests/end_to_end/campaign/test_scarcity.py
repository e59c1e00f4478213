"""A run under limits of the shell: it works, or ends with a sentence that says what to raise."""

from __future__ import annotations

import json
import random
import resource
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from endpoint import FakeEndpoint
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits differ")


def run_under(limit: int, most: int, run_command: Any, source: Path, endpoint: FakeEndpoint) -> Any:
    """Run the command with a limit of `resource`."""
    return run_command(
        source,
        "--base-url",
        endpoint.base_url,
        "--model=m",
        preexec_fn=partial(resource.setrlimit, limit, (most, most)),
    )


@pytest.mark.parametrize(
    ("limit", "most", "to_raise"),
    [(resource.RLIMIT_NOFILE, 16, "ulimit -n"), (resource.RLIMIT_AS, 250_000 << 10, "ulimit -v")],
)
def test_too_little_to_begin(
    tmp_path: Path,
    endpoint: FakeEndpoint,
    run_command: Any,
    limit: int,
    most: int,
    to_raise: str,
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("{}\n")
    done = run_under(limit, most, run_command, source, endpoint)
    assert done.returncode == 2
    assert to_raise in done.stderr
    assert done.stderr.count("\n") == 1
    assert not endpoint.calls


def test_the_fewest_files_are_enough(
    tmp_path: Path, endpoint: FakeEndpoint, run_command: Any
) -> None:
    """Images are decoded, one at a time."""
    source = tmp_path / "in.jsonl"
    for number in range(4):
        Image.new("RGB", (3_000, 30), (number, 0, 0)).save(tmp_path / f"{number}.bmp")
    source.write_text("".join(f'{{"image": "{number}.bmp"}}\n' for number in range(4)))
    done = run_under(resource.RLIMIT_NOFILE, 24, run_command, source, endpoint)
    assert done.returncode == 0, done.stderr


def test_memory_ends_during_a_run(tmp_path: Path, endpoint: FakeEndpoint, run_command: Any) -> None:
    """Images of 7 MB are in flight side by side, more than fit into the address space."""
    noise = random.Random(7).randbytes(1_800 * 1_300 * 3)
    for number in range(24):
        image = Image.frombytes("RGB", (1_800, 1_300), noise[number:] + noise[:number])
        image.save(tmp_path / f"{number}.png", compress_level=0)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"image": f"{n}.png"}) + "\n" for n in range(24)))
    done = run_under(resource.RLIMIT_AS, 280 << 20, run_command, source, endpoint)
    assert done.returncode == 1
    assert "ulimit" in done.stderr
    assert "internal error" not in done.stderr
    assert "Traceback" not in done.stderr
    rest = run_command(source, "--base-url", endpoint.base_url, "--model=m")
    assert rest.returncode == 0, rest.stderr
