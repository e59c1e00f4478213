"""What a person said of captions: a sidecar beside the output, appended to, the last word counts.

A review names the record by its key and the captions it judged by a print of them. When a record
is captioned anew the print is another one, and the review says nothing of the new caption.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from captioner.core.keys import KEY_BYTES, digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

Verdict = Literal["accepted", "edited", "rejected", "none"]
"""``none`` takes back what was said before."""

_NEWLINE = b"\n"


def reviews_path(output: Path) -> Path:
    """Return where the reviews of an output go: ``x.jsonl`` to ``x.review.jsonl``."""
    return output.with_name(f"{output.stem}.review.jsonl")


class Review(NamedTuple):
    """What was said of one record's captions.

    Attributes:
        key: The record's, 16 bytes.
        of: Print of the captions that were judged.
        verdict: What was said.
        captions: Those that were edited, by field: what they are to be.
        note: In the reviewer's words.
    """

    key: bytes
    of: str
    verdict: Verdict
    captions: Mapping[str, Any]
    note: str = ""

    def edited(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row with the captions that it is to have."""
        return {**row, **self.captions}


def verdict_of(said: Any) -> Verdict:
    """Return what was said as a verdict.

    Raises:
        ValueError: It is none.
    """
    for verdict in get_args(Verdict):
        if said == verdict:
            return cast("Verdict", verdict)
    raise ValueError(f"{said!r} is no verdict")


def fingerprint(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    """Return the print of a row's captions; a field that it has not makes no difference."""
    captions = {name: row[name] for name in fields if name in row}
    return digest(json.dumps(captions, sort_keys=True).encode()).hex()  # integers of any size


class Reviews:
    """The reviews of an output.

    Args:
        path: The sidecar; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[tuple[bytes, str], Review] = {}
        self._keys: set[bytes] = set()  # most records are in nobody's review
        self._at = 0  # what was read
        self._size = 0  # what is known to be there
        self._lock = threading.Lock()
        self.refresh()

    def __len__(self) -> int:
        """Return how many captions have been reviewed, and not taken back."""
        return len(self._found)

    def __iter__(self) -> Iterator[Review]:
        """Yield the last review of each record's captions."""
        return iter(list(self._found.values()))

    def refresh(self) -> None:
        """Read what was appended meanwhile; lines that are none of ours are passed over."""
        with self._lock, contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) < self._size:
                self._at = 0
                self._found.clear()
            self._size = size
            file.seek(self._at)
            for line in file:
                if not line.endswith(_NEWLINE):
                    break  # it is being written
                self._at += len(line)
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    self._take(_parsed(line))

    def of(self, key: bytes, row: Mapping[str, Any], fields: Sequence[str]) -> Review | None:
        """Return the review of a row as it is now; None if there is none."""
        return self._found.get((key, fingerprint(row, fields))) if key in self._keys else None

    def rejected(self) -> set[tuple[bytes, str]]:
        """Return the records whose captions were rejected, each with the print of those."""
        return {(one.key, one.of) for one in self if one.verdict == "rejected"}

    def add(self, review: Review) -> None:
        """Append a review.

        Raises:
            OSError: The disk refused.
        """
        said = {
            "key": review.key.hex(),
            "of": review.of,
            "verdict": review.verdict,
            "captions": dict(review.captions),
            "note": review.note,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        line = json.dumps(said, ensure_ascii=False).encode(errors="replace")
        with self._lock:
            with self._path.open("ab") as file:
                torn = file.tell() and not _ends_on_a_line(self._path)
                file.write((_NEWLINE if torn else b"") + line + _NEWLINE)
                file.flush()
                os.fsync(file.fileno())
                self._size = file.tell()
            self._take(review)

    def _take(self, review: Review) -> None:
        if review.verdict == "none":
            self._found.pop((review.key, review.of), None)
        else:
            self._found[review.key, review.of] = review
            self._keys.add(review.key)


def _ends_on_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == _NEWLINE


def _parsed(line: bytes) -> Review:
    said = json.loads(line)
    key = bytes.fromhex(said["key"])
    verdict = verdict_of(said["verdict"])
    captions = said.get("captions") or {}
    if len(key) != KEY_BYTES or not isinstance(captions, dict):
        raise ValueError
    return Review(key, str(said["of"]), verdict, captions, str(said.get("note") or ""))
