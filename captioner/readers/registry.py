"""Which source reads an input: by its name, or by ``--input-format``."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from captioner.core.errors import SettingsError
from captioner.readers.bytestreams import blocks_of, open_binary
from captioner.readers.imagefiles import ImageFilesSource, is_image, matches
from captioner.readers.jsonl import JsonlSource
from captioner.settings.locations import COMPRESSED, is_elsewhere, is_pattern, storage_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from captioner.core.protocols import Source
    from captioner.settings.options import InputFormat

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


class Input(NamedTuple):
    """An input that has been found.

    Attributes:
        source: Reads it.
        format: What it is.
        image_field: Member of its records that holds the images, where the format says so.
    """

    source: Source
    format: InputFormat
    image_field: str | None = None


def folder_of(path: Path | None) -> Path | None:
    """Return the folder that relative paths in an input's records start from, if it has one."""
    if path is None or is_elsewhere(path):
        return None
    return path if path.is_dir() else path.parent


def open_input(
    path: Path,
    given: InputFormat | None = None,
    *,
    image_field: str | None = None,
    max_line: int = 16 << 20,
) -> Input:
    """Find out what an input is, and return what reads it.

    Args:
        path: A file, a folder, a pattern, ``-``, or a hub's address.
        given: What it is, in place of what its name says.
        image_field: The member that holds images, if an option names one.
        max_line: Longest record in bytes.

    Raises:
        SettingsError: There is no such input, or it cannot be told what it is.
    """
    kind = given or _kind(path)
    source, field = _OPENERS[kind](path, _Reading(kind, image_field, max_line))
    return Input(source, kind, image_field or field)


class _Reading(NamedTuple):
    """What an opener has to know."""

    kind: InputFormat
    image_field: str | None
    max_line: int


_Opened = tuple["Source", str | None]
"""What reads an input, and the member of its records that holds the images, if it says so."""


def _lines(path: Path, reading: _Reading) -> _Opened:
    _check_file(path)
    array = reading.kind != "jsonl"
    return JsonlSource(blocks_of(path), may_be_array=array, max_line=reading.max_line), None


def _csv(path: Path, reading: _Reading) -> _Opened:
    from captioner.readers.tables import CsvSource

    _check_file(path)
    delimiter = "," if reading.kind == "csv" else "\t"
    return CsvSource(path, delimiter, max_line=reading.max_line), None


def _arrow(path: Path, reading: _Reading) -> _Opened:
    from captioner.readers.tables import IMAGE_COLUMNS, ArrowSource, columns_of

    files = _files(path, f".{reading.kind}")
    source = ArrowSource(files, reading.image_field, kind=reading.kind)
    names = columns_of(files[0], reading.kind)
    if twice := [name for name in names if names.count(name) > 1]:
        raise SettingsError(f"{files[0].name} has two columns of the name {twice[0]!r}")
    if "image" in names or "images" in names:
        return source, None
    return source, next((name for name in names if name in IMAGE_COLUMNS), None)


def _images(path: Path, _: _Reading) -> _Opened:
    source = ImageFilesSource(path if path.is_dir() else None, str(path))
    if source.is_empty:
        raise SettingsError(f"there is no image in {path}")
    return source, None


def _shards(path: Path, _: _Reading) -> _Opened:
    from captioner.readers.webdataset import ShardsSource

    return ShardsSource(_files(path, ".tar"), folder_of(path) or Path()), None


def _downloads(path: Path, _: _Reading) -> _Opened:
    """Return img2dataset's output, in tar shards or in folders."""
    from captioner.readers.webdataset import DownloadsSource, ShardsSource

    if not path.is_dir():
        raise SettingsError(f"{path} is no folder that img2dataset wrote to")
    if shards := sorted(path.glob("*.tar")):
        return ShardsSource(shards, path, with_failures=True), None
    return DownloadsSource(path), None


def _image_folder(path: Path, reading: _Reading) -> _Opened:
    """Return Hugging Face's imagefolder: a table whose ``file_name`` is beside it."""
    table = path
    if path.is_dir():
        table = next((path / name for name in METADATA if (path / name).exists()), path)
        if table == path:
            raise SettingsError(f"there is no {' or '.join(METADATA)} in {path}")
    inside = open_input(
        table, _SUFFIXES[table.suffix], image_field=reading.image_field, max_line=reading.max_line
    )
    return inside.source, "file_name"


