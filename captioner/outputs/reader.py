"""Read access to an output, finished or running: rows, reviews and input records."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from captioner.core.errors import CaptionerError, SettingsError
from captioner.core.jsonbytes import quoted, replace_values
from captioner.core.keys import KeyTable, RecordKeys
from captioner.core.regular import reading
from captioner.images.archives import Archives
from captioner.images.files import ImageFolders
from captioner.journal.checkpoint import Checkpoint, read_checkpoint
from captioner.journal.companions import reviews_path
from captioner.journal.disk import Files
from captioner.journal.made import read_made
from captioner.journal.reviews import Review, Reviews
from captioner.journal.scan import Scan, scan_output
from captioner.outputs.rows import Row, RowContents, caption_texts, parsed
from captioner.readers.registry import OpenedInput, folder_of, open_input
from captioner.readers.rows import dumped

if TYPE_CHECKING:
    from captioner.core.types import InputRecord

Reviewed = Literal["apply", "only", "ignore"]

LARGEST_IMAGE = 1 << 31
"""Bytes of the largest image that an export copies."""


def record_keys(settings: Mapping[str, Any]) -> RecordKeys:
    """Return what computes the keys of an output's records, from its checkpoint's settings."""
    return RecordKeys(caption_fields(settings), settings.get("id_field"))


def caption_fields(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the fields that hold captions, as `Settings.fields` does."""
    if stages := settings.get("stages"):
        own = dict.fromkeys(str(stage["field"]) for stage in stages if stage.get("field"))
        return tuple(sorted(own, key=str(settings.get("output_field")).__ne__))
    questions = settings.get("ask") or [str(settings.get("output_field") or "caption")]
    return tuple(str(one).partition("=")[0] for one in questions)


def scan_journal(
    journal: Path,
    keys: RecordKeys,
    checkpoint: Checkpoint | None,
    *,
    offsets: bool = False,
    files: Files | None = None,
    raise_if_stopped: Callable[[], None] = lambda: None,
) -> Scan:
    """Open a journal and scan it; see `scan_output`."""
    files = files or Files()
    fd = files.open_to_read(journal)

    def read(size: int, offset: int) -> bytes:
        raise_if_stopped()
        return files.read(fd, size, offset)

    try:
        return scan_output(read, files.size(fd), journal, keys, checkpoint, offsets=offsets)
    finally:
        files.close(fd)


