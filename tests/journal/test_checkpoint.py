from __future__ import annotations

import orjson
import pytest

from captioner.core.errors import OutputDamagedError
from captioner.journal.checkpoint import (
    Checkpoint,
    Extent,
    FutureCheckpointError,
    decode,
    read_checkpoint,
)
from captioner.journal.disk import Files

FULL = Checkpoint(Extent(7, 11), Extent(1 << 40, 0xFFFFFFFF), {"model": "m", "n": None}, "å/in")


def changed(**members):
    return orjson.dumps({**orjson.loads(FULL.encode()), **members})


@pytest.mark.parametrize("checkpoint", [Checkpoint(), FULL])
def test_round_trip(checkpoint):
    """What a run notes down about its output is what the next run reads, every member of it."""
    data = checkpoint.encode()
    assert decode(data) == checkpoint
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 200,
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        FULL.encode()[:-5],
        changed(version="one"),
        changed(length=None),
        changed(crc32=[]),
        changed(next=[1]),
        changed(next=5),
        changed(settings=3),
        changed(spent=["nan", 0, 0, 0]),
        changed(spent=[-1e9, 0, 0, 0]),
    ],
)
def test_garbage(data):
    """A checkpoint that something spoilt is told from a good one, and is no crash."""
    with pytest.raises(ValueError, match="not a checkpoint") as raised:
        decode(data)
    assert not isinstance(raised.value, FutureCheckpointError)


def test_newer_version():
    """A checkpoint of a newer captioner is named as such, not read as if it were ours."""
    with pytest.raises(FutureCheckpointError, match="version 2"):
        decode(changed(version=2, more="of it"))


def test_newer_version_beside_an_output(tmp_path):
    """An output that a newer captioner writes is refused, in words that say what to do."""
    (tmp_path / "o.jsonl.ckpt").write_bytes(changed(version=9))
    with pytest.raises(OutputDamagedError, match=r"o\.jsonl\.ckpt .*newer captioner.*-o"):
        read_checkpoint(Files(), tmp_path / "o.jsonl")


def test_spoilt_or_missing_is_none(tmp_path):
    """An output whose checkpoint is lost or spoilt is still read, from the output itself."""
    output = tmp_path / "o.jsonl"
    assert read_checkpoint(Files(), output) is None
    (tmp_path / "o.jsonl.ckpt").write_bytes(b"\0" * 80)
    assert read_checkpoint(Files(), output) is None
    (tmp_path / "o.jsonl.ckpt").write_bytes(FULL.encode())
    assert read_checkpoint(Files(), output) == FULL


def test_a_newer_version_of_another_shape_is_refused_not_ignored() -> None:
    """What a later captioner wrote is never taken for garbage and overwritten."""
    with pytest.raises(FutureCheckpointError):
        decode(b'{"version":2,"extents":[]}')
    with pytest.raises(ValueError, match="not a checkpoint"):
        decode(b'{"version":1,"length":-1,"crc32":0,"next":null,"settings":{},"input":""}')
