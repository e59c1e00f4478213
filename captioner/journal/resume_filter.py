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
        identity: Computes keys.
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
        keys = self._identity.of_records(batch)
        found: list[InputRecord] = []
        if self._seen is not None:
            batch, keys = self._without_repeated(batch, keys, self._seen, found)
        taken = self._done.take_each(keys)
        self._progress.resumed += sum(taken)
        if self._identity.by_field:
            self._progress.changed += sum(map(self._has_changed, batch, keys, taken))
        for line, key, done in zip(batch, keys, taken, strict=True):
            if done:
                continue
            if len(self._failed) and self._failed.take(key) is not None:
                self._progress.failed_before += 1
            else:
                found.append(line._replace(key=key))
        return found

    def _has_changed(self, line: InputRecord, key: bytes, done: bool) -> bool:  # noqa: FBT001 - mapped
        """Return whether a captioned record that a field identifies has new content."""
        return done and self._contents.take(key, self._identity.content(line.raw)) is None

    def _without_repeated(
        self, batch: list[InputRecord], keys: list[bytes], seen: KeyTable, found: list[InputRecord]
    ) -> tuple[list[InputRecord], list[bytes]]:
        """Return the batch without repeated records; add those with a conflicting id to found."""
        kept: list[tuple[InputRecord, bytes]] = []
        for line, key in zip(batch, keys, strict=True):
            content = self._identity.content(line.raw) if self._identity.by_field else 0
            if line.fault is not None:
                kept.append((line, key))
            elif key not in seen:
                seen.add(key, content)
                kept.append((line, key))
            elif self._skip:
                self._progress.skipped += 1
            elif seen.find(key, content) is None:
                found += self._conflict(line)
            else:
                kept.append((line, key))
        return [line for line, _ in kept], [key for _, key in kept]

    def _conflict(self, line: InputRecord) -> list[InputRecord]:
        """Return a record as a fault because a different record has the same id."""
        key = digest(line.raw)
        if self._failed.take(key) is not None:
            self._progress.failed_before += 1
            return []
        fault = ("duplicate_id", "another record with other content has the same id")
        return [line._replace(key=key, fault=fault)]
