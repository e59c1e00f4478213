"""The output while a run writes to it: what others do to it is noticed, and captions are saved.

Another program may delete, move, replace, shorten or edit the file. Its name then no longer leads
to the bytes that the run has written, or not only to them. The run must stop, and must not call
itself complete.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from captioner.core.errors import OutputDamagedError
from captioner.core.lines import BLOCK
from captioner.journal.companions import BROKEN, unused_path
from captioner.journal.disk import atomic_write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from captioner.journal.checkpoint import Extent
    from captioner.journal.disk import Files


class Watch:
    """Compares an open output with what was written to it.

    Attributes:
        damage: What happened to a file of the output; empty while nothing did.
        is_changed: The content is not what was written: nothing may be appended any more.
    """

    def __init__(self, files: Files, path: Path) -> None:
        self.damage = ""
        self.is_changed = False
        self._files = files
        self._path = path
        self._is_moved = False
        self._rescued = b""

    def look(self, fd: int, path: Path, size: int, *, exact: bool = True) -> None:
        """Compare name and size of an open file; without ``exact`` it may be longer."""
        if not self._files.is_at(fd, path):
            self._is_moved |= path == self._path
            gone = self._files.kind(path) == "missing"
            self._note(path, "deleted or moved" if gone else "replaced")
        found = self._files.size(fd)
        if found < size or (exact and found > size):
            self.is_changed |= path == self._path
            self._note(path, "shortened" if found < size else "appended to by another program")

    def compare(
        self,
        fd: int,
        start: Extent,
        end: Extent,
        raise_if_stopped: Callable[[], None] = lambda: None,
    ) -> None:
        """Compare the content from one extent to a longer one."""
        at, crc = start.length, start.crc32
        while block := self._files.read(fd, min(BLOCK, end.length - at), at):
            raise_if_stopped()
            crc = zlib.crc32(block, crc)
            at += len(block)
        if (at, crc) != (end.length, end.crc32):
            self.is_changed = True
            self._note(self._path, "changed by another program")

    def obstruct(self, path: Path) -> None:
        """Note that something has the name of a file that the run had to create."""
        self._note(path, "created by another program")

    def _note(self, path: Path, what: str) -> None:
        self.damage = self.damage or f"{path.name} was {what} while the run wrote to it"

    def rescue(self, lines: bytes) -> None:
        """Keep lines that cannot be appended any more; `salvage` writes them."""
        self._rescued += lines

    def salvage(self, fd: int, length: int) -> OutputDamagedError:
        """Save what only this process has any more; return the error of the run.

        Args:
            fd: The output, as it was opened.
            length: Bytes written to it.
        """
        try:
            advice = self._saved(fd, length)
        except OSError as error:
            advice = f"its captions cannot be saved beside it ({error.strerror or error})"
        return OutputDamagedError(f"{self.damage}: {advice}.")

    def _saved(self, fd: int, length: int) -> str:
        name, files = self._path.name, self._files
        if self.is_changed:
            advice = "restore it, or keep what is there with --accept-changes=edits"
            if self._rescued:
                target = unused_path(files, self._path, BROKEN)
                with atomic_write(target, files, private=True) as file:
                    file.write(self._rescued)
                advice += f"; the last captions are in {target.name}"
            return advice
        if not self._is_moved:
            return "run the same command again to caption its records"
        if not files.is_removed(fd):
            return f"put {name} back from where it is now and run the same command again"
        target = unused_path(files, self._path, BROKEN)
        with atomic_write(target, files, private=True) as file:
            while block := files.read(fd, min(BLOCK, length - file.size), file.size):
                file.write(block)
        return (
            f"all its captions are in {target.name}; rename that file to {name} "
            "and run the same command again"
        )
