"""Votes between the captions of two outputs, in a file beside the first one.

The file is appended to, and the last vote on two captions counts. A vote names its record by key
and the captions by their fingerprints, so that it does not apply to other captions of the record:
one file holds the votes of an output against several others.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from captioner.core.keys import KEY_BYTES
from captioner.journal.appended import AppendedFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Better = Literal["first", "second", "equal", "none"]
"""The output whose caption is better; ``none`` withdraws the earlier vote."""


class Vote(NamedTuple):
    """A vote between two captions of a record.

    Attributes:
        key: What the two rows have in common, 16 bytes.
        first: Fingerprint of the captions in the first output.
        second: Fingerprint of the captions in the second output.
    """

    key: bytes
    first: str
    second: str
    better: Better


class Votes(AppendedFile):
    """The votes of an output, in a file that need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._found: dict[tuple[bytes, str, str], Vote] = {}
        super().__init__(path)

    def __len__(self) -> int:
        """Return the number of votes."""
        return len(self._found)

    def __iter__(self) -> Iterator[Vote]:
        """Yield the last vote on each two captions."""
        return iter(list(self._found.values()))

    def has(self, key: bytes, first: str, second: str) -> bool:
        """Return whether there is a vote on two captions."""
        return (key, first, second) in self._found

    def add(self, vote: Vote) -> None:
        """Append a vote.

        Raises:
            OSError: The disk refused.
            OutputDamagedError: The file is not a regular one.
        """
        at = datetime.now(UTC).isoformat(timespec="seconds")
        fields = {**vote._asdict(), "key": vote.key.hex(), "at": at}
        self._append([json.dumps(fields).encode()])

    def _forget(self) -> None:
        self._found.clear()

    def _take(self, line: bytes) -> None:
        fields = json.loads(line)
        key = bytes.fromhex(fields["key"])
        if len(key) != KEY_BYTES:
            raise ValueError
        vote = Vote(key, str(fields["first"]), str(fields["second"]), better_of(fields["better"]))
        if vote.better == "none":
            self._found.pop(vote[:3], None)
        else:
            self._found[vote[:3]] = vote


def better_of(value: Any) -> Better:
    """Return a value as the decision of a vote.

    Raises:
        ValueError: It is none.
    """
    if value in get_args(Better):
        return cast("Better", value)
    raise ValueError(f"{value!r} is no decision")
