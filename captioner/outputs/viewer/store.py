"""What the page shows: rows and failures by number, what they hold, and finding some of them."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.core.errors import CaptionerError, RecordError
from captioner.core.row import EXTRAS, FLAG
from captioner.journal.checkpoint import read_checkpoint
from captioner.journal.companions import (
    checkpoint_path,
    failures_path,
    journal_path,
    lock_path,
    reviews_path,
)
from captioner.journal.disk import Files
from captioner.journal.reviews import Review, Reviews, fingerprint, verdict_of
from captioner.outputs.reader import OutputReader, parsed
from captioner.outputs.statistics import look_at
from captioner.outputs.viewer.lineindex import Lines
from captioner.outputs.viewer.search import (
    LONGEST_TEXT,
    Query,
    editable,
    failure_fits,
    failure_of,
    flags_of,
    row_fits,
)
from captioner.readers.rows import dumped
from captioner.settings.options import ImageSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from captioner.core.types import ImageRef

AT_ONCE = 500
"""Numbers of rows that are found at once."""

LONGEST_S = 0.3
"""Seconds of looking before what was found is handed out."""

CHARTED = 100_000
"""Rows that the charts are made of, about; twice as many at the most."""


class Found(NamedTuple):
    """What was found.

    Attributes:
        numbers: Of the rows that fit.
        next: Where to go on looking; None at the end.
        end: The row after the last one that was looked at, which may come later.
        looked_at: How many were looked at.
    """

    numbers: list[int]
    next: int | None
    end: int
    looked_at: int


class ViewerStore:
    """The output of a run and what lies beside it. May be used from several threads.

    Args:
        output: The output; it need not exist yet.
        journal: Where its captions are appended; None finds it by the output's name.
        image_root: Where relative paths of images start from.
        warn: Called with a sentence when something is worth knowing but no error.
    """

    def __init__(
        self,
        output: Path,
        journal: Path | None = None,
        *,
        image_root: Path | None,
        warn: Callable[[str], None],
    ) -> None:
        self.output = output
        self.journal = journal or journal_path(output)
        self.rows = Lines(self.journal)
        self.failures = Lines(failures_path(output))
        self.reviews = Reviews(reviews_path(output))
        self._image_root = image_root
        self._warn = warn
        self._book: OutputReader | None = None
        self._book_of: object = None
        self._lock = threading.Lock()
        self._closed = False
        self._codes: Counter[str] = Counter()
        self._counted = (0, 0)
        self._charts: tuple[tuple[int, int], dict[str, Any]] | None = None

    def refresh(self) -> None:
        """Look at what has come meanwhile."""
        self.rows.refresh()
        self.failures.refresh()
        self.reviews.refresh()

    @property
    def book(self) -> OutputReader:
        """What the checkpoint says; read again when it says something else."""
        with self._lock:
            of = self.rows.generation, _stamp(checkpoint_path(self.journal))
            if self._book is None or of != self._book_of:
                found = read_checkpoint(Files(), self.journal)
                settings = found.settings if found else {}
                if self._book is None or settings != self._book.settings:
                    self._book = OutputReader.open(
                        self.journal,
                        image_root=self._image_root,
                        largest=ImageSettings().max_image_bytes,
                        warn=self._warn,
                    )
                self._book_of = of
            return self._book

    @property
    def codes(self) -> dict[str, int]:
        """Failures by code."""
        with self._lock:
            generation, counted = self._counted
            if generation != self.failures.generation:
                self._codes.clear()
                generation, counted = self.failures.generation, 0
            for begin, lines in self.failures.blocks(counted, 1):
                self._codes.update(str(failure_of(line).get("code", "")) for line in lines)
                counted = begin + len(lines)
            self._counted = generation, counted
            return dict(self._codes.most_common())

    # -- what is shown -------------------------------------------------------------------------

    def shown(self, kind: str, number: int, line: bytes) -> dict[str, Any]:
        """Return what is shown of a row or of a failure, whatever is in its line."""
        try:
            return self.failure(number, line) if kind == "failures" else self.row(number, line)
        except (CaptionerError, ValueError, TypeError, AttributeError) as error:
            why = f"this line cannot be read: {error}"
            return {
                "number": number, "key": "", "of": "", "captions": {"": why}, "prompt": "",
                "flags": [], "extras": {}, "members": {}, "images": [], "verdict": "none",
                "note": "", "line": None, "code": "", "message": why, "attempts": None,
            }  # fmt: skip

    def row(self, number: int, line: bytes) -> dict[str, Any]:
        """Return what is shown of a row."""
        book = self.book
        row = parsed(line)
        key = book.identity.of_output(line) or b""
        fields = book.fields
        review = self.reviews.of(key, row, fields)
        shown = review.edited(row) if review is not None else row
        ours = {*fields, *(f"{name}_{FLAG}" for name in fields)}
        extras = {f"{fields[0]}_{extra}" for extra in EXTRAS}
        return {
            "number": number,
            "key": key.hex(),
            "of": fingerprint(row, fields),
            "captions": {name: editable(shown.get(name)) for name in fields},
            "prompt": self._prompt(row),
            "flags": flags_of(row, fields),
            "extras": {name: row[name] for name in sorted(extras & row.keys())},
            "members": {
                name: _brief(value) for name, value in row.items() if name not in ours | extras
            },
            "images": [self._place(image) for image in book.images(row)],
            "verdict": review.verdict if review is not None else "none",
            "note": review.note if review is not None else "",
        }

    def failure(self, number: int, line: bytes) -> dict[str, Any]:
        """Return what is shown of a failure."""
        failure = failure_of(line)
        record = failure.get("record")
        row = record if isinstance(record, dict) else {}
        return {
            "number": number,
            "line": failure.get("line"),
            "code": str(failure.get("code", "")),
            "message": str(failure.get("message", "")),
            "attempts": failure.get("attempts"),
            "prompt": self._prompt(row),
            "members": {name: _brief(value) for name, value in row.items()}
            if row
            else {"record": _brief(record)},
            "images": [self._place(image) for image in self.book.images(row)],
        }

    def images(self, kind: str, number: int) -> list[ImageRef]:
        """Return the images of a row or of a failure."""
        lines = (self.failures if kind == "failures" else self.rows).read(number, 1)
        if not lines:
            return []
        row = parsed(lines[0]) if kind != "failures" else failure_of(lines[0]).get("record")
        return self.book.images(row) if isinstance(row, dict) else []

    def data(self, image: ImageRef) -> bytes | None:
        """Return an image's bytes; None where it is not at hand."""
        return self.book.image_bytes(image, {})

    def _prompt(self, row: dict[str, Any]) -> str:
        try:
            asked = self.book.questions(row) if row else ()
        except RecordError:
            asked = ()
        if asked:
            return "\n".join(asked)
        turns = self.book.turns(row)
        return "\n".join(part for part in turns[-1].parts if isinstance(part, str)) if turns else ""

    def _place(self, image: ImageRef) -> str:
        """Return where an image is, in words for a person."""
        if image.path is not None:
            return image.path[-200:]
        if image.url is not None:
            return image.url[:200]
        return "an image inside the record" if image.data is not None else "inside the input"

    # -- what is found -------------------------------------------------------------------------

    def find(self, kind: str, query: Query, first: int, step: int) -> Found:
        """Return the numbers of rows, or of failures, that fit, on from one of them."""
        lines = self.failures if kind == "failures" else self.rows
        fits = (
            failure_fits(query) if kind == "failures" else row_fits(query, self.book, self.reviews)
        )
        until = time.monotonic() + LONGEST_S
        found: list[int] = []
        looked_at = 0
        at = first
        for begin, some in lines.blocks(first, step):
            numbered = list(enumerate(some, begin))
            found += [number for number, line in numbered[::step] if fits(line)]
            looked_at += len(some)
            at = begin + len(some) if step > 0 else begin - 1
            if len(found) >= AT_ONCE or time.monotonic() > until or self._closed:
                break
        return Found(found, at if 0 <= at < len(lines) else None, at, looked_at)

    # -- what is said of them ------------------------------------------------------------------

    def review(self, said: dict[str, Any]) -> Review:
        """Keep what a reviewer said of a row.

        Accepting means what was shown: captions that differ from the model's are edited ones.

        Raises:
            ValueError: It is no review of a row as it is now; says why.
            OSError: The disk refused.
        """
        fields = self.book.fields
        row = self._reviewed_row(int(said["number"]), str(said.get("key")), str(said.get("of")))
        captions: dict[str, Any] = {}
        for name, text in dict(said.get("captions") or {}).items():
            if name not in fields or not isinstance(text, str):
                raise ValueError(f"{name!r} is no caption")
            value = _edited(name, row.get(name), text)
            if value != row.get(name):
                captions[name] = value
        verdict = verdict_of(said.get("verdict"))
        if verdict in ("accepted", "edited"):
            verdict = "edited" if captions else "accepted"
        else:
            captions = {}
        note = str(said.get("note") or "")[:LONGEST_TEXT]
        key, of = bytes.fromhex(said["key"]), str(said["of"])
        review = Review(key, of, verdict, captions, note)
        self.reviews.add(review)
        return review

    def _reviewed_row(self, number: int, key: str, of: str) -> dict[str, Any]:
        """Return the row that is meant; where it is elsewhere by now it is looked for.

        Raises:
            ValueError: There is none any more.
        """
        identity, fields = self.book.identity, self.book.fields
        all_of_them = (line for _, lines in self.rows.blocks(0, 1) for line in lines)
        for line in chain(self.rows.read(number, 1), all_of_them):
            if (identity.of_output(line) or b"").hex() == key:
                row = parsed(line)
                if fingerprint(row, fields) == of:
                    return row
        raise ValueError("there is no such row any more; load the page again")

    def charts(self) -> dict[str, Any]:
        """Return what captions are like; counted anew where they have become more by a tenth.

        Of many rows a part is looked at, spread over all of them.
        """
        now = self.rows.generation, len(self.rows)
        if self._charts is not None:
            (generation, counted), charts = self._charts
            if generation == now[0] and counted * 1.1 + 50 > now[1]:
                return charts
        extras: dict[str, list[float]] = {
            "latency": [],
            "prompt_tokens": [],
            "completion_tokens": [],
        }
        quality = look_at(self._captions(extras))
        charts = {
            "rows": len(self.rows),
            "quality": quality.as_dict(),
            "histograms": {name: _histogram(values) for name, values in extras.items() if values},
        }
        self._charts = now, charts
        return charts

    def _captions(self, extras: dict[str, list[float]]) -> Iterator[str]:
        """Yield captions, and gather what stands beside them."""
        book = self.book
        first = book.fields[0]
        every = max(1, len(self.rows) // CHARTED)
        for begin, lines in self.rows.blocks(0, 1):
            if self._closed:
                return
            for line in lines[-begin % every :: every]:
                try:
                    row = parsed(line)
                except ValueError:
                    continue
                for field in book.fields:
                    yield from book.texts(row, field)
                latency = row.get(f"{first}_latency")
                if isinstance(latency, int | float):
                    extras["latency"].append(float(latency))
                usage = row.get(f"{first}_usage")
                for name in ("prompt_tokens", "completion_tokens"):
                    if isinstance(usage, dict) and isinstance(usage.get(name), int):
                        extras[name].append(usage[name])

    def counts(self) -> dict[str, Any]:
        """Return how many there are of what."""
        verdicts = Counter(review.verdict for review in self.reviews)
        return {
            "output": self.output.name,
            "model": str(self.book.settings.get("model") or ""),
            "rows": len(self.rows),
            "generation": self.rows.generation,
            "failures": len(self.failures),
            "failures_generation": self.failures.generation,
            "codes": self.codes,
            "verdicts": dict(verdicts),
            "running": _running(self.journal),
        }

    def end(self) -> None:
        """Have what takes long end soon."""
        self._closed = True

    def close(self) -> None:
        """Release the files."""
        self.rows.close()
        self.failures.close()
        if self._book is not None:
            with closing(self._book):
                self._book = None


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _running(journal: Path) -> bool:
    """Tell whether somebody writes to an output, without touching the lock that says so."""
    try:
        host, _, pid = lock_path(journal).read_text("utf-8", "replace").strip().partition(" ")
        if host == socket.gethostname():
            os.kill(int(pid), 0)
    except PermissionError:
        return True  # there is such a process, another user's
    except (OSError, ValueError):
        return False
    return True


def _brief(value: Any) -> Any:
    """Return a member for a person to read: what is long is cut."""
    if isinstance(value, int | float | bool) or value is None:
        return value
    text = value if isinstance(value, str) else dumped(value).decode()
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _edited(name: str, before: Any, text: str) -> Any:
    """Return what a caption becomes; what was not touched is as it was, to the byte.

    Raises:
        ValueError: It cannot become that.
    """
    text = text.replace("\r\n", "\n")
    shown = editable(before).replace("\r\n", "\n")
    if text.strip() == shown.strip():
        return before
    if isinstance(before, str):
        if not text.strip():
            raise ValueError("an empty caption is none; reject it instead")
        return text.strip()
    try:
        value = parsed(text.encode())
    except ValueError:
        raise ValueError(f"{name} is not valid JSON") from None
    if type(value) is not type(before) or not value:
        kind = "a list" if isinstance(before, list) else "an object"
        raise ValueError(f"{name} has to be {kind} that is not empty, as it was")
    return value


def _histogram(values: list[float], classes: int = 24) -> list[tuple[float, int]]:
    """Return how many values are in each of some classes, each with its upper bound."""
    width = (max(values) or 1) / classes
    counts = Counter(min(classes - 1, int(value / width)) for value in values)
    return [(round((number + 1) * width, 3), counts[number]) for number in range(classes)]
