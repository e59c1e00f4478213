"""How an output stands, read without changing a byte of it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.core.errors import OutputDamagedError
from captioner.core.keys import KeyTable, RecordKeys
from captioner.core.progress import Progress
from captioner.journal.checkpoint import read_checkpoint
from captioner.journal.companions import failures_path, find_journal, lock_path
from captioner.journal.disk import Files
from captioner.journal.failures import read_failures
from captioner.journal.resume_filter import ResumeFilter
from captioner.journal.scan import Scan, scan_output
from captioner.readers.registry import open_input

if TYPE_CHECKING:
    from captioner.core.protocols import Source
    from captioner.journal.checkpoint import Checkpoint


@dataclass(slots=True)
class CheckReport:
    """What `check_output` found. Counts are of records.

    Attributes:
        output: The journal that was read.
        input: The input it was compared with, empty if there is none to be found.
        captioned: Lines of the output.
        failed: Records of the input that only the failures hold.
        pending: Records of the input that neither file holds; None without the input.
        orphans: Lines of the output that no input record stands for; None without the input.
        tail_bytes: Bytes after the last whole line, which the next run would cut.
        torn_failures: Bytes of the failures that cannot be read; their records count as pending.
        unsynced_bytes: Bytes that a power loss may still take.
        checkpoint: ``ok``, or ``missing`` if there is none that can be read.
        in_use_by: Process that is writing to it, empty if none is.
        violations: What should never be, in words; empty if all is well.
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
    """Check an output, changing nothing, whether a run is writing to it or not.

    Args:
        output: The captions, as given to the run.
        source: The input; by default the one that the checkpoint names.
        files: The disk.

    Returns:
        Counts, and every broken invariant: unreadable or repeated lines where there must be
        none, records that are captioned and failed at once, files that have no business there.

    Raises:
        SettingsError: There is no such output.
    """
    files = files or Files()
    path = find_journal(Path(output), files)
    report = CheckReport(str(path))
    report.in_use_by = files.holder(lock_path(path))
    try:
        checkpoint = read_checkpoint(files, path)
        identity = _identity(checkpoint)
        scan = await asyncio.to_thread(_scan, files, path, identity, checkpoint)
    except OutputDamagedError as error:
        report.violations.append(str(error))
        return report
    if checkpoint is not None:
        report.checkpoint = "ok"
        report.unsynced_bytes = max(0, scan.whole.length - checkpoint.durable.length)
    report.captioned = len(scan.keys)
    report.tail_bytes = scan.size - scan.whole.length
    failed, report.torn_failures = _failures(files, failures_path(Path(output)))
    found = Path(source or (checkpoint.source if checkpoint else "") or "-")
    if await asyncio.to_thread(found.exists):
        given = checkpoint.settings.get("input_format") if checkpoint else None
        report.input = str(found)
        await _compare(report, open_input(found, given).source, identity, scan, failed)
    else:
        report.failed = len(failed)
    return report


def _identity(checkpoint: Checkpoint | None) -> RecordKeys:
    """Return how this output's records are known again, as its checkpoint tells."""
    settings = checkpoint.settings if checkpoint else {}
    asked = settings.get("ask") or [str(settings.get("output_field") or "caption")]
    fields = [str(one).partition("=")[0] for one in asked]
    return RecordKeys(fields, settings.get("id_field"))


def _scan(files: Files, path: Path, identity: RecordKeys, checkpoint: Checkpoint | None) -> Scan:
    fd = files.open_to_read(path)
    try:
        return scan_output(files, path, fd, identity, checkpoint)
    finally:
        files.close(fd)


def _failures(files: Files, path: Path) -> tuple[KeyTable, int]:
    """Return the failures by key, and how many bytes there cannot be read."""
    keys = KeyTable()
    if files.kind(path) != "file":
        return keys, 0
    fd = files.open_to_read(path)
    try:
        unreadable = files.size(fd)
        for offset, key, _, line in read_failures(files, fd):
            keys.add(key, offset)
            unreadable -= len(line) + 1
    finally:
        files.close(fd)
    return keys, unreadable


async def _compare(
    report: CheckReport, source: Source, identity: RecordKeys, scan: Scan, failed: KeyTable
) -> None:
    """Match the output with its input, as the next run would."""
    progress = Progress()
    resume_filter = ResumeFilter(
        identity,
        scan.keys,
        failed,
        scan.contents,
        KeyTable(),
        duplicates="keep",
        progress=progress,
    )
    pending = 0
    async for batch in source.batches():
        matched = resume_filter.pending(batch)
        pending += len(matched)
    report.failed = progress.failed_before
    report.pending = pending
    report.orphans = len(scan.keys)
    # A repeated key is right only where the input repeats it, too: then both are claimed.
    doubled = sum(1 for _, key in scan.repeated if scan.keys.take(key) is not None)
    if doubled:
        report.violations.append(f"{doubled} lines repeat a record that is captioned above them")
