"""Paths and formats of an output and of the files that belong to it.

For an output ``run.csv``, which cannot be appended to, the files beside it are::

    run.csv.jsonl                the journal; for a JSONL output the output itself
    run.csv.failed.jsonl         the failures
    run.csv.review.jsonl         the reviews
    run.csv.votes.jsonl          the votes between its captions and those of other outputs
    run.csv.page                 the address of the page, only while it is open
    run.csv.jsonl.ckpt           the checkpoint
    run.csv.jsonl.lock           the lock, only during a run
    run.csv.jsonl.index          the page's index of the rows; rebuilt if it is removed
    run.csv.jsonl.made           which rows earlier settings made, once they have changed
    run.csv.jsonl.answers        answers of finished stages
    run.csv.jsonl.broken-1       what a recovery cut off, or could not be put into a changed output
    run.csv.jsonl.replaced-1     rows that --redo took out
    run.csv.jsonl.batch/         batches of a batch API
    run.csv.jsonl.shards/        shards of an unfinished run on Ray
    run.csv.jsonl.gathered       those shards, put together

Failures and reviews of ``run.jsonl`` are ``run.failed.jsonl`` and ``run.review.jsonl``. Any other
output uses its full name, so that ``run.jsonl``, ``run.csv`` and ``run.parquet`` do not share them
(only ``run`` without a suffix shares them with ``run.jsonl``).
Earlier versions left the suffix out for every output. An existing file with such a name stays in
use for an output that was begun before, unless a ``run.jsonl`` beside it owns the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.core.errors import SettingsError
from captioner.core.regular import not_regular
from captioner.settings.locations import storage_url

if TYPE_CHECKING:
    from pathlib import Path

    from captioner.journal.disk import Files
    from captioner.settings.options import OutputFormat

REPLACED, BROKEN = ".replaced", ".broken"
NUMBERED = (REPLACED, BROKEN, ".rejected")
"""Endings of files with what was taken out of a journal, before a number; earlier versions kept
rejected captions in the last one."""

_FORMATS: dict[str, OutputFormat] = {
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".db": "sqlite",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
}


ENDINGS = (".jsonl", ".ndjson", *_FORMATS)
"""Endings of outputs that name a format."""


def format_of(output: Path) -> OutputFormat:
    """Return the format that an output's name implies; JSONL by default."""
    if output.name in ("metadata.jsonl", "metadata.csv", "metadata.parquet"):
        return "imagefolder"
    return _FORMATS.get(output.suffix.lower(), "jsonl")


def companion(path: Path, ending: str) -> Path:
    """Return the path with an ending added to its full name."""
    return path.with_name(path.name + ending)


def journal_path(output: Path, kind: OutputFormat | None = None) -> Path:
    """Return where captions are appended: the output itself if it is JSONL."""
    return output if (kind or format_of(output)) == "jsonl" else companion(output, ".jsonl")


def output_of(path: Path) -> Path:
    """Return the output of a journal (``x.csv`` for ``x.csv.jsonl``), or the path itself."""
    if not path.name:
        return path
    output = path.with_suffix("")
    is_journal = path.suffix == ".jsonl" and format_of(output) != "jsonl" and output.exists()
    return output if is_journal else path


def find_journal(output: Path, files: Files) -> Path:
    """Return the existing journal of an output.

    Raises:
        SettingsError: There is no such output.
    """
    if not output.name:
        raise SettingsError(f"{output} is a folder: give the captions file of a run")
    if url := storage_url(output):
        raise SettingsError(
            f"an output in an object store cannot be read in place: copy {url} and the files whose "
            "names begin alike to a local folder"
        )
    for path in (journal_path(output), companion(output, ".jsonl"), output):
        if files.kind(path) == "file":
            return path
    shards = shards_folder(journal_path(output))
    if files.kind(shards) == "folder":
        raise SettingsError(
            f"there is no output {output} yet: an unfinished run on Ray keeps it in {shards}"
        )
    raise SettingsError(f"there is no output {output}")


