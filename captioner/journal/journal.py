"""The commit protocol: the output file is the only journal.

Four files, all beside the output and named after it::

    captions.jsonl               the captioned records: the only truth
    captions.failed.jsonl        the failed records; an unreadable line there is dropped
    captions.jsonl.ckpt          how much of the output is on disk, replaced atomically
    captions.jsonl.lock          who is writing, only while somebody is

Order is everything: output synced first, checkpoint after, never the reverse. Bytes below the
durable length never change; what a crash leaves above it is validated line by line and cut at the
first bad one, the cut bytes kept in ``captions.jsonl.broken-<n>``. A record is captioned if the
output says so, else failed if the failures say so, else pending, so no order between the two files
matters. A failed sync is final: the next one may lie.

All methods block; `captioner.journal.writer` runs them in threads, but for quick writes.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import DiskError, DiskFullError, OutputDamagedError, SettingsError
from captioner.core.keys import KeyTable, RecordKeys
from captioner.journal import checkpoint as ckpt
from captioner.journal.checkpoint import Checkpoint, Extent
from captioner.journal.disk import Files, is_full, write_all
from captioner.journal.failures import FailuresFile, failures_path
from captioner.journal.scan import scan_output

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from captioner.settings.options import OutputFormat

REMEMBERED = frozenset({"folder_of", "accepted"})
"""What is kept among the settings, but is none: another value of it is no other job."""

IDENTITY_SETTINGS = frozenset({"output_field", "id_field"})
"""Settings without which a record's key cannot be found in the output again."""


def companion(output: Path, ending: str) -> Path:
    """Return the path of a companion file: the output's own name with an ending added."""
    return output.with_name(output.name + ending)


_SUFFIXES: dict[str, OutputFormat] = {
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".db": "sqlite",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
}


def format_of(output: Path) -> OutputFormat:
    """Return what an output is to be, by its name: JSONL where that says nothing else."""
    if output.name in ("metadata.jsonl", "metadata.csv", "metadata.parquet"):
        return "imagefolder"
    return _SUFFIXES.get(output.suffix.lower(), "jsonl")


def journal_path(output: Path, kind: OutputFormat | None = None) -> Path:
    """Return where captions are appended: the output itself, unless it cannot be appended to."""
    return output if (kind or format_of(output)) == "jsonl" else companion(output, ".jsonl")


def output_of(path: Path) -> Path:
    """Return the output that a path is the journal of: ``x.csv`` for ``x.csv.jsonl``, else it."""
    if not path.name:
        return path
    output = path.with_suffix("")
    mine = path.suffix == ".jsonl" and format_of(output) != "jsonl" and output.exists()
    return output if mine else path


def find_journal(output: Path, files: Files) -> Path:
    """Return the journal of an output that a run has made.

    Raises:
        SettingsError: There is none.
    """
    if not output.name:
        raise SettingsError(f"{output} is a folder: name the captions of a run")
    for path in (journal_path(output), companion(output, ".jsonl"), output):
        if files.kind(path) == "file":
            return path
    shards = companion(journal_path(output), ".shards")
    if files.kind(shards) == "folder":
        raise SettingsError(
            f"there is no output {output} yet: an unfinished run on Ray keeps it in {shards}"
        )
    raise SettingsError(f"there is no output {output}")


def read_checkpoint(files: Files, output: Path) -> Checkpoint | None:
    """Return the checkpoint of an output, None where there is none that can be read.

    Raises:
        OutputDamagedError: A newer version wrote it.
    """
    path = companion(output, ".ckpt")
    if files.kind(path) == "missing":
        return None
    fd = files.open(path)
    try:
        data = files.read(fd, 1 << 24, 0)
    finally:
        files.close(fd)
    try:
        return ckpt.decode(data)
    except ckpt.FutureCheckpointError as error:
        raise OutputDamagedError(
            f"{path.name} was written by a newer captioner ({error}); use that one, or choose "
            "another output with -o."
        ) from None
    except ValueError:
        return None  # never left by a crash of ours: as good as removed


