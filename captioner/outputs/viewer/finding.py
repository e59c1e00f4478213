"""Searches rows and failures in short requests, by the index or line by line."""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from captioner.outputs.viewer.search import Query, failure_matcher, row_matcher

if TYPE_CHECKING:
    from captioner.outputs.viewer.index import RowIndex
    from captioner.outputs.viewer.store import ViewerStore

AT_ONCE = 500
"""Rows found by one search request."""

INDEXED_AT_ONCE = 20_000
"""Rows found by one search request in the index alone."""

CANDIDATES = 2_000
"""Rows with the words of a text that are looked at together."""

LONGEST_S = 0.3
"""Seconds of one search request."""


class Found(NamedTuple):
    """The result of one search request.

    Attributes:
        numbers: The rows that match.
        next: Where to continue; None at the end.
        end: The row after the last searched one; it may not exist yet.
        looked_at: The number of searched rows.
        total: How many match in all, where the index knows.
    """

    numbers: list[int]
    next: int | None
    end: int
    looked_at: int
    total: int | None = None


def find(store: ViewerStore, kind: str, query: Query, first: int, step: int) -> Found:
    """Search rows or failures, forward (step 1) or backward (-1) from one of them.

    What is not in the index yet is searched line by line.
    """
    rows = store.lines(kind)
    index = store.indexer.usable if kind == "rows" else None
    if index is not None and query.needs_index and step < 0:
        first = min(first, index.count - 1)
    if index is not None and 0 <= first < index.count:
        with suppress(LookupError, sqlite3.Error):  # it may have been closed meanwhile
            store.indexer.follow_reviews()
            by_index = _find_text if query.text else _find_indexed
            return by_index(store, index, query, first, step)
    if query.needs_index:
        return Found([], None, first, 0)
    matches = failure_matcher(query) if kind == "failures" else row_matcher(query, store)
    until = time.monotonic() + LONGEST_S
    found: list[int] = []
    searched, at = 0, first
    for begin, lines in rows.blocks(first, step):
        numbered = list(enumerate(lines, begin))
        found += [number for number, line in numbered[::step] if matches(line)]
        searched += len(lines)
        at = begin + len(lines) if step > 0 else begin - 1
        if len(found) >= AT_ONCE or time.monotonic() > until or store.stopped:
            break
    return Found(found, at if 0 <= at < len(rows) else None, at, searched)


def _find_indexed(
    store: ViewerStore, index: RowIndex, query: Query, first: int, step: int
) -> Found:
    found, last = index.find(query, first, step, INDEXED_AT_ONCE)
    at = last + step
    is_first = first == (0 if step > 0 else index.count - 1)
    total = index.total(query) if is_first and index.count == len(store.rows) else None
    there = 0 <= at < len(store.rows) and not (query.needs_index and at == index.count)
    return Found(found, at if there else None, at, abs(at - first), total)


def _find_text(store: ViewerStore, index: RowIndex, query: Query, first: int, step: int) -> Found:
    matches = row_matcher(query, store)
    until = time.monotonic() + LONGEST_S
    found: list[int] = []
    at = first
    while 0 <= at < index.count and len(found) < AT_ONCE and not store.stopped:
        numbers, last = index.find_text(query, at, step, CANDIDATES)
        for number in numbers:
            found += [number for line in store.rows.read(number, 1) if matches(line)]
        at = last + step
        if time.monotonic() > until:
            break
    there = 0 <= at < len(store.rows) and not (query.needs_index and at == index.count)
    return Found(found, at if there else None, at, abs(at - first))
