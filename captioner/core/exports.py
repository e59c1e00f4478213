"""Marks of exports that lie among the images that they describe.

Without its mark, the table of an imagefolder would change what the next run takes the folder for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def mark_export(table: Path) -> None:
    """Mark a table as an export, until it changes."""
    _mark(table).write_text(f"{table.stat().st_size}\n", encoding="utf-8")


def is_export(table: Path) -> bool:
    """Tell whether a table is an export as it was written."""
    try:
        return int(_mark(table).read_text(encoding="utf-8")) == table.stat().st_size
    except (OSError, ValueError):
        return False


def _mark(table: Path) -> Path:
    return table.with_name(f".{table.name}.captioner")
