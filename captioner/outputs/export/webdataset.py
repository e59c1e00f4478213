"""WebDataset shards with images, and imagefolder metadata beside images."""

from __future__ import annotations

import io
import os
import re
import tarfile
from typing import TYPE_CHECKING, Any

from captioner.core.errors import SettingsError
from captioner.core.regular import writing
from captioner.engine.conversation import image_field_of
from captioner.images.archives import in_archive
from captioner.images.inspect import media_type_of, video_format
from captioner.journal.disk import replacing
from captioner.outputs.export.tables import (
    LEFT_OUT,
    column_names,
    warn_count,
    write_csv_rows,
    write_lines,
    write_rows,
)
from captioner.readers.rows import dumped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from captioner.outputs.reader import OutputReader

SHARD_SAMPLES = 10_000
SHARD_BYTES = 1_000_000_000
"""The size at which ``out-%05d.tar`` starts a new shard."""

SHARD_NUMBER = re.compile(r"%0?\d*d(?!.*%0?\d*d)")
"""The last number format in a name, as in ``out-%05d.tar``."""


_VIDEOS = {"mov": "mp4", "matroska": "mkv", "avi": "avi"}


def shard_path(target: Path, number: int) -> Path | None:
    """Return the path of a numbered shard; None if the target has no number format."""
    found = SHARD_NUMBER.search(target.name)
    if found is None:
        return None
    name = target.name[: found.start()] + found[0] % number + target.name[found.end() :]
    return target.with_name(name)


def write_webdataset(reader: OutputReader, target: Path) -> None:
    """Write tar shards: the image, the caption as ``.txt`` and the whole row as ``.json``.

    A target such as ``out-%05d.tar`` becomes several shards. Keys come from the input if it has
    them, else from the number of the row.
    """
    samples = _samples(reader)
    sample = next(samples, None)
    number = 0
    while sample is not None or not number:
        path = shard_path(target, number)
        with (
            replacing(path or target) as partial,
            writing(partial) as file,
            tarfile.open(fileobj=file, mode="w") as shard,
        ):
            count = 0
            while sample is not None and (
                path is None or (count < SHARD_SAMPLES and shard.offset < SHARD_BYTES)
            ):
                _add(shard, *sample)
                sample = next(samples, None)
                count += 1
        number += 1
    while (stale := shard_path(target, number)) is not None and stale.exists():
        stale.unlink()  # from an earlier export with more shards
        number += 1


def _samples(reader: OutputReader) -> Iterator[tuple[str, list[bytes], str, dict[str, Any]]]:
    """Yield the key, the images, the caption and the whole row of each sample."""
    left_out = 0
    used: set[str] = set()
    for number, (row, embedded) in enumerate(reader.rows_with_images()):
        images = reader.contents.images(row)
        data = [reader.contents.image_bytes(image, embedded) for image in images]
        found = [one for one in data if one is not None]
        if not images or len(found) < len(images):
            left_out += 1
            continue
        key = row.get("__key__")
        key = key.replace(".", "_") if isinstance(key, str) and key else f"{number:09d}"
        if key in used:
            key = f"{key}_{number}"
        used.add(key)
        yield key, found, reader.first_caption(row), row
    warn_count(left_out, *LEFT_OUT, "the images are not on this machine")


def _add(
    shard: tarfile.TarFile, key: str, images: list[bytes], text: str, row: dict[str, Any]
) -> None:
    files = []
    for number, data in enumerate(images):
        kind = media_type_of(data).rpartition("/")[2].replace("jpeg", "jpg")
        kind = kind or _VIDEOS.get(video_format(data), "img")
        files.append((kind if not number else f"{number}.{kind}", data))
    files += [("txt", text.encode()), ("json", dumped(row))]
    for extension, data in files:
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size = len(data)
        shard.addfile(info, io.BytesIO(data))
        shard.members = []  # type: ignore[attr-defined] # else tarfile keeps every entry in memory


def write_image_folder(reader: OutputReader, target: Path, *, safe: bool = False) -> None:
    """Write Hugging Face's ``metadata.jsonl``, ``.csv`` or ``.parquet`` beside the images.

    ``safe`` is for CSV, as in `write_csv_rows`.

    Raises:
        SettingsError: An image is outside the folder, where the format cannot name it.
    """
    left_out = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal left_out
        left_out = 0
        for row in reader.rows():
            images = reader.contents.images(row)
            path = (images[0].path if len(images) == 1 else None) or ""
            found = reader.contents.folders.find(path) if path and not in_archive(path) else None
            if not found:
                left_out += 1
                continue
            name = os.path.relpath(found, target.parent)
            if name.startswith(".."):
                raise SettingsError(
                    f"{target.name} must be in the folder of the images or above it; "
                    f"{path[:200]} is not below it"
                )
            # `datasets` creates a column with the name of the image field.
            replaced = "file_name", image_field_of(row, reader.contents.options.image_field)
            yield {"file_name": name, **{n: v for n, v in row.items() if n not in replaced}}

    columns = column_names(rows()) or ["file_name"]
    if target.suffix.lower() == ".parquet":
        write_rows(rows, columns, target)
    elif target.suffix.lower() == ".csv":
        write_csv_rows(rows(), columns, target, safe=safe)
    else:
        write_lines(map(dumped, rows()), target)
    warn_count(left_out, *LEFT_OUT, "the record does not have exactly one image in its own file")
