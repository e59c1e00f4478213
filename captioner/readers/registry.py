"""Opening of an input in the format that its name or ``--input-format`` says."""

from __future__ import annotations

import re
import stat
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.readers.bytestreams import FILE_ERRORS, open_binary, open_stream
from captioner.readers.coco import CocoSource
from captioner.readers.hubs import HubSource
from captioner.readers.imagefiles import ImageFilesSource, is_media, matches
from captioner.readers.jsonl import MAX_LINE, JsonlSource
from captioner.readers.tables import IMAGE_COLUMNS, ArrowSource, CsvSource, columns_of
from captioner.readers.webdataset import DownloadsSource, ShardsSource, expand
from captioner.settings.locations import COMPRESSED, HUBS, is_elsewhere, is_pattern, storage_url
from captioner.settings.options import IMAGE_FIELDS

if TYPE_CHECKING:
    from captioner.core.protocols import Source
    from captioner.settings.options import InputFormat
    from captioner.settings.settings import Settings

_SUFFIXES: dict[str, InputFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".tar": "webdataset",
}
_COCO = re.compile(rb'\s*\{\s*"(?:info|licenses|images|annotations|categories|type)"\s*:')
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

FORMATS_WITH_IMAGES = frozenset({"parquet", "arrow", "hf", "ms"})
"""Formats whose rows may contain images."""


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


def open_input(
    path: Path,
    given: InputFormat | None = None,
    *,
    image_field: str | None = None,
    max_line: int = MAX_LINE,
) -> OpenedInput:
    """Open an input.

    Args:
        path: A file, a folder, a pattern, ``-``, or a hub's address.
        given: Format of the input; by default decided by name and content.
        image_field: Field that holds images, if an option names one.
        max_line: Length limit of a record in bytes.

    Raises:
        SettingsError: The input does not exist, or it is not in its format.
    """
    format_ = given or _format_of(path)
    if (url := storage_url(path)) and format_ not in ("jsonl", "json", "llava", "hf"):
        raise SettingsError(
            f"cannot read {url} as {format_}: from an object store only JSON Lines and JSON are "
            "read. Copy it to a local folder"
        )
    source, field = _open(path, format_, image_field, max_line)
    return OpenedInput(source, format_, image_field or field)


def _open(
    path: Path, format_: InputFormat, image_field: str | None, max_line: int
) -> tuple[Source, str | None]:
    """Return the source of an input, and the image field that its format implies."""
    source: Source
    field = None
    match format_:
        case "jsonl" | "json" | "llava":
            _check_file(path)
            array = format_ != "jsonl"
            source = JsonlSource(open_stream(path), may_be_array=array, max_line=max_line)
        case "csv" | "tsv":
            _check_file(path)
            source = CsvSource(path, "," if format_ == "csv" else "\t", max_line=max_line)
        case "parquet" | "arrow":
            files = _files(path, f".{format_}")
            source = ArrowSource(files, image_field, kind=format_)
            field = _image_column(files[0], format_)
        case "images":
            source = ImageFilesSource(path if path.is_dir() else None, str(path))
            if source.is_empty:
                raise SettingsError(f"there is no image and no video in {path}")
            if find_spec("av") is None and source.has_only_videos:
                needed("av", "video")
        case "webdataset":
            source = ShardsSource(_files(path, ".tar"), folder_of(path) or Path())
        case "img2dataset":
            source = _downloads(path)
        case "imagefolder":
            table = _metadata_of(path)
            source, _ = _open(table, _SUFFIXES[table.suffix], image_field, max_line)
            field = "file_name"
        case "coco":
            _check_file(path)
            source, field = CocoSource(path), "file_name"
        case "hf" | "ms":
            source = HubSource(str(path), image_field)
    return source, field


def _image_column(file: Path, kind: str) -> str | None:
    """Return the column of images unless it has a default name."""
    names = columns_of(file, kind)
    if twice := [name for name in names if names.count(name) > 1]:
        raise SettingsError(f"{file.name} has two columns of the name {twice[0]!r}")
    if "image" in names or "images" in names:
        return None
    others = IMAGE_COLUMNS.difference(IMAGE_FIELDS)
    return next((name for name in names if name in others), None)


