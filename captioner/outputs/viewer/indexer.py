"""Keeps the index of an output's rows up to date, in small steps."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from captioner.core.errors import CaptionerError
from captioner.core.keys import digest
from captioner.journal.companions import index_path
from captioner.journal.reviews import fingerprint
from captioner.outputs.rows import caption_text
from captioner.outputs.statistics import opening_of
from captioner.outputs.viewer.index import CHOICES, IndexedRow, RowIndex, hashed
from captioner.outputs.viewer.search import flags_of, texts_of
from captioner.readers.rows import dumped

if TYPE_CHECKING:
    from pathlib import Path

    from captioner.journal.reviews import Review
    from captioner.outputs.reader import OutputReader
    from captioner.outputs.viewer.store import ViewerStore

ROWS = 500
"""Rows that are indexed in one step."""

_VERSION = b"2"
_SHOWN = 90
"""Characters of a choice."""


class Indexer:
    """The index of a store's rows. Thread-safe.

    Attributes:
        index: The index; None before the first step, and if there can be none.
    """

    def __init__(self, store: ViewerStore) -> None:
        self.index: RowIndex | None = None
        self._store = store
        self._about = b""
        self._generation = -1
        self._reviews_seen = -1
        self._refused = False
        self._lock = threading.RLock()

    @property
    def usable(self) -> RowIndex | None:
        """The index, unless another file has replaced the rows since."""
        return self.index if self._generation == self._store.rows.generation else None

    @property
    def count(self) -> int | None:
        """The rows that are indexed; None if there can be no index.

        There is none without full-text search in SQLite, and on a full disk.
        """
        index = self.usable
        return index.count if index is not None else None if self._refused else 0

    def advance(self) -> bool:
        """Index some more rows; return whether there are others."""
        rows = self._store.rows
        changed = _changed(rows.path)
        rows.refresh()
        about = self._describe()
        with self._lock:
            if about != self._about:
                self.close(keep=False)
                self._about, self._generation = about, rows.generation
                with suppress(sqlite3.Error, OSError):
                    self._open(changed)
            index = self.index
            self._refused = index is None
            if index is None:
                return False
            try:
                self._add_rows(index, about)
            except sqlite3.Error:  # the disk is full, for example
                self.close(keep=False)
                self._refused = True
                return False
            if index.count == len(rows):
                index.changed = changed
            return bool(index.count < len(rows))

    def _add_rows(self, index: RowIndex, about: bytes) -> None:
        self.follow_reviews()
        _, lines = next(self._store.rows.blocks(index.count, 1), (0, []))
        lines = lines[:ROWS]
        if lines and about == self._describe():
            index.add(map(partial(self._row, self._store.reader), lines), digest(lines[-1]))

    def _describe(self) -> bytes:
        """Return what the index depends on, with the generation of the rows."""
        return digest(b"%d " % self._store.rows.generation + self._about_rows())

    def _about_rows(self) -> bytes:
        """Return what the index depends on: the file of the rows, and what made them."""
        reader = self._store.reader
        made = [reader.settings, reader.made.settings, len(reader.made.rows)]
        return digest(self._store.rows.identity + _VERSION + dumped(made))

    def _open(self, changed: int) -> None:
        rows = self._store.rows
        path = index_path(self._store.journal)
        about = self._about_rows()
        index = RowIndex(path, about)
        tail = rows.read(index.count - 1, 1) if index.count else []
        was_edited = index.count == len(rows) and index.changed != changed
        if index.count and (was_edited or not tail or digest(tail[0]) != index.last):
            index.close(keep=False)
            index = RowIndex(path, about)
        self.index = index
        self._reviews_seen = -1

    def follow_reviews(self) -> None:
        """Note the reviews that are new."""
        with self._lock:
            reviews, index = self._store.reviews, self.index
            if index is None or reviews.changes is None:
                return
            changed: list[Review] = []
            if self._reviews_seen != reviews.generation:
                self._reviews_seen = reviews.generation
                index.forget_reviews()
                changed += reviews
            while reviews.changes:
                changed.append(reviews.changes.popleft())
            if changed:
                field = self._store.reader.fields[0]
                index.judge(
                    (_judged(one.key, one.of), one.verdict, _length(one, field)) for one in changed
                )

    def _row(self, reader: OutputReader, line: bytes) -> IndexedRow | None:
        """Return what the index keeps of a row; None if it cannot be read."""
        try:
            row = reader.row(line)
            key = reader.keys.of_output(line) or b""
            of = fingerprint(row, reader.fields)
            review = self._store.reviews.of(key, row, reader.fields)
            caption = caption_text(row.get(reader.fields[0]))
            return IndexedRow(
                judged=_judged(key, of),
                verdict=review.verdict if review else "none",
                chars=len(caption),
                edited=_length(review, reader.fields[0]),
                flags=flags_of(row, reader.fields),
                caption=caption,
                text=" ".join(texts_of(row)),
                **_values(reader, row, caption),
            )
        except (CaptionerError, ValueError, TypeError, AttributeError):
            return None

    def choices(self) -> dict[str, list[dict[str, Any]]]:
        """Return the most frequent openings, prompts and models, each with its rows."""
        index, reader = self.index, self._store.reader
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in CHOICES}
        for name, values in (index.choices() if index else {}).items():
            for value, count, number in values:
                for line in self._store.rows.read(number, 1):
                    row = reader.row(line)
                    caption = caption_text(row.get(reader.fields[0]))
                    text = _values(reader, row, caption)[name]
                    if hashed(text) == value:
                        shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
                        found[name].append({"value": str(value), "text": shown, "rows": count})
        return found

    def close(self, *, keep: bool = True) -> None:
        """Close the index."""
        with self._lock, suppress(sqlite3.Error, OSError):
            if self.index is not None:
                index, self.index = self.index, None
                index.close(keep=keep)


def _values(reader: OutputReader, row: dict[str, Any], caption: str) -> dict[str, str]:
    """Return the values of `CHOICES` in a row."""
    model = row.get(f"{reader.fields[0]}_model") or reader.contents.model(row)
    prompt = reader.contents.shown_prompt(row)
    return {"opening": opening_of(caption), "prompt": prompt, "model": caption_text(model)}


def _length(review: Review | None, field: str) -> int | None:
    """Return the characters of an edited caption."""
    edited = review.captions.get(field) if review else None
    return None if edited is None else len(caption_text(edited))


def _judged(key: bytes, of: str) -> int:
    return hashed(f"{key.hex()} {of}")


def _changed(path: Path) -> int:
    with suppress(OSError):
        return int(path.lstat().st_mtime_ns)
    return 0
