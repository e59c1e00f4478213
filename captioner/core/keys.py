"""128-bit keys of records, and a compact table of many keys.

A record's key is computed from its input line, and again from its output line, which stores no key.
Lines that spell the same value differently are different records: parsing would make some different
integers above 64 bits equal. Equal lines are interchangeable, so a table of finished records is a
multiset: every input record removes one entry, and remaining entries have lost their input record.
"""

from __future__ import annotations

import asyncio
from hashlib import blake2b
from sys import byteorder
from typing import TYPE_CHECKING, TypeVar

import orjson

from captioner.core.jsonbytes import BEYOND, excess, fields_in, one_line, quoted, without_fields
from captioner.core.row import field_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from captioner.core.types import InputRecord

T = TypeVar("T")
KEY_BYTES = 16
_OFFSET = 6
_PER_BUCKET = 12
_HASHER = blake2b(digest_size=KEY_BYTES)


def digest(data: bytes) -> bytes:
    """Return the 16-byte BLAKE2b digest of some bytes."""
    hasher = _HASHER.copy()  # cheaper than creating one
    hasher.update(data)
    return hasher.digest()


async def off_the_loop(work: Callable[[list[InputRecord]], T], records: list[InputRecord]) -> T:
    """Return what some work makes of records; it is done in a thread if one of them is long."""
    if any(record.raw[BEYOND] for record in records):
        return await asyncio.to_thread(work, records)
    return work(records)


class RecordKeys:
    """Computes keys of records.

    Args:
        fields: Names of the fields that hold captions. They and the fields that may be added
            with them (`captioner.core.row.field_names`) are not part of a record's identity.
        id_field: Name of the field that identifies a record; by default the whole record does.
    """

    def __init__(self, fields: Sequence[str], id_field: str | None = None) -> None:
        names = field_names(fields)
        self._names = frozenset(names)
        self._quoted = tuple(quoted(name) for name in names)
        # Every name begins with a caption field's name, so these find them all.
        self._marks = tuple(quoted(name)[:-1] for name in fields)
        self._added = b"," + self._quoted[0] + b":"
        self._id = quoted(id_field) if id_field else None

    def of_input(self, raw: bytes) -> bytes:
        """Return the key of a record from its input line, which need not be valid JSON.

        A line with an `excess` fails in every run, so none of its fields is looked for.
        """
        raw = one_line(raw)  # as in the output
        if excess(raw):
            return digest(raw)
        if self._id is not None:
            return self._by_id(raw)
        if _contains_any(raw, self._marks):
            raw = without_fields(raw, self._quoted)
        return digest(raw)

    def of_record(self, record: InputRecord) -> bytes:
        """Return the key of a record, computed unless the record has it."""
        return record.key or self.of_input(record.raw)

    def of_records(self, records: Sequence[InputRecord]) -> list[bytes]:
        """Return the keys of many records."""
        lines = b"".join([record.raw for record in records])
        # One search of all lines for what most records do not contain.
        if self._id is None and not _contains_any(lines, (b"\n", b"\r", *self._marks)):
            return [record.key or digest(record.raw) for record in records]
        return list(map(self.of_record, records))

    def of_output(self, raw: bytes) -> bytes | None:
        """Return the key of a record from its output line; None without a caption.

        The line has at most twice as many parts as a record may have, or a stranger wrote it.
        """
        if excess(raw, times=2):
            return None
        at = raw.rfind(self._added)
        # The line may end with our fields, as we write them.
        if at > 0 and not _contains_any(raw, self._marks, at) and self._is_tail(raw, at):
            return self._by_id(raw) if self._id is not None else digest(raw[:at] + b"}")
        has_caption = any(field.name == self._quoted[0] for field in fields_in(raw))
        return self.of_input(raw) if has_caption else None

    def _is_tail(self, raw: bytes, at: int) -> bool:
        """Return whether a line consists of our fields and the closing brace from a comma on."""
        text = at + len(self._added) + 1
        is_string = raw[text - 1 : text] == b'"' and raw.endswith(b'"}')
        if is_string and raw.find(b'"', text) == len(raw) - 2 and raw[-3:-2] != b"\\":
            return True  # only one caption, without quotes in it
        try:
            tail = orjson.loads(b"{" + raw[at + 1 :])
        except orjson.JSONDecodeError:
            return False
        return self._names.issuperset(tail)

    @property
    def by_field(self) -> bool:
        """Whether a field identifies records, so that their content may change."""
        return self._id is not None

    def content(self, raw: bytes) -> int:
        """Return a 48-bit hash of a record's content, equal for its input and output line."""
        return int.from_bytes(digest(without_fields(one_line(raw), self._quoted))[:_OFFSET], "big")

    def _by_id(self, raw: bytes) -> bytes:
        for field in reversed(fields_in(raw)):
            if field.name == self._id:
                return digest(b"id\0" + raw[field.value_start : field.value_end])
        return digest(without_fields(raw, self._quoted))


