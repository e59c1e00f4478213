"""Opening of an input in the format that its name or ``--input-format`` says."""

from __future__ import annotations

import logging
import stat
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.readers.bytestreams import open_stream
from captioner.readers.coco import CocoSource
from captioner.readers.csvfile import CsvSource
from captioner.readers.disguises import (
    HEAD,
    check_compression,
    check_text,
    head_of,
    not_itself,
    not_tar,
)
from captioner.readers.folders import survey, tables_in
from captioner.readers.formats import SUFFIXES, format_of
from captioner.readers.hubs import HubSource
from captioner.readers.imagefiles import ImageFilesSource, is_media, matches
from captioner.readers.imagefolder import ImageFolderSource, Part, file_column
from captioner.readers.img2dataset import downloads
from captioner.readers.jsonl import JsonlSource
from captioner.readers.rows import MAX_LINE, RecordSource
from captioner.readers.splits import is_in, no_split
from captioner.readers.tables import ArrowSource, image_column
from captioner.readers.webdataset import ShardsSource, expand
from captioner.settings.locations import METADATA, is_elsewhere, is_pattern, storage_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.core.protocols import Source
    from captioner.settings.options import InputFormat
    from captioner.settings.settings import Settings

logger = logging.getLogger(__name__)

_WITH_SPLITS = frozenset({"arrow", "parquet", "webdataset", "images", "imagefolder", "hf", "ms"})


class OpenedInput(NamedTuple):
    """The source of an input's records.

    Attributes:
        source: Reads the input.
        format: Format of the input.
        image_field: Field that holds images, if an option or the format names one.
    """

    source: Source
    format: InputFormat
    image_field: str | None = None

    @property
    def holds_images(self) -> bool:
        """Whether its rows may contain images."""
        return isinstance(self.source, ArrowSource | HubSource)

    def with_image_field(self, settings: Settings) -> Settings:
        """Return settings that name the image field of this input."""
        if self.image_field is None:
            return settings
        records = replace(settings.records, image_field=self.image_field)
        return replace(settings, records=records)


def folder_of(path: Path | None) -> Path | None:
    """Return the folder to which paths in an input's records are relative; None if not local."""
    if path is None or is_elsewhere(path):
        return None
    return path if path.is_dir() else path.parent


def open_files(files: Sequence[Path]) -> OpenedInput:
    """Open images and videos that were named one by one.

    Raises:
        SettingsError: One does not exist, or is something else.
    """
    for path in files:
        if not is_media(path.name):
            raise SettingsError(
                f"several inputs must be images or videos, and {path} is neither. Name a folder, "
                "or a pattern in quotes"
            )
        _check_file(path)
    return OpenedInput(ImageFilesSource(files=files), "images")


class _Options(NamedTuple):
    """How an input is read; see `open_input`."""

    image_field: str | None
    max_line: int
    split: str | None


def open_input(
    path: Path,
    given: InputFormat | None = None,
    *,
    image_field: str | None = None,
    max_line: int = MAX_LINE,
    split: str | None = None,
) -> OpenedInput:
    """Open an input.

    Args:
        path: A file, a folder, a pattern, ``-``, or a hub's address.
        given: Format of the input; by default decided by name and content.
        image_field: Field that holds images, if an option names one.
        max_line: Length limit of a record in bytes.
        split: The split to read, of an input that has several.

    Raises:
        SettingsError: The input does not exist, it is not in its format, or it lacks the split.
    """
    format_ = given or format_of(path)
    if (url := storage_url(path)) and format_ not in ("jsonl", "json", "llava", "hf"):
        raise SettingsError(
            f"cannot read {url} as {format_}: from an object store only JSON Lines and JSON are "
            "read. Copy it to a local folder"
        )
    options = _Options(image_field, max_line, split)
    source, field = _open(path, format_, options)
    if split is not None and format_ not in _WITH_SPLITS:
        raise no_split(split, [])
    return OpenedInput(source, format_, image_field or field)


def _open(path: Path, format_: InputFormat, options: _Options) -> tuple[Source, str | None]:
    """Return the source of an input, and the image field that its format implies."""
    source: Source
    field = None
    image_field, max_line, split = options
    match format_:
        case "jsonl" | "json" | "llava":
            _check_file(path)
            _check_content(path)
            array = format_ != "jsonl"
            name = "the input" if str(path) == "-" else path.name
            source = JsonlSource(
                open_stream(path), may_be_array=array, max_line=max_line, name=name
            )
        case "csv" | "tsv":
            _check_file(path)
            _check_content(path)
            source = CsvSource(path, "," if format_ == "csv" else "\t", max_line=max_line)
        case "parquet" | "arrow":
            files = _files(path, f".{format_}", split)
            _refuse(files[0], not_itself(_head(files[0])))
            source = ArrowSource(files, image_field, kind=format_)
            field = image_column(files[0], format_)
        case "images":
            source = _media_files(path, split)
        case "webdataset":
            files = _files(path, ".tar", split)
            _refuse(files[0], not_tar(_head(files[0])))
            source = ShardsSource(files, folder_of(path) or Path(), image_field)
        case "img2dataset":
            source, field = downloads(path, image_field)
        case "imagefolder":
            source, field = _image_folder(path, options)
        case "coco":
            _check_file(path)
            _check_content(path)
            source, field = CocoSource(path), "file_name"
        case "hf" | "ms":
            source = HubSource(str(path), image_field, split)
    if isinstance(source, RecordSource):
        source.max_line = max_line
    return source, field