class OutputReader:
    """Reads the rows of a journal. Close it after use.

    Args:
        journal: The file with the rows.
        image_root: Where relative image paths start; by default the input's folder.
        source: The input, in place of the one in the checkpoint.
        reviewed: ``ignore`` yields all rows as they are. ``apply`` skips rejected captions and
            yields edited ones in their edited form. ``only`` also skips unreviewed ones.
        output: The output that was reviewed; by default the journal itself.
        max_image_bytes: The largest image that is read.
        raise_if_stopped: Called before each row and each block of a scan; an exception ends the
            reading. Default: does nothing.

    Attributes:
        settings: The options of the run that wrote the output, by name.
        fields: The fields that hold captions.
        made: What made the rows that other settings made.
        source: Where the input is or was.
        input: The input; None if it cannot be opened any more.
        reviews: The reviews to apply; None if there are none.
        contents: Reads the prompt and images of a row.

    Raises:
        SettingsError: There are no reviews, and ``only`` needs some.
    """

    def __init__(
        self,
        journal: Path,
        *,
        image_root: Path | None = None,
        source: Path | None = None,
        reviewed: Reviewed = "ignore",
        output: Path | None = None,
        max_image_bytes: int = LARGEST_IMAGE,
        raise_if_stopped: Callable[[], None] = lambda: None,
    ) -> None:
        self._raise_if_stopped = raise_if_stopped
        checkpoint = read_checkpoint(Files(), journal)
        self.journal = journal
        self.settings: dict[str, Any] = checkpoint.settings if checkpoint else {}
        self.fields = caption_fields(self.settings)
        self.keys = record_keys(self.settings)
        self.made = read_made(Files(), journal)
        self.source = source
        if source is None and checkpoint is not None and checkpoint.source:
            self.source = Path(checkpoint.source)
        self.input = self._open_input()
        self._length: int | None = None  # bytes of whole lines; the scan is slow
        sidecar = reviews_path(output or journal)
        self.reviews = Reviews(sidecar) if reviewed != "ignore" and sidecar.exists() else None
        self.reviewed_only = reviewed == "only"
        if self.reviewed_only and self.reviews is None:
            raise SettingsError(f"there are no reviews: {sidecar} does not exist")
        folder = folder_of(self.source)
        roots = [image_root] if image_root else [*filter(None, [folder]), Path()]
        archives = Archives(max_image_bytes)
        folders = ImageFolders(
            roots,
            bound=image_root is not None,
            max_bytes=max_image_bytes,
            archives=archives,
        )
        found = self.input.image_field if self.input else None
        self.contents = RowContents(
            self.settings, self.settings.get("image_field") or found, folders
        )
        self._stack = ExitStack()
        self._stack.callback(archives.close)

    def _open_input(self) -> OpenedInput | None:
        if self.source is None or str(self.source) == "-":
            return None
        given = self.settings.get("input_format") or self.settings.get("folder_of")
        try:
            return open_input(
                self.source,
                given,
                image_field=self.settings.get("image_field"),
                split=self.settings.get("split"),
            )
        except CaptionerError:
            return None  # the input was moved or deleted; many exports do not need it

    def close(self) -> None:
        """Close the archives and the inputs."""
        self._stack.close()

    def offsets(self) -> KeyTable:
        """Return the offset of each record's row in the journal, by key."""
        return self._scan(offsets=True).keys

    def _scan(self, *, offsets: bool) -> Scan:
        checkpoint = read_checkpoint(Files(), self.journal)  # a run may have written a new one
        return scan_journal(
            self.journal,
            self.keys,
            checkpoint,
            offsets=offsets,
            raise_if_stopped=self._raise_if_stopped,
        )

    def lines(self) -> Iterator[bytes]:
        """Yield the rows as lines without their ends, with the reviews applied."""
        for line in self._journal_lines():
            if (reviewed := self._apply_review(line)) is not None:
                yield reviewed

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows, with the reviews applied."""
        return map(self.row, self.lines())

    def row(self, line: bytes) -> dict[str, Any]:
        """Return a line as a row, which knows what made it."""
        row = parsed(line)
        if not len(self.made.rows):
            return row
        made = self.made.of(self.keys.of_output(line))
        return row if made is None else Row(row, made)

    def row_at(self, journal: IO[bytes], offset: int) -> dict[str, Any] | None:
        """Return the row at an offset of the open journal; None if the reviews skip it."""
        self._raise_if_stopped()
        journal.seek(offset)
        line = self._apply_review(journal.readline().rstrip(b"\n"))
        return None if line is None else self.row(line)

    def rows_with_images(self) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
        """Yield each row with the images inside its input row, by digest.

        Rows whose input row is gone come last, without images.
        """
        if self.input is None or not self.input.holds_images:
            for row in self.rows():
                yield row, {}
            return
        offsets = self.offsets()
        for record, found in self._match_input(offsets):
            if found is not None:
                yield found, dict(record.images)
        with reading(self.journal) as file:
            for offset in sorted(offsets.offsets()):
                if (found := self.row_at(file, offset)) is not None:
                    yield found, {}

    def input_rows(self) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
        """Yield the records of the input in order, each with its row or None.

        Raises:
            SettingsError: The input cannot be opened.
        """
        for record, row in self._match_input(self.offsets()):
            if record.fault is None:
                try:
                    value = parsed(record.raw)
                except ValueError:
                    continue  # invalid JSON: the failures file reports it
                if isinstance(value, dict):
                    yield value, row

    def _match_input(
        self, offsets: KeyTable
    ) -> Iterator[tuple[InputRecord, dict[str, Any] | None]]:
        """Yield the input's records, each with its row, and remove those from ``offsets``."""
        if self.input is None:
            raise SettingsError("the input cannot be opened any more")
        batches = self.input.source.batches()
        runner = asyncio.Runner()
        # `close` ends both: an abandoned generator may be collected in any thread.
        self._stack.callback(runner.close)
        if isinstance(batches, AsyncGenerator):
            self._stack.callback(lambda: runner.run(batches.aclose()))
        with reading(self.journal) as file:
            while (batch := runner.run(anext(batches, None))) is not None:
                self._raise_if_stopped()
                for record in batch:
                    yield record, self.take_row(file, offsets, record)

    def take_row(
        self, journal: IO[bytes], offsets: KeyTable, record: InputRecord
    ) -> dict[str, Any] | None:
        """Return the row of an input record, and remove it from ``offsets``."""
        offset = offsets.take(self.keys.of_record(record))
        return None if offset is None else self.row_at(journal, offset)

    def captions(self) -> Iterator[str]:
        """Yield every caption as text."""
        for row in self.rows():
            for field in self.fields:
                yield from caption_texts(row, field)

    def first_caption(self, row: Mapping[str, Any]) -> str:
        """Return a row's first caption as text."""
        return caption_texts(row, self.fields[0])[0]

    def verdicts(self) -> Counter[str]:
        """Return the number of rows by verdict; ``none`` counts those without a review."""
        reviews = map(self._review, self._journal_lines())
        return Counter(review.verdict if review else "none" for review in reviews)

    def rejected(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that the reviews reject."""
        for line in self._journal_lines():
            review = self._review(line)
            if review is not None and review.verdict == "rejected":
                yield parsed(line)

    def _journal_lines(self) -> Iterator[bytes]:
        if self._length is None:
            self._length = self._scan(offsets=False).whole.length
        remaining = self._length
        with reading(self.journal) as file:
            for line in file:
                self._raise_if_stopped()
                remaining -= len(line)
                if remaining < 0:
                    return
                yield line[:-1]

    def _review(self, line: bytes) -> Review | None:
        if self.reviews is None or (key := self.keys.of_output(line)) is None:
            return None
        return self.reviews.of(key, parsed(line), self.fields)

    def _apply_review(self, line: bytes) -> bytes | None:
        """Return a row's line in its reviewed form; None if it is skipped."""
        review = self._review(line)
        if review is None or review.verdict == "again":
            return None if self.reviewed_only else line
        if review.verdict == "rejected":
            return None
        for name, value in review.captions.items():
            line = replace_values(line, quoted(name), dumped(value))
        return line
