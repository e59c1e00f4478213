"""Records from tar shards in the WebDataset convention.

Consecutive members of a shard are one sample if their names are equal up to the first dot
(https://github.com/webdataset/webdataset). The webdataset package is not used, because it reads
the images at once. Records need the paths of images, which are read later.
"""

from __future__ import annotations

import itertools
import os
import re
import tarfile
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from captioner.core.archive_index import ArchiveIndex, tar_index
from captioner.core.descriptors import patiently
from captioner.core.errors import BadImageError, BadRecordError, RecordError
from captioner.core.filenames import escaped
from captioner.core.keys import KeyTable, digest
from captioner.core.tarfiles import Member, NoMemberError, members
from captioner.readers.disguises import HEAD, not_tar
from captioner.readers.imagefiles import is_media
from captioner.readers.rows import RecordSource, broken_input, fault_record, record_of
from captioner.readers.samples import LARGEST_TEXT, NAMES_SHOWN, Samples, split_name

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from pathlib import Path

    from captioner.core.types import InputRecord

    HasSample = Callable[[str], bool]

_CUT = re.compile("empty header|truncated header|unexpected end of data")
"""What tarfile says of an archive whose end is missing."""

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NO_SAMPLE = re.compile(r"(?:^|/)(?:\.(?!\.?(?:/|$))|__MACOSX(?:/|$)|PaxHeaders?(?:\.\d+)?/)")
"""Names of members that systems write: hidden files, and headers that old programs unpacked."""


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

    Records are those of `Samples`, with images in the form ``shard.tar#member``. A sample that
    cannot be distinguished from another one, or has no image, is a fault.

    Args:
        paths: The shards.
        folder: Names of shards in the records are relative to it.
        image_field: Suffix of the member that is the image; see `Samples`.
        after: Called after each shard with its path, the numbers of the next records, its end, and
            what says whether it has a sample; returns more records.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        folder: Path,
        image_field: str | None = None,
        after: Callable[[Path, Iterator[int], int, HasSample], Iterator[InputRecord]] | None = None,
    ) -> None:
        self.paths = paths
        self._folder = folder
        self._after = after
        self._samples = Samples(image_field)

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(path.stat().st_size for path in self.paths if path.exists())

    def _records(self) -> Generator[InputRecord, None, None]:
        numbers = itertools.count(1)
        before = 0
        for path in self.paths:
            name = escaped(os.path.relpath(path, self._folder))
            seen = KeyTable(offsets=False)
            try:
                with patiently(lambda: path.open("rb")) as file:  # noqa: B023 - called at once
                    shard = _Shard(file, name, self._samples, seen)
                    yield from shard.records(numbers, before)
            except (tarfile.TarError, OSError, EOFError) as error:
                reason = getattr(error, "strerror", None) or error
                message = f"{name} breaks off: {_CUT.sub('it is cut short', str(reason))}"
                yield broken_input(next(numbers), {"shard": name}, before, "bad_shard", message)
            if path.exists():
                before += path.stat().st_size
            if self._after is not None:
                yield from self._after(path, numbers, before, partial(_has_sample, seen))


class _Shard:
    """A shard that is open."""

    def __init__(self, file: IO[bytes], name: str, samples: Samples, seen: KeyTable) -> None:
        self._file = file
        self._name = name
        self._samples = samples
        self._seen = seen
        self._damage: NoMemberError | None = None
        self._index: ArchiveIndex[tuple[int, int]] | None = None
        if why := not_tar(file.read(HEAD)):
            raise tarfile.ReadError(f"it {why}")

    def records(self, numbers: Iterator[int], before: int) -> Iterator[InputRecord]:
        """Yield the samples; the shard begins ``before`` bytes after the start of the input."""
        for key, group in itertools.groupby(self._members(), lambda one: split_name(one.name)[0]):
            try:
                sample = list(group)
            except tarfile.ReadError as error:
                raise tarfile.ReadError(f"{error} (sample {escaped(key)})") from None
            end = before + sample[-1].end
            is_new = not _has_sample(self._seen, key)
            self._seen.add(_digest_of(key))
            try:
                record = self._sample(key, sample, is_new=is_new)
                yield record_of(next(numbers), record, end)
            except RecordError as error:
                names = [escaped(one.name) for one in sample[:NAMES_SHOWN]]
                content = {"__key__": escaped(key), "shard": self._name, "members": names}
                yield fault_record(next(numbers), content, end, error.code, error.message)

        if self._damage is not None:
            raise self._damage

    def _members(self) -> Iterator[Member]:
        """Yield the members of samples, up to where the shard is damaged."""
        try:
            for member in members(self._file):
                if member.kind == "other" or _NO_SAMPLE.search(member.name):
                    continue
                if member.kind == "link" and self._is_folder(member.name):
                    continue
                yield member
        except NoMemberError as error:
            self._damage = error

    def _sample(self, key: str, sample: Sequence[Member], *, is_new: bool) -> dict[str, Any]:
        """Return the record of one sample.

        Raises:
            RecordError: It has no image, or its members cannot be distinguished.
        """
        if not is_new:
            raise BadRecordError(
                "bad_shard",
                f"{self._name} has members of the sample {escaped(key)} in two places: sort the "
                "members (tar --sort=name), or give each sample a unique name",
            )
        images: list[tuple[str, str]] = []
        texts: dict[str, Callable[[], bytes | None]] = {}
        names: set[str] = set()
        for member in sample:
            field = split_name(member.name)[1]
            shown = f"{self._name}#{escaped(member.name)}"
            is_image = is_media(f"x.{field}")
            name = member.name if is_image else field
            if name in names:
                raise BadRecordError(
                    "bad_shard", f"the sample {escaped(key)} has the member {shown} twice"
                )
            names.add(name)
            if member.kind == "sparse":
                raise BadRecordError(
                    "bad_shard", f"{shown} is a sparse file: write the shard without --sparse"
                )
            if is_image:
                images.append((field, shown))
            else:
                texts[field] = partial(self._text, member)
        return self._samples.record(key, [one.name for one in sample], images, texts, self._name)

    def _is_folder(self, link: str) -> bool:
        """Return whether a link without a suffix leads to a folder."""
        if split_name(link)[1]:
            return False
        try:
            return self._links().is_folder(link)
        except BadImageError:  # a circle: reported where the member is read
            return False

    def _links(self) -> ArchiveIndex[tuple[int, int]]:
        if self._index is None:
            self._index = tar_index(self._file, self._name)
        return self._index

    def _text(self, member: Member) -> bytes | None:
        """Return the bytes of a member that may be text; None if it is too large."""
        offset, size = member.offset, member.size
        if member.kind == "link":
            try:
                offset, size = self._links().find(member.name)
            except BadImageError as error:
                raise BadRecordError("bad_shard", error.message) from None
        if size > LARGEST_TEXT:
            return None
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError("unexpected end of data")
        return data


def _has_sample(seen: KeyTable, key: str) -> bool:
    return seen.find(_digest_of(key)) is not None


def _digest_of(key: str) -> bytes:
    return digest(key.encode(errors="surrogateescape"))