def _media_files(path: Path, split: str | None) -> Source:
    """Return the source of a folder or pattern of images and videos."""
    if split is not None and not path.is_dir():
        raise no_split(split, [])
    source = ImageFilesSource(path if path.is_dir() else None, str(path), split)
    if source.is_empty:
        if split is not None:
            raise no_split(split, sorted(source.splits))
        skipped = source.skipped
        hint = f", but there are {skipped}: name one to read it" if skipped.kinds else ""
        raise SettingsError(f"there are no images or videos in {path}{hint}")
    if find_spec("av") is None and source.has_only_videos:
        needed("av")
    return source


def _image_folder(path: Path, options: _Options) -> tuple[Source, str]:
    """Return the source of Hugging Face's imagefolder, or of one of its tables, and its column."""
    tables = [path]
    if path.is_dir():
        found = survey(path)
        own = [table for table in found.metadata if file_column(table)]
        every = own or found.exported or found.metadata
        tables = _one_each(every)
        for table in every:
            if table not in tables:
                logger.warning("%s is not read: another table is beside it", table)
        if not tables:
            raise SettingsError(f"there is no {' or '.join(METADATA)} in {path}")
        tables = _of_split(tables, path, options.split)
    elif path.suffix not in SUFFIXES:
        raise SettingsError(f"{path} is not a table of an imagefolder, such as {METADATA[0]}")
    elif options.split is not None:
        raise no_split(options.split, [])
    options = options._replace(split=None)
    columns = {file_column(table, options.image_field) or "file_name": table for table in tables}
    if len(columns) > 1:
        several = ", ".join(f"{table} in {one}" for one, table in columns.items())
        raise SettingsError(
            f"the tables name files in different columns ({several}): caption each folder alone"
        )
    (column,) = columns
    sources = [_open(table, SUFFIXES[table.suffix], options)[0] for table in tables]
    if len(tables) == 1 and (tables[0].parent == path or not path.is_dir()):
        return sources[0], column
    parts = zip(sources, tables, strict=True)
    return ImageFolderSource(
        [Part(source, table.relative_to(path), column) for source, table in parts]
    ), column


def _one_each(tables: list[Path]) -> list[Path]:
    """Return the first table of each folder."""
    return list({table.parent: table for table in reversed(tables)}.values())[::-1]


def _of_split(tables: list[Path], folder: Path, split: str | None) -> list[Path]:
    """Return the tables of a split: those in the folder of its name."""
    splits = [table.relative_to(folder).parts[0] for table in tables if table.parent != folder]
    names = list(dict.fromkeys(splits))
    if split is None:
        if len(names) > 1:
            logger.warning(
                "the folders %s are read one after the other; --split reads one", ", ".join(names)
            )
        return tables
    if not (found := [table for table in tables if is_in(table.relative_to(folder), split)]):
        raise no_split(split, names)
    return found


def _check_content(path: Path) -> None:
    """Check that a file on this machine is text.

    Raises:
        SettingsError: It is not.
    """
    if str(path) != "-" and storage_url(path) is None:
        check_compression(path)
        check_text(path.name, head_of(path))


def _refuse(path: Path, why: str) -> None:
    if why:
        raise SettingsError(f"{path} {why}")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""  # the reader reports the error


def _check_file(path: Path) -> None:
    """Check that an input is a readable regular file.

    Raises:
        SettingsError: It is not.
    """
    if str(path) == "-" or storage_url(path):
        return
    if is_pattern(path):
        count = len(matches(str(path)))
        raise SettingsError(
            f"{path} matches {count} files, and only images, Parquet and Arrow tables and tar "
            "shards are read from several: join the files, or name one"
            if count
            else f"no file matches {path}"
        )
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # to open a pipe would wait for its writer
        if regular:
            path.open("rb").close()
    except OSError as error:
        raise SettingsError(f"cannot read the input {path}: {error.strerror}") from None
    if not regular:
        raise SettingsError(f"the input {path} is not a regular file; it is read more than once")


def _files(path: Path, suffix: str, split: str | None = None) -> list[Path]:
    """Return the files of a path, a folder, a pattern or a range such as ``{000..099}``."""
    if path.is_dir():
        return tables_in(path, suffix, split)
    if split is not None:
        raise no_split(split, [])
    found: list[Path] = []
    for one in map(Path, expand(str(path))):
        if is_pattern(one):
            found += map(Path, matches(str(one)))
        else:
            _check_file(one)
            found.append(one)
    if not found:
        raise SettingsError(f"there is no {suffix} file in {path}")
    return found
