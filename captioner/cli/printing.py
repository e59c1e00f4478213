"""Captions on standard output: rows with ``-o -``, or the caption of a single image."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from captioner.core.humanize import printable_json, printable_lines
from captioner.core.types import Caption
from captioner.journal.row_encoder import RowEncoder
from captioner.readers.imagefiles import is_media

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captioner.core.types import Outcome
    from captioner.settings.settings import Settings


def is_single(settings: Settings) -> bool:
    """Return whether a run is a look at one image or video, which writes no file."""
    path = settings.input
    return (
        path is not None
        and settings.output is None
        and is_media(path.name)
        and path.is_file()
        and not (settings.run.again or settings.run.view or settings.run.output_format)
        and not (settings.batch.any or settings.cluster.engine == "ray")
    )


def writes_nothing(settings: Settings) -> bool:
    """Return whether captions are printed and no file is written."""
    return settings.is_to_stdout or is_single(settings)


class PrintSink:
    """Prints rows to standard output, and failures as a line for a person.

    Args:
        settings: The settings of the run.
        say: Prints a line to standard error.
        bare: Print captions without their rows.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None], *, bare: bool) -> None:
        self._rows = RowEncoder(settings.record_keys, settings.fields)
        self._say = say
        self._bare = bare
        # Rows may have the question without --with prompt. One caption is printed without it.
        unasked = {"prompt"}.difference(settings.captions.with_)
        self._implied = {f"{settings.fields[0]}_{name}" for name in unasked}
        self._lock = asyncio.Lock()

    async def put(self, outcomes: Sequence[Outcome]) -> None:
        """Return once the outcomes are printed; a reader of the output may be slow.

        Raises:
            BrokenPipeError: Nothing reads standard output any more.
        """
        async with self._lock:
            await asyncio.to_thread(self._print, outcomes)

    def _print(self, outcomes: Sequence[Outcome]) -> None:
        out = sys.stdout
        for outcome in outcomes:
            if not isinstance(outcome, Caption):
                line = "captioner" if self._bare else f"line {outcome.record.number}"
                self._say(f"{line}: {outcome.message} ({outcome.code})")
            elif self._bare and self._is_text(outcome):
                out.write((printable_lines if out.isatty() else str)(outcome.text) + "\n")
            else:
                row = self._rows.caption(outcome).decode()
                out.write(printable_json(row) if out.isatty() else row)
        out.flush()

    def _is_text(self, outcome: Caption) -> bool:
        """Return whether the row has no more than a caption that is text."""
        return isinstance(outcome.text, str) and self._implied.issuperset(
            name for name, _ in outcome.more
        )