def failures_path(output: Path) -> Path:
    """Return where the failed records of an output are; see the module's docstring."""
    return _sidecar(output, ".failed.jsonl")


def reviews_path(output: Path) -> Path:
    """Return where the reviews of an output are; see the module's docstring."""
    return _sidecar(output, ".review.jsonl")


def votes_path(output: Path) -> Path:
    """Return where the votes between an output and others are; see the module's docstring."""
    return _sidecar(output, ".votes.jsonl")


def page_path(output: Path) -> Path:
    """Return where the address of an output's page is, if no terminal shows it."""
    return companion(output, ".page")


def _sidecar(output: Path, ending: str) -> Path:
    short, full = output.with_name(output.stem + ending), companion(output, ending)
    if output.suffix == ".jsonl":
        return short
    if full.exists() or not short.exists() or output.with_suffix(".jsonl").exists():
        return full
    begun = output.exists() or companion(output, ".jsonl").exists()
    return short if begun else full


def checkpoint_path(journal: Path) -> Path:
    """Return the path of a journal's checkpoint."""
    return companion(journal, ".ckpt")


def made_path(journal: Path) -> Path:
    """Return where it stands which rows of a journal earlier settings made."""
    return companion(journal, ".made")


def answers_path(journal: Path) -> Path:
    """Return where the answers of finished stages are kept."""
    return companion(journal, ".answers")


def lock_path(journal: Path) -> Path:
    """Return the path of a journal's lock, which exists while a run writes to it."""
    return companion(journal, ".lock")


def index_path(journal: Path) -> Path:
    """Return the path of the page's index of a journal's rows."""
    return companion(journal, ".index")


def shards_lock_path(journal: Path) -> Path:
    """Return the path of the lock of a run on Ray."""
    return companion(journal, ".shards.lock")


def batch_folder(journal: Path) -> Path:
    """Return the folder of the batches that were sent to a batch API."""
    return companion(journal, ".batch")


def shards_folder(journal: Path) -> Path:
    """Return the folder of the shards of a run on Ray."""
    return companion(journal, ".shards")


def gathered_path(journal: Path) -> Path:
    """Return where the shards of a run on Ray are put together."""
    return companion(journal, ".gathered")


def check_companions(output: Path, journal: Path, files: Files) -> None:
    """Refuse an output beside which an unexpected file has the name of one of its files.

    Following a link would overwrite a file elsewhere, and a pipe would block.

    Raises:
        SettingsError: It is a link, a pipe, a device, or a folder in the place of a file.
    """
    locks = lock_path(journal), shards_lock_path(journal)
    ours = failures_path(output), reviews_path(output), answers_path(journal), *locks
    replaced = [checkpoint_path(journal), gathered_path(journal), page_path(output)]
    for path in (journal, *ours, *replaced, made_path(journal)):
        if (kind := files.kind(path)) not in ("missing", "file"):
            raise SettingsError(not_regular(path))
        if path in ours and kind == "file" and files.is_linked(path):
            raise SettingsError(
                f"{path} is a hard link: writing to it would change another file as well; "
                "remove it or choose another output with -o"
            )
    for folder in (batch_folder(journal), shards_folder(journal)):
        if (kind := files.kind(folder)) not in ("missing", "folder"):
            raise SettingsError(
                f"{folder} is not a folder; remove it or choose another output with -o"
            )
        for name in files.names(folder) if kind == "folder" else ():
            if files.kind(folder / name) != "file":
                raise SettingsError(not_regular(folder / name))


def unused_path(files: Files, journal: Path, ending: str) -> Path:
    """Return the first path ``<journal><ending>-<n>`` (n = 1, 2, ...) that does not exist."""
    number = 1
    while files.kind(path := companion(journal, f"{ending}-{number}")) != "missing":
        number += 1
    return path