def _coco(path: Path, _: _Reading) -> _Opened:
    from captioner.readers.coco import CocoSource

    _check_file(path)
    return CocoSource(path), "file_name"


def _hub(path: Path, reading: _Reading) -> _Opened:
    from captioner.readers.hubs import HubSource

    return HubSource(str(path), reading.image_field), None


_OPENERS: dict[InputFormat, Callable[[Path, _Reading], _Opened]] = {
    "jsonl": _lines,
    "json": _lines,
    "llava": _lines,
    "csv": _csv,
    "tsv": _csv,
    "parquet": _arrow,
    "arrow": _arrow,
    "images": _images,
    "webdataset": _shards,
    "img2dataset": _downloads,
    "imagefolder": _image_folder,
    "coco": _coco,
    "hf": _hub,
    "ms": _hub,
}


def _kind(path: Path) -> InputFormat:  # noqa: PLR0911 - one after the other
    """Return what an input is, by its name and, for a folder, by what is in it."""
    text = str(path)
    if text == "-":
        return "jsonl"
    if text.startswith("hf:"):
        return "hf"
    if text.startswith("ms:"):
        return "ms"
    if path.is_dir():
        return _kind_of_folder(path)
    if is_pattern(path):
        path = Path(next(iter(matches(text)), text))
    if is_image(path.name):
        return "images"
    if path.name in METADATA and _names_files(path):
        return "imagefolder"
    if path.name.endswith((".tar.gz", ".tgz", ".tar.zst", ".zip")):
        raise SettingsError(f"{path} is compressed as a whole: unpack it, or name a plain .tar")
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    kind = _SUFFIXES.get(name.suffix.lower(), "jsonl")
    return "coco" if kind == "json" and _is_coco(path) else kind


def _is_coco(path: Path) -> bool:
    try:
        with open_binary(path) as file:
            return _COCO.match(file.read(4_096)) is not None
    except (OSError, EOFError):
        return False  # whoever opens it says why


def _names_files(path: Path) -> bool:
    """Tell whether a table is imagefolder's: it has a column ``file_name``."""
    if path.suffix == ".parquet":
        from captioner.readers.tables import columns_of

        return "file_name" in columns_of(path, "parquet")
    with path.open("rb") as file:
        return b"file_name" in file.read(4_096)


def _kind_of_folder(folder: Path) -> InputFormat:
    names = _not_ours(sorted(entry.name for entry in folder.iterdir()))
    if any(name in METADATA for name in names):
        return "imagefolder"
    if any(name.endswith("_stats.json") for name in names):
        return "img2dataset"
    for suffix, kind in _SUFFIXES.items():
        if suffix in (".tar", ".parquet", ".arrow") and any(n.endswith(suffix) for n in names):
            return kind
    if not any(map(is_image, names)) and next(folder.rglob("*.parquet"), None):
        return "parquet"
    return "images"


def _not_ours(names: list[str]) -> list[str]:
    """Return names without those of outputs, which have a journal with a checkpoint beside."""
    ending = ".jsonl.ckpt"
    made = [name.removesuffix(ending) for name in names if name.endswith(ending)]
    numbered = [re.compile(re.sub(r"%0?\\?\d*d", r"\\d+", re.escape(name))) for name in made]
    return [name for name in names if not any(one.fullmatch(name) for one in numbered)]


def _check_file(path: Path) -> None:
    """Refuse what is no readable regular file.

    Raises:
        SettingsError: It is not.
    """
    if str(path) == "-" or storage_url(path):
        return
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # opening a pipe would wait for a writer
        if regular:
            path.open("rb").close()
    except OSError as error:
        raise SettingsError(f"cannot read the input {path}: {error.strerror}") from None
    if not regular:
        raise SettingsError(f"the input {path} is not a regular file; it is read more than once")


def _files(path: Path, suffix: str) -> list[Path]:
    """Return the files that a path, a folder, a pattern or a range of numbers stands for."""
    from captioner.readers.webdataset import expand

    if path.is_dir():
        every = sorted(path.rglob(f"*{suffix}"))
        own = set(_not_ours([entry.name for entry in path.iterdir()]))
        found = [one for one in every if one.parent != path or one.name in own]
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