class Journal:
    """One output under the commit protocol.

    Args:
        path: The output.
        identity: Finds a record's key in its output line.
        settings: What shapes a caption, by option name; a change of it refuses to go on.
        failures: The failures; by default beside the output.
        source: The input, remembered for whoever asks later how far the output is.
        accept_changes: Go on in spite of changed settings.
        accept_edits: Believe the output as it is, although it was changed by hand.
        files: The disk.

    Attributes:
        done: Records that the output held when it was opened.
        contents: See `captioner.journal.scan.Scan`.
        failures: The file of failed records.
        repeated: See `captioner.journal.scan.Scan`; `truncate_duplicates` deals with them.
    """

    def __init__(
        self,
        path: Path,
        identity: RecordKeys,
        settings: Mapping[str, Any],
        *,
        failures: Path | None = None,
        source: str = "",
        accept_changes: bool = False,
        accept_edits: bool = False,
        files: Files | None = None,
    ) -> None:
        self.path = path
        self.done = KeyTable()
        self.contents = KeyTable()
        self.repeated: list[tuple[int, bytes]] = []
        self._identity = identity
        self._settings = dict(settings)
        self._source = source
        self._accept_changes = accept_changes
        self._accept_edits = accept_edits
        self._files = files or Files()
        self.failures = FailuresFile(self._files, failures or failures_path(path))
        self._checkpoint_path = companion(path, ".ckpt")
        self._lock_path = companion(path, ".lock")
        self._lock = -1
        self._fd = -1
        self._written = Extent()
        self._durable = Extent()
        self._dead = False

    # -- opening ---------------------------------------------------------------------------

    def open(self) -> None:
        """Lock the output, recover it and read what it holds.

        Raises:
            SettingsError: The path cannot be an output, or the settings changed.
            OutputBusyError: Another run holds it.
            OutputDamagedError: It is not what we wrote. Nothing was changed.
            DiskError: The disk refused.
        """
        self._check_place()
        try:
            self._lock = self._files.lock(self._lock_path)
        except PermissionError as error:
            raise SettingsError(f"cannot write in {self.path.parent}: {error.strerror}") from None
        except OSError as error:
            raise self._disk_error("lock", error) from error
        try:
            self._recover()
            self.failures.open()
        except OSError as error:
            self.close()
            raise self._disk_error("open", error) from error
        except BaseException:
            self.close()
            raise

    def _check_place(self) -> None:
        try:
            folder = self._files.kind(self.path.parent.resolve())
            kinds = {path: self._files.kind(path) for path in (self.path, self.failures.path)}
        except OSError as error:
            raise SettingsError(f"cannot use {self.path}: {error.strerror}") from None
        if folder != "folder":
            raise SettingsError(f"the folder of the output does not exist: {self.path.parent}")
        for path, kind in kinds.items():
            if kind not in ("missing", "file"):
                raise SettingsError(
                    f"{path} is not a regular file (a folder, link or device); "
                    "choose another output with -o"
                )

    def _recover(self) -> None:
        found = read_checkpoint(self._files, self.path)
        if self._files.kind(self.path) == "missing":
            if found is not None and found.durable.length:
                raise OutputDamagedError(
                    f"{self.path.name} is gone, but {self._checkpoint_path.name} says that it "
                    f"held {found.durable.length:,} bytes. Restore it, or remove the checkpoint "
                    "to start over."
                )
            self._write_checkpoint(self._checkpoint(Extent()))
            self._fd = self._files.open(self.path, create=True)
            self._files.sync_folder(self.path.parent)
            return
        try:
            self._fd = self._files.open(self.path)
        except PermissionError as error:
            raise SettingsError(f"cannot write to {self.path}: {error.strerror}") from None
        if not self._files.size(self._fd) and (found is None or not found.durable.length):
            self._write_checkpoint(self._checkpoint(Extent()))
            return
        if found is not None:
            self._check_settings(found.settings)
            for name in REMEMBERED & found.settings.keys():
                self._settings.setdefault(name, found.settings[name])
        trusted = None if self._accept_edits else found
        scan = scan_output(self._files, self.path, self._fd, self._identity, trusted)
        if scan.whole.length < scan.size:
            self._cut(scan.whole.length, scan.size)
        self.done, self.contents = scan.keys, scan.contents
        self.repeated = scan.repeated
        self._written = scan.whole
        self._durable = found.durable if found else Extent()
        as_it_is = self._checkpoint(self._written)
        if found != as_it_is and not self.repeated:
            self.commit()

    def _check_settings(self, before: dict[str, Any]) -> None:
        changed = [
            name
            for name in sorted((before.keys() | self._settings.keys()) - REMEMBERED)
            if before.get(name) != self._settings.get(name)
        ]
        fatal = [name for name in changed if name in IDENTITY_SETTINGS]
        if not changed:
            return
        if self._accept_changes and not fatal:
            # For those who ask what was asked: not all captions are by the same settings.
            self._settings["accepted"] = sorted({*before.get("accepted", ()), *changed})
            return
        what = "; ".join(
            f"{name.replace('_', '-')} was {_short(before.get(name))}, "
            f"now {_short(self._settings.get(name))}"
            for name in changed
        )
        way_out = (
            "choose another output with -o"
            if fatal
            else "go back to it, choose another output with -o, "
            "or caption the rest with the new settings with --accept-changes"
        )
        raise SettingsError(f"{self.path.name} was begun with other settings: {what}; {way_out}")

    def truncate_duplicates(self, allowed: Mapping[bytes, int]) -> None:
        """Cut the output where a key stands more often than its input records do.

        Args:
            allowed: How many input records have each key in ``repeated``.
        """
        seen: dict[bytes, int] = {}
        offsets: list[int] = []
        for offset, key in self.repeated:
            # The first occurrence is not in `repeated`.
            seen[key] = seen.get(key, 1) + 1
            if seen[key] > max(1, allowed.get(key, 0)):
                offsets.append(offset)
        self.repeated = []
        if not offsets:
            self.commit()
            return
        size = self._written.length
        self._cut(offsets[0], size)
        found = Checkpoint(self._durable)
        scan = scan_output(self._files, self.path, self._fd, self._identity, found)
        self.done, self.contents, self._written = scan.keys, scan.contents, scan.whole
        self.commit()

    def _cut(self, at: int, size: int) -> None:
        """Cut the output at a line's start, keeping the bytes in a file of their own."""
        number = 1
        while self._files.kind(companion(self.path, f".broken-{number}")) != "missing":
            number += 1
        fd = self._files.open(companion(self.path, f".broken-{number}"), fresh=True)
        try:
            write_all(self._files, fd, self._files.read(self._fd, size - at, at), 0)
            self._files.sync(fd)
        finally:
            self._files.close(fd)
        self._files.truncate(self._fd, at)
        self._files.sync(self._fd)

    # -- writing ---------------------------------------------------------------------------

    @property
    def uncommitted(self) -> int:
        """Bytes of the output that a power loss may take."""
        return self._written.length - self._durable.length

    @property
    def dirty(self) -> bool:
        """Something was written since the last commit."""
        return self._written != self._durable or self.failures.dirty

    def append(self, lines: bytes) -> None:
        """Write whole lines to the output.

        Raises:
            OSError: Not written; the output ends on a line as before, so it can be tried again.
        """
        before = self._written
        write_all(self._files, self._fd, lines, before.length)
        self._written = Extent(before.length + len(lines), zlib.crc32(lines, before.crc32))

    def commit(self) -> None:
        """Make everything written so far survive a power loss.

        Raises:
            DiskFullError: There is no room for the checkpoint; it can be tried again.
            DiskError: A sync failed; nothing may be committed after that.
        """
        if self._dead:
            raise DiskError(f"{self.path.name}: an earlier sync failed")
        written = self._written
        try:
            self._files.sync(self._fd)
            self.failures.sync()
            self._write_checkpoint(self._checkpoint(written))
        except OSError as error:
            self._dead = True
            raise self._disk_error("sync", error) from error
        self._durable = written

    def _checkpoint(self, durable: Extent, after: Extent | None = None) -> Checkpoint:
        return Checkpoint(durable, after, self._settings, self._source)

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        temporary = companion(self._checkpoint_path, ".tmp")
        try:
            fd = self._files.open(temporary, fresh=True)
            try:
                write_all(self._files, fd, checkpoint.encode(), 0)
            except OSError:
                self._files.close(fd)
                raise
        except OSError as error:
            if is_full(error):
                raise DiskFullError(str(self._disk_error("write beside", error))) from error
            raise
        try:
            self._files.sync(fd)
        finally:
            self._files.close(fd)
        self._files.replace(temporary, self._checkpoint_path)
        self._files.sync_folder(self.path.parent)

    # -- finishing -------------------------------------------------------------------------

    def read(self, size: int, offset: int) -> bytes:
        """Return bytes of the output."""
        return self._files.read(self._fd, size, offset)

    @property
    def length(self) -> int:
        """Bytes written to the output."""
        return self._written.length

    def since(self, at: int) -> KeyTable:
        """Return the records of the lines from some offset on."""
        table = KeyTable(offsets=False)
        rest = b""
        while block := self.read(1 << 20, at):
            at += len(block)
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            table.add_each([key for key in self._identity.of_outputs(lines) if key is not None])
        return table

    def rescan(self) -> KeyTable:
        """Return every record of the output with its line's offset."""
        self.commit()
        found = Checkpoint(self._durable)
        scan = scan_output(self._files, self.path, self._fd, self._identity, found, offsets=True)
        return scan.keys

    def replace(self, partial: Path, extent: Extent) -> None:
        """Put a finished file, already synced, in the output's place.

        Both are right while it happens: the checkpoint vouches for the old and the new content,
        so a crash on either side of the rename is recovered from.

        Raises:
            DiskError: The disk refused; the output is the old or the new one, whole.
        """
        try:
            self._write_checkpoint(self._checkpoint(self._durable, extent))
            self._files.replace(partial, self.path)
            self._files.sync_folder(self.path.parent)
            self._files.close(self._fd)
            self._fd = self._files.open(self.path)
            self._written = extent
            self._write_checkpoint(self._checkpoint(extent))
            self._durable = extent
        except OSError as error:
            self._dead = True
            raise self._disk_error("replace", error) from error

    def compact_failures(self, stale: Collection[int]) -> None:
        """Remove failures that were overtaken, by the offsets of their lines.

        Raises:
            DiskError: The disk refused; the failures are the old or the new ones, whole.
        """
        try:
            self.failures.compact(stale)
        except OSError as error:
            raise self._disk_error("rewrite", error) from error

    def close(self) -> None:
        """Release the files and the lock; commits nothing."""
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1
        self.failures.close()
        if self._lock >= 0:
            self._files.unlock(self._lock, self._lock_path)
            self._lock = -1

    def _disk_error(self, what: str, error: OSError) -> DiskError:
        return DiskError(
            f"the disk refused to {what} {self.path.name}: {error.strerror or error}. "
            "Nothing synced before is lost; mend the disk and run the same command again."
        )


def _short(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return repr(text if len(text) <= 60 else text[:57] + "…")
