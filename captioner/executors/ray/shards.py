"""The shards of an output on Ray, and the files in ``OUT.shards/``.

::

    manifest.json        the number of shards, fixed by the first run
    0007.in              the records of a shard, each after its number in the input
    0007.jsonl …         its journal, as in any run

A record belongs to shard ``key mod shards``, so edited, reordered and extended inputs reach the
same shards. Existing captions are imported first: a run may begin on one machine and continue on
many.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import OutputDamagedError, SettingsError
from captioner.core.jsonbytes import one_line
from captioner.core.lines import iter_lines
from captioner.core.regular import reading
from captioner.core.secrets import sealed
from captioner.core.types import InputRecord
from captioner.executors.ray.shard_store import MANIFEST, ShardStore
from captioner.journal.checkpoint import Checkpoint, Extent
from captioner.journal.disk import Files, TemporaryFile, atomic_write
from captioner.journal.failures import read_failures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from captioner.core.keys import RecordKeys
    from captioner.core.protocols import Source

VERSION = 1


def shard_of(key: bytes, shards: int) -> int:
    """Return the shard of a record."""
    return int.from_bytes(key, "big") % shards


def input_name(shard: int) -> str:
    """Return the name of a shard's input."""
    return f"{shard:04d}.in"


def output_names(shard: int) -> tuple[str, str, str]:
    """Return the names of a shard's failures, journal and checkpoint, in the order of copying."""
    return f"{shard:04d}.failed.jsonl", f"{shard:04d}.jsonl", f"{shard:04d}.jsonl.ckpt"


