"""Which records are captioned again: those that ``--redo`` and ``--retry`` choose."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import orjson

from captioner.core.errors import SettingsError
from captioner.core.keys import KeyTable, digest, off_the_loop
from captioner.core.row import FLAG, field_names
from captioner.core.where import Where
from captioner.engine.selection import file_of, folder_of
from captioner.executors.batch_api.ledger import Ledger
from captioner.journal.companions import answers_path, reviews_path
from captioner.journal.disk import disk_errors
from captioner.journal.finalize import find_rows, set_rows_aside
from captioner.journal.made import read_made
from captioner.journal.reviews import Reviews
from captioner.outputs.rows import caption_texts, parsed

if TYPE_CHECKING:
    from collections.abc import Callable

    from captioner.engine.selection import Selection
    from captioner.journal.failures import StoredFailure
    from captioner.journal.journal import Journal
    from captioner.settings.settings import Settings

logger = logging.getLogger(__name__)


async def take_again(journal: Journal, settings: Settings, records: Selection) -> None:
    """Make captions and failures pending that the settings want again.

    Only records of the run are: other captions could not be replaced. Captions are kept beside the
    output, and failures until there is a newer outcome. If an earlier run with the same settings
    was stopped after this, nothing is taken out again, and that run goes on.

    Args:
        journal: The output, opened.
        settings: The settings of the run.
        records: The records of the run.

    Raises:
        SettingsError: Batches are not finished, or the expression is true for no record and has a
            name that no row has.
        DiskError: The disk refused.
        StoppedError: The run was cancelled.
    """
    run = settings.run
    if run.again is None:
        return
    what = _digest(journal, settings)
    if journal.redo == what:
        logger.warning("the records of %s that are left are captioned again", _options(settings))
        return
    if _has_batches(journal, settings):
        return
    choice = await asyncio.to_thread(_Choice, journal, settings, Where(run.again, "redo"), records)
    rows = KeyTable()
    if run.replaces_captions:
        rows = await asyncio.to_thread(find_rows, journal, choice.has_row)
    failures = await asyncio.to_thread(_find_failures, journal, choice)
    moved: set[int] = set()
    retried: set[int] = set()
    async for batch in records.batches():
        journal.raise_if_stopped()
        if not (len(rows) or len(failures)):
            continue
        for key in await off_the_loop(journal.identity.of_records, batch):
            if (offset := rows.take(key)) is not None:
                moved.add(offset)
            elif (offset := failures.take(key)) is not None:
                retried.add(offset)
    if not (moved or retried):
        await asyncio.to_thread(_report_none, journal, settings, choice.where)
        return
    with disk_errors("write", journal.failures.path):
        await asyncio.to_thread(journal.failures.retry, retried)
    if moved:
        await asyncio.to_thread(set_rows_aside, journal, moved)
    again = bool(moved) and _QUESTIONS.isdisjoint(journal.changed)
    await asyncio.to_thread(_begin, journal, what, again=again)


_NAMES = ("failed", "code", "length", "review", "model", "prompt", "file", "folder")
"""Names in an expression that are not fields of a row."""

_QUESTIONS = frozenset({
    "stages", "model", "prompt", "system_prompt", "preset", "ask", "fallback", "prompt_mix",
})  # fmt: skip
"""Settings that are changed to ask some stages again, not all."""


def _begin(journal: Journal, what: str, *, again: bool) -> None:
    """Note that records are captioned again, with new answers of all stages if ``again``."""
    if again:
        with disk_errors("remove", answers_path(journal.path)):
            answers_path(journal.path).unlink(missing_ok=True)
    journal.begin_redo(what)


def _digest(journal: Journal, settings: Settings) -> str:
    """Return a text that differs if other records or other settings would be used."""
    records = settings.records
    chosen = records.where, records.sample, records.seed, records.limit
    shaping = orjson.dumps(
        [settings.run.again, chosen, journal.settings], option=orjson.OPT_SORT_KEYS
    )
    return digest(shaping).hex()


def _has_batches(journal: Journal, settings: Settings) -> bool:
    """Return whether batches are not finished, which refer to offsets in the files.

    Raises:
        SettingsError: They are not, and captions were to be replaced.
    """
    if not Ledger.of(journal.path).batches:
        return False
    message = f"{_options(settings)}: batches are not finished; run without it until they are"
    if settings.run.replaces_captions:
        raise SettingsError(message)
    logger.warning("%s", message)
    return True


def _options(settings: Settings) -> str:
    return "--redo" if settings.run.redo is not None else "--retry"


def _find_failures(journal: Journal, choice: _Choice) -> KeyTable:
    found = KeyTable()
    for failure in journal.failures.read():
        if not failure.again and choice.has_failure(failure):
            found.add(failure.key, failure.offset)
    return found


def _report_none(journal: Journal, settings: Settings, where: Where) -> None:
    if not (len(journal.done) or len(journal.failures.unclaimed)):
        return
    run = settings.run
    if run.retry_failed and not len(journal.failures.unclaimed) and run.redo is None:
        return
    if run.redo is not None:
        reason = f"it is true for no record of the run: {run.redo}"
        if unseen := ", ".join(sorted(where.unseen - set(field_names(settings.fields)))):
            # Misspelt: pending records would be captioned as those of the expression were to be.
            raise SettingsError(
                f"redo: {reason}; no row has a field {unseen}. Other names are {', '.join(_NAMES)}"
            )
    elif run.retry_failed:
        codes = ", ".join(sorted(journal.failures.by_code())) or "none"
        reason = f"no failure has the code {run.retry_failed!r}; there are {codes}"
    else:
        reason = "the output has no caption that a reviewer rejected"
    logger.warning("%s: %s", _options(settings), reason)


class _Choice:
    """Decides about rows and failures by an expression."""

    def __init__(
        self, journal: Journal, settings: Settings, where: Where, records: Selection
    ) -> None:
        self.where = where
        self._fields = settings.fields
        self._records = records
        self._made = read_made(journal.files, journal.path)
        self._settings = journal.settings
        self._reviews = Reviews(reviews_path(settings.output_path))

    def has_row(self, key: bytes, line: bytes) -> bool:
        row = parsed(line)

        def review() -> str:
            found = self._reviews.of(key, row, self._fields)
            return found.verdict if found is not None else ""

        def made_with(name: str) -> Any:
            own = row.get(f"{self._fields[0]}_{name}")
            return own or (self._made.of(key) or self._settings).get(name)

        flags = (row.get(f"{name}_{FLAG}") for name in self._fields)
        computed: dict[str, Callable[[], Any]] = {
            "failed": lambda: False,
            "code": lambda: next((flag for flag in flags if flag), ""),
            "length": lambda: sum(map(len, caption_texts(row, self._fields[0]))),
            "model": lambda: made_with("model"),
            "prompt": lambda: made_with("prompt"),
            "review": review,
            **self._place(row),
        }
        return self.where(row, computed)

    def has_failure(self, failure: StoredFailure) -> bool:
        row = orjson.loads(failure.line).get("record")
        computed: dict[str, Callable[[], Any]] = {
            "failed": lambda: True,
            "code": lambda: failure.code,
            "length": lambda: None,
            "model": lambda: None,
            "prompt": lambda: None,
            "review": lambda: "",
            **self._place(row),
        }
        return self.where(row, computed)

    def _place(self, row: Any) -> dict[str, Callable[[], Any]]:
        """Return what an expression may ask about the place of a row's first image."""
        return {
            "file": lambda: file_of(self._records.image_of(row)),
            "folder": lambda: folder_of(self._records.image_of(row)),
        }
