"""Which record is which: 128-bit keys from raw bytes, and a compact table of many of them.

A record's key is computed from its input line and, without anything stored in it, again from its
output line. Two spellings of one value are two records on purpose: parsing would make integers
above 64 bits equal that are not. Equal lines are interchangeable, so a table of what is done is a
multiset: every input record takes one entry away, and what is left over has lost its input.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import orjson

from captioner.rawjson import members, one_line, quoted, without_members

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KEY_BYTES = 16
_OFFSET = 6
_ENTRY = KEY_BYTES + _OFFSET
_PER_BUCKET = 12


def digest(data: bytes) -> bytes:
    """Return the 16-byte BLAKE2b digest of some bytes."""
    return blake2b(data, digest_size=KEY_BYTES).digest()


class Identity:
    """Computes keys of records.

    Args:
        fields: Names of the members that captioner adds, the first one first; they are no part
            of a record's identity.
        id_field: Name of the member that identifies a record; by default the whole record does.
    """

    def __init__(self, fields: Sequence[str], id_field: str | None = None) -> None:
        self._names = frozenset(fields)
        self._quoted = tuple(quoted(name) for name in fields)
        self._first = self._quoted[0]
        self._others = self._quoted[1:]
        self._added = b"," + self._first + b":"
        self._text = len(self._added) + 1  # from there to the text of a caption
        self._id = quoted(id_field) if id_field else None

    def of_input(self, raw: bytes) -> bytes:
        """Return the key of a record from its input bytes, readable JSON or not."""
        # `find` costs half of what `in` does, and this is every record of every resumed run.
        if raw.find(b"\n") >= 0 or raw.find(b"\r") >= 0:
            raw = one_line(raw)  # as it stands in the output
        if self._id is not None:
            return self._by_id(raw)
        if raw.find(self._first) >= 0 or (
            self._others and any(name in raw for name in self._others)
        ):
            raw = without_members(raw, self._quoted)
        return blake2b(raw, digest_size=KEY_BYTES).digest()

    def of_output(self, raw: bytes) -> bytes | None:
        """Return the key of a record from its output line, None if it has no caption."""
        at = raw.rfind(self._added)
        if at > 0 and raw.find(self._first, 0, at) < 0:
            # What follows the record may be our members, last of all, as we write them. A text
            # without a quote in it, as nearly all are, ends at the first one, just before the end.
            text = at + self._text
            end = len(raw) - 2
            plain = raw.find(b'"', text) == end and raw[end - 1] != 92
            if (plain and raw[text - 1] == 34 and raw[-1] == 125) or self._is_tail(raw[at + 1 :]):
                if self._id is not None:
                    return self._by_id(raw)
                return blake2b(raw[:at] + b"}", digest_size=KEY_BYTES).digest()
        if not any(member.name == self._first for member in members(raw)):
            return None
        return self.of_input(raw)

    def _is_tail(self, fields: bytes) -> bool:
        """Tell whether the end of a line is our members and the brace that closes the record."""
        try:
            tail = orjson.loads(b"{" + fields)
        except orjson.JSONDecodeError:
            return False
        return self._names.issuperset(tail)

    @property
    def by_field(self) -> bool:
        """A field identifies records, so that their content may change."""
        return self._id is not None

    def content(self, raw: bytes) -> int:
        """Return 48 bits of a record's content, the same for its input and its output line."""
        return int.from_bytes(digest(without_members(one_line(raw), self._quoted))[:_OFFSET], "big")

    def _by_id(self, raw: bytes) -> bytes:
        for member in reversed(members(raw)):
            if member.name == self._id:
                return digest(b"id\0" + raw[member.value_start : member.value_end])
        return digest(without_members(raw, self._quoted))


class KeyTable:
    """A multiset of keys, each with an offset: about 30 bytes an entry, whatever their number.

    Keys are spread over many small byte strings by their first bytes, so that adding and taking
    cost well under a microsecond without a Python object for every key.

    Args:
        expected: About how many entries will come; spares the work of growing.
    """

    def __init__(self, expected: int = 0) -> None:
        self._count = 0
        self._spread(max(4, (expected // _PER_BUCKET).bit_length()))

    def _spread(self, bits: int) -> None:
        self._bits = min(24, bits)
        self._shift = 24 - self._bits
        self._buckets = [b""] * (1 << self._bits)
        self._full = 2 * _PER_BUCKET << self._bits if self._bits < 24 else 1 << 62

    def _grow(self) -> None:
        before = self._buckets
        self._spread(self._bits + 4)
        buckets, shift = self._buckets, self._shift
        for bucket in before:
            for at in range(0, len(bucket), _ENTRY):
                number = int.from_bytes(bucket[at : at + 3], "big") >> shift
                buckets[number] += bucket[at : at + _ENTRY]

    def __len__(self) -> int:
        """Return how many entries are left."""
        return self._count

    def add(self, key: bytes, offset: int = 0) -> None:
        """Add one entry. Offsets are at most 2**48 - 1."""
        if self._count >= self._full:
            self._grow()
        self._buckets[int.from_bytes(key[:3], "big") >> self._shift] += key + offset.to_bytes(
            _OFFSET, "big"
        )
        self._count += 1

    def __contains__(self, key: bytes) -> bool:
        """Tell whether an entry of that key is left."""
        return self.find(key) is not None

    def find(self, key: bytes, offset: int | None = None) -> int | None:
        """Return the offset of an entry, the oldest or the given one; None if there is none."""
        bucket = self._buckets[int.from_bytes(key[:3], "big") >> self._shift]
        at = _find(bucket, key, offset)
        return None if at < 0 else _offset(bucket, at)

    def take(self, key: bytes, offset: int | None = None) -> int | None:
        """Remove an entry of a key, the oldest or the one of an offset.

        Returns:
            Its offset, None if there is no such entry.
        """
        number = int.from_bytes(key[:3], "big") >> self._shift
        bucket = self._buckets[number]
        at = bucket.find(key)
        if at < 0:
            return None
        if offset is not None or at % _ENTRY:
            at = _find(bucket, key, offset)
            if at < 0:
                return None
        self._buckets[number] = bucket[:at] + bucket[at + _ENTRY :]
        self._count -= 1
        return _offset(bucket, at)

    def offsets(self) -> Iterator[int]:
        """Yield the offsets of all entries left, in no order."""
        for bucket in self._buckets:
            for at in range(0, len(bucket), _ENTRY):
                yield _offset(bucket, at)


def _offset(bucket: bytes, at: int) -> int:
    return int.from_bytes(bucket[at + KEY_BYTES : at + _ENTRY], "big")


def _find(bucket: bytes, key: bytes, offset: int | None = None) -> int:
    """Return where a key's oldest entry, or that of an offset, begins; -1 if there is none."""
    wanted = key if offset is None else key + offset.to_bytes(_OFFSET, "big")
    at = bucket.find(wanted)
    while at >= 0 and at % _ENTRY:
        at = bucket.find(wanted, at + 1)
    return at
