"""The data behind the viewer's page: rows, failures, reviews, search results and charts."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
from collections import Counter, defaultdict
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

from captioner.core.errors import CaptionerError, OutputDamagedError
from captioner.core.regular import reading
from captioner.core.row import EXTRAS, field_names
from captioner.journal.checkpoint import read_checkpoint
from captioner.journal.companions import (
    checkpoint_path,
    failures_path,
    journal_path,
    lock_path,
    made_path,
    reviews_path,
)
from captioner.journal.disk import Files
from captioner.journal.reviews import Review, Reviews, fingerprint, verdict_of
from captioner.outputs.reader import OutputReader
from captioner.outputs.rows import caption_text, caption_texts, parsed
from captioner.outputs.statistics import caption_statistics, histogram
from captioner.outputs.viewer.editing import Editor
from captioner.outputs.viewer.indexer import Indexer
from captioner.outputs.viewer.lineindex import LineIndex
from captioner.outputs.viewer.room import Room
from captioner.outputs.viewer.search import (
    LONGEST_TEXT,
    failure_of,
    flags_of,
)
from captioner.settings.options import ImageSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from captioner.core.types import ImageRef

CHARTED = 100_000
"""Rows that the charts are made from, approximately; at most twice as many."""

LONGEST_PROMPT = 20_000


class ViewerStore:
    """An output and its companion files. Thread-safe.

    Args:
        output: The output; it may not exist yet.
        journal: The file with its rows; by default derived from the output's name.
        image_root: Where relative image paths start.

    Attributes:
        stopped: Whether the page is being closed: searches and statistics end soon.
    """

    def __init__(
        self, output: Path, journal: Path | None = None, *, image_root: Path | None
    ) -> None:
        self.output = output
        self.journal = journal or journal_path(output)
        self.rows = LineIndex(self.journal)
        self.failures = LineIndex(failures_path(output))
        self.reviews = Reviews(reviews_path(output), followed=True)
        self.indexer = Indexer(self)
        self.editor = Editor(self)
        self._image_root = image_root
        self._reader: OutputReader | None = None
        self._reader_version: object = None
        self._reader_of: object = None
        self._lock = threading.Lock()
        self._charts_lock = threading.Lock()
        self.stopped = False
        self._codes: Counter[str] = Counter()
        self._counted = (0, 0)
        self._charts: tuple[tuple[int, int], dict[str, Any]] | None = None

    def lines(self, kind: str) -> LineIndex:
        """Return the lines of ``rows`` or ``failures``."""
        return self.failures if kind == "failures" else self.rows

    @property
    def reader(self) -> OutputReader:
        """Reads the journal; opened again when the settings or what made its rows change."""
        with self._lock:
            made = _version(made_path(self.journal))
            version = self.rows.generation, _version(checkpoint_path(self.journal)), made
            if self._reader is None or version != self._reader_version:
                checkpoint = read_checkpoint(Files(), self.journal)
                settings = checkpoint.settings if checkpoint else {}
                if self._reader is None or (settings, made) != self._reader_of:
                    self._reader = OutputReader(
                        self.journal,
                        image_root=self._image_root,
                        max_image_bytes=ImageSettings().max_video_bytes,
                    )
                    self._reader_of = settings, made
                self._reader_version = version
            return self._reader

    def status(self) -> dict[str, Any]:
        """Read what was appended to the files and return the counts."""
        self.rows.refresh()
        self.failures.refresh()
        self.reviews.refresh()
        return {
            "output": self.output.name,
            "input": self.reader.source.name if self.reader.source else "",
            "model": " and ".join(self._models()),
            "rows": len(self.rows),
            "generation": self.rows.generation,
            "failures": len(self.failures),
            "failures_generation": self.failures.generation,
            "codes": self._count_codes(),
            "verdicts": self._count_verdicts(),
            "indexed": self.indexer.count,
            "undo": len(self.editor),
            "running": self.is_running(),
        }

    def is_running(self) -> bool:
        """Return whether a process on this machine writes to the journal; its lock is not taken."""
        try:
            with reading(lock_path(self.journal)) as lock:
                host, _, pid = lock.read(300).decode("utf-8", "replace").strip().partition(" ")
            if host == socket.gethostname():
                os.kill(int(pid), 0)
        except PermissionError:
            return True  # the process exists and belongs to another user
        except (OSError, ValueError, OutputDamagedError):
            return False
        return True

    def _count_verdicts(self) -> dict[str, int]:
        """Return the rows by verdict; before they are indexed, the reviews of earlier rows too."""
        index = self.indexer.usable
        if index is not None and index.count == len(self.rows):
            with suppress(sqlite3.Error):  # it may have been closed meanwhile
                self.indexer.follow_reviews()
                return index.verdicts()
        return dict(Counter(review.verdict for review in self.reviews))

    def _models(self) -> list[str]:
        """Return the models that made the rows, the last one first."""
        reader = self.reader
        earlier = reader.made.settings if len(reader.made.rows) else []
        models = [str(made.get("model") or "") for made in (reader.settings, *reversed(earlier))]
        return list(dict.fromkeys(filter(None, models)))

    def _count_codes(self) -> dict[str, int]:
        """Return the failures by code, counting only new lines."""
        with self._lock:
            if self._counted[0] != self.failures.generation:
                self._codes.clear()
                self._counted = self.failures.generation, 0
            for begin, lines in self.failures.blocks(self._counted[1], 1):
                self._codes.update(str(failure_of(line).get("code", "")) for line in lines)
                self._counted = self._counted[0], begin + len(lines)
            return dict(self._codes.most_common())

    # -- display -------------------------------------------------------------------------------

    def display(self, kind: str, numbers: list[int]) -> list[dict[str, Any]]:
        """Return what the page shows of rows or failures, even of unreadable ones.

        A row for which there is no `Room` is shown as a message: a part of its caption could be
        saved as the whole.
        """
        display = self._display_failure if kind == "failures" else self._display_row
        found = []
        room = Room()
        for number in numbers:
            for line in self.lines(kind).read(number, 1):
                try:
                    room.read(line)
                    shown = display(line)
                    room.show(shown)
                except (CaptionerError, ValueError, TypeError, AttributeError) as error:
                    message = f"this line cannot be shown: {error}"
                    shown = {**display(b"{}"), "captions": {"": message}, "message": message}
                found.append({"number": number, **shown})
        return found

    def _display_row(self, line: bytes) -> dict[str, Any]:
        reader = self.reader
        row = reader.row(line)
        key = reader.keys.of_output(line) or b""
        fields = reader.fields
        review = self.reviews.of(key, row, fields)
        edited = review.edited(row) if review is not None else row
        extras = {f"{fields[0]}_{extra}" for extra in EXTRAS}
        hidden = field_names(fields)
        return {
            "key": key.hex(),
            "of": fingerprint(row, fields),
            "captions": {name: caption_text(edited.get(name)) for name in fields},
            "prompt": _shorten(self.reader.contents.shown_prompt(row), LONGEST_PROMPT),
            "model": reader.contents.model(row),
            "flags": flags_of(row, fields),
            "extras": {name: row[name] for name in sorted(extras & row.keys())},
            "fields": {name: _shorten(row[name]) for name in row if name not in hidden},
            "images": [_describe_image(image) for image in reader.contents.images(row)],
            "verdict": review.verdict if review is not None else "none",
            "note": review.note if review is not None else "",
        }

    def _display_failure(self, line: bytes) -> dict[str, Any]:
        failure = failure_of(line)
        record = failure.get("record")
        row = record if isinstance(record, dict) else {}
        return {
            "line": failure.get("line"),
            "code": str(failure.get("code", "")),
            "message": _shorten(str(failure.get("message", ""))),
            "attempts": failure.get("attempts"),
            "prompt": _shorten(self.reader.contents.shown_prompt(row), LONGEST_PROMPT),
            "fields": {name: _shorten(one) for name, one in (row or {"record": record}).items()},
            "images": [_describe_image(image) for image in self.reader.contents.images(row)],
        }

    def images(self, kind: str, number: int) -> list[ImageRef]:
        """Return the images of a row or failure."""
        for line in self.lines(kind).read(number, 1):
            row = failure_of(line).get("record") if kind == "failures" else self.reader.row(line)
            if isinstance(row, dict):
                return self.reader.contents.images(row)
        return []

    # -- reviews -------------------------------------------------------------------------------

    def review(self, given: dict[str, Any]) -> Review:
        """Save a review of a row.

        Accepting accepts what was shown: a caption that differs from the model's is an edit.

        Raises:
            ValueError: The review is invalid, or the row has changed.
            OSError: The disk refused.
        """
        fields = self.reader.fields
        row = self._find_row(int(given["number"]), str(given.get("key")), str(given.get("of")))
        captions: dict[str, Any] = {}
        verdict = verdict_of(given.get("verdict"))
        for name, text in dict(given.get("captions") or {}).items():
            if name not in fields or not isinstance(text, str):
                raise ValueError(f"{name!r} is not a caption field")
            value = _edited(name, row.get(name), text)
            if value != row.get(name) and verdict in ("accepted", "edited"):
                captions[name] = value
        if verdict in ("accepted", "edited"):
            verdict = "edited" if captions else "accepted"
        note = str(given.get("note") or "")[:LONGEST_TEXT]
        review = Review(bytes.fromhex(given["key"]), str(given["of"]), verdict, captions, note)
        self.editor.save([review])
        return review

    def _find_row(self, number: int, key: str, of: str) -> dict[str, Any]:
        """Return the row with a key and a fingerprint, even if it has moved."""
        reader = self.reader
        all_lines = (line for _, lines in self.rows.blocks(0, 1) for line in lines)
        for line in chain(self.rows.read(number, 1), all_lines):
            if (reader.keys.of_output(line) or b"").hex() == key:
                row = parsed(line)
                if fingerprint(row, reader.fields) == of:
                    return row
        raise ValueError("this row no longer exists; load the page again")

    # -- charts --------------------------------------------------------------------------------

    def charts(self) -> dict[str, Any]:
        """Return statistics of the captions, from an even part of the rows if there are many.

        They are computed again when the rows have grown by a tenth.
        """
        with self._charts_lock:
            now = self.rows.generation, len(self.rows)
            if self._charts is not None:
                (generation, counted), charts = self._charts
                if generation == now[0] and counted * 1.1 + 50 > now[1]:
                    return charts
            extras: defaultdict[str, Counter[float]] = defaultdict(Counter)
            quality = caption_statistics(self._captions(extras))
            charts = {
                "rows": len(self.rows),
                "quality": quality._asdict(),
                "histograms": {name: histogram(counts) for name, counts in extras.items()},
            }
            self._charts = now, charts
            return charts

    def _captions(self, extras: defaultdict[str, Counter[float]]) -> Iterator[str]:
        """Yield captions, and count the latencies and tokens of their rows."""
        fields = self.reader.fields
        every = max(1, len(self.rows) // CHARTED)
        for begin, lines in self.rows.blocks(0, 1):
            for line in lines[-begin % every :: every]:
                try:
                    row = parsed(line)
                except ValueError:
                    continue
                for field in fields:
                    yield from caption_texts(row, field)
                if isinstance(latency := row.get(f"{fields[0]}_latency"), int | float):
                    extras["latency"][float(latency)] += 1
                usage = row.get(f"{fields[0]}_usage")
                for name in ("prompt_tokens", "completion_tokens"):
                    if isinstance(usage, dict) and isinstance(usage.get(name), int | float):
                        extras[name][usage[name]] += 1

    def stop(self) -> None:
        """End running searches and statistics soon."""
        self.stopped = True
        self.rows.stop()
        self.failures.stop()

    def close(self) -> None:
        """Close the files."""
        self.indexer.close()
        self.rows.close()
        self.failures.close()
        if self._reader is not None:
            self._reader.close()


def _version(path: Path) -> tuple[int, int] | None:
    """Return a value that changes when a file does."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _shorten(value: Any, longest: int = LONGEST_TEXT) -> Any:
    """Return a value for display; long text is truncated."""
    if isinstance(value, int | float) or value is None:
        return value
    text = caption_text(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _describe_image(image: ImageRef) -> str:
    place = (image.path or "")[-200:] or (image.url or "")[:200]
    return place or ("an image inside the record" if image.data is not None else "inside the input")


def _edited(name: str, before: Any, text: str) -> Any:
    """Return the edited value of a caption; an untouched one keeps its exact value."""
    text = text.replace("\r\n", "\n").strip()
    if text == caption_text(before).replace("\r\n", "\n").strip():
        return before
    if isinstance(before, str):
        if not text:
            raise ValueError("a caption must not be empty; reject it instead")
        return text
    try:
        value = parsed(text.encode())
    except ValueError:
        raise ValueError(f"{name} is not valid JSON") from None
    if type(value) is not type(before) or not value:
        kind = "list" if isinstance(before, list) else "object"
        raise ValueError(f"{name} must be a non-empty {kind}, as before")
    return value
