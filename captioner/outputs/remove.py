"""Removal of an output with the files that belong to it."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from captioner.core.errors import SettingsError
from captioner.journal.checkpoint import read_checkpoint
from captioner.journal.companions import (
    NUMBERED,
    answers_path,
    batch_folder,
    checkpoint_path,
    companion,
    failures_path,
    gathered_path,
    index_path,
    journal_path,
    lock_path,
    made_path,
    reviews_path,
    shards_folder,
    shards_lock_path,
    votes_path,
)
from captioner.outputs.export import output_files

if TYPE_CHECKING:
    from pathlib import Path

    from captioner.journal.disk import Files


class OwnFiles(NamedTuple):
    """The files of an output.

    Attributes:
        journal: The journal.
        found: Files to remove, in this order; the one that shows whose they are is the last.
        folders: Folders to remove, after the files in them.
        strange: What has the name of one of the files and is no regular file.
    """

    journal: Path
    found: list[Path]
    folders: list[Path]
    strange: list[Path]


def own_files(output: Path, files: Files) -> OwnFiles:
    """Return the files of an output.

    Raises:
        SettingsError: No run of captioner has written it.
        OutputDamagedError: A newer version wrote it.
    """
    if not output.name:
        raise SettingsError(f"{output} is a folder: give the captions file of a run")
    journals = journal_path(output), companion(output, ".jsonl"), output
    journal = next((path for path in journals if read_checkpoint(files, path) is not None), None)
    if journal is None:
        raise SettingsError(
            f"there is no checkpoint of {output}: captioner did not write it, and removes nothing"
        )
    named = re.compile(
        re.escape(journal.name) + rf"({'|'.join(map(re.escape, NUMBERED))})-\d+", re.ASCII
    )
    beside = sorted(path for path in journal.parent.iterdir() if named.fullmatch(path.name))
    folders = [batch_folder(journal), shards_folder(journal)]
    own = [failures_path(output), reviews_path(output), votes_path(output)]
    own += [index_path(journal), gathered_path(journal), made_path(journal), answers_path(journal)]
    paths = [*own, *beside]
    for folder in folders:
        if files.kind(folder) == "folder":
            paths += sorted(folder.iterdir())
    last = [*output_files(output), journal, checkpoint_path(journal)]
    found = list(dict.fromkeys([*paths, *last]))
    kinds = {path: files.kind(path) for path in (*found, *folders)}
    return OwnFiles(
        journal,
        [path for path in found if kinds[path] == "file"],
        [path for path in folders if kinds[path] == "folder"],
        [path for path in found if kinds[path] not in ("missing", "file")]
        + [path for path in folders if kinds[path] not in ("missing", "folder")],
    )


def remove_files(own: OwnFiles, files: Files) -> None:
    """Remove the files of an output.

    Raises:
        OutputBusyError: A run is writing to it.
        OSError: The disk refused.
    """
    locks = lock_path(own.journal), shards_lock_path(own.journal)
    with ExitStack() as stack:
        for path in locks:
            stack.callback(files.unlock, files.lock(path), path)
        kept = {path.parent for path in own.strange}
        checkpoint = checkpoint_path(own.journal)
        for path in own.found:
            if path != checkpoint:
                files.remove(path)
        for folder in own.folders:
            if folder not in kept:
                folder.rmdir()
        files.remove(checkpoint)
        files.sync_folder(own.journal.parent)
