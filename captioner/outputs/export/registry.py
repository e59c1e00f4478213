"""The output formats and their writers."""

from __future__ import annotations

import logging
import os
import re
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, get_args

from captioner.core.errors import SettingsError
from captioner.core.exports import mark_export
from captioner.core.extras import needed
from captioner.core.humanize import counted
from captioner.core.secrets import without_secrets
from captioner.journal.companions import (
    ENDINGS,
    checkpoint_path,
    failures_path,
    format_of,
    index_path,
    journal_path,
    lock_path,
    reviews_path,
    votes_path,
)
from captioner.journal.disk import Files
from captioner.journal.finalize import write_array
from captioner.outputs.export import dataset, tables, training, webdataset, xmp
from captioner.outputs.export.store import object_exists, start_upload
from captioner.outputs.reader import OutputReader, Reviewed
from captioner.settings.locations import check_stored, hub_name, storage_url
from captioner.settings.options import OutputFormat

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_IN_FOLDERS: dict[str, Callable[..., None]] = {
    "txt": partial(training.write_sidecars, suffix=".txt"),
    "caption": partial(training.write_sidecars, suffix=".caption"),
    "xmp": xmp.write_xmp,
    "images": xmp.write_images,
    "dataset": dataset.write_dataset,
}
"""Formats of several files in a folder."""


def check_format(target: Path, given: OutputFormat | None = None) -> OutputFormat:
    """Return the format of an output, before any request is paid for.

    Raises:
        SettingsError: A library is missing, or the target does not fit the format.
    """
    hub = hub_name(target)
    kind = given or ("dataset" if hub else format_of(target))
    if hub and kind != "dataset":
        raise SettingsError(f"{target}: the hub takes the format dataset, not {kind}")
    ending = target.suffix.lower()
    known = bool(given or hub) or ending in ("", *ENDINGS)
    if not (known or checkpoint_path(journal_path(target)).exists()):
        raise SettingsError(
            f"the output {target.name} has the unknown ending {ending}. Known are "
            f"{', '.join(ENDINGS)}. Or name the format: {', '.join(get_args(OutputFormat))}"
        )
    is_parquet = kind == "imagefolder" and target.suffix.lower() == ".parquet"
    if kind in ("parquet", "dataset") or is_parquet:
        needed("pyarrow.parquet")
    if kind in _IN_FOLDERS and target.exists() and not target.is_dir():
        raise SettingsError(f"{target} is not a folder; {kind} files are written into a folder")
    if target.is_dir() and kind not in _IN_FOLDERS:
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
    csv_safe: bool = False,
    reviewed: Reviewed = "apply",
    output: Path | None = None,
    raise_if_stopped: Callable[[], None] = lambda: None,
) -> None:
    """Write the rows of a journal in a format.

    Args:
        journal: The journal.
        target: The file or folder to write; files are replaced atomically. A file may be in an
            object store.
        kind: The format.
        image_root: Where relative image paths start.
        source: The input, in place of the one in the journal's checkpoint.
        overwrite: Replace existing files.
        own: The target is the output of this very run, which may replace it.
        csv_safe: In CSV and TSV, text that a spreadsheet would run as a formula begins with an
            apostrophe.
        reviewed: How to apply the reviews; see `OutputReader`.
        output: The output that was reviewed; by default the journal itself.
        raise_if_stopped: See `OutputReader`; the target is then unchanged.

    Raises:
        DiskError: The disk refused; the target is unchanged.
        SettingsError: The target may not be replaced, or the format cannot hold the rows.
        UploadError: The object store refused; an object there is unchanged.
    """
    reader = OutputReader(
        journal,
        image_root=image_root,
        source=source,
        reviewed=reviewed,
        output=output,
        raise_if_stopped=raise_if_stopped,
    )
    with closing(reader):
        _refuse_own_files(reader, target, source, output)
        if url := storage_url(target):
            check_stored(url, kind, name="to")
            first = storage_url(first_file(target)) or url
            if not overwrite and object_exists(first):
                raise SettingsError(f"{without_secrets(first)} exists; replace it with --overwrite")
            with TemporaryDirectory(prefix="captioner-export-") as folder:
                copy = Path(folder) / target.name
                _write(reader, copy, kind, csv_safe=csv_safe)
                start_upload(output_files(copy), url).result()
        else:
            is_new = not own and not target.exists()
            _refuse_existing(journal, target, kind, overwrite=own or overwrite)
            again = own and kind == "dataset" and dataset.is_ours(target)
            _write(reader, target, kind, csv_safe=csv_safe, overwrite=overwrite or again)
            if kind == "imagefolder" and is_new:
                mark_export(target)
        if reader.reviews is not None and not own:
            logger.warning("reviews: %s", _describe_reviews(reader))