class ShardSet:
    """The shards of an output.

    Args:
        store: The folder of their files.
        keys: Computes the keys of records.

    Attributes:
        count: Number of shards, once `open` has returned.
    """

    def __init__(self, store: ShardStore, keys: RecordKeys) -> None:
        self.store = store
        self.count = 0
        self._keys = keys
        self._settings: dict[str, Any] = {}

    def open(self, wanted: int, settings: dict[str, Any], *, accept_changes: bool) -> bool:
        """Read the number of shards from the manifest; return whether the shards are new.

        Raises:
            OutputDamagedError: The manifest cannot be read.
            SettingsError: The run was begun with other settings.
        """
        self._settings = settings
        self.store.fetch([MANIFEST])
        path = self.store.folder / MANIFEST
        try:
            with reading(path) as file:
                manifest = orjson.loads(file.read())
        except FileNotFoundError:
            self.count = wanted
            return True
        except orjson.JSONDecodeError:
            manifest = None  # reported below
        try:
            if manifest["version"] > VERSION:
                raise OutputDamagedError(f"{path} was written by a newer captioner; use that one")
            self.count = int(manifest["shards"])
            before = sealed(manifest["settings"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise OutputDamagedError(f"{path} cannot be read; restore it") from error
        names = sorted(before.keys() | settings.keys())
        changed = [name for name in names if before.get(name) != settings.get(name)]
        if changed and not accept_changes:
            raise SettingsError(
                f"the run was begun with other settings ({', '.join(changed)}): restore them, "
                "choose another output with -o, or continue with --accept-changes"
            )
        if before != manifest["settings"]:  # an earlier version wrote secrets as they are
            self.store.write(MANIFEST, orjson.dumps({**manifest, "settings": before}))
        return False

    async def partition(self, source: Source) -> int:
        """Write the input of every shard; return the number of records."""
        count = 0
        with _NewFiles(self.store.folder) as files:
            for number in range(self.count):
                files.write(input_name(number), b"")
            async for records in source.batches():
                count += len(records)
                parts: dict[int, list[bytes]] = defaultdict(list)
                for record, key in zip(records, self._keys.of_records(records), strict=True):
                    parts[shard_of(key, self.count)].append(_encode(record))
                for shard, lines in parts.items():
                    files.write(input_name(shard), b"".join(lines))
        await asyncio.to_thread(self.store.push, map(input_name, range(self.count)))
        return count

    def import_existing(self, journal: Path, failures: Path, source: str) -> None:
        """Copy an existing output into the shards, and write the manifest."""
        disk = Files()
        with _NewFiles(self.store.folder) as files:
            for lines in _lines(journal):
                parts: dict[int, list[bytes]] = defaultdict(list)
                for line, key in zip(lines, map(self._keys.of_output, lines), strict=True):
                    if key is not None:
                        parts[shard_of(key, self.count)].append(line + b"\n")
                for shard, rows in parts.items():
                    files.write(output_names(shard)[1], b"".join(rows))
            if failures.exists():
                fd = disk.open_to_read(failures)
                try:
                    for _, key, _, line, _ in read_failures(disk, fd):
                        name = output_names(shard_of(key, self.count))[0]
                        files.write(name, line + b"\n")
                finally:
                    disk.close(fd)
        for number in range(self.count):
            names = output_names(number)
            if extent := files.extent(names[1]):
                checkpoint = Checkpoint(extent, None, self._settings, source)
                self.store.write(names[2], checkpoint.encode())
            self.store.push(names)
        manifest = {"version": VERSION, "shards": self.count, "settings": self._settings}
        self.store.write(MANIFEST, orjson.dumps(manifest))

    def merge(self, journal: Path, failures: Path) -> Extent:
        """Write the captions of all shards to one file, and their failures to another.

        A file without content is not written.

        Returns:
            Length and checksum of the captions.
        """
        with _NewFiles(journal.parent) as files:
            for number in range(self.count):
                names = output_names(number)
                self.store.fetch(names)
                for name, target in ((names[1], journal), (names[0], failures)):
                    for lines in _lines(self.store.folder / name):
                        files.write(target.name, b"".join(line + b"\n" for line in lines))
        return files.extent(journal.name) or Extent()


class _NewFiles(ExitStack):
    """New files of a folder, each created when something is written to it.

    They take their places together when the block ends.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._files: dict[str, TemporaryFile] = {}

    def write(self, name: str, data: bytes) -> None:
        if name not in self._files:
            target = self._folder / name
            self._files[name] = self.enter_context(atomic_write(target, Files(), private=True))
        self._files[name].write(data)

    def extent(self, name: str) -> Extent | None:
        file = self._files.get(name)
        return None if file is None else Extent(file.size, file.crc32)


def _lines(path: Path) -> Iterator[list[bytes]]:
    """Yield the whole lines of a file, many at a time; none if the file does not exist."""
    with suppress(FileNotFoundError), reading(path) as file:
        yield from iter_lines(lambda size, _: file.read(size))


def _encode(record: InputRecord) -> bytes:
    """Return a record as a line of a shard's input."""
    if record.fault is None:
        return b"%d\t%b\n" % (record.number, one_line(record.raw))
    key = record.key.hex() if record.key else None
    raw = record.raw.decode("utf-8", "surrogateescape")
    fault = orjson.dumps([*record.fault, key, raw.encode(errors="replace").decode()])
    return b"%d!\t%b\n" % (record.number, fault)


def _decode(line: bytes, end: int) -> InputRecord:
    number, _, raw = line.partition(b"\t")
    if not number.endswith(b"!"):
        return InputRecord(int(number), raw, end)
    code, message, key, text = orjson.loads(raw)
    found = bytes.fromhex(key) if key else None
    return InputRecord(int(number[:-1]), text.encode(), end, (code, message), found)


class ShardSource:
    """The records of one shard, from its input file.

    Attributes:
        size: Bytes of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    async def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the records in order."""
        end = 0
        for lines in _lines(self._path):
            found = []
            for line in lines:
                end += len(line) + 1
                found.append(_decode(line, end))
            yield found
            await asyncio.sleep(0)


class SelectingSource:
    """The records of one shard, selected from the whole input: for rows that hold images.

    Attributes:
        size: Bytes of the whole input.
    """

    def __init__(self, source: Source, keys: RecordKeys, shard: int, shards: int) -> None:
        self.size = source.size
        self._source = source
        self._keys = keys
        self._shard = shard
        self._shards = shards

    async def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the records in order."""
        async for batch in self._source.batches():
            keyed = zip(batch, self._keys.of_records(batch), strict=True)
            if found := [one for one, key in keyed if shard_of(key, self._shards) == self._shard]:
                yield found
