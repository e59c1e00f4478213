"""128-bit keys of records, and a compact table of many keys.

A record's key is computed from its input line, and again from its output line, which stores no key.
Lines that spell the same value differently are different records: parsing would make some different
integers above 64 bits equal. Equal lines are interchangeable, so a table of finished records is a
multiset: every input record removes one entry, and remaining entries have lost their input record.
"""

from __future__ import annotations

from hashlib import blake2b
from sys import byteorder
from typing import TYPE_CHECKING

import orjson

from captioner.core.jsonbytes import fields_in, one_line, quoted, without_fields
from captioner.core.row import field_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

KEY_BYTES = 16
_OFFSET = 6
_PER_BUCKET = 12
_HASHER = blake2b(digest_size=KEY_BYTES)


def digest(data: bytes) -> bytes:
    """Return the 16-byte BLAKE2b digest of some bytes."""
    return blake2b(data, digest_size=KEY_BYTES).digest()


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
        self._first = self._quoted[0]
        # Every name begins with a caption field's name, so one search finds them all.
        self._mark = quoted(fields[0])[:-1]
        self._other_marks = tuple(quoted(name)[:-1] for name in fields[1:])
        self._added = b"," + self._first + b":"
        self._text = len(self._added) + 1  # from the comma to the text of a caption
        self._id = quoted(id_field) if id_field else None

    def of_input(self, raw: bytes) -> bytes:
        """Return the key of a record from its input line, which need not be valid JSON."""
        return self.of_inputs([raw])[0]

    def of_inputs(self, raws: Sequence[bytes]) -> list[bytes]:
        """Return the keys of many records from their input lines."""
        mark, others, quoted_names, by_id = self._mark, self._other_marks, self._quoted, self._id
        fresh = _HASHER.copy  # cheaper than creating one
        keys = []
        together = b"".join(raws)  # one search for what most records do not contain
        if by_id is None and not (
            b"\n" in together
            or b"\r" in together
            or mark in together
            or any(other in together for other in others)
        ):
            for raw in raws:
                hasher = fresh()
                hasher.update(raw)
                keys.append(hasher.digest())
            return keys
        for raw in raws:
            # `find` costs half of what `in` does.
            if raw.find(b"\n") >= 0 or raw.find(b"\r") >= 0:
                raw = one_line(raw)  # noqa: PLW2901 - as in the output
            if by_id is not None:
                keys.append(self._by_id(raw))
                continue
            if raw.find(mark) >= 0 or (others and any(other in raw for other in others)):
                raw = without_fields(raw, quoted_names)  # noqa: PLW2901
            hasher = fresh()
            hasher.update(raw)
            keys.append(hasher.digest())
        return keys

    def of_output(self, raw: bytes) -> bytes | None:
        """Return the key of a record from its output line; None without a caption."""
        return self.of_outputs([raw])[0]

    def of_outputs(self, raws: Iterable[bytes]) -> list[bytes | None]:
        """Return the keys of many records from their output lines."""
        first, added, skip, by_id = self._first, self._added, self._text, self._id
        mark, others = self._mark, self._other_marks
        fresh = _HASHER.copy
        keys: list[bytes | None] = []
        for raw in raws:
            at = raw.rfind(added)
            if (
                at > 0
                and raw.find(mark, 0, at) < 0
                and not (others and any(raw.find(other, 0, at) >= 0 for other in others))
            ):
                # The line may end with our fields, as we write them. Most captions contain no
                # quote, so that the next quote ends the caption.
                text = at + skip
                end = len(raw) - 2
                plain = raw.find(b'"', text) == end and raw[end - 1] != 92
                if (plain and raw[text - 1] == 34 and raw[-1] == 125) or self._is_tail(
                    raw[at + 1 :]
                ):
                    if by_id is not None:
                        keys.append(self._by_id(raw))
                    else:
                        hasher = fresh()
                        hasher.update(raw[:at] + b"}")
                        keys.append(hasher.digest())
                    continue
            has_caption = any(field.name == first for field in fields_in(raw))
            keys.append(self.of_input(raw) if has_caption else None)
        return keys

    def _is_tail(self, fields: bytes) -> bool:
        """Return whether the end of a line consists of our fields and the closing brace."""
        try:
            tail = orjson.loads(b"{" + fields)
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


class KeyTable:
    """A multiset of keys, each with an offset, in about 30 bytes an entry.

    Keys are distributed by their first bytes over many small byte strings, so that there is no
    Python object for each key, and adding and taking cost well under a microsecond.

    Args:
        expected: Approximate number of entries, to avoid growing.
        offsets: Store an offset with each key; otherwise all offsets are 0.
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
        at = bucket.find(key)
        if at < 0:
            return None
        if offset is not None or at % self._entry:
            at = self._find(bucket, key, offset)
            if at < 0:
                return None
        self._buckets[number] = bucket[:at] + bucket[at + self._entry :]
        self._count -= 1
        return self._offset(bucket, at)

    def take_each(self, keys: Sequence[bytes]) -> list[bool]:
        """Remove the oldest entry of each key; return for each whether there was one."""
        buckets, shift, entry = self._buckets, self._shift, self._entry
        taken = []
        count = 0
        for key, head in zip(keys, _heads(keys), strict=True):
            number = head >> shift
            bucket = buckets[number]
            at = bucket.find(key)
            if at > 0 and at % entry:
                at = self._find(bucket, key)
            if at < 0:
                taken.append(False)
            else:
                buckets[number] = bucket[:at] + bucket[at + entry :]
                count += 1
                taken.append(True)
        self._count -= count
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
