"""Which record belongs to which shard, and what lies in ``OUT.shards/``.

::

    manifest.json        how many shards there are; fixed by the first run
    0007.in              the records of a shard, each after its number in the input
    0007.jsonl …         its journal, as of any run

A record belongs to shard ``key mod P``, wherever it stands in the input: edited, reordered and
appended inputs land in the same shards. What the output holds already is dealt out first, so that a
run may begin on one machine and go on upon many.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import IO, TYPE_CHECKING, Any

import orjson

from captioner.core.errors import OutputDamagedError, SettingsError
from captioner.core.jsonbytes import one_line
from captioner.core.lines import iter_lines
from captioner.core.types import InputRecord
from captioner.executors.ray.shard_store import MANIFEST
from captioner.journal.checkpoint import Checkpoint, Extent
from captioner.journal.companions import failures_path
from captioner.journal.disk import Files
from captioner.journal.failures import read_failures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from captioner.core.keys import RecordKeys
    from captioner.core.protocols import Source
    from captioner.executors.ray.shard_store import Store

VERSION = 1
_BLOCK = 1 << 20


def shard_of(key: bytes, shards: int) -> int:
    """Return the shard of a record."""
    return int.from_bytes(key, "big") % shards


def names_of(shard: int) -> tuple[str, ...]:
    """Return the files of a shard, its checkpoint last: the others are as new as it says."""
    return f"{shard:04d}.failed.jsonl", f"{shard:04d}.jsonl", f"{shard:04d}.jsonl.ckpt"


class Plan:
    """The shards of an output.

    Args:
        store: Where they lie.
        identity: Computes keys.
    """

    def __init__(self, store: Store, identity: RecordKeys) -> None:
        self.store = store
        self.shards = 0
        self._identity = identity
        self._settings: dict[str, Any] = {}

    def open(self, wanted: int, settings: dict[str, Any], *, accept_changes: bool) -> bool:
        """Find out how many shards there are; tell whether they are new.

        Raises:
            OutputDamagedError: The manifest cannot be read.
            SettingsError: They were begun with other settings.
        """
        self._settings = settings
        self.store.fetch([MANIFEST])
        path = self.store.folder / MANIFEST
        if not path.exists():
            self.shards = wanted
            return True
        try:
            manifest = orjson.loads(path.read_bytes())
            if manifest["version"] > VERSION:
                raise OutputDamagedError(f"{path} was written by a newer captioner; use that one")
            self.shards = int(manifest["shards"])
            before = dict(manifest["settings"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise OutputDamagedError(f"{path} cannot be read; restore it") from error
        names = sorted(before.keys() | settings.keys())
        changed = [name for name in names if before.get(name) != settings.get(name)]
        if changed and not accept_changes:
            raise SettingsError(
                f"the run was begun with other settings ({', '.join(changed)}): go back to those, "
                "choose another output with -o, or go on with --accept-changes"
            )
        return False

    async def partition(self, source: Source, limit: int | None) -> int:
        """Write the input of every shard; return how many records there are."""
        files = [(self.store.folder / f"{n:04d}.in.partial").open("wb") for n in range(self.shards)]
        count = 0
        try:
            async for batch in source.batches():
                if limit is not None and count + len(batch) > limit:
                    batch = batch[: limit - count]  # noqa: PLW2901
                count += len(batch)
                keys = self._identity.of_inputs([line.raw for line in batch])
                for line, computed in zip(batch, keys, strict=True):
                    files[shard_of(line.key or computed, self.shards)].write(_written(line))
                if count == limit:
                    break
        finally:
            for file in files:
                file.close()
        for number in range(self.shards):
            partial = self.store.folder / f"{number:04d}.in.partial"
            partial.replace(self.store.folder / f"{number:04d}.in")
        await asyncio.to_thread(self.store.push, [f"{n:04d}.in" for n in range(self.shards)])
        return count

    def seed(self, journal: Path, failures: Path, source: str) -> None:
        """Deal out what an output holds already, and fix the number of shards."""
        folder = self.store.folder
        outputs = [_Appending(folder / f"{number:04d}.jsonl") for number in range(self.shards)]
        failed = [_Appending(failures_path(one.path)) for one in outputs]
        for lines in _lines(journal):
            for line, key in zip(lines, self._identity.of_outputs(lines), strict=True):
                if key is not None:
                    outputs[shard_of(key, self.shards)].write(line + b"\n")
        if failures.exists():
            files = Files()
            fd = files.open_to_read(failures)
            try:
                for _, key, _, line in read_failures(files, fd):
                    failed[shard_of(key, self.shards)].write(line + b"\n")
            finally:
                files.close(fd)
        for output in outputs:
            extent = output.close()
            if extent.length:
                checkpoint = Checkpoint(extent, None, self._settings, source)
                self.store.put_in_place(f"{output.path.name}.ckpt", checkpoint.encode())
        for file in failed:
            file.close()
        for number in range(self.shards):
            self.store.push(names_of(number))
        manifest = {"version": VERSION, "shards": self.shards, "settings": self._settings}
        self.store.put_in_place(MANIFEST, orjson.dumps(manifest))

    def gather(self, journal: Path, failures: Path) -> Extent:
        """Write the captions of all shards to one file and their failures to another.

        Returns:
            Length and checksum of the captions.
        """
        captions, failed = _Appending(journal), _Appending(failures)
        for number in range(self.shards):
            names = names_of(number)
            self.store.fetch(names)
            for name, into in ((names[1], captions), (names[0], failed)):
                for lines in _lines(self.store.folder / name):
                    into.write(b"".join(line + b"\n" for line in lines))
        failed.close()
        return captions.close()


class _Appending:
    """A fresh file and its checksum; made when something is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._length = self._crc = 0

    def write(self, data: bytes) -> None:
        if self._file is None:
            self._file = self.path.open("wb", buffering=_BLOCK)
        self._file.write(data)
        self._length += len(data)
        self._crc = zlib.crc32(data, self._crc)

    def close(self) -> Extent:
        if self._file is not None:
            self._file.flush()
            Files().sync(self._file.fileno())
            self._file.close()
        return Extent(self._length, self._crc)


