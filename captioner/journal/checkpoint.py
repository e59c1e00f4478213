"""The checkpoint: how much of the output is safely on disk, and under which settings it was made.

It is a shortcut and a guard, never a second truth: which records are done is read from the output
itself. A checkpoint can only make a run refuse, or trust what it would else have to validate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

VERSION = 1


@dataclass(frozen=True, slots=True)
class Extent:
    """A beginning of the output that is on disk.

    Attributes:
        length: Bytes, always whole lines.
        crc32: Checksum of those bytes.
    """

    length: int = 0
    crc32: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one checkpoint file says.

    Attributes:
        durable: The beginning of the output that is on disk.
        next: What the output becomes while it is being replaced; either is right then.
        settings: What shapes a caption, by option name, to notice when it changes.
        source: Path of the input as it was given last.
    """

    durable: Extent = field(default_factory=Extent)
    next: Extent | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    source: str = ""

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
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )


class FutureCheckpointError(ValueError):
    """The checkpoint was written by a newer version."""


def decode(data: bytes) -> Checkpoint:
    """Return the checkpoint in a file's bytes.

    Raises:
        FutureCheckpointError: A newer version wrote it.
        ValueError: It is no checkpoint.
    """
    try:
        value = orjson.loads(data)
        version = int(value["version"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("not a checkpoint") from error
    if version > VERSION:
        raise FutureCheckpointError(f"version {version}")
    try:
        after = value["next"]
        checkpoint = Checkpoint(
            Extent(int(value["length"]), int(value["crc32"])),
            Extent(int(after[0]), int(after[1])) if after else None,
            dict(value["settings"]),
            str(value["input"]),
        )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError("not a checkpoint") from error
    if checkpoint.durable.length < 0:
        raise ValueError("not a checkpoint")
    return checkpoint
