"""Records from tar shards in the WebDataset convention, and from img2dataset's output.

Members of a tar that follow one another and share their name up to the first dot are one sample
(https://github.com/webdataset/webdataset). Shards are read here and not by the webdataset package:
that hands out images, where a record needs their places, to be read when their turn comes.
"""

from __future__ import annotations

import itertools
import os
import re
import tarfile
from typing import IO, TYPE_CHECKING, Any, cast

import orjson

from captioner.core.extras import needed
from captioner.core.keys import KeyTable, digest
from captioner.readers.bytestreams import from_thread
from captioner.readers.imagefiles import is_image
from captioner.readers.rows import Batching, fault_line, line_of
from captioner.readers.tables import python_rows, read_tables

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from captioner.core.types import InputRecord

LARGEST_TEXT = 1 << 20
"""Bytes of a member that is taken for text; what is larger is left in the shard."""

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_DOWNLOADED = "success"


def expand(pattern: str) -> list[str]:
    """Return the names that ``shard-{000..099}.tar`` stands for."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last = found[1], found[2]
    return [
        name
        for number in range(int(first), int(last) + 1)
        for name in expand(
            f"{pattern[: found.start()]}{number:0{len(first)}d}{pattern[found.end() :]}"
        )
    ]


class ShardsSource:
    """The samples of tar shards.

    A record has the sample's name as ``__key__``, what its ``.json`` holds, its texts by their
    ending, and the images as ``image``, in the form ``shard.tar#member``.

    Args:
        paths: The shards.
        folder: Where names of shards in the records start from.
        with_failures: Report what img2dataset could not download, from the tables beside.
    """

    def __init__(self, paths: Sequence[Path], folder: Path, *, with_failures: bool = False) -> None:
        self.paths = paths
        self._folder = folder
        self._with_failures = with_failures
        if with_failures:
            needed("pyarrow.parquet", "parquet")

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(path.stat().st_size for path in self.paths if path.exists())

    def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the samples in order."""
        return from_thread(self._samples)

    def _samples(self) -> Iterator[list[InputRecord]]:
        number = before = 0
        for path in self.paths:
            batching = Batching()
            name = os.path.relpath(path, self._folder)
            try:
                with tarfile.open(path, "r:") as shard:
                    seen = KeyTable(offsets=False)
                    groups = itertools.groupby(_members(shard), lambda one: _split(one.name)[0])
                    for key, members in groups:
                        record = _sample(key, members, name, shard)
                        if record is None:
                            continue
                        number += 1
                        end = before + shard.offset
                        line = line_of(number, record, end)
                        if seen.find(mark := digest(key.encode(errors="replace"))) is not None:
                            message = f"{name} has two samples of the name {key}"
                            line = fault_line(number, record, end, "bad_shard", message)
                        seen.add(mark)
                        if found := batching.add(line):
                            yield found
                    _check_end(shard, path)
            except (tarfile.TarError, OSError, EOFError) as error:
                number += 1
                message = f"{name} breaks off: {error}"
                what = {"shard": name, "after": number - 1}
                yield [*batching.rest(), fault_line(number, what, before, "bad_shard", message)]
            if path.exists():
                before += path.stat().st_size
            if self._with_failures:
                for line in missing(path.with_suffix(".parquet"), number, before):
                    number = line.number
                    if found := batching.add(line):
                        yield found
            if found := batching.rest():
                yield found


def _members(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a shard, of which tarfile would keep a list."""
    while (member := shard.next()) is not None:
        shard.members = []  # type: ignore[attr-defined]
        yield member


def _check_end(shard: tarfile.TarFile, path: Path) -> None:
    """See that a shard ends as one: tarfile takes a broken header for the end.

    Raises:
        tarfile.ReadError: It does not.
    """
    with path.open("rb") as file:
        file.seek(shard.offset)
        mark = file.read(tarfile.BLOCKSIZE)
    if mark != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("what follows is no member, and no end")


def _split(name: str) -> tuple[str, str]:
    """Return a sample's key and a member's field: the name is cut at its first dot."""
    folder, slash, base = name.rpartition("/")
    key, _, field = base.partition(".")
    return folder + slash + key, field.lower()


def _sample(
    key: str, members: Iterator[tarfile.TarInfo], shard_name: str, shard: tarfile.TarFile
) -> dict[str, Any] | None:
    """Return the record of one sample, None if there is no image in it."""
    record: dict[str, Any] = {"__key__": key}
    images: list[str] = []
    for member in members:
        if not member.isfile():
            continue
        field = _split(member.name)[1]
        if is_image(f"x.{field}"):
            images.append(f"{shard_name}#{member.name}")
        elif member.size <= LARGEST_TEXT:
            data = cast("IO[bytes]", shard.extractfile(member)).read()
            _add(record, field, data)
    if not images:
        return None
    record["image"] = images[0] if len(images) == 1 else images
    return record


def _add(record: dict[str, Any], field: str, data: bytes) -> None:
    """Add what a member holds to the record."""
    if field == "json":
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            value = data.decode(errors="replace")
        if isinstance(value, dict) and "image" not in value and "__key__" not in value:
            record.update(value)
        else:
            record["json"] = value
        return
    try:
        record[field] = data.decode().strip()
    except UnicodeDecodeError:
        return  # numbers of some library's own, say: they stay in the shard


class DownloadsSource:
    """img2dataset's output in the form of files: folders of ``key.jpg``, ``key.txt``, ``key.json``.

    Args:
        folder: Where it was written to.
    """

    size = 0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        needed("pyarrow.parquet", "parquet")

    def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the samples in order, after those of each shard what it could not download."""
        return from_thread(self._samples)

    def _samples(self) -> Iterator[list[InputRecord]]:
        number = 0
        for table in sorted(self._folder.glob("*.parquet")):
            batching = Batching()
            shard = self._folder / table.stem
            names = sorted(entry.name for entry in shard.iterdir()) if shard.is_dir() else []
            for key, files in itertools.groupby(names, lambda name: _split(name)[0]):
                record: dict[str, Any] = {"__key__": key}
                image = ""
                for name in files:
                    if is_image(name):
                        image = f"{table.stem}/{name}"
                    else:
                        _add(record, _split(name)[1], (shard / name).read_bytes())
                if image:
                    number += 1
                    record["image"] = image
                    if found := batching.add(line_of(number, record, 0)):
                        yield found
            for line in missing(table, number, 0):
                number = line.number
                if found := batching.add(line):
                    yield found
            if found := batching.rest():
                yield found


def missing(table: Path, number: int, end: int) -> Iterator[InputRecord]:
    """Yield what img2dataset's table of a shard says was not downloaded, as faults."""
    if not table.exists():
        return
    for _, batch in read_tables(table):
        rows = [batch] if isinstance(batch, str) else python_rows(batch)
        for row in rows:
            if isinstance(row, str):
                number += 1
                what = {"file": table.name}
                message = f"{table.name} cannot be read: {row}"
                yield fault_line(number, what, end, "bad_table", message)
            elif row.get("status", _DOWNLOADED) != _DOWNLOADED:
                number += 1
                why = row.get("error_message") or row["status"]
                message = f"img2dataset could not get it: {why}"
                told = {name: row.get(name) for name in ("key", "url", "status")}
                yield fault_line(number, told, end, "not_downloaded", message)
