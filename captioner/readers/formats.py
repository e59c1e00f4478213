"""The format of an input, by its name and its content."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.core.errors import SettingsError
from captioner.readers.disguises import head_of
from captioner.readers.folders import saved_splits, survey
from captioner.readers.imagefiles import MEDIA, is_media, matches
from captioner.readers.imagefolder import file_column
from captioner.readers.img2dataset import is_output
from captioner.settings.locations import COMPRESSED, HUBS, METADATA, is_pattern, storage_url

if TYPE_CHECKING:
    from collections import Counter

    from captioner.settings.options import InputFormat

logger = logging.getLogger(__name__)

SUFFIXES: dict[str, InputFormat] = {
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
_SHARED: dict[str, InputFormat] = {
    ".tar": "webdataset",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Formats of folders by the suffix of their files; the first that a folder has wins."""

_ASIDE = (*_SHARED, ".csv", ".tsv", ".jsonl", ".ndjson")
"""Suffixes of other tables in such a folder of which a warning says that they are not read."""


def format_of(path: Path) -> InputFormat:
    """Return the format of an input, by its name and, for a folder, by its content."""
    text = str(path)
    if text == "-":
        return "jsonl"
    if text.startswith(HUBS):
        return "hf" if text.startswith("hf:") else "ms"
    if path.is_dir():
        return _format_of_folder(path)
    if is_pattern(path):
        found = matches(text) or [text]
        path = Path(next(filter(is_media, found), found[0]))
    if is_media(path.name):
        return "images"
    if path.name in METADATA and not storage_url(path) and file_column(path):
        return "imagefolder"
    if path.name.endswith((".tar.gz", ".tgz", ".tar.zst", ".zip")):
        raise SettingsError(f"{path} is compressed as a whole: unpack it, or name a plain .tar")
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    format_ = SUFFIXES.get(name.suffix.lower(), "jsonl")
    return "coco" if format_ == "json" and _COCO.match(head_of(path)) else format_


def _format_of_folder(folder: Path) -> InputFormat:
    """Return the format of a folder; warn of files that are not read."""
    if saved_splits(folder) is not None:
        return "arrow"
    found = survey(folder)
    metadata = [table for table in found.metadata if file_column(table)]
    found.files.update(table.suffix for table in found.metadata if table not in metadata)
    tables = next((suffix for suffix in _SHARED if found.files[suffix]), None)
    if any(table.parent == folder for table in metadata) or (metadata and tables is None):
        return "imagefolder"
    if is_output(folder, found.names):
        return "img2dataset"
    for table in found.exported:
        logger.warning("%s is an export of captions and not read; give its path to read it", table)
    for table in found.metadata:
        if table not in metadata and table.suffix != tables:
            logger.warning("%s has no column file_name or file_names and is not read", table)
    if tables is None:
        return "images"
    if beside := _counts(found.files, without=tables):
        logger.warning(
            "the %s files in %s are read; skipped, unless a record names them: %s",
            tables,
            folder,
            beside,
        )
    return _SHARED[tables]


def _counts(files: Counter[str], without: str) -> str:
    """Return how many images and other tables there are."""
    several = {
        "images or videos": sum(count for suffix, count in files.items() if suffix in MEDIA),
        **{f"{one} files": files[one] for one in _ASIDE if one != without},
    }
    return ", ".join(f"{count} {what}" for what, count in several.items() if count)