def _refuse_existing(journal: Path, target: Path, kind: OutputFormat, *, overwrite: bool) -> None:
    """Raise `SettingsError` if a file exists that the export may not replace."""
    if overwrite or kind in _IN_FOLDERS or journal == journal_path(target, kind):
        return
    path = first_file(target)
    if path.exists():
        raise SettingsError(f"{path} exists; replace it with --overwrite")


def _write(
    reader: OutputReader,
    target: Path,
    kind: OutputFormat,
    *,
    csv_safe: bool,
    overwrite: bool = False,
) -> None:
    if kind in _IN_FOLDERS:
        _IN_FOLDERS[kind](reader, target, overwrite=overwrite)
    elif csv_safe and kind in _CSV:
        _CSV[kind](reader, target, safe=True)
    else:
        _WRITERS[kind](reader, target)


def first_file(target: Path) -> Path:
    """Return the first file of an export: the target, or the first of numbered shards."""
    return webdataset.shard_path(target, 0) or target


def output_files(target: Path) -> list[Path]:
    """Return the files of an export that exist: the target, or its numbered shards."""
    found: list[Path] = []
    while (path := webdataset.shard_path(target, len(found)) or target) not in found:
        if not path.is_file():
            break
        found.append(path)
    return found


def _describe_reviews(reader: OutputReader) -> str:
    counts = reader.verdicts()
    parts = [
        (counts["rejected"], "rejected caption is", "rejected captions are", "left out"),
        (counts["edited"], "caption is", "captions are", "written as edited"),
        (
            (counts["none"] + counts["again"]) * reader.reviewed_only,
            *("caption without a review is", "captions without a review are", "left out"),
        ),
    ]
    found = [f"{counted(count, one, many)} {what}" for count, one, many, what in parts if count]
    return "; ".join(found) or "nothing to change"


def _refuse_own_files(
    reader: OutputReader, target: Path, source: Path | None, output: Path | None
) -> None:
    """Raise `SettingsError` if the target is an input or belongs to the journal."""
    if target.is_dir():
        return
    journal = reader.journal
    paths = [journal, checkpoint_path(journal), lock_path(journal), index_path(journal)]
    for one in filter(None, (journal, output)):
        paths += [failures_path(one), reviews_path(one), votes_path(one)]
    paths += filter(None, (source, reader.source))
    paths += getattr(reader.input.source, "paths", ()) if reader.input else ()
    if any(_is_target(path, target) for path in paths):
        raise SettingsError(f"the captions are made from {target}; choose another name")


def _is_target(path: Path, target: Path) -> bool:
    """Return whether a path is the target, or one of its numbered shards."""
    if os.path.realpath(path) == os.path.realpath(target):
        return True
    number = webdataset.SHARD_NUMBER.search(target.name)
    if number is None or os.path.realpath(path.parent) != os.path.realpath(target.parent):
        return False
    begin, end = target.name[: number.start()], target.name[number.end() :]
    return re.fullmatch(rf"{re.escape(begin)}\d+{re.escape(end)}", path.name) is not None


_CSV: dict[str, Callable[..., None]] = {
    "csv": tables.write_csv,
    "tsv": partial(tables.write_csv, delimiter="\t"),
    "imagefolder": webdataset.write_image_folder,
}
"""Formats that may be CSV."""

_WRITERS: dict[str, Callable[[OutputReader, Path], None]] = {
    "jsonl": lambda reader, target: tables.write_lines(reader.lines(), target),
    "json": lambda reader, target: write_array(reader.lines(), target, Files()),
    **_CSV,
    "parquet": tables.write_parquet,
    "sqlite": tables.write_sqlite,
    "webdataset": webdataset.write_webdataset,
    "coco": training.write_coco,
    "llava": training.write_llava,
}
