"""Records from tar shards in the WebDataset convention, and from img2dataset's output.

Consecutive members of a shard are one sample if their names are equal up to the first dot
(https://github.com/webdataset/webdataset). The webdataset package is not used, because it reads
the images at once. Records need the paths of images, which are read later.
"""

from __future__ import annotations

import itertools
import os
import re
import tarfile
from typing import IO, TYPE_CHECKING, Any, cast

import orjson

from captioner.core.descriptors import patiently
from captioner.core.extras import needed
from captioner.core.keys import KeyTable, digest
from captioner.readers.imagefiles import is_media
from captioner.readers.rows import RecordSource, broken_input, fault_record, record_of
from captioner.readers.tables import python_rows, read_tables

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from captioner.core.types import InputRecord

LARGEST_TEXT = 1 << 20
"""Size limit in bytes of a member that is read as text; a larger one is skipped."""

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_DOWNLOADED = "success"


def expand(pattern: str) -> list[str]:
    """Return the names that ``shard-{000..099}.tar`` stands for."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    before, after, width = pattern[: found.start()], pattern[found.end() :], len(found[1])
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [name for number in numbers for name in expand(f"{before}{number:0{width}d}{after}")]


class ShardsSource(RecordSource):
    """The samples of tar shards.

    A record has the sample's name as ``__key__``, the fields of its ``.json`` member, its text
    members by suffix, and its images as ``image`` in the form ``shard.tar#member``.

    Args:
        paths: The shards.
        folder: Names of shards in the records are relative to it.
        with_failures: Report failed downloads from img2dataset's tables next to the shards.
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

    def _records(self) -> Generator[InputRecord, None, None]:
        numbers = itertools.count(1)
        before = 0
        for path in self.paths:
            name = os.path.relpath(path, self._folder)
            try:
                yield from _samples(path, name, numbers, before)
            except (tarfile.TarError, OSError, EOFError) as error:
                message = f"{name} breaks off: {error}"
                yield broken_input(next(numbers), {"shard": name}, before, "bad_shard", message)
            if path.exists():
                before += path.stat().st_size
            if self._with_failures:
                yield from _not_downloaded(path.with_suffix(".parquet"), numbers, before)


def _samples(path: Path, name: str, numbers: Iterator[int], before: int) -> Iterator[InputRecord]:
    """Yield the samples of a shard that begins ``before`` bytes after the start of the input."""
    with patiently(lambda: tarfile.open(path, "r:")) as shard:
        seen = KeyTable(offsets=False)
        for key, members in itertools.groupby(_members(shard), lambda one: _split(one.name)[0]):
            record = _sample(key, members, name, shard)
            if record is None:
                continue
            end = before + shard.offset
            key_digest = digest(key.encode(errors="replace"))
            if seen.find(key_digest) is None:
                yield record_of(next(numbers), record, end)
            else:
                message = f"{name} has two samples of the name {key}"
                yield fault_record(next(numbers), record, end, "bad_shard", message)
            seen.add(key_digest)
        _check_end(shard, path)


def _members(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a shard, without the list of them that tarfile keeps."""
    while (member := shard.next()) is not None:
        shard.members = []  # type: ignore[attr-defined]
        yield member


def _check_end(shard: tarfile.TarFile, path: Path) -> None:
    """Check that a shard is complete: tarfile takes a broken header for the end.

    Raises:
        tarfile.ReadError: The shard has no end marker.
    """
    with patiently(lambda: path.open("rb")) as file:
        file.seek(shard.offset)
        mark = file.read(tarfile.BLOCKSIZE)
    if mark != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("what follows is no member, and no end")


def _split(name: str) -> tuple[str, str]:
    """Return the sample's key and the field: the parts of a name around its first dot."""
    folder, slash, base = name.rpartition("/")
    key, _, field = base.partition(".")
    return folder + slash + key, field.lower()


def _sample(
    key: str, members: Iterator[tarfile.TarInfo], shard_name: str, shard: tarfile.TarFile
) -> dict[str, Any] | None:
    """Return the record of one sample; None if it has no image."""
    record: dict[str, Any] = {"__key__": key}
    images: list[str] = []
    for member in members:
        if not member.isfile():
            continue
        field = _split(member.name)[1]
        if is_media(f"x.{field}"):
            images.append(f"{shard_name}#{member.name}")
        elif member.size <= LARGEST_TEXT:
            data = cast("IO[bytes]", shard.extractfile(member)).read()
            _add_text(record, field, data)
    if not images:
        return None
    record["image"] = images[0] if len(images) == 1 else images
    return record


def _add_text(record: dict[str, Any], field: str, data: bytes) -> None:
    """Add the text of a member to the record."""
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
        return  # binary data, such as a NumPy array, is not part of the record


class DownloadsSource(RecordSource):
    """The files that img2dataset wrote: folders of ``key.jpg``, ``key.txt`` and ``key.json``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        needed("pyarrow.parquet", "parquet")

    def _records(self) -> Generator[InputRecord, None, None]:
        numbers = itertools.count(1)
        for table in sorted(self._folder.glob("*.parquet")):
            shard = self._folder / table.stem
            names = sorted(entry.name for entry in shard.iterdir()) if shard.is_dir() else []
            for key, files in itertools.groupby(names, lambda name: _split(name)[0]):
                record: dict[str, Any] = {"__key__": key}
                image = ""
                for name in files:
                    if is_media(name):
                        image = f"{table.stem}/{name}"
                    else:
                        _add_text(record, _split(name)[1], (shard / name).read_bytes())
                if image:
                    yield record_of(next(numbers), {**record, "image": image}, 0)
            yield from _not_downloaded(table, numbers, 0)


def _not_downloaded(table: Path, numbers: Iterator[int], end: int) -> Iterator[InputRecord]:
    """Yield a fault for each row of img2dataset's table whose image was not downloaded."""
    if not table.exists():
        return
    for _, batch in read_tables(table):
        for row in [batch] if isinstance(batch, str) else python_rows(batch):
            if isinstance(row, str):
                message = f"{table.name} cannot be read: {row}"
                content = {"file": table.name}
                yield fault_record(next(numbers), content, end, "bad_table", message)
            elif row.get("status", _DOWNLOADED) != _DOWNLOADED:
                reason = row.get("error_message") or row["status"]
                message = f"img2dataset could not get it: {reason}"
                fields = {name: row.get(name) for name in ("key", "url", "status")}
                yield fault_record(next(numbers), fields, end, "not_downloaded", message)
