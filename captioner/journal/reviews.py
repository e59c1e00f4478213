"""Reviews of captions by a person, in a file beside the output.

The file is appended to, and the last review of a caption counts. A review names its record by key
and the captions by their fingerprint, so that it does not apply to later captions of the record.
"""

from __future__ import annotations

import json
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from captioner.core.keys import KEY_BYTES, digest
from captioner.journal.appended import AppendedFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

Verdict = Literal["accepted", "edited", "rejected", "again", "none"]
"""``again`` marks a record to be captioned again, ``none`` withdraws the earlier review."""

_sorted_json = json.JSONEncoder(sort_keys=True).encode  # knows integers of any size


class Review(NamedTuple):
    """The review of one record's captions.

    Attributes:
        key: The record's key, 16 bytes.
        of: Fingerprint of the captions that were reviewed.
        captions: The new text of edited captions, by field.
    """

    key: bytes
    of: str
    verdict: Verdict
    captions: Mapping[str, Any]
    note: str = ""

    def edited(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row with the edited captions in it."""
        return {**row, **self.captions}


def verdict_of(value: Any) -> Verdict:
    """Return a value as a verdict.

    Raises:
        ValueError: It is not a verdict.
    """
    if value in get_args(Verdict):
        return cast("Verdict", value)
    raise ValueError(f"{value!r} is not a verdict")


def fingerprint(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    """Return a hash of a row's captions; missing fields are left out."""
    captions = {name: row[name] for name in fields if name in row}
    return digest(_sorted_json(captions).encode()).hex()


class Reviews(AppendedFile):
    """The reviews of an output, in a file that need not exist yet.

    Attributes:
        changes: Reviews that were read or added; the caller that follows them takes them from here.
            None if none does.
    """

    def __init__(self, path: Path, *, followed: bool = False) -> None:
        self.changes: deque[Review] | None = deque() if followed else None
        self._found: dict[tuple[bytes, str], Review] = {}
        self._keys: set[bytes] = set()  # most records have no review: no fingerprint needed
        super().__init__(path)

    def __len__(self) -> int:
        """Return the number of reviews."""
        return len(self._found)

    def __iter__(self) -> Iterator[Review]:
        """Yield the last review of each record's captions."""
        return iter(list(self._found.values()))

    def _forget(self) -> None:
        self._found.clear()
        if self.changes is not None:
            self.changes.clear()

    def _take(self, line: bytes) -> None:
        self._store(_parsed(line))

    def of(self, key: bytes, row: Mapping[str, Any], fields: Sequence[str]) -> Review | None:
        """Return the review of a row's current captions, if there is one."""
        return self._found.get((key, fingerprint(row, fields))) if key in self._keys else None

    def rejected(self) -> set[tuple[bytes, str]]:
        """Return key and fingerprint of all rejected captions."""
        return {(one.key, one.of) for one in self if one.verdict == "rejected"}

    def get(self, key: bytes, of: str) -> Review | None:
        """Return the review of a record's captions, if there is one."""
        return self._found.get((key, of))

    def add(self, *reviews: Review) -> None:
        """Append reviews.

        Raises:
            OSError: The disk refused.
            OutputDamagedError: The file is not a regular one.
        """
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._append([_line(review, at) for review in reviews])

    def _store(self, review: Review) -> None:
        if review.verdict == "none":
            self._found.pop((review.key, review.of), None)
        else:
            self._found[review.key, review.of] = review
            self._keys.add(review.key)
        if self.changes is not None:  # last: a row that is indexed from now on finds the review
            self.changes.append(review)


def _line(review: Review, at: str) -> bytes:
    fields = {
        "key": review.key.hex(),
        "of": review.of,
        "verdict": review.verdict,
        "captions": dict(review.captions),
        "note": review.note,
        "at": at,
    }
    return json.dumps(fields, ensure_ascii=False).encode(errors="replace")


def _parsed(line: bytes) -> Review:
    fields = json.loads(line)
    key = bytes.fromhex(fields["key"])
    verdict = verdict_of(fields["verdict"])
    captions = fields.get("captions") or {}
    if len(key) != KEY_BYTES or not isinstance(captions, dict):
        raise ValueError
    return Review(key, str(fields["of"]), verdict, captions, str(fields.get("note") or ""))
