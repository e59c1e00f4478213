"""A data set as Hugging Face's `datasets` loads it: Parquet with the images, and a card."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.core.regular import writing
from captioner.engine.conversation import image_field_of
from captioner.images.inspect import video_format
from captioner.journal.disk import replacing
from captioner.outputs.export.card import CARD, MARK, SHARDS, Counts, card
from captioner.outputs.export.hub import Hub
from captioner.outputs.export.tables import (
    LEFT_OUT,
    InferredColumns,
    column_names,
    warn_count,
    with_fields,
)
from captioner.settings.locations import hub_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from captioner.outputs.reader import OutputReader

SHARD_BYTES = 500_000_000
SHARD_ROWS = 100_000
"""The size at which a new shard starts: bytes of images, and rows."""

GROUP_BYTES = 32_000_000
GROUP_ROWS = 1_000
"""The size at which a row group ends. One is in memory at a time."""


class _Form(NamedTuple):
    """The columns of a data set: that of the images, and all others."""

    images: str
    several: bool
    others: InferredColumns


def write_dataset(reader: OutputReader, target: Path, *, overwrite: bool) -> None:
    """Write ``data/train-00000.parquet`` and so on and ``README.md`` to a folder or the hub.

    Args:
        reader: The captions.
        target: The folder, or ``hf:USER/NAME``.
        overwrite: Replace the data set that is there.

    Raises:
        SettingsError: There is one and ``overwrite`` is not set, or the hub does not take it.
        DiskError: The disk refused.
    """
    counts = Counts()
    if name := hub_name(target):
        hub = Hub(name, overwrite=overwrite)
        with TemporaryDirectory(prefix="captioner-hub-") as folder:
            for number, path in enumerate(_write_shards(reader, Path(folder), counts)):
                hub.send(path, shard_name(number))
        hub.commit(card(reader, counts, name))
        return
    for path in (target / CARD, *target.glob(SHARDS)):
        if path.exists() and not overwrite:
            raise SettingsError(f"{path} exists; replace the data set with --overwrite")
    written = set(_write_shards(reader, target, counts))
    for stale in set(target.glob(SHARDS)) - written:
        if re.fullmatch(r"train-\d{5}\.parquet", stale.name):
            stale.unlink()  # from an earlier export with more shards
    with replacing(target / CARD) as partial, writing(partial) as file:
        file.write(card(reader, counts, target.resolve().name).encode())


def is_ours(target: Path) -> bool:
    """Return whether the card in a folder is one that captioner wrote."""
    path = target / CARD
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(1_000)


def shard_name(number: int) -> str:
    """Return the path of a shard in its data set."""
    return f"data/train-{number:05}.parquet"


def _write_shards(reader: OutputReader, folder: Path, counts: Counts) -> Iterator[Path]:
    """Write the shards into a folder, count their rows, and yield each when it is whole."""
    parquet = needed("pyarrow.parquet")
    form = _form(reader)
    schema = _schema(form)
    groups = _groups(reader, form, schema, counts)
    group = next(groups, None)
    number = 0
    while group is not None or not number:
        path = folder / shard_name(number)
        with (
            replacing(path) as partial,
            writing(partial) as file,
            parquet.ParquetWriter(file, schema) as writer,
        ):
            count = size = 0
            while group is not None and count < SHARD_ROWS and size < SHARD_BYTES:
                writer.write_batch(group)
                count, size = count + group.num_rows, size + group.nbytes
                group = next(groups, None)
        yield path
        number += 1


def _form(reader: OutputReader) -> _Form:
    """Return the columns that fit all rows."""
    contents, several = reader.contents, False
    for row in reader.rows():
        several = several or len(contents.images(row)) > 1
    images = contents.options.image_field or ("images" if several else "image")

    def others() -> Iterator[dict[str, Any]]:
        for row in reader.rows():
            own = images, image_field_of(row, contents.options.image_field)
            yield {name: value for name, value in row.items() if name not in own}

    columns = InferredColumns(column_names(others()), others())
    columns.settle(others())
    return _Form(images, several, columns)


def _schema(form: _Form) -> Any:
    arrow = needed("pyarrow")
    kind: Any = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    feature: dict[str, Any] = {"_type": "Image"}
    if form.several:
        kind, feature = arrow.list_(kind), {"feature": feature, "_type": "List"}
    described = json.dumps({"info": {"features": {form.images: feature}}})
    schema = arrow.schema([(form.images, kind)], {"huggingface": described})
    return with_fields(schema, form.others.fields())


def _groups(reader: OutputReader, form: _Form, schema: Any, counts: Counts) -> Iterator[Any]:
    """Yield record batches of bounded size."""
    arrow = needed("pyarrow")
    images: list[Any] = []
    rows: list[dict[str, Any]] = []

    def group() -> Any:
        arrays = [arrow.array(images, schema.field(form.images).type), *form.others.arrays(rows)]
        made = arrow.record_batch(arrays, schema=schema)
        images.clear()
        rows.clear()
        return made

    size = left_out = 0
    for row, embedded in reader.rows_with_images():
        found = _images(reader, row, embedded)
        if not found:
            left_out += 1
            continue
        counts.add(row)
        images.append(found if form.several else found[0])
        rows.append(row)
        size += sum(len(one["bytes"]) for one in found)
        if size >= GROUP_BYTES or len(rows) >= GROUP_ROWS:
            yield group()
            size = 0
    if rows:
        yield group()
    counts.left_out = left_out
    warn_count(left_out, *LEFT_OUT, "the images are not on this machine, or are videos")


def _images(
    reader: OutputReader, row: dict[str, Any], embedded: dict[str, bytes]
) -> list[dict[str, Any]]:
    """Return the images of a row as `datasets` keeps them; empty if one is missing or a video."""
    found = []
    for image in reader.contents.images(row):
        data = reader.contents.image_bytes(image, embedded)
        if data is None or video_format(data):
            return []
        name = PurePath(image.path).name if image.path else None
        found.append({"bytes": data, "path": name})
    return found
