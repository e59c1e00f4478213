"""What made the rows of an output: the settings of each row that others than the present ones made.

While the settings of an output stay the same there is nothing to note, and no file. When they
change, one pass over the output notes the rows that it holds::

    {"settings": [{...}, ...]}          the earlier settings, a line of JSON
    2 bytes and 16 bytes, repeated      the number of the settings and the key of a row

A row that is not in the file was made with the settings in the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import OutputDamagedError
from captioner.core.keys import KEY_BYTES, KeyTable
from captioner.core.lines import iter_lines
from captioner.journal.companions import made_path
from captioner.journal.disk import atomic_write, disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from captioner.journal.disk import Files
    from captioner.journal.journal import Journal

_NUMBER = 2
_ENTRY = _NUMBER + KEY_BYTES
_BLOCK = 50_000 * _ENTRY
LONGEST_HEAD = 64 << 20


@dataclass(frozen=True, slots=True)
class Made:
    """What made the rows of an output.

    Attributes:
        settings: The earlier settings.
        rows: The rows that they made: keys, with the number of the settings as the offset.
    """

    settings: list[dict[str, Any]] = field(default_factory=list)
    rows: KeyTable = field(default_factory=KeyTable)

    def check(self) -> None:
        """Raise ValueError if a row has settings that are not there."""
        if max(self.rows.offsets(), default=-1) >= len(self.settings):
            raise ValueError

    def of(self, key: bytes | None) -> Mapping[str, Any] | None:
        """Return the settings that made a row; None for those in the checkpoint."""
        number = None if key is None or not len(self.rows) else self.rows.find(key)
        return None if number is None else self.settings[number]


def read_made(files: Files, journal: Path) -> Made:
    """Return what made the rows of a journal.

    Raises:
        OutputDamagedError: The file cannot be understood.
    """
    path = made_path(journal)
    if files.kind(path) == "missing":
        return Made()
    fd = files.open_to_read(path)
    try:
        head = files.read(fd, LONGEST_HEAD, 0).partition(b"\n")[0]
        made = Made([dict(one) for one in orjson.loads(head)["settings"]])
        at = len(head) + 1
        while block := files.read(fd, _BLOCK, at):
            at += len(block)
            for start in range(0, len(block), _ENTRY):
                number = int.from_bytes(block[start : start + _NUMBER], "big")
                made.rows.add(block[start + _NUMBER : start + _ENTRY], number)
        made.check()
    except (KeyError, TypeError, ValueError):
        raise OutputDamagedError(
            f"{path.name} cannot be read: it says which settings made which rows of "
            f"{journal.name}. Restore it, or remove it: earlier rows then count as made with the "
            "present settings."
        ) from None
    finally:
        files.close(fd)
    return made


def note_made(journal: Journal, before: Mapping[str, Any] | None = None) -> None:
    """Note what made the rows of an open output, and forget rows that it no longer has.

    Args:
        journal: The output.
        before: Settings that made the rows which are not noted yet, if these changed.

    Raises:
        OutputDamagedError: The file of an earlier run cannot be understood.
        DiskError: The disk refused; the file is as it was.
    """
    path = made_path(journal.path)
    made = read_made(journal.files, journal.path)
    if before is None and not made.settings:
        return
    settings = made.settings if before is None else [*made.settings, dict(before)]
    with disk_errors("write", path), atomic_write(path, journal.files, private=True) as file:
        file.write(orjson.dumps({"settings": settings}) + b"\n")
        for entries in _entries(journal, made, len(made.settings) if before is not None else None):
            file.write(entries)


def _entries(journal: Journal, made: Made, number: int | None) -> Iterator[bytes]:
    """Yield the entries of rows; those not noted yet have the given number, or no entry."""
    for lines in iter_lines(journal.read):
        found = []
        for line in lines:
            key = journal.identity.of_output(line)
            earlier = None if key is None else made.rows.take(key)
            of = number if earlier is None else earlier
            if key is not None and of is not None:
                found.append(of.to_bytes(_NUMBER, "big") + key)
        yield b"".join(found)
