"""An index of an output's rows: what they are filtered by, and the words in them.

It follows the output as it grows. What is found by words is looked at again in the rows, for the
index knows only which words a row has. It holds no captions, but their words can be read from it.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.core.keys import digest
from captioner.outputs.statistics import NEAR_BITS, simhash
from captioner.outputs.viewer.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from captioner.outputs.viewer.search import Query

VERDICTS = ("none", "accepted", "edited", "rejected", "again")
CHOICES = ("opening", "prompt", "model")
"""Columns by whose most frequent values rows are filtered."""

MOST_CHOICES = 20
_BANDS = 4
"""Parts of a fingerprint, of 16 bits each."""

_CANDIDATES = 50
"""Captions with an equal part of the fingerprint that a new one is compared with."""

_MOST_TERMS = 500
"""Terms of one word of a query; a word with more of them does not narrow a search."""

_TERM = re.compile(r"[0-9a-z\u0080-\U0010ffff]+")
"""A term of the tokenizer ``ascii`` in text that is case-folded."""

_SCHEMA = """
CREATE TABLE rows (
    number INTEGER PRIMARY KEY, judged INT, verdict INT, chars INT, edited INT, flags TEXT,
    same INT, twin INT, near INT, opening INT, prompt INT, model INT
);
CREATE INDEX rows_judged ON rows (judged);
CREATE INDEX rows_same ON rows (same);
CREATE TABLE parts (part INT, number INT, print INT, PRIMARY KEY (part, number)) WITHOUT ROWID;
CREATE VIRTUAL TABLE words
    USING fts5 (text, content = '', detail = none, columnsize = 0, tokenize = 'ascii');
