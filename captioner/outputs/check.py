"""Checks the state of an output without changing it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.core.errors import OutputDamagedError
from captioner.core.humanize import counted
from captioner.core.keys import KeyTable, RecordKeys
from captioner.core.progress import Progress
from captioner.journal.checkpoint import read_checkpoint
from captioner.journal.companions import failures_path, find_journal, lock_path
from captioner.journal.disk import Files
from captioner.journal.failures import read_failures
from captioner.journal.resume_filter import ResumeFilter
from captioner.outputs.reader import record_keys, scan_journal
from captioner.outputs.stored import local_copy
from captioner.readers.registry import open_input
from captioner.settings.locations import location, storage_url

if TYPE_CHECKING:
    from captioner.core.protocols import Source
    from captioner.journal.scan import Scan


@dataclass(slots=True)
class CheckReport:
    """The result of `check_output`. Counts are of records.

    Attributes:
        output: The journal that was read.
        input: The input it was compared with; empty if there was none.
        failed: Input records that only the failures file holds.
        pending: Input records that neither file holds; None without the input.
        orphans: Lines of the output without an input record; None without the input.
        tail_bytes: Bytes after the last whole line; the next run truncates them.
        torn_failures: Unreadable bytes of the failures file; their records count as pending.
        unsynced_bytes: Bytes that a power loss may still destroy.
        checkpoint: ``ok``, or ``missing`` if there is no readable checkpoint.
        in_use_by: The process that writes to the output; empty if there is none.
        violations: Broken invariants, in words; empty if the output is sound.
    """

    output: str
    input: str = ""
    captioned: int = 0
    failed: int = 0
    pending: int | None = None
    orphans: int | None = None
    tail_bytes: int = 0
    torn_failures: int = 0
    unsynced_bytes: int = 0
    checkpoint: str = "missing"
    in_use_by: str = ""
    violations: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-ready dictionary."""
        return asdict(self)


async def check_output(
    output: str | Path, source: str | Path | None = None, *, files: Files | None = None
) -> CheckReport:
    """Check an output without changing it, even while a run writes to it.

    Args:
        output: The output, as given to the run. One in an object store is copied for the time.
        source: The input; by default the one in the checkpoint.
        files: The disk.

    Raises:
        SettingsError: There is no such output.
    """
    shown = Path(output)
    with local_copy(shown) as path:
        report = await _check(path, source, files or Files())
    if storage_url(shown):
        report.output = location(shown)
    return report


async def _check(output: Path, source: str | Path | None, files: Files) -> CheckReport:
    path = find_journal(output, files)
    report = CheckReport(str(path))
    report.in_use_by = files.holder(lock_path(path))
    try:
        checkpoint = read_checkpoint(files, path)
        keys = record_keys(checkpoint.settings if checkpoint else {})
    except OutputDamagedError as error:
        report.violations.append(str(error))
        return report
    try:
        scan = await asyncio.to_thread(scan_journal, path, keys, checkpoint, files=files)
    except OutputDamagedError as error:
        report.violations.append(str(error))
        try:  # as --accept-changes=edits reads it
            scan = await asyncio.to_thread(scan_journal, path, keys, None, files=files)
        except OutputDamagedError:
            return report
    if checkpoint is not None:
        report.checkpoint = "ok"
        report.unsynced_bytes = max(0, scan.whole.length - checkpoint.durable.length)
    report.captioned = len(scan.keys)
    report.tail_bytes = scan.size - scan.whole.length
    failed, report.torn_failures = _read_failure_keys(files, failures_path(output))
    found = Path(source or (checkpoint.source if checkpoint else "") or "-")
    # A check of a local output reads an object store only if the user names it.
    stored = source is not None and storage_url(found) is not None
    if stored or await asyncio.to_thread(found.exists):
        settings = checkpoint.settings if checkpoint else {}
        records = open_input(
            found,
            settings.get("input_format") or settings.get("folder_of"),
            image_field=settings.get("image_field"),
            split=settings.get("split"),
        ).source
        report.input = location(found)
        await _compare(report, records, keys, scan, failed)
    else:
        report.failed = len(failed)
    return report


def _read_failure_keys(files: Files, path: Path) -> tuple[KeyTable, int]:
    """Return the keys of the failures and the number of unreadable bytes."""
    keys = KeyTable()
    if files.kind(path) != "file":
        return keys, 0
    fd = files.open_to_read(path)
    try:
        unreadable = files.size(fd)
        for offset, key, _, line, again in read_failures(files, fd):
            if not again:
                keys.add(key, offset)
            unreadable -= len(line) + 1
    finally:
        files.close(fd)
    return keys, unreadable


async def _compare(
    report: CheckReport, source: Source, keys: RecordKeys, scan: Scan, failed: KeyTable
) -> None:
    """Match the output with its input, as the next run would."""
    progress = Progress()
    resume_filter = ResumeFilter(
        keys, scan.keys, failed, scan.contents, KeyTable(), duplicates="keep", progress=progress
    )
    report.pending = 0
    async for batch in source.batches():
        report.pending += len(resume_filter.pending(batch))
    report.failed = progress.failed_before
    report.orphans = len(scan.keys)
    # A repeated key is fine if the input repeats it too: then both lines were matched.
    repeated = sum(1 for _, key in scan.repeated if scan.keys.take(key) is not None)
    if repeated:
        lines = counted(repeated, "line repeats", "lines repeat")
        report.violations.append(f"{lines} a record that an earlier line captions")
