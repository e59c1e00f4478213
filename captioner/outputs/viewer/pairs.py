"""Pairs of rows of two outputs that are about the same record, or about the same image."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from captioner.core.errors import CaptionerError
from captioner.core.keys import KeyTable, digest

if TYPE_CHECKING:
    from captioner.outputs.viewer.store import ViewerStore


class Pair(NamedTuple):
    """The numbers of two rows.

    Attributes:
        place: Where the pair is among the others; see `place_of`.
    """

    place: int
    first: int
    second: int


def place_of(key: bytes) -> int:
    """Return the place of a record in the order; it is a part of its key, and so at random."""
    return int.from_bytes(key[:8], "big")


class Pairs:
    """Pairs the rows of two outputs, in an order at random that stays the same. Thread-safe.

    A row that has no partner yet waits in a table of its output. Partners have the same record. If
    no two rows do, as with inputs of different formats, partners have the same first image.

    Attributes:
        by_image: Whether the rows are paired by their image.
    """

    def __init__(self, first: ViewerStore, second: ViewerStore) -> None:
        self._stores = first, second
        self._lock = threading.RLock()
        self._begin(by_image=False)

    def _begin(self, *, by_image: bool) -> None:
        self.by_image = by_image
        self._generations = [store.rows.generation for store in self._stores]
        self._lengths = [len(store.rows) for store in self._stores]
        self._read = [0, 0]
        self._waiting = KeyTable(), KeyTable()
        self._found = array("Q"), array("Q"), array("Q")  # places and numbers, as they were found
        self._order = array("Q")
        self._ordered = 0  # pairs that are in the order

    def advance(self) -> bool:
        """Read some more rows of both outputs; return whether there are others."""
        with self._lock:
            for store in self._stores:
                store.rows.refresh()
            if self._generations != [store.rows.generation for store in self._stores]:
                self._begin(by_image=False)
            more = False
            for which in (0, 1):
                more |= self._advance(which)
            if more or self._found[0] or not all(self._read):
                return more
            if self.by_image and self._lengths == self._read:
                return False  # nothing is new since it was tried both ways
            self._begin(by_image=not self.by_image)
            return True

    def _advance(self, which: int) -> bool:
        rows = self._stores[which].rows
        begin, lines = next(rows.blocks(self._read[which], 1), (self._read[which], []))
        own, others = self._waiting[which], self._waiting[1 - which]
        for number, line in enumerate(lines, begin):
            key = self._key(self._stores[which], line)
            if key is None:
                continue
            partner = others.take(key)
            if partner is None:
                own.add(key, number)
                continue
            self._add(*((number, partner) if which == 0 else (partner, number)))
        self._read[which] = begin + len(lines)
        return self._read[which] < len(rows)

    def _add(self, first: int, second: int) -> None:
        store = self._stores[0]
        for line in store.rows.read(first, 1):
            if key := store.reader.keys.of_output(line):
                for values, value in zip(self._found, (place_of(key), first, second), strict=True):
                    values.append(value)

    def _key(self, store: ViewerStore, line: bytes) -> bytes | None:
        """Return what a row is paired by; None if it cannot be."""
        reader = store.reader
        try:
            if not self.by_image:
                return reader.keys.of_output(line)
            image = reader.contents.images(reader.row(line))[0]
            if image.data is not None:
                return digest(image.data)
            place = image.digest or image.url or str(image.path)
            if image.path is not None:
                place = reader.contents.folders.find(image.path) or image.path
            return digest(place.encode(errors="replace"))
        except (CaptionerError, LookupError, ValueError, TypeError, AttributeError):
            return None

    @property
    def version(self) -> tuple[int, ...]:
        """Changes when the rows do."""
        with self._lock:
            return *self._generations, len(self._found[0])

    def __len__(self) -> int:
        """Return the number of pairs; equal records count once."""
        with self._lock:
            return len(self._sorted())

    def at(self, place: int) -> Pair | None:
        """Return the first pair at a place or after it; None if there is none."""
        with self._lock:
            places, first, second = self._found
            order = self._sorted()
            at = bisect_left(order, place, key=places.__getitem__)
            if at == len(order):
                return None
            found = order[at]
            return Pair(places[found], first[found], second[found])

    def _sorted(self) -> array[int]:
        """Return the pairs by their places; of equal records only one."""
        places = self._found[0]
        if self._ordered != len(places):
            self._ordered = len(places)
            self._order = array("Q")
            before = None
            for one in sorted(range(len(places)), key=places.__getitem__):
                if places[one] != before:
                    self._order.append(one)
                before = places[one]
        return self._order
