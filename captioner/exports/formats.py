"""Which format an output has, and who writes it."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from typing import TYPE_CHECKING

from captioner.errors import SettingsError
from captioner.exports.book import Book
from captioner.exports.partial import replacing
from captioner.extras import needed
from captioner.sinks.files import Files
from captioner.sinks.finalise import write_array
from captioner.sinks.journal import format_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from captioner.options import OutputFormat

_SIDECARS = ("txt", "caption")


def check_format(target: Path, given: OutputFormat | None = None) -> OutputFormat:
    """Return what an output is to be, before anything is paid for it.

    Raises:
        SettingsError: What writes it is not installed, or the target cannot be it.
    """
    kind = given or format_of(target)
    if kind == "parquet" or (kind == "imagefolder" and target.suffix.lower() == ".parquet"):
        needed("pyarrow.parquet", "parquet")
    if kind in _SIDECARS and target.exists() and not target.is_dir():
        raise SettingsError(f"{target} is no folder: {kind} files lie beside the pictures, in one")
    if kind == "imagefolder" and target.stem != "metadata":
        raise SettingsError(
            f"name the output metadata.jsonl, metadata.csv or metadata.parquet, not {target.name}"
        )
    return kind


def export(
    journal: Path,
    target: Path,
    kind: OutputFormat,
    *,
    image_root: Path | None = None,
    source: Path | None = None,
    overwrite: bool = False,
    warn: Callable[[str], None],
) -> None:
    """Write the captions of a journal in some format; may be repeated at any time.

    Args:
        journal: The journal.
        target: What is written, put in place whole.
        kind: The format.
        image_root: Where relative paths of pictures start from.
        source: The input, in place of the one that the journal's checkpoint names.
        overwrite: Replace sidecars that hold something else.
        warn: Called with a sentence when captions have no place in it.

    Raises:
        DiskError: The disk refused; the target is as it was.
        SettingsError: The format cannot hold them; says why.
    """
    if os.path.realpath(journal) == os.path.realpath(target):
        raise SettingsError(f"{target} is what is to be exported; choose another name")
    book = Book.open(journal, image_root=image_root, source=source, warn=warn)
    with closing(book):
        if kind in _SIDECARS:
            from captioner.exports import training

            write = training.write_txt if kind == "txt" else training.write_caption
            write(book, target, overwrite=overwrite)
        else:
            _writer(kind)(book, target)


def _writer(kind: OutputFormat) -> Callable[[Book, Path], None]:
    """Return what writes a format."""
    from captioner.exports import shards, tables, training

    writers: dict[str, Callable[[Book, Path], None]] = {
        "jsonl": _copy,
        "json": _write_array,
        "csv": tables.write_csv,
        "tsv": tables.write_tsv,
        "parquet": tables.write_parquet,
        "sqlite": tables.write_sqlite,
        "webdataset": shards.write_webdataset,
        "imagefolder": shards.write_image_folder,
        "coco": training.write_coco,
        "llava": training.write_llava,
    }
    return writers[kind]


def _copy(book: Book, target: Path) -> None:
    with replacing(target) as partial:
        shutil.copyfile(book.journal, partial)


def _write_array(book: Book, target: Path) -> None:
    with book.journal.open("rb") as file:
        write_array(lambda size, at: os.pread(file.fileno(), size, at), target, Files())