def _downloads(path: Path) -> Source:
    """Return the source of img2dataset's output: tar shards or folders."""
    if not path.is_dir():
        raise SettingsError(f"{path} is no folder that img2dataset wrote to")
    if shards := sorted(path.glob("*.tar")):
        return ShardsSource(shards, path, with_failures=True)
    return DownloadsSource(path)


def _metadata_of(path: Path) -> Path:
    """Return the table of Hugging Face's imagefolder."""
    if path.is_dir():
        tables = [path / name for name in METADATA if (path / name).exists()]
        if not tables:
            raise SettingsError(f"there is no {' or '.join(METADATA)} in {path}")
        return tables[0]
    if path.suffix not in _SUFFIXES:
        raise SettingsError(f"{path} is no table of an imagefolder, such as {METADATA[0]}")
    return path


def _format_of(path: Path) -> InputFormat:
    """Return the format of an input, by its name and, for a folder, by its content."""
    text = str(path)
    if text == "-":
        return "jsonl"
    if text.startswith(HUBS):
        return "hf" if text.startswith("hf:") else "ms"
    if path.is_dir():
        return _format_of_folder(path)
    if is_pattern(path):
        path = Path(next(iter(matches(text)), text))
    if is_media(path.name):
        return "images"
    if path.name in METADATA and not storage_url(path) and _has_file_names(path):
        return "imagefolder"
    if path.name.endswith((".tar.gz", ".tgz", ".tar.zst", ".zip")):
        raise SettingsError(f"{path} is compressed as a whole: unpack it, or name a plain .tar")
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    format_ = _SUFFIXES.get(name.suffix.lower(), "jsonl")
    return "coco" if format_ == "json" and _is_coco(path) else format_


def _is_coco(path: Path) -> bool:
    try:
        with open_binary(path) as file:
            return _COCO.match(file.read(4_096)) is not None
    except FILE_ERRORS:
        return False  # the reader reports the error


def _has_file_names(path: Path) -> bool:
    """Tell whether a table has a column ``file_name``, as that of an imagefolder has."""
    if path.suffix == ".parquet":
        return "file_name" in columns_of(path, "parquet")
    with path.open("rb") as file:
        return b"file_name" in file.read(4_096)


def _format_of_folder(folder: Path) -> InputFormat:
    names = _without_outputs(sorted(entry.name for entry in folder.iterdir()))
    if any(name in METADATA for name in names):
        return "imagefolder"
    if any(name.endswith("_stats.json") for name in names):
        return "img2dataset"
    for suffix, format_ in _SUFFIXES.items():
        if suffix in (".tar", ".parquet", ".arrow") and any(n.endswith(suffix) for n in names):
            return format_
    if not any(map(is_media, names)) and next(folder.rglob("*.parquet"), None):
        return "parquet"
    return "images"


def _without_outputs(names: list[str]) -> list[str]:
    """Return file names without those of outputs, which have a checkpoint next to them."""
    ending = ".jsonl.ckpt"
    outputs = [name.removesuffix(ending) for name in names if name.endswith(ending)]
    patterns = [re.compile(re.sub(r"%0?\\?\d*d", r"\\d+", re.escape(name))) for name in outputs]
    return [name for name in names if not any(one.fullmatch(name) for one in patterns)]


def _check_file(path: Path) -> None:
    """Check that an input is a readable regular file.

    Raises:
        SettingsError: It is not.
    """
    if str(path) == "-" or storage_url(path):
        return
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # to open a pipe would wait for its writer
        if regular:
            path.open("rb").close()
    except OSError as error:
        raise SettingsError(f"cannot read the input {path}: {error.strerror}") from None
    if not regular:
        raise SettingsError(f"the input {path} is not a regular file; it is read more than once")


def _files(path: Path, suffix: str) -> list[Path]:
    """Return the files of a path, a folder, a pattern or a range such as ``{000..099}``."""
    if path.is_dir():
        inputs = set(_without_outputs([entry.name for entry in path.iterdir()]))
        files = sorted(path.rglob(f"*{suffix}"))
        found = [file for file in files if file.parent != path or file.name in inputs]
    else:
        found = []
        for one in map(Path, expand(str(path))):
            if is_pattern(one):
                found += map(Path, matches(str(one)))
            else:
                _check_file(one)
                found.append(one)
    if not found:
        raise SettingsError(f"there is no {suffix} file in {path}")
    return found
