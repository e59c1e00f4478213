"""Which records of the input are pending, given the output and the failures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from captioner.core.keys import KeyTable, RecordKeys, digest

if TYPE_CHECKING:
    from captioner.core.progress import Progress
    from captioner.core.types import InputRecord

Duplicates = Literal["keep", "skip", "error"]


class ResumeFilter:
    """Receives every record of the input once, in order, and returns the pending ones.

    A record is captioned if the output has a line for it, else failed if the failures have one,
    else pending. Each record uses up one line, so n equal records need n lines.

    Args:
        done: The records of the output.
        failed: The records of the failures.
        contents: Hashes of the content of the output's records, if a field identifies records.
        retrying: Failures that are retried.
        duplicates: ``skip`` drops every record but the first with its key.
        progress: Counters to update.
    """

    def __init__(
        self,
        identity: RecordKeys,
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
        # A first run has nothing to match, so keys need not be computed.
        self._idle = self._seen is None and not (len(done) or len(failed) or len(retrying))

    def pending(self, batch: list[InputRecord]) -> list[InputRecord]:
        """Return the pending records of a batch."""
        if self._idle:
            return batch
        keyed = list(zip(batch, self._identity.of_records(batch), strict=True))
        if self._seen is not None:
            keyed = self._without_repeated(keyed, self._seen)
        taken = self._done.take_each([key for _, key in keyed])
        self._progress.resumed += sum(taken)
        found: list[InputRecord] = []
        for (line, key), done in zip(keyed, taken, strict=True):
            if done:
                self._progress.changed += self._has_changed(line, key)
            elif len(self._failed) and self._failed.take(key) is not None:
                self._progress.failed_before += 1
            else:
                found.append(line._replace(key=key))
        return found

    def _has_changed(self, line: InputRecord, key: bytes) -> bool:
        """Return whether a captioned record has new content under its old id."""
        by_field = self._identity.by_field
        return by_field and self._contents.take(key, self._identity.content(line.raw)) is None

    def _without_repeated(
        self, keyed: list[tuple[InputRecord, bytes]], seen: KeyTable
    ) -> list[tuple[InputRecord, bytes]]:
        """Return records without repeated ones; a different record with a known id gets a fault."""
        kept: list[tuple[InputRecord, bytes]] = []
        for line, key in keyed:
            content = self._identity.content(line.raw) if self._identity.by_field else 0
            if line.fault is None and key in seen:
                if self._skip:
                    self._progress.skipped += 1
                    continue
                if seen.find(key, content) is None:
                    fault = ("duplicate_id", "another record with other content has the same id")
                    kept.append((line._replace(fault=fault), digest(line.raw)))
                    continue
            elif line.fault is None:
                seen.add(key, content)
            kept.append((line, key))
        return kept
