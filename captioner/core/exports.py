"""Marks of exports that are stored among the images that they describe.

Without its mark, the table of an imagefolder would change what the next run takes the folder for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from captioner.core.errors import OutputDamagedError
from captioner.core.regular import open_regular, reading

if TYPE_CHECKING:
    from pathlib import Path


def mark_export(table: Path) -> None:
    """Mark a table as an export, until it changes."""
    mark = _mark(table)
    mark.unlink(missing_ok=True)  # it may be a link
    fd = open_regular(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(f"{table.stat().st_size}\n")


def is_export(table: Path) -> bool:
    """Return whether a table is an export as it was written."""
    try:
        with reading(_mark(table)) as file:
            return int(file.read(100)) == table.stat().st_size
    except (OSError, ValueError, OutputDamagedError):
        return False


def _mark(table: Path) -> Path:
    return table.with_name(f".{table.name}.captioner")
