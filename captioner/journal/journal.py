"""The commit protocol: the output file is the only journal.

Four files, named after the output (`captioner.journal.companions`)::

    captions.jsonl               the captioned records: the only source of truth
    captions.failed.jsonl        the failed records; an unreadable line there is ignored
    captions.jsonl.ckpt          how much of the output is on disk, replaced atomically
    captions.jsonl.lock          which process is writing, only during a run

The output is always synced before the checkpoint is written, never after. Bytes below the durable
length never change. What a crash leaves above it is validated line by line and cut at the first bad
line; the cut bytes are kept in ``captions.jsonl.broken-<n>``. A record is captioned if the output
has it, else failed if the failures have it, else pending, so the order of writes to these two files
does not matter. A failed sync ends the run: a later sync could report success wrongly.

All methods block; `captioner.journal.writer` calls them in threads.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import DiskError, DiskFullError, OutputDamagedError, SettingsError
from captioner.core.keys import KeyTable, RecordKeys
from captioner.core.progress import Spent
from captioner.core.regular import not_regular
from captioner.core.secrets import sealed, without_secrets
from captioner.journal.checkpoint import Checkpoint, Extent, read_checkpoint
from captioner.journal.companions import (
    BROKEN,
    checkpoint_path,
    failures_path,
    lock_path,
    made_path,
    unused_path,
)
from captioner.journal.disk import (
    Files,
    atomic_write,
    disk_error,
    disk_errors,
    is_full,
    remove_temporary_files,
    write_all,
)
from captioner.journal.failures import FailuresFile
from captioner.journal.made import note_made
from captioner.journal.scan import keys_since, scan_output
from captioner.journal.settings import continued, differ
from captioner.journal.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from captioner.journal.scan import Scan


class Journal:
    """One output under the commit protocol.

    Args:
        path: The output.
        identity: Computes a record's key from its output line.
        settings: Options that influence captions, by name. A run with others is refused.
        failures: Path of the failures; by default beside the output.
        source: The input, noted in the checkpoint.
        options: Options of the run, noted there as well.
        accept_changes: Continue although settings changed.
        accept_edits: Accept an output that was changed by hand.
        files: The disk.
        raise_if_stopped: Called before each block of a long read; an exception ends it. Writes
            that have begun are finished. Default: does nothing.

    Attributes:
        settings: The settings of the output, by name.
        redo: What an unfinished run captions again; see `begin_redo`.
        changed: Settings that differ from those that the output had when it was opened.
        spent: What all runs of the output have used; see `Checkpoint`.
        done: Records that the output held when it was opened.
        contents: See `captioner.journal.scan.Scan`.
        repeated: See `captioner.journal.scan.Scan`, and `truncate_duplicates`.
    """

    def __init__(
        self,
        path: Path,
        identity: RecordKeys,
        settings: Mapping[str, Any],
        *,
        failures: Path | None = None,
        source: str = "",
        options: Mapping[str, Any] | None = None,
        accept_changes: bool = False,
        accept_edits: bool = False,
        files: Files | None = None,
        raise_if_stopped: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.done = KeyTable()
        self.contents = KeyTable()
        self.repeated: list[tuple[int, bytes]] = []
        self.identity = identity
        self.settings = sealed(settings)
        self.redo = ""
        self.changed: list[str] = []
        self.spent = Spent()
        self._source = without_secrets(source) if "://" in source else source
        self._options = orjson.loads(orjson.dumps(dict(options or {})))
        self._accept_changes = accept_changes
        self._accept_edits = accept_edits
        self.files = files or Files()
        self.raise_if_stopped = raise_if_stopped
        self.failures = FailuresFile(self.files, failures or failures_path(path))
        self._checkpoint_path = checkpoint_path(path)
        self._lock_path = lock_path(path)
        self._lock = -1
        self._fd = -1
        self._written = Extent()
        self._durable = Extent()
        self._failed = False  # a sync or a rename did: nothing may be committed any more
        self._torn = False  # a write failed, and its bytes may still be there
        self._opened = Extent()
        self._compared = Extent()  # what was read back
        self._watch = Watch(self.files, path)

    # -- opening ---------------------------------------------------------------------------

    def open(self) -> None:
        """Lock the output, repair it after a crash and read what it holds.

        Raises:
            SettingsError: The path cannot be an output, or the settings changed.
            OutputBusyError: Another run is writing to it.
            OutputDamagedError: It was changed or damaged. Nothing was written.
            DiskError: The disk refused.
        """
        self._check_paths()
        crashed = self.files.kind(self._lock_path) != "missing"  # a normal end removes it
        try:
            self._lock = self.files.lock(self._lock_path)
        except PermissionError as error:
            raise SettingsError(f"cannot write in {self.path.parent}: {error.strerror}") from None
        except OSError as error:
            raise disk_error("lock", self.path, error) from error
        try:
            with disk_errors("open", self.path):
                self._recover(crashed=crashed)
                self._opened = self._written
                self.failures.open()
                if crashed:
                    targets = self.path, self._checkpoint_path, self.failures.path
                    remove_temporary_files(self.files, *targets)
        except BaseException:
            self.close()
            raise

    def _check_paths(self) -> None:
        try:
            folder = self.files.kind(self.path.parent.resolve())
            ours = self.path, self.failures.path, self._checkpoint_path, self._lock_path
            kinds = {path: self.files.kind(path) for path in ours}
        except OSError as error:
            raise SettingsError(f"cannot use {self.path}: {error.strerror}") from None
        if folder != "folder":
            raise SettingsError(f"the folder of the output does not exist: {self.path.parent}")
        for path, kind in kinds.items():
            if kind not in ("missing", "file"):
                raise SettingsError(not_regular(path))

    def _recover(self, *, crashed: bool) -> None:
        found = read_checkpoint(self.files, self.path)
        if found is not None:
            self.redo, self.spent = found.redo, found.spent
            if found.settings:
                self.changed = differ(sealed(found.settings), self.settings)
        if self.files.kind(self.path) == "missing":
            if found is not None and found.durable.length:
                raise OutputDamagedError(
                    f"{self.path.name} is gone, but it held {found.durable.length} bytes "
                    f"according to {self._checkpoint_path.name}. Restore it, or remove the "
                    "checkpoint to start over."
                )
            self._write_checkpoint(self._checkpoint(Extent()))
            self._fd = self.files.open(self.path, new=True)
            self.files.lock_file(self._fd, self.path)
            self.files.sync_folder(self.path.parent)
            return
        try:
            self._fd = self.files.open(self.path)
        except PermissionError as error:
            raise SettingsError(f"cannot write to {self.path}: {error.strerror}") from None
        # The lock beside it does not keep out a run that uses another name of the same file.
        self.files.lock_file(self._fd, self.path)
        if not self.files.size(self._fd) and (found is None or not found.durable.length):
            self._write_checkpoint(self._checkpoint(Extent()))
            return
        made_before = None
        if found is not None:
            accept = self._accept_changes
            if self.changed:
                made_before = sealed(found.settings)
            self.settings = continued(found.settings, self.settings, self.path, accept=accept)
        scan = self._scan(None if self._accept_edits else found)
        if scan.whole.length < scan.size:
            self._cut(scan.whole.length, scan.size)
        has_made = self.files.kind(made_path(self.path)) != "missing"
        if made_before is not None or crashed or has_made:
            note_made(self, made_before)  # before the checkpoint has the new settings
        self._durable = found.durable if found else Extent()
        if found != self._checkpoint(self._written) and not self.repeated:
            self.commit()

    def _scan(self, checkpoint: Checkpoint | None) -> Scan:
        scan = self._scanned(checkpoint)
        self.done, self.contents = scan.keys, scan.contents
        self.repeated = scan.repeated
        self._written = self._compared = scan.whole
        return scan

    def truncate_duplicates(self, allowed: Mapping[bytes, int]) -> None:
        """Cut the output at the first line with a key that occurs more often than in the input.

        Args:
            allowed: The number of input records with each key in ``repeated``.
        """
        seen: dict[bytes, int] = {}
        offsets: list[int] = []
        for offset, key in self.repeated:
            # The first occurrence is not in `repeated`.
            seen[key] = seen.get(key, 1) + 1
            if seen[key] > max(1, allowed.get(key, 0)):
                offsets.append(offset)
        self.repeated = []
        if offsets:
            self._cut(offsets[0], self._written.length)
            self._scan(Checkpoint(self._durable))
            self.repeated = []
        self.commit()

    def _cut(self, at: int, size: int) -> None:
        """Cut the output at the start of a line; keep the bytes in a separate file."""
        target = unused_path(self.files, self.path, BROKEN)
        with atomic_write(target, self.files, private=True) as file:
            file.write(self.files.read(self._fd, size - at, at))
        self.files.truncate(self._fd, at)
        self.files.sync(self._fd)

    # -- writing ---------------------------------------------------------------------------

    @property
    def uncommitted(self) -> int:
        """Bytes of the output that a power loss may destroy."""
        return self._written.length - self._durable.length

    @property
    def dirty(self) -> bool:
        """Something was written since the last commit."""
        return self._written != self._durable or self.failures.dirty

    @property
    def damage(self) -> str:
        """What was done to the files during the run, as part of a sentence; empty if nothing.

        Captions can still be appended, but the run must stop; see `salvage`.
        """
        return self._watch.damage

    def append(self, lines: bytes) -> None:
        """Write whole lines to the output; after damage they are kept for `salvage`.

        Raises:
            OSError: Nothing was written; the call can be repeated.
        """
        before = self._written
        self._watch.look(self._fd, self.path, before.length, exact=not self._torn)
        if self._watch.is_changed:
            self._watch.rescue(lines)
            return
        self._torn = True
        write_all(self.files, self._fd, lines, before.length)
        self._torn = False
        self._written = Extent(before.length + len(lines), zlib.crc32(lines, before.crc32))

    def commit(self) -> None:
        """Make everything written so far survive a power loss, and read back what was new.

        Raises:
            DiskFullError: There is no room for the checkpoint; the call can be repeated.
            DiskError: A sync failed; nothing can be committed after that.
        """
        if self._failed:
            raise DiskError(f"{self.path.name}: an earlier sync failed")
        written = self._written
        try:
            self.files.sync(self._fd)
            self.failures.sync()
            self._look(written)
            self._watch.compare(self._fd, self._compared, written)
            self._compared = written
            # Also after damage: the next run then refuses an output that differs from it.
            self._write_checkpoint(self._checkpoint(written))
        except OSError as error:
            if not self.damage:  # else the folder may be gone
                self._failed = True
                raise disk_error("sync", self.path, error) from error
        self._durable = written

    def _look(self, written: Extent) -> None:
        self._watch.look(self._fd, self.path, written.length, exact=False)
        self.failures.watch(self._watch)

    def verify(self) -> None:
        """Read back what the output held and what was written since, and note `damage`."""
        with disk_errors("read", self.path):
            self._look(self._written)
            if self._written != self._opened:
                self._watch.compare(self._fd, Extent(), self._written, self.raise_if_stopped)

    def salvage(self) -> OutputDamagedError:
        """Save captions of a damaged output that nothing else has; return the error of the run."""
        return self._watch.salvage(self._fd, self._written.length)

    def refuse_damage(self) -> None:
        """Compare names and sizes of the files with what was written.

        Raises:
            OutputDamagedError: They differ.
        """
        with disk_errors("read", self.path):
            self._look(self._written)
        if self.damage:
            raise self.salvage()

    def _checkpoint(self, durable: Extent, after: Extent | None = None) -> Checkpoint:
        return Checkpoint(
            durable, after, self.settings, self._source, self.redo, self.spent, self._options
        )

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        written = False
        try:
            with atomic_write(self._checkpoint_path, self.files, private=True) as file:
                file.write(checkpoint.encode())
                written = True
        except OSError as error:
            if written or not is_full(error):
                raise
            raise DiskFullError(str(disk_error("write", self._checkpoint_path, error))) from error

    # -- finishing -------------------------------------------------------------------------

    def read(self, size: int, offset: int) -> bytes:
        """Return bytes of the output, unless the run is stopped."""
        self.raise_if_stopped()
        return self.files.read(self._fd, size, offset)

    @property
    def length(self) -> int:
        """Bytes written to the output."""
        return self._written.length

    def keys_since(self, start: int) -> KeyTable:
        """Return the records of the lines from an offset on."""
        return keys_since(self.read, self.identity, start)

    def rescan(self) -> KeyTable:
        """Commit, and return every record of the output with its line's offset."""
        self.commit()
        return self._scanned(Checkpoint(self._durable), offsets=True).keys

    def _scanned(self, checkpoint: Checkpoint | None, *, offsets: bool = False) -> Scan:
        size = self.files.size(self._fd)
        return scan_output(self.read, size, self.path, self.identity, checkpoint, offsets=offsets)

    def replace(self, partial: Path, extent: Extent) -> None:
        """Replace the output by a finished file that is already synced.

        Meanwhile the checkpoint describes the old and the new content, so that recovery works after
        a crash on either side of the rename.

        Raises:
            DiskError: The disk refused; the output has its old or its new content.
            OutputDamagedError: The output was changed during the run.
        """
        self.refuse_damage()
        try:
            new = self.files.open(partial)
            try:
                self.files.lock_file(new, self.path)
                self.files.adopt_mode(new, self.path, private=True)
                self._write_checkpoint(self._checkpoint(self._durable, extent))
                self.files.replace(partial, self.path)
            except BaseException:
                self.files.close(new)
                raise
            self.files.close(self._fd)
            self._fd, self._written = new, extent
            self._opened = self._compared = extent
            self.files.sync_folder(self.path.parent)
            self._write_checkpoint(self._checkpoint(extent))
            self._durable = extent
        except OSError as error:
            self._failed = True
            raise disk_error("replace", self.path, error) from error

    def begin_redo(self, what: str) -> None:
        """Note that records are captioned again, after what they had was taken out.

        The same run after a crash then takes nothing out again. It ends with an empty text.

        Raises:
            DiskError: The disk refused.
        """
        if what != self.redo:
            self.redo = what
            self.commit()

    def compact_failures(self, stale: Collection[int]) -> None:
        """Remove failures that have a newer outcome, by the offsets of their lines.

        Raises:
            DiskError: The disk refused; the file has its old or its new content.
        """
        with disk_errors("write", self.failures.path):
            self.failures.compact(stale)

    def close(self) -> None:
        """Release the files and the lock; commits nothing."""
        if self._fd >= 0:
            self.files.close(self._fd)
            self._fd = -1
        self.failures.close()
        if self._lock >= 0:
            self.files.unlock(self._lock, self._lock_path)
            self._lock = -1
