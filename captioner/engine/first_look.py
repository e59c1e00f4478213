"""A look at the first records of an input, before anything is sent or written."""

from __future__ import annotations

from collections import Counter
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import RecordError, SettingsError, WouldBlockError
from captioner.core.jsonbytes import excess
from captioner.core.memory import MemoryBudget
from captioner.core.types import Failure
from captioner.endpoints.openai_chat import OpenAIChat
from captioner.engine.conversation import images_of, read_turns
from captioner.engine.engine import image_folders
from captioner.engine.existing import TextFiles, existing_captions
from captioner.engine.prepare import Preparer, would_block
from captioner.images.archives import Archives
from captioner.journal.companions import journal_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.core.protocols import Source
    from captioner.core.types import InputRecord
    from captioner.settings.settings import Settings

FIRST = 1_000
"""Records that are looked at."""


async def first_records(source: Source, *, once: bool) -> list[InputRecord]:
    """Return the first records of an input, at most `FIRST`.

    Args:
        source: Reads the input, which is closed again.
        once: Take only what one read returns: the input may come slowly.
    """
    found: list[InputRecord] = []
    batches = source.batches()
    try:
        async for batch in batches:
            found += batch[: FIRST - len(found)]
            if len(found) >= FIRST or once:
                break
    finally:
        if hasattr(batches, "aclose"):
            await batches.aclose()
    return found


def check_first_records(records: Sequence[InputRecord], settings: Settings) -> None:
    """Check that a run would not overwrite captions, and that its records have images.

    Args:
        records: The first records of the input, at most `FIRST`.
        settings: The settings of the run.

    Raises:
        SettingsError: Records have captions already and ``existing`` is ``error``, or not one of
            `FIRST` records can be sent.
    """
    if settings.records.existing in (None, "error"):
        _refuse_existing(records, settings)
    if len(records) >= FIRST:
        _refuse_unusable(records, settings)


def _refuse_existing(records: Sequence[InputRecord], settings: Settings) -> None:
    found: Counter[str] = Counter()
    files = 0
    for record in records:
        if excess(record.raw):
            continue  # it will fail
        with suppress(orjson.JSONDecodeError):
            fields_of = orjson.loads(record.raw)
            if isinstance(fields_of, dict):
                found.update(existing_captions(fields_of, settings.fields))
                files += _has_text_file(fields_of, settings)
    if found:
        name, count = found.most_common(1)[0]
        raise SettingsError(
            f"records have a {name!r} already, {count} of the first {len(records)}. Choose "
            "--existing skip to keep those captions, --existing replace to overwrite them, or "
            "another --output-field to have both."
        )
    if files:
        raise SettingsError(
            f"images have a text file that is not empty, {files} of the first {len(records)}. "
            "Choose --existing skip to keep these, or replace, append or prepend."
        )


def _has_text_file(fields: dict[str, Any], settings: Settings) -> bool:
    """Return whether a run that may not find captions would find one in the file of an image."""
    kind, folder = settings.run.output_format, settings.output
    if not settings.writes_text_files or folder is None or settings.existing_files != "error":
        return False
    if journal_path(folder, kind).exists():  # the files may be those of this output
        return False
    with suppress(RecordError):
        images = images_of(read_turns(fields, settings.records, settings.prompt))
        return bool(TextFiles(folder, f".{kind}").text(images))
    return False


def _refuse_unusable(records: Sequence[InputRecord], settings: Settings) -> None:
    images = settings.images
    first = ""
    with closing(Archives(images.max_image_bytes)) as archives:
        preparer = Preparer(
            settings,
            OpenAIChat(""),
            image_folders(settings, archives),
            MemoryBudget(images.memory),
            would_block,
        )
        for record in records:
            try:
                item = preparer.prepare(record)
            except WouldBlockError:
                return  # the image is to be decoded
            if not isinstance(item, Failure):
                return
            first = first or f"{item.code}: {item.message}"
    several = f"none of the first {len(records)} records can be sent. The first: {first}"
    raise SettingsError(
        f"{several if len(records) > 1 else f'the record cannot be sent: {first}'}. "
        "Check --image-field, --image-root and the format of the input."
    )
