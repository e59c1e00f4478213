"""Opens the input of a run, and checks that the run may write its output."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

from captioner.core.errors import SettingsError
from captioner.core.progress import Spent
from captioner.engine.first_look import check_first_records, first_records
from captioner.executors.batch_api.ledger import Ledger
from captioner.journal.checkpoint import read_checkpoint
from captioner.journal.companions import check_companions, checkpoint_path, journal_path
from captioner.journal.disk import Files
from captioner.outputs.export import first_file
from captioner.readers.registry import OpenedInput, open_files, open_input
from captioner.settings.locations import location, storage_url
from captioner.settings.options import PromptSettings
from captioner.settings.remembered import SEAL, unsealed

if TYPE_CHECKING:
    from pathlib import Path

    from captioner.core.protocols import Source
    from captioner.settings.settings import Settings

logger = logging.getLogger(__name__)


def open_source(settings: Settings) -> OpenedInput:
    """Return the input: its source, its format and the field that holds images.

    Raises:
        SettingsError: There is no input, or it is the output itself.
    """
    path = settings.input
    if settings.files:
        return open_files(settings.files)
    if path is None:
        raise SettingsError("an input is needed")
    fields = settings.records
    given = fields.input_format
    if given is None and path.is_dir() and not settings.is_to_stdout:
        # As an earlier run did: its output inside the folder may make it look different.
        journal = journal_path(settings.output_path, settings.run.output_format)
        checkpoint = read_checkpoint(Files(), journal)
        given = checkpoint.settings.get("folder_of") if checkpoint else None
    found = open_input(
        path,
        given,
        image_field=fields.image_field,
        max_line=fields.max_line,
        split=fields.split,
    )
    if settings.is_to_stdout:
        return found
    inside = path.is_dir() and settings.output_path.absolute().is_relative_to(path.absolute())
    if inside and found.format in ("webdataset", "parquet"):
        raise SettingsError(
            f"the output would be inside the input folder {path} and be read as input next time; "
            "choose another place with -o"
        )
    sidecars = settings.run.output_format in ("txt", "caption", "xmp")
    same = os.path.realpath(path) == os.path.realpath(settings.output_path) and not sidecars
    if same or (settings.upload is not None and storage_url(path) == settings.upload):
        raise SettingsError(
            f"the output would overwrite the input {location(path)}; choose another with -o"
        )
    return found


async def look_first(source: Source, settings: Settings) -> None:
    """Check the first records of an input before anything is sent.

    Args:
        source: Reads the records of the run.
        settings: The settings of the run, with the image field of the input.

    Raises:
        SettingsError: See `check_first_records`.
    """
    slow = str(settings.input) == "-"
    records = await first_records(source, once=slow)
    await asyncio.to_thread(check_first_records, records, settings)


def refuse_strange_files(settings: Settings, files: Files) -> None:
    """Refuse an output with a link, a pipe or a folder in the place of one of its files.

    Raises:
        SettingsError: There is one, or there is no output.
    """
    if settings.input is None and settings.output is None and not settings.files:
        raise SettingsError("an output is needed: there is no input to name it after")
    output = settings.output_path
    journal = journal_path(output, settings.run.output_format)
    try:
        check_companions(output, journal, files)
    except OSError as error:
        raise SettingsError(f"cannot use {output}: {error.strerror}") from None


def spent_before(settings: Settings, files: Files) -> Spent:
    """Return what earlier runs of the output have used."""
    journal = journal_path(settings.output_path, settings.run.output_format)
    found = read_checkpoint(files, journal)
    return found.spent if found is not None else Spent()


def is_redone(settings: Settings, files: Files) -> bool:
    """Return whether an earlier run began to replace captions and has not finished."""
    journal = journal_path(settings.output_path, settings.run.output_format)
    found = read_checkpoint(files, journal)
    return found is not None and bool(found.redo)


def options_before(settings: Settings) -> dict[str, Any]:
    """Return the options that the output of a run remembers; empty without an output.

    Those that this user did not seal on this machine are not used, and a warning says so.
    """
    try:
        journal = journal_path(settings.output_path, settings.run.output_format)
        found = read_checkpoint(Files(), journal)
    except (OSError, SettingsError):
        return {}  # the run will tell
    if found is None or found.options.keys() <= {SEAL}:
        return {}
    options = unsealed(found.options)
    if options is None:
        logger.warning(
            "the options in %s are not used: they were noted by another user, on another machine, "
            "or by the author of the data set. Give those that you need.",
            checkpoint_path(journal).name,
        )
    return options or {}


def refuse_other_outputs(settings: Settings, journal: Path) -> None:
    """Refuse an output with open batches, or one that no run of captioner has written.

    Raises:
        SettingsError: The output is such a one.
    """
    if not settings.batch.any and Ledger.of(journal).batches:
        raise SettingsError(
            f"batches of {journal.name} are not finished: continue with --batch-api or "
            "--from-batch-file"
        )
    if journal == settings.output_path or settings.run.overwrite or journal.exists():
        return
    path = first_file(settings.output_path)
    if path.is_file():
        raise SettingsError(
            f"{path} already exists, and captioner has not written it; choose another output "
            "with -o, or replace it with --overwrite"
        )


def warn_of_unused(settings: Settings) -> None:
    """Warn of a question that no stage asks. It is not refused: it may be in the environment."""
    prompt, default = settings.prompt, PromptSettings()
    unused = [] if prompt.prompt == default.prompt else ["--prompt"]
    unused += [] if prompt.system_prompt == default.system_prompt else ["--system-prompt"]
    if unused and settings.stages and all("prompt" in one.options for one in settings.stages):
        logger.warning(
            "no stage uses %s, for each has a prompt of its own; leave it out, or write it into "
            "the [[stage]] table of a stage",
            " and ".join(unused),
        )
