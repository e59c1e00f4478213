"""The files below a folder, and what the folder is taken for."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from captioner.core.errors import SettingsError
from captioner.core.exports import is_export
from captioner.readers.imagefiles import MEDIA
from captioner.readers.splits import is_in, no_split, split_of
from captioner.readers.walk import Walk, is_data, is_visible, without_outputs
from captioner.settings.locations import METADATA

logger = logging.getLogger(__name__)

_CACHE = re.compile(r"(?:cache-|tmp).+\.arrow")
"""What `datasets` leaves beside the tables of a data set."""

_SAME = {".feather": ".arrow"}
"""Suffixes of one format."""


class Survey(NamedTuple):
    """What is below a folder.

    Attributes:
        names: Names of the folder's own files, without outputs of this program.
        files: Number of images and of other possible tables by suffix, at any depth.
        metadata: Files of the names that tables of an imagefolder have.
        exported: Those of them that `captioner export` wrote there.
    """

    names: list[str]
    files: Counter[str]
    metadata: list[Path]
    exported: list[Path]


def survey(folder: Path) -> Survey:
    """Look through a folder."""
    found = Survey([], Counter(), [], [])
    for inside, all_names in Walk(folder, is_visible):
        names = without_outputs(all_names)
        if not inside:
            found.names.extend(names)
        has_tables = not inside or all(map(is_data, Path(inside).parts))
        for name in names:
            suffix = _suffix(name)
            if suffix in MEDIA or (has_tables and is_data(name) and name not in METADATA):
                found.files[suffix] += 1
        for name in METADATA if has_tables else ():
            if name in names:
                path = folder / inside / name
                (found.exported if is_export(path) else found.metadata).append(path)
    return found


def _suffix(name: str) -> str:
    """Return the suffix that decides the format of a file: in lower case, one for each format."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - for millions of names
    return _SAME.get(suffix, suffix)


def tables_in(folder: Path, suffix: str, split: str | None = None) -> list[Path]:
    """Return the tables or shards below a folder, sorted.

    In a folder that Hugging Face's `save_to_disk` wrote, those are the ones that its state names,
    split after split.

    Args:
        folder: The folder.
        suffix: Ending of their names.
        split: The split to read; by default all.

    Raises:
        SettingsError: There is no such split, or a saved data set is not whole.
    """
    if suffix == ".arrow" and (splits := saved_splits(folder)) is not None:
        if split is None and len(splits) > 1:
            warn_of_splits(list(splits))
        if split is not None and split not in splits:
            raise no_split(split, splits)
        wanted = [split] if split is not None else list(splits)
        if not (files := [path for name in wanted for path in splits[name]]):
            raise SettingsError(f"the data set in {folder} has no rows")
        return files
    walk = Walk(folder, is_data)
    found: list[Path] = []
    for inside, names in walk:
        place = folder / inside
        if (place / "_delta_log").is_dir():
            logger.warning(
                "%s is a Delta table, and files of its earlier versions are read, too: to read "
                "only the last one, write that to a Parquet file",
                place,
            )
        saved = _saved(place, names) if suffix == ".arrow" else None
        if saved is not None:
            found += saved
            continue
        here = (name for name in without_outputs(names) if _suffix(name) == suffix)
        found += [
            place / name
            for name in here
            if not _is_cache(name, names) and not (name in METADATA and is_export(place / name))
        ]
    walk.warn()
    if not found:
        raise SettingsError(
            f"there is no {suffix} file in {folder}; names that begin with . or _ do not count"
        )
    return _of_split(sorted(found), folder, split)


def _of_split(files: list[Path], folder: Path, split: str | None) -> list[Path]:
    """Return the files of a split; warn if there are several and none is chosen."""
    inside = {path: path.relative_to(folder) for path in files}
    splits = list(dict.fromkeys(filter(None, map(split_of, inside.values()))))
    if split is None:
        if len(splits) > 1:
            warn_of_splits(splits)
        return files
    if not (found := [path for path in files if is_in(inside[path], split)]):
        raise no_split(split, splits)
    return found


def warn_of_splits(splits: list[str]) -> None:
    """Log that several splits are read."""
    logger.warning(
        "the splits %s are read one after the other; --split reads one", ", ".join(splits)
    )


def saved_splits(folder: Path) -> dict[str, list[Path]] | None:
    """Return the tables of a folder that `save_to_disk` wrote, by split; None if it did not.

    Raises:
        SettingsError: The data set is not whole.
    """
    if (folder / "dataset_dict.json").is_file():
        names = _read(folder / "dataset_dict.json").get("splits")
        if not isinstance(names, list):
            raise SettingsError(f"{folder / 'dataset_dict.json'} names no splits")
        splits = {}
        for name in map(str, names):
            if (saved := _saved(folder / name)) is None:
                raise SettingsError(f"{folder} has no data of its split {name}")
            splits[name] = saved
        return splits
    saved = _saved(folder)
    if saved is None:
        return None
    return {str(_read(folder / "state.json").get("_split") or "train"): saved}


def _saved(folder: Path, names: list[str] | None = None) -> list[Path] | None:
    """Return the tables that the state of a saved data set names; None if it is none."""
    if names is not None and "state.json" not in names:
        return None
    if not all((folder / name).is_file() for name in ("state.json", "dataset_info.json")):
        return None
    state = _read(folder / "state.json")
    files = state.get("_data_files")
    if not isinstance(files, list):
        return None
    if state.get("_indices_data_files"):
        raise SettingsError(
            f"{folder} was saved with a selection of its rows by an old version of datasets: load "
            "it, call flatten_indices, and save it again"
        )
    found = [folder / str(one.get("filename")) for one in files if isinstance(one, dict)]
    for path in found:
        if not path.is_file():
            raise SettingsError(f"{folder} is not whole: {path.name}, which it names, is missing")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from None
    return value if isinstance(value, dict) else {}


def _is_cache(name: str, names: list[str]) -> bool:
    return "dataset_info.json" in names and _CACHE.fullmatch(name) is not None
