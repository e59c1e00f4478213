"""Which records of the input are still to be done, given what earlier runs left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from captioner.identity import Identity, KeyTable, digest
from captioner.records import Line

if TYPE_CHECKING:
    from captioner.records import Progress

Duplicates = Literal["keep", "skip", "error"]


class Matching:
    """Takes every record of the input once, in order, and tells those that are pending.

    A record is captioned if the output has a line for it, else failed if the failures have one,
    else pending. Each record takes one line away, so equal records are told apart by number.

    Args:
        identity: Computes keys.
        done: The records of the output.
        failed: The records of the failures.
        contents: Content prints of the output's records, where a field identifies them.
        retrying: Failures that are tried again.
        duplicates: ``skip`` leaves out every record but the first of its key.
        progress: Counts.
    """

    def __init__(
        self,
        identity: Identity,
        done: KeyTable,
        failed: KeyTable,
        contents: KeyTable,
        retrying: KeyTable,
        *,
        duplicates: Duplicates,
        progress: Progress,
    ) -> None:
        self._identity = identity
        self._done = done
        self._failed = failed
        self._contents = contents
        self._skip = duplicates == "skip"
        self._progress = progress
        self._seen = KeyTable() if self._skip or identity.by_field else None
        # A first run has nothing to match: no record's key need be computed.
        self._idle = self._seen is None and not (len(done) or len(failed) or len(retrying))

    def pending(self, batch: list[Line]) -> list[Line]:
        """Return the records of a batch that are to be done."""
        if self._idle:
            return batch
        found: list[Line] = []
        progress = self._progress
        of_input, take_done, take_failed = (
            self._identity.of_input,
            self._done.take,
            self._failed.take,
        )
        for line in batch:
            key = line.key or of_input(line.raw)
            if self._seen is not None and line.fault is None:
                content = self._identity.content(line.raw) if self._identity.by_field else 0
                if key not in self._seen:
                    self._seen.add(key, content)
                elif self._skip:
                    progress.skipped += 1
                    continue
                elif self._seen.find(key, content) is None:
                    found += self._clash(line)
                    continue
            if take_done(key) is not None:
                progress.resumed += 1
                if self._identity.by_field:
                    content = self._identity.content(line.raw)
                    progress.changed += self._contents.take(key, content) is None
            elif take_failed(key) is not None:
                progress.failed_before += 1
            else:
                found.append(Line(line.number, line.raw, line.end, line.fault, key))
        return found

    def _clash(self, line: Line) -> list[Line]:
        """Return a record whose id another one has, as a fault: which is which, none can tell."""
        key = digest(line.raw)
        if self._failed.take(key) is not None:
            self._progress.failed_before += 1
            return []
        fault = ("duplicate_id", "another record with other content has the same id")
        return [line._replace(key=key, fault=fault)]
