"""Captions with their images: WebDataset shards; and beside them: imagefolder metadata."""

from __future__ import annotations

import csv
import io
import os
import re
import tarfile
from typing import TYPE_CHECKING, Any

from captioner.core.errors import SettingsError
from captioner.images.archives import in_archive
from captioner.images.fit import media_type_of
from captioner.journal.disk import replacing
from captioner.outputs.export.tables import cell, write_rows
from captioner.readers.rows import dumped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from captioner.outputs.reader import OutputReader

SHARD_SAMPLES = 10_000
SHARD_BYTES = 1_000_000_000
"""Where ``out-%05d.tar`` begins a new shard."""

_Sample = tuple[str, list[bytes], str, dict[str, Any]]
"""Key, images, caption, the whole row."""

_NUMBERED = re.compile(r"%0?\d*d")


def write_webdataset(book: OutputReader, target: Path) -> None:
    """Write tar shards: image, caption as ``.txt``, the whole row as ``.json``.

    A ``%05d`` in the name makes several; without one there is one. Keys are those of an input
    that has them, else the number of the row.
    """
    samples: Iterator[_Sample] = _samples(book)
    if _NUMBERED.search(target.name) is None:
        with replacing(target) as partial, tarfile.open(partial, "w") as shard:
            for one in samples:
                _add(shard, *one)
        return
    number = 0
    sample: _Sample | None = next(samples, None)
    while sample is not None or not number:
        path = _numbered(target, number)
        with replacing(path) as partial, tarfile.open(partial, "w") as shard:
            count = 0
            while sample is not None and count < SHARD_SAMPLES and shard.offset < SHARD_BYTES:
                _add(shard, *sample)
                sample = next(samples, None)
                count += 1
        number += 1
    while (stale := _numbered(target, number)).exists():
        stale.unlink()  # of an export that had more
        number += 1


def _numbered(target: Path, number: int) -> Path:
    """Return a shard's path: the last ``%05d`` of the name becomes its number."""
    found = list(_NUMBERED.finditer(target.name))[-1]
    name = target.name[: found.start()] + found[0] % number + target.name[found.end() :]
    return target.with_name(name)


def _samples(book: OutputReader) -> Iterator[_Sample]:
    left_out = 0
    used: set[str] = set()
    for number, (row, held) in enumerate(book.rows_with_images()):
        images = [book.image_bytes(image, held) for image in book.images(row)]
        found = [data for data in images if data is not None]
        if not images or len(found) < len(images):
            left_out += 1
            continue
        key = _key(row, number)
        if key in used:
            key = f"{key}_{number}"
        used.add(key)
        yield key, found, book.texts(row)[0], row
    if left_out:
        book.warn(
            f"{left_out:,} captions are not in it: their images are not on this machine, or not "
            "any more"
        )


def _key(row: dict[str, Any], number: int) -> str:
    """Return a sample's key: without dots, which end it."""
    given = row.get("__key__")
    return given.replace(".", "_") if isinstance(given, str) and given else f"{number:09d}"


def _add(
    shard: tarfile.TarFile, key: str, images: list[bytes], text: str, row: dict[str, Any]
) -> None:
    members = []
    for number, data in enumerate(images):
        kind = media_type_of(data).rpartition("/")[2].replace("jpeg", "jpg") or "img"
        members.append((kind if not number else f"{number}.{kind}", data))
    members += [("txt", text.encode()), ("json", dumped(row))]
    for field, data in members:
        info = tarfile.TarInfo(f"{key}.{field}")
        info.size = len(data)
        shard.addfile(info, io.BytesIO(data))
        shard.members = []  # type: ignore[attr-defined] # tarfile would keep them all


def write_image_folder(book: OutputReader, target: Path) -> None:
    """Write Hugging Face's ``metadata.jsonl``, ``.csv`` or ``.parquet``, beside the images.

    Raises:
        SettingsError: An image lies outside the folder, where the format cannot name it.
    """
    kind = target.suffix.lower()
    left_out = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal left_out
        left_out = 0
        for row in book.rows():
            images = book.images(row)
            path = images[0].path if len(images) == 1 else None
            if path is None or in_archive(path):
                left_out += 1
                continue
            found = book.find(path)
            if found is None:
                left_out += 1
                continue
            name = os.path.relpath(found, target.parent)
            if name.startswith(".."):
                raise SettingsError(
                    f"{target.name} has to lie in the folder of the images or above it; "
                    f"{path[:200]} is elsewhere"
                )
            taken = "file_name", book.image_field_of(row)  # `datasets` makes a column of that name
            yield {"file_name": name, **{n: v for n, v in row.items() if n not in taken}}

    columns = list(dict.fromkeys(name for row in rows() for name in row)) or ["file_name"]
    if kind == ".parquet":
        write_rows(rows, columns, target)
    elif kind == ".csv":
        with replacing(target) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(columns)
            table.writerows([cell(row.get(name)) for name in columns] for row in rows())
    else:
        with replacing(target) as partial, partial.open("wb") as lines:
            lines.writelines(dumped(row) + b"\n" for row in rows())
    if left_out:
        book.warn(f"{left_out:,} captions are not in it: they have not one image in its own file")
