"""The checkpoint: the durable length of the output, and the settings it was made with.

It is never a second source of truth: which records are done is read from the output. A checkpoint
only lets a run skip validation of what its checksum covers, or makes it refuse to continue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import OutputDamagedError
from captioner.core.progress import Spent
from captioner.journal.companions import checkpoint_path

if TYPE_CHECKING:
    from pathlib import Path

    from captioner.journal.disk import Files

VERSION = 1


@dataclass(frozen=True, slots=True)
class Extent:
    """The first ``length`` bytes of the output, which are whole lines, and their checksum."""

    length: int = 0
    crc32: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        durable: The extent of the output that is on disk.
        next: The new extent while the output is being replaced; the output then has either.
        settings: Options that influence captions, by name, to notice when one changes.
        source: Path of the input in the last run.
        redo: What an unfinished run captions again; see `Journal.begin_redo`.
        spent: What all runs of the output have used.
        options: Options of the last run, for one that leaves them out.
    """

    durable: Extent = field(default_factory=Extent)
    next: Extent | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    redo: str = ""
    spent: Spent = field(default_factory=Spent)
    options: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the checkpoint as one line of JSON."""
        return orjson.dumps(
            {
                "version": VERSION,
                "length": self.durable.length,
                "crc32": self.durable.crc32,
                "next": [self.next.length, self.next.crc32] if self.next else None,
                "settings": self.settings,
                "input": self.source,
                "redo": self.redo,
                "spent": list(self.spent),
                "options": self.options,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )


class FutureCheckpointError(Exception):
    """A newer version wrote the checkpoint."""


def decode(data: bytes) -> Checkpoint:
    """Return the checkpoint in a file's bytes.

    Raises:
        FutureCheckpointError: A newer version wrote it.
        ValueError: The bytes are not a checkpoint.
    """
    try:
        value = orjson.loads(data)
        version = int(value["version"])
        if version <= VERSION:
            return Checkpoint(
                _extent(value["length"], value["crc32"]),
                _extent(*value["next"]) if value["next"] else None,
                dict(value["settings"]),
                str(value["input"]),
                str(value.get("redo", "")),
                _spent(value.get("spent", ())),
                dict(value.get("options", {})),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("not a checkpoint") from error
    raise FutureCheckpointError(f"version {version}")


def _spent(amounts: Any) -> Spent:
    spent = Spent(*map(float, amounts))
    if not all(0 <= amount < math.inf for amount in spent):  # one that is no number ends no budget
        raise ValueError
    return spent


def _extent(length: Any, crc32: Any) -> Extent:
    if int(length) < 0:
        raise ValueError
    return Extent(int(length), int(crc32))


def read_checkpoint(files: Files, journal: Path) -> Checkpoint | None:
    """Return the checkpoint of a journal; None if it is missing or unreadable.

    Raises:
        OutputDamagedError: A newer version wrote it.
    """
    path = checkpoint_path(journal)
    if files.kind(path) == "missing":
        return None
    fd = files.open_to_read(path)
    try:
        data = files.read(fd, 1 << 24, 0)
    finally:
        files.close(fd)
    try:
        return decode(data)
    except FutureCheckpointError as error:
        raise OutputDamagedError(
            f"{path.name} was written by a newer captioner ({error}). Use that version, or choose "
            "another output with -o."
        ) from None
    except ValueError:
        return None  # a crash never leaves one, so it counts as removed
