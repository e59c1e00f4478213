"""An output whose address is in an object store: a local one, uploaded when it is complete."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.core.errors import SettingsError, UploadError
from captioner.core.secrets import without_secrets
from captioner.core.subprocesses import program
from captioner.journal.checkpoint import read_checkpoint
from captioner.journal.companions import journal_path
from captioner.outputs.export import (
    first_file,
    object_exists,
    open_store,
    output_files,
    start_upload,
)
from captioner.settings.locations import storage_url
from captioner.settings.remembered import UPLOAD

if TYPE_CHECKING:
    from captioner.core.cancellation import CancelToken
    from captioner.journal.disk import Files
    from captioner.settings.settings import Settings


def refuse_other_object(settings: Settings, files: Files) -> None:
    """Refuse an address at which there is something else than the output. Blocking.

    The object is the output if the journal names the same address, or if it has no checkpoint,
    because it was downloaded.

    Raises:
        SettingsError: There is such an object, or the store cannot be reached.
    """
    if settings.upload is None:
        return
    open_store(settings.upload)
    output, url = settings.output_path, without_secrets(settings.upload)
    journal = journal_path(output, settings.run.output_format)
    is_there = files.kind(journal) == "file"
    checkpoint = read_checkpoint(files, journal)
    options = checkpoint.options if checkpoint is not None else {}
    is_own = is_there and options.get(UPLOAD, "" if options else url) == url
    first = storage_url(first_file(Path(settings.upload))) or settings.upload
    if is_own or settings.run.overwrite or not object_exists(first):
        return
    why = "was not written to it" if is_there else "is not here"
    continued = f"download it as {output} to continue it, " if journal == output else ""
    raise SettingsError(
        f"output: {url} exists, but {journal}, from which a run continues it, {why}: {continued}"
        "choose another name with -o, or replace it with --overwrite"
    )


async def upload_output(settings: Settings, cancel: CancelToken) -> None:
    """Upload a complete output to its address, if it has one.

    Raises:
        StoppedError: The run was cancelled first.
        UploadError: The store refused; the message says how to upload it again.
    """
    if settings.upload is None:
        return
    output, run = settings.output_path, settings.run
    uploading = start_upload(output_files(output), settings.upload)

    async def end() -> None:
        await asyncio.wrap_future(uploading)

    try:
        await cancel.race(end())
    except UploadError as error:
        form = ["--to-format", run.output_format] if run.output_format else []
        form += ["--csv-safe"] if run.csv_safe else []
        target = without_secrets(settings.upload)
        again = ["export", str(output), "--to", target, *form, "--overwrite"]
        raise UploadError(
            f"{error}. The captions are safe in {output}; to upload them again: "
            f"{shlex.join([*program(), *again])}"
        ) from None
