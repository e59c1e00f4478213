"""The commands apart from a run: what they print, and their exit status.

Each imports what only it needs, so that the others start fast.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.cli.console import json_of, say
from captioner.cli.page_address import address_file, how_to_open
from captioner.cli.signals import awake, handled, unwinding
from captioner.cli.summaries import (
    describe_check,
    describe_estimate,
    describe_report,
    describe_scores,
)
from captioner.core.errors import OutputDamagedError, SettingsError
from captioner.core.humanize import counted, printable, printable_lines
from captioner.core.log import forward_warnings
from captioner.core.regular import reading
from captioner.journal.companions import find_journal, output_of
from captioner.journal.disk import Files
from captioner.settings.locations import check_folder, location, storage_url

if TYPE_CHECKING:
    from captioner.settings.options import OutputFormat
    from captioner.settings.settings import Settings


@forward_warnings(say)
def check_in_console(*, output: Path, source: Path | None, as_json: bool) -> int:
    """Print the state of an output and return the exit status."""
    from captioner.outputs.check import check_output

    try:
        report = asyncio.run(awake(check_output(output_of(output), source)))
    except OSError as error:
        raise SettingsError(str(error)) from None
    print(json_of(report) if as_json else describe_check(report))
    return OutputDamagedError.exit_code if report.violations else 0


@forward_warnings(say)
def estimate_in_console(settings: Settings, *, probe: int, as_json: bool) -> None:
    """Print what a run will take."""
    from captioner.engine.estimate import estimate

    found = asyncio.run(awake(estimate(settings, probe=probe)))
    print(json_of(found) if as_json else describe_estimate(found, settings))


@unwinding()
@forward_warnings(say)
def report_in_console(
    *, output: Path, html: Path | None, sample: int, image_root: Path | None, as_json: bool
) -> None:
    """Print a report on captions, or write it as a page."""
    from captioner.outputs.report import make_report, write_page

    images = sample if html is not None else 0
    report = make_report(output, sample=images, image_root=image_root)
    if html is not None:
        write_page(report, html)
    if as_json:
        print(json_of(report))
    elif html is None:
        print(describe_report(report))
    else:
        say(f"written: {html}")


@forward_warnings(say)
def eval_in_console(*, output: Path, references: Path, as_json: bool) -> None:
    """Print the scores of captions against references."""
    from captioner.outputs.scores import score

    found = score(output, references)
    print(json_of(found) if as_json else describe_scores(found))


@unwinding()
@forward_warnings(say)
def export_in_console(
    *, output: Path, to: str, to_format: OutputFormat | None, **options: Any
) -> None:
    """Write the captions of a run in another format."""
    from captioner.outputs.check import check_output
    from captioner.outputs.export import check_format, export
    from captioner.outputs.stored import local_copy

    target = Path(to)
    if storage_url(target) and storage_url(target) == storage_url(output):
        raise SettingsError(f"to: the captions are made from {location(target)}; choose another")
    check_folder(to, to_format, name="to", flag="--to-format")
    kind = check_format(target, to_format)
    with local_copy(output_of(output)) as copy:
        export(find_journal(copy, Files()), target, kind, output=copy, **options)
    say(f"written: {to}")
    found = asyncio.run(check_output(output, options.get("source")))
    if found.pending:
        records = found.captioned + found.failed + found.pending
        say(
            f"the run is not finished: {found.captioned:,} captioned, {found.failed:,} failed, "
            f"{found.pending:,} pending of {counted(records, 'record')}"
        )


@unwinding()
@forward_warnings(say)
def remove_in_console(*, output: Path, yes: bool) -> int:
    """Remove an output and the files that belong to it, once the user agrees."""
    from captioner.executors.batch_api.ledger import Ledger
    from captioner.outputs.remove import own_files, remove_files

    files = Files()
    own = own_files(output_of(output), files)
    if Ledger.of(own.journal).batches:
        raise SettingsError(
            f"batches of {own.journal.name} are not finished: cancel them first with "
            f"captioner batch cancel {shlex.quote(str(output))}"
        )
    if output.is_dir():
        say(f"not removed: the files in {output}")
    for path in own.strange:
        say(f"not removed, because captioner did not write it: {path}")
    print(printable_lines("\n".join(map(str, own.found))), flush=True)
    if not yes:
        if not sys.stdin.isatty():
            raise SettingsError("nothing was removed: add --yes to remove these files")
        if input(f"remove {counted(len(own.found), 'file')}? [y/N] ").lower() not in ("y", "yes"):
            say("nothing was removed")
            return 1
    try:
        remove_files(own, files)
    except OSError as error:
        raise SettingsError(f"{error.filename}: {error.strerror}") from None
    say(f"{counted(len(own.found), 'file')} removed")
    return 0


@unwinding()
@forward_warnings(say)
def batch_in_console(*, output: Path, cancel: bool) -> None:
    """Print the state of a run's batches, cancelled or not."""
    from captioner.executors.batch_api.ledger import Ledger
    from captioner.executors.batch_api.status import look_at_batches

    ledger = Ledger.of(find_journal(output, Files()))
    for line in asyncio.run(awake(look_at_batches(ledger, cancel=cancel))):
        print(printable(line))


@forward_warnings(say)
def view_in_console(
    *, output: Path, versus: Path | None, host: str, port: int, image_root: Path | None
) -> None:
    """Serve the page of an output, or of two that are compared, until a signal arrives."""
    from captioner.outputs.viewer import Viewer, ViewerStore

    output, journal = _captions_of(output)
    other = ViewerStore(*_captions_of(versus), image_root=image_root) if versus else None
    viewer = Viewer(
        output, journal=journal, host=host, port=port, image_root=image_root, versus=other
    )

    async def serve() -> None:
        stop = asyncio.Event()
        with handled(lambda _: stop.set()):
            async with viewer:
                with contextlib.ExitStack() as stack:
                    what = "it"
                    if sys.stdout.isatty():
                        print(viewer.url, flush=True)
                    else:
                        path = stack.enter_context(address_file(viewer.url, output))
                        print(viewer.origin, flush=True)
                        what = f"the address in {path}"
                    say(how_to_open(what, host, viewer.port, os.environ))
                    await stop.wait()
                if viewer.comparison is not None:
                    say((await asyncio.to_thread(viewer.comparison.result))["summary"])

    asyncio.run(serve())


def _captions_of(path: Path) -> tuple[Path, Path]:
    """Return an output and its journal.

    Raises:
        SettingsError: It does not hold captions.
    """
    output = output_of(path)
    journal = find_journal(output, Files())
    with reading(journal) as file:
        if file.read(1) not in (b"", b"{"):
            raise SettingsError(f"{journal} does not hold captions; name a run's output")
    return output, journal