CREATE VIRTUAL TABLE terms USING fts5vocab (words, 'row');
CREATE TABLE state (count INT, last BLOB, changed INT);
INSERT INTO state VALUES (0, x'', 0);
"""
_NEWEST = f"SELECT number, print FROM parts WHERE part = ? ORDER BY 1 DESC LIMIT {_CANDIDATES}"
_SIMILAR = " UNION ALL ".join([f"SELECT * FROM ({_NEWEST})"] * _BANDS)


class IndexedRow(NamedTuple):
    """What the index keeps of a row.

    Attributes:
        judged: Hash of its key and its captions, by which its review is found.
        edited: Characters of the caption as it was edited.
        text: All its text, case-folded.
    """

    judged: int
    verdict: str
    chars: int
    edited: int | None
    flags: Sequence[str]
    caption: str
    opening: str
    prompt: str
    model: str
    text: str


class RowIndex:
    """An index of rows by number. Thread-safe.

    Args:
        path: The file.
        about: What the rows depend on; an index of something else is replaced.

    Attributes:
        count: Rows that are indexed: those with smaller numbers.
        last: The digest of the last of them.
        changed: When the file of the rows was changed last, as far as it is known.

    Raises:
        sqlite3.Error: This Python's SQLite has no full-text search.
    """

    def __init__(self, path: Path, about: bytes) -> None:
        self._lock = threading.RLock()
        self._database = Database(path, about)
        self._verdicts: dict[str, int] | None = None  # until the next change
        self._do = self._database.connection.execute
        self._do_all = self._database.connection.executemany
        if self._database.is_new:
            self._database.connection.executescript(_SCHEMA)
        self.count, self.last, self.changed = self._do("SELECT * FROM state").fetchone()
        self._do("BEGIN")  # until it is closed; an index that was not closed is rebuilt

    def add(self, rows: Iterable[IndexedRow | None], last: bytes) -> None:
        """Add rows after those that are there; None is one that cannot be read."""
        with self._lock:
            number = self.count
            for row in rows:
                if row is not None:
                    self._add(number, row)
                number += 1
            self.count, self.last, self._verdicts = number, last, None

    def _add(self, number: int, row: IndexedRow) -> None:
        same = hashed(row.caption)
        first = self._do("SELECT number, twin FROM rows WHERE same = ? LIMIT 1", (same,)).fetchone()
        if first is not None and not first[1]:
            self._do("UPDATE rows SET twin = 1 WHERE number = ?", first[:1])
        values = (
            number, row.judged, VERDICTS.index(row.verdict), row.chars, row.edited,
            " ".join(row.flags), same, first is not None,
            first is None and self._add_near(number, row.caption),
            hashed(row.opening), hashed(row.prompt), hashed(row.model),
        )  # fmt: skip
        self._do(f"INSERT INTO rows VALUES ({','.join('?' * len(values))})", values)
        text = row.text.encode(errors="replace").decode()
        self._do("INSERT INTO words (rowid, text) VALUES (?, ?)", (number, text))

    def _add_near(self, number: int, caption: str) -> bool:
        """Return whether a caption nearly repeats an earlier one, which then does so as well."""
        own = simhash(caption)
        parts = [band << 16 | own >> 16 * band & 0xFFFF for band in range(_BANDS)]
        near = {
            other
            for other, print_ in self._do(_SIMILAR, parts)
            if (own ^ print_ & (1 << 64) - 1).bit_count() <= NEAR_BITS
        }
        signed = own - (own >> 63 << 64)
        self._do_all("INSERT INTO parts VALUES (?, ?, ?)", [(one, number, signed) for one in parts])
        for other in near:
            self._do("UPDATE rows SET near = 1 WHERE number = ?", (other,))
        return bool(near)

    def judge(self, reviews: Iterable[tuple[int, str, int | None]]) -> None:
        """Note reviews: by what they are found, the verdict, and the characters of an edit."""
        with self._lock:
            for judged, verdict, edited in reviews:
                values = VERDICTS.index(verdict), edited, judged
                self._do("UPDATE rows SET verdict = ?, edited = ? WHERE judged = ?", values)
            self._verdicts = None

    def forget_reviews(self) -> None:
        """Note that there are no reviews."""
        with self._lock:
            self._do("UPDATE rows SET verdict = 0, edited = NULL WHERE verdict > 0")
            self._verdicts = None

    def verdicts(self) -> dict[str, int]:
        """Return the number of reviewed rows by verdict."""
        with self._lock:
            if self._verdicts is None:
                counts = self._do("SELECT verdict, count(*) FROM rows WHERE verdict > 0 GROUP BY 1")
                self._verdicts = {VERDICTS[verdict]: count for verdict, count in counts}
            return self._verdicts

    def find(self, query: Query, first: int, step: int, most: int) -> tuple[list[int], int]:
        """Return rows that match a query but for its text, in order, from one of them.

        Returns:
            The rows, and the last one that was considered. Rows that are added later are none of
            these.
        """
        conditions, values = _conditions(query)
        beyond, order = (">=", "ASC") if step > 0 else ("<=", "DESC")
        with self._lock:
            numbers = self._numbers(
                f"SELECT number FROM rows WHERE {conditions} AND number {beyond} ? "
                f"ORDER BY number {order} LIMIT ?",
                (*values, first, most),
            )
            return numbers, numbers[-1] if len(numbers) == most else self._end(step)

    def _end(self, step: int) -> int:
        """Return the last row in a direction."""
        return self.count - 1 if step > 0 else 0

    def total(self, query: Query) -> int:
        """Return the number of rows that match a query but for its text."""
        conditions, values = _conditions(query)
        with self._lock:
            return int(self._numbers(f"SELECT count(*) FROM rows WHERE {conditions}", values)[0])

    def find_text(self, query: Query, first: int, step: int, most: int) -> tuple[list[int], int]:
        """Return rows that may match a query with a text, and the last one that was considered.

        Raises:
            LookupError: The index does not narrow the search.
        """
        with self._lock:  # at once: rows that are added bring words that are no terms yet
            match = self._match(query.text)
            if match is not None:
                return self._find_words(match, query, first, step, most)
            if query.needs_index:
                return self.find(query, first, step, most)
            raise LookupError

    def _find_words(
        self, match: str, query: Query, first: int, step: int, most: int
    ) -> tuple[list[int], int]:
        beyond, order = (">=", "ASC") if step > 0 else ("<=", "DESC")
        rest = f"{beyond} ? ORDER BY 1 {order} LIMIT ?"
        found = self._numbers(
            f"SELECT rowid FROM words WHERE words MATCH ? AND rowid {rest}", (match, first, most)
        )
        by_hand = self._numbers(
            f"SELECT number FROM rows WHERE verdict = ? AND number {rest}",
            (VERDICTS.index("edited"), first, most),
        )
        ends = [some[-1] for some in (found, by_hand) if len(some) == most]
        last = (min(ends) if step > 0 else max(ends)) if ends else self._end(step)
        some = {number for number in (*found, *by_hand) if (last - number) * step >= 0}
        conditions, values = _conditions(query)
        numbers = self._numbers(
            f"SELECT number FROM rows WHERE {conditions} "
            f"AND number IN ({','.join('?' * len(some))}) ORDER BY 1 {order}",
            (*values, *some),
        )
        return numbers, last

    def _match(self, text: str) -> str | None:
        """Return an expression for the rows with a text in their words; None if most have it."""
        text = text.casefold()
        needed = []
        for found in _TERM.finditer(text):
            before = "%" if found.start() == 0 else ""
            after = "%" if found.end() == len(text) else ""
            terms = self._do(
                "SELECT term FROM terms WHERE term LIKE ? LIMIT ?",
                (before + found[0] + after, _MOST_TERMS),
            ).fetchall()
            if len(terms) < _MOST_TERMS:
                needed.append(" OR ".join(f'"{term}"' for (term,) in terms) or '""')
        return " AND ".join(f"({terms})" for terms in needed) or None

    def choices(self) -> dict[str, list[tuple[int, int, int]]]:
        """Return the most frequent values by column: hash, rows, and one of the rows."""
        with self._lock:
            return {
                name: self._do(
                    f"SELECT {name}, count(*), min(number) FROM rows GROUP BY 1 "
                    "HAVING count(*) > ? ORDER BY 2 DESC LIMIT ?",
                    (1 if name == "opening" else 0, MOST_CHOICES),
                ).fetchall()
                for name in CHOICES
            }

    def _numbers(self, statement: str, values: Sequence[Any]) -> list[int]:
        return [number for (number,) in self._do(statement, values)]

    def close(self, *, keep: bool = True) -> None:
        """Close the index; remove its file unless it is to be kept."""
        with self._lock:
            is_whole = False
            try:
                if keep:
                    state = self.count, self.last, self.changed
                    self._do("UPDATE state SET count = ?, last = ?, changed = ?", state)
                    self._do("COMMIT")
                    is_whole = True
            finally:
                self._database.close(keep=is_whole)


def hashed(text: str) -> int:
    """Return a text as a number for the index."""
    return int.from_bytes(digest(text.encode(errors="replace"))[:8], "big", signed=True)


def _conditions(query: Query) -> tuple[str, list[Any]]:
    """Return the conditions of a query but for its text, and their values."""
    given: list[tuple[str, Any]] = []
    if query.verdict:
        given.append(("verdict = ?", VERDICTS.index(query.verdict)))
    if query.flag == "any":
        given.append(("flags <> ?", ""))
    elif query.flag:
        given.append(("instr(' ' || flags || ' ', ?)", f" {query.flag} "))
    if query.shortest:
        given.append(("coalesce(edited, chars) >= ?", query.shortest))
    if query.longest:
        given.append(("coalesce(edited, chars) <= ?", query.longest))
    if query.repeated:
        given.append(({"exactly": "twin = ?", "nearly": "(twin OR near) = ?"}[query.repeated], 1))
    chosen = ((name, getattr(query, name)) for name in CHOICES)
    given += [(f"{name} = ?", int(value)) for name, value in chosen if value]
    return " AND ".join(["1", *(one for one, _ in given)]), [value for _, value in given]
