"""Runs over an input, done twice, and which picture each row was captioned for."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from endpoint import FakeEndpoint

from captioner import run_batch


class Outcome(NamedTuple):
    """What came of an input."""

    rows: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    warnings: list[str]

    @property
    def codes(self) -> list[str]:
        return [failure["code"] for failure in self.failures]

    @property
    def messages(self) -> str:
        return "\n".join(failure["message"] for failure in self.failures)

    def pictures(self, field: str = "image") -> dict[str, str]:
        """Return by image reference the mark of the picture that its caption is about."""
        return {row[field]: row["caption"].rpartition("[")[2].rstrip("]") for row in self.rows}


def mark(picture: bytes) -> str:
    """Return what a caption of the fake endpoint shows of a picture."""
    return hashlib.blake2b(picture, digest_size=4).hexdigest()


def lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


async def captioned(source: Path, endpoint: FakeEndpoint, output: Path, **options: Any) -> Outcome:
    """Caption an input; check that a second run sends nothing and changes nothing."""
    warnings: list[str] = []
    options = {"base_url": endpoint.base_url, "model": "m", **options}
    await run_batch(source, output, warn=warnings.append, **options)
    failed = output.with_suffix(".failed.jsonl")
    found = Outcome(lines(output), lines(failed), warnings)
    count = endpoint.count
    again = await run_batch(source, output, **options)
    assert endpoint.count == count
    assert (again.captioned, again.resumed) == (0, len(found.rows))
    assert (lines(output), lines(failed)) == (found.rows, found.failures)
    return found


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as shard:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return path
