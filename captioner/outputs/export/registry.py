"""Which format an output has, and who writes it."""

from __future__ import annotations

import os
import re
from contextlib import closing
from typing import TYPE_CHECKING

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.journal.companions import (
    checkpoint_path,
    failures_path,
    format_of,
    journal_path,
    lock_path,
    reviews_path,
)
from captioner.journal.disk import Files, replacing
from captioner.journal.finalize import write_array
from captioner.outputs.reader import OutputReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from captioner.outputs.reader import Reviewed
    from captioner.settings.options import OutputFormat

_SIDECARS = ("txt", "caption")
NUMBERED = re.compile(r"%0?\d*d(?!.*%0?\d*d)")
"""The last number in a name: ``out-%05d.tar`` stands for several files."""


def check_format(target: Path, given: OutputFormat | None = None) -> OutputFormat:
    """Return what an output is to be, before anything is paid for it.

    Raises:
        SettingsError: What writes it is not installed, or the target cannot be it.
    """
    kind = given or format_of(target)
    if kind == "parquet" or (kind == "imagefolder" and target.suffix.lower() == ".parquet"):
        needed("pyarrow.parquet", "parquet")
    if kind in _SIDECARS and target.exists() and not target.is_dir():
        raise SettingsError(f"{target} is no folder: {kind} files lie beside the images, in one")
    if target.is_dir() and kind not in _SIDECARS:
        raise SettingsError(f"the output {target} is a folder; name a file with -o")
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
    own: bool = False,
    reviewed: Reviewed = "apply",
    output: Path | None = None,
    warn: Callable[[str], None],
) -> None:
    """Write the captions of a journal in some format; may be repeated at any time.

    Args:
        journal: The journal.
        target: What is written, put in place whole.
        kind: The format.
        image_root: Where relative paths of images start from.
        source: The input, in place of the one that the journal's checkpoint names.
        overwrite: Replace what is there already.
        own: The target is the output of that very run, which it may replace.
        reviewed: What the reviews of the captions do: see `Book.open`.
        output: The output that was reviewed, by default the journal itself.
        warn: Called with a sentence when captions have no place in it.

    Raises:
        DiskError: The disk refused; the target is as it was.
        SettingsError: The format cannot hold them; says why.
    """
    book = OutputReader.open(
        journal, image_root=image_root, source=source, reviewed=reviewed, output=output, warn=warn
    )
    with closing(book):
        _refuse_ours(book, target, source, output)
        if not (own or overwrite or kind in _SIDECARS or journal == journal_path(target, kind)):
            for path in targets_of(target):
                if path.exists():
                    raise SettingsError(f"{path} is there already; replace it with --overwrite")
        if kind in _SIDECARS:
            from captioner.outputs.export import training

            write = training.write_txt if kind == "txt" else training.write_caption
            write(book, target, overwrite=overwrite)
        else:
            _writer(kind)(book, target)
        if book.reviews is not None and not own:
            warn(_told(book))


def _told(book: OutputReader) -> str:
    """Return in a sentence what the reviews have done."""
    counts = book.verdicts()
    left, edited, rest = counts["rejected"], counts["edited"], counts["none"]
    parts = [
        f"{left:,} rejected captions are left out" if left else "",
        f"{edited:,} are as they were edited" if edited else "",
        f"{rest:,} that nobody reviewed are left out" if rest and book.reviewed_only else "",
    ]
    return f"reviews: {'; '.join(filter(None, parts)) or 'nothing to change'}"


def _refuse_ours(
    book: OutputReader, target: Path, source: Path | None, output: Path | None
) -> None:
    """Refuse a target that is the input, or belongs to the journal.

    Raises:
        SettingsError: It is or does.
    """
    journal = book.journal
    ours = [
        journal,
        checkpoint_path(journal),
        lock_path(journal),
        *(failures_path(one) for one in (journal, output) if one is not None),
        *(reviews_path(one) for one in (journal, output) if one is not None),
    ]
    inputs = getattr(book.input.source, "paths", ()) if book.input else ()
    pattern = NUMBERED.search(target.name)
    for path in (*ours, source, book.source, *inputs):
        if path is None or target.is_dir():
            continue
        same = os.path.realpath(path) == os.path.realpath(target)
        if pattern is not None:
            begin, end = target.name[: pattern.start()], target.name[pattern.end() :]
            number = path.name.removeprefix(begin).removesuffix(end)
            beside_it = os.path.realpath(path.parent) == os.path.realpath(target.parent)
            fits = path.name.startswith(begin) and path.name.endswith(end)
            same = same or (beside_it and fits and number.isdigit())
        if same:
            raise SettingsError(f"{target} is what the captions are made from; choose another name")


def targets_of(target: Path) -> list[Path]:
    """Return the files that an export begins with: the target, or the first of numbered ones."""
    found = NUMBERED.search(target.name)
    if found is None:
        return [target]
    return [
        target.with_name(target.name[: found.start()] + found[0] % 0 + target.name[found.end() :])
    ]


def _writer(kind: OutputFormat) -> Callable[[OutputReader, Path], None]:
    """Return what writes a format."""
    from captioner.outputs.export import tables, training
    from captioner.outputs.export import webdataset as shards

    writers: dict[str, Callable[[OutputReader, Path], None]] = {
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


def _copy(book: OutputReader, target: Path) -> None:
    with replacing(target) as partial, partial.open("wb") as file:
        file.writelines(line + b"\n" for line in book.lines())


def _write_array(book: OutputReader, target: Path) -> None:
    write_array(book.lines(), target, Files())