def _contains_any(raw: bytes, marks: Iterable[bytes], end: int | None = None) -> bool:
    for mark in marks:  # noqa: SIM110 - a generator takes twice as long
        if raw.find(mark, 0, end) >= 0:
            return True
    return False


class KeyTable:
    """A multiset of keys, each with an offset, in about 30 bytes an entry.

    Keys are distributed by their first bytes over many small byte strings, so that there is no
    Python object for each key, and adding and taking cost well under a microsecond.

    Args:
        expected: Approximate number of entries, to avoid growing.
        offsets: Store an offset with each key. If false, all offsets are 0.
    """

    def __init__(self, expected: int = 0, *, offsets: bool = True) -> None:
        self._count = 0
        self._entry = KEY_BYTES + (_OFFSET if offsets else 0)
        self._spread(max(4, (expected // _PER_BUCKET).bit_length()))

    def _spread(self, bits: int) -> None:
        self._bits = min(24, bits)
        self._shift = 32 - self._bits
        self._buckets = [b""] * (1 << self._bits)
        self._full = 2 * _PER_BUCKET << self._bits if self._bits < 24 else 1 << 62

    def _grow(self) -> None:
        before = self._buckets
        self._spread(self._bits + 4)
        buckets, shift = self._buckets, self._shift
        for bucket in before:
            for at in range(0, len(bucket), self._entry):
                entry = bucket[at : at + self._entry]
                buckets[int.from_bytes(entry[:4], byteorder) >> shift] += entry

    def __len__(self) -> int:
        """Return the number of entries."""
        return self._count

    def add(self, key: bytes, offset: int = 0) -> None:
        """Add an entry. The offset is below 2**48."""
        if self._count >= self._full:
            self._grow()
        entry = (key + offset.to_bytes(_OFFSET, "big"))[: self._entry]
        self._buckets[int.from_bytes(key[:4], byteorder) >> self._shift] += entry
        self._count += 1

    def add_each(self, keys: Sequence[bytes]) -> None:
        """Add many keys to a table without offsets."""
        while self._count + len(keys) > self._full:
            self._grow()
        buckets, shift = self._buckets, self._shift
        for key, head in zip(keys, _heads(keys), strict=True):
            buckets[head >> shift] += key
        self._count += len(keys)

    def __contains__(self, key: bytes) -> bool:
        """Return whether there is an entry of a key."""
        return self.find(key) is not None

    def find(self, key: bytes, offset: int | None = None) -> int | None:
        """Return the offset of a key's oldest entry, or of the given one; None if it is missing."""
        bucket = self._buckets[int.from_bytes(key[:4], byteorder) >> self._shift]
        at = self._find(bucket, key, offset)
        return None if at < 0 else self._offset(bucket, at)

    def take(self, key: bytes, offset: int | None = None) -> int | None:
        """Remove a key's oldest entry, or the given one; return its offset, None if missing."""
        number = int.from_bytes(key[:4], byteorder) >> self._shift
        bucket = self._buckets[number]
        at = self._find(bucket, key, offset)
        if at < 0:
            return None
        self._buckets[number] = bucket[:at] + bucket[at + self._entry :]
        self._count -= 1
        return self._offset(bucket, at)

    def take_each(self, keys: Sequence[bytes]) -> list[bool]:
        """Remove the oldest entry of each key; return for each whether there was one."""
        taken = []
        for key, head in zip(keys, _heads(keys), strict=True):
            number = head >> self._shift
            bucket = self._buckets[number]
            at = bucket.find(key)
            if at > 0 and at % self._entry:
                at = self._find(bucket, key)
            if at >= 0:
                self._buckets[number] = bucket[:at] + bucket[at + self._entry :]
            taken.append(at >= 0)
        self._count -= sum(taken)
        return taken

    def offsets(self) -> Iterator[int]:
        """Yield the offsets of all entries, in no particular order."""
        for bucket in self._buckets:
            for at in range(0, len(bucket), self._entry):
                yield self._offset(bucket, at)

    def _offset(self, bucket: bytes, at: int) -> int:
        return int.from_bytes(bucket[at + KEY_BYTES : at + self._entry], "big")

    def _find(self, bucket: bytes, key: bytes, offset: int | None = None) -> int:
        """Return the position of a key's oldest or given entry in a bucket; -1 if missing."""
        wanted = key if offset is None else key + offset.to_bytes(_OFFSET, "big")
        at = bucket.find(wanted)
        while at >= 0 and at % self._entry:
            at = bucket.find(wanted, at + 1)
        return at


def _heads(keys: Sequence[bytes]) -> list[int]:
    """Return the first four bytes of each key as a number; one cast is five times as fast."""
    return memoryview(b"".join(keys)).cast("I")[:: KEY_BYTES // 4].tolist()