def _lines(path: Path) -> Iterator[list[bytes]]:
    """Yield the whole lines of a file, many at a time; nothing where there is none."""
    if not path.exists():
        return
    with path.open("rb") as file:
        yield from iter_lines(lambda size, _: file.read(size))


def _written(line: InputRecord) -> bytes:
    """Return a record as it stands in a shard's input."""
    if line.fault is None:
        return b"%d\t%b\n" % (line.number, one_line(line.raw))
    key = line.key.hex() if line.key else None
    raw = line.raw.decode("utf-8", "surrogateescape")
    fault = orjson.dumps([*line.fault, key, raw.encode(errors="replace").decode()])
    return b"%d!\t%b\n" % (line.number, fault)


class ShardSource:
    """The records of one shard.

    Args:
        path: Its input.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._path.stat().st_size

    async def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the records in order."""
        at = 0
        for lines in _lines(self._path):
            found = []
            for line in lines:
                at += len(line) + 1
                found.append(_read(line, at))
            if found:
                yield found
            await asyncio.sleep(0)


def _read(line: bytes, end: int) -> InputRecord:
    number, _, raw = line.partition(b"\t")
    if not number.endswith(b"!"):
        return InputRecord(int(number), raw, end)
    code, message, key, text = orjson.loads(raw)
    found = bytes.fromhex(key) if key else None
    return InputRecord(int(number[:-1]), text.encode(), end, (code, message), found)


class PartSource:
    """The records of one shard, picked out of the whole input: for rows with images in them.

    Args:
        source: The whole input.
        identity: Computes keys.
        shard: Which.
        shards: Of how many.
    """

    def __init__(self, source: Source, identity: RecordKeys, shard: int, shards: int) -> None:
        self._source = source
        self._identity = identity
        self._part = shard, shards

    @property
    def size(self) -> int:
        """Bytes of the whole input."""
        return self._source.size

    async def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the records in order."""
        shard, shards = self._part
        async for batch in self._source.batches():
            keys = self._identity.of_inputs([line.raw for line in batch])
            found = [
                line
                for line, computed in zip(batch, keys, strict=True)
                if shard_of(line.key or computed, shards) == shard
            ]
            if found:
                yield found
