"""The captions of a journal, as those see them who write them elsewhere."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson

from captioner.core.errors import BadImageError, CaptionerError, RecordError, SettingsError
from captioner.core.jsonbytes import quoted, replace_values
from captioner.core.keys import RecordKeys
from captioner.core.lines import iter_lines
from captioner.engine.conversation import image_field_of, images_of, read_turns
from captioner.engine.templates import Templates
from captioner.images.archives import Archives
from captioner.images.files import ImageFolders
from captioner.journal.checkpoint import read_checkpoint
from captioner.journal.companions import reviews_path
from captioner.journal.disk import Files
from captioner.journal.reviews import Reviews
from captioner.journal.scan import scan_output
from captioner.readers.registry import folder_of, open_input
from captioner.readers.rows import dumped
from captioner.settings.options import DEFAULT_PROMPT, RecordSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from captioner.core.keys import KeyTable
    from captioner.core.protocols import Source
    from captioner.core.types import ImageRef, InputRecord, Turn
    from captioner.journal.reviews import Review
    from captioner.journal.scan import Scan
    from captioner.readers.registry import Input

Reviewed = Literal["apply", "only", "ignore"]

LARGEST_IMAGE = 1 << 31
"""Bytes: what was captioned is copied, however large."""

_PLAIN = Templates("", DEFAULT_PROMPT, [])
_LONG_NUMBER = re.compile(rb"\d{19}")
_WITH_IMAGES = frozenset({"parquet", "arrow", "hf", "ms"})
"""Inputs whose rows may hold images."""


@dataclass(frozen=True)
class OutputReader:
    """A journal and what its checkpoint says of it.

    Attributes:
        journal: The file.
        settings: What shaped the captions, by option name.
        input: What they were made from; None if that is not to be found any more.
        image_root: Where relative paths start from, in place of the input's folder.
        warn: Called with a sentence when something is worth knowing but no error.
        source: Where the input is or was.
        reviews: What was said of the captions: edited ones are given as they are to be, rejected
            ones are left out. None gives all as they are.
        reviewed_only: Those nobody has reviewed are left out, too.
        largest: Bytes of an image that is read.
    """

    journal: Path
    settings: dict[str, Any]
    input: Input | None
    folder: Path | None
    image_root: Path | None
    warn: Callable[[str], None]
    source: Path | None = None
    reviews: Reviews | None = None
    reviewed_only: bool = False
    largest: int = LARGEST_IMAGE
    _open: list[tuple[Any, asyncio.Runner]] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        journal: Path,
        *,
        image_root: Path | None = None,
        source: Path | None = None,
        reviewed: Reviewed = "ignore",
        output: Path | None = None,
        largest: int = LARGEST_IMAGE,
        warn: Callable[[str], None],
    ) -> Self:
        """Return the book of a journal.

        Args:
            journal: The file.
            image_root: Where relative paths start from.
            source: The input, in place of the one that the checkpoint names.
            reviewed: What reviews do: ``apply`` gives edited captions as they are to be and leaves
                out rejected ones, ``only`` leaves out those that nobody has reviewed, too.
            output: The output that was reviewed, by default the journal itself.
            largest: Bytes of an image that is read.
            warn: See `OutputReader`.
        """
        checkpoint = read_checkpoint(Files(), journal)
        settings = checkpoint.settings if checkpoint else {}
        path = source or (Path(checkpoint.source) if checkpoint and checkpoint.source else None)
        found = None
        if path is not None and str(path) != "-":
            try:
                found = open_input(
                    path,
                    settings.get("input_format") or settings.get("folder_of"),
                    image_field=settings.get("image_field"),
                )
            except CaptionerError:
                found = None  # it may have gone; those who need it say so
        sidecar = reviews_path(output or journal)
        reviews = Reviews(sidecar) if reviewed != "ignore" and sidecar.exists() else None
        only = reviewed == "only"
        if only and reviews is None:
            raise SettingsError(f"there are no reviews of it: {sidecar} does not exist")
        return cls(
            journal,
            settings,
            found,
            folder_of(path),
            image_root,
            warn,
            path,
            reviews,
            only,
            largest,
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the members that hold captions, the first one first."""
        asked = self.settings.get("ask") or [str(self.settings.get("output_field") or "caption")]
        return tuple(str(one).partition("=")[0] for one in asked)

    @cached_property
    def identity(self) -> RecordKeys:
        """Computes keys."""
        return RecordKeys(self.fields, self.settings.get("id_field"))

    # -- rows ------------------------------------------------------------------------------

    @cached_property
    def length(self) -> int:
        """Bytes of the journal that are whole lines, each a captioned record.

        Raises:
            OutputDamagedError: It is not what its checkpoint vouches for.
        """
        return self._scan(offsets=False).whole.length

    def lines(self) -> Iterator[bytes]:
        """Yield the whole lines of the journal, as they are to be."""
        if self.reviews is None:
            yield from self._lines()
            return
        for line in self._lines():
            if (judged := self._judged(line)) is not None:
                yield judged

    def _judged(self, line: bytes) -> bytes | None:
        """Return a line as it is to be; None if it is left out."""
        if self.reviews is None:
            return line
        review = self._review(line)
        if review is None:
            return None if self.reviewed_only else line
        if review.verdict == "rejected":
            return None
        for name, value in review.captions.items():
            line = replace_values(line, quoted(name), dumped(value))
        return line

    def _review(self, line: bytes) -> Review | None:
        key = self.identity.of_output(line)
        if key is None or self.reviews is None:
            return None
        return self.reviews.of(key, parsed(line), self.fields)

    def verdicts(self) -> Counter[str]:
        """Return how many rows have which verdict, ``none`` those without one."""
        found = map(self._review, self._lines())
        return Counter(review.verdict if review else "none" for review in found)

    def rejected(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that are left out because they were rejected."""
        for line in self._lines() if self.reviews is not None else ():
            review = self._review(line)
            if review is not None and review.verdict == "rejected":
                yield parsed(line)

    def _lines(self) -> Iterator[bytes]:
        length = self.length
        with self.journal.open("rb") as file:
            for lines in iter_lines(lambda size, at: file.read(min(size, length - at))):
                yield from lines

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the journal."""
        return map(parsed, self.lines())

    def rows_with_images(self) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
        """Yield the rows, each with the images that its input row holds, by their digest.

        Those whose input row is gone come last, without.
        """
        if self.input is None or self.input.format not in _WITH_IMAGES:
            for row in self.rows():
                yield row, {}
            return
        keys = self.places()
        for line, found in self._matched(self.input.source, keys):
            if found is not None:
                yield found, dict(line.images)
        with self.journal.open("rb") as file:
            for place in sorted(keys.offsets()):
                file.seek(place)
                if (judged := self._judged(file.readline().rstrip(b"\n"))) is not None:
                    yield parsed(judged), {}

    def input_rows(self) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
        """Yield the records of the input in order, each with its row; None if it has none.

        Raises:
            SettingsError: The input is not to be found any more.
        """
        if self.input is None:
            raise SettingsError("the input is not to be found any more")
        for line, row in self._matched(self.input.source, self.places()):
            if line.fault is None:
                try:
                    record = parsed(line.raw)
                except ValueError:
                    continue  # no JSON: it is told in the failures
                if isinstance(record, dict):
                    yield record, row

    def _matched(
        self, source: Source, keys: KeyTable
    ) -> Iterator[tuple[InputRecord, dict[str, Any] | None]]:
        """Yield the records of a source, each with its row, which is taken out of the keys."""
        batches = source.batches()
        runner = asyncio.Runner()
        # Closed by `close`, and not by whoever collects an abandoned generator, in any thread.
        self._open.append((batches, runner))
        with self.journal.open("rb") as file:
            while (batch := runner.run(anext(batches, None))) is not None:
                for line in batch:
                    place = keys.take(line.key or self.identity.of_input(line.raw))
                    if place is None:
                        yield line, None
                    else:
                        file.seek(place)
                        judged = self._judged(file.readline().rstrip(b"\n"))
                        yield line, None if judged is None else parsed(judged)

    def places(self) -> KeyTable:
        """Return where in the journal each record is."""
        return self._scan(offsets=True).keys

    def _scan(self, *, offsets: bool) -> Scan:
        files = Files()
        fd = files.open_to_read(self.journal)
        try:
            checkpoint = read_checkpoint(files, self.journal)
            return scan_output(files, self.journal, fd, self.identity, checkpoint, offsets=offsets)
        finally:
            files.close(fd)

    # -- what is in a row ------------------------------------------------------------------

    @cached_property
    def _fields(self) -> RecordSettings:
        field = self.settings.get("image_field") or (self.input.image_field if self.input else None)
        return RecordSettings(
            image_field=field,
            conversation_field=self.settings.get("conversation_field"),
            prompt_field=self.settings.get("prompt_field"),
        )

    @cached_property
    def _templates(self) -> Templates:
        prompt = str(self.settings.get("prompt") or DEFAULT_PROMPT)
        questions = [str(one).partition("=")[2] for one in self.settings.get("ask") or []]
        if self.settings.get("preset"):
            questions = [prompt]
        return Templates("", prompt, questions)

    def questions(self, row: dict[str, Any]) -> tuple[str, ...]:
        """Return the questions that took the place of a row's own."""
        return self._templates.fill(row).questions

    def turns(self, row: dict[str, Any]) -> list[Turn]:
        """Return the turns that were sent for a row; none if they cannot be told any more."""
        try:
            return read_turns(row, self._fields, self._templates.fill(row))
        except RecordError:
            return []

    def image_field_of(self, row: dict[str, Any]) -> str:
        """Return the name of the member that holds the images of a row."""
        return image_field_of(row, self._fields.image_field)

    def images(self, row: dict[str, Any]) -> list[ImageRef]:
        """Return the images of a row, also of one whose prompt cannot be filled in."""
        try:
            turns = self.turns(row) or read_turns(row, self._fields, _PLAIN.fill(row))
        except RecordError:
            return []
        return images_of(turns)

    def texts(self, row: dict[str, Any], field: str | None = None) -> list[str]:
        """Return the captions of a row, each as text: several where several were asked for."""
        value = row.get(field or self.fields[0])
        return [
            one if isinstance(one, str) else dumped(one).decode()
            for one in (value if isinstance(value, list) else [value])
        ]

    @cached_property
    def _archives(self) -> Archives:
        return Archives(self.largest)

    @cached_property
    def _folders(self) -> ImageFolders:
        here = [self.folder] if self.folder is not None else []
        return ImageFolders(
            [self.image_root] if self.image_root else [*here, Path()],
            bound=self.image_root is not None,
            max_bytes=self.largest,
            archives=self._archives,
        )

    def find(self, path: str) -> str | None:
        """Return where an image's file really is; None where there is none."""
        return self._folders.find(path)

    def close(self) -> None:
        """Close the archives and the inputs that were read from."""
        self._archives.close()
        while self._open:
            batches, runner = self._open.pop()
            if isinstance(batches, AsyncGenerator):
                runner.run(batches.aclose())
            runner.close()

    def image_bytes(self, image: ImageRef, held: dict[str, bytes]) -> bytes | None:
        """Return an image's bytes; None where it is not on this machine, or not any more."""
        if image.data is not None:
            return image.data
        if image.digest is not None:
            return held.get(image.digest)
        if image.path is None:
            return None
        try:
            return self._folders.read(image.path, lambda _: None)
        except BadImageError:
            return None


def parsed(line: bytes) -> dict[str, Any]:
    """Return a row as it is, integers beyond 64 bits as well, which orjson makes floats."""
    read = json.loads if _LONG_NUMBER.search(line) else orjson.loads
    row: dict[str, Any] = read(line)
    return row
