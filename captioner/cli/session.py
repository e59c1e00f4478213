"""A run at a terminal: signals, event loop, display, summary, exit code.

What only one command needs is imported by it, so that a run starts without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from captioner.cli.display import Display
from captioner.cli.jsonlog import JsonLog
from captioner.cli.prometheus import ADDRESS, Metrics
from captioner.cli.summaries import (
    describe_check,
    describe_estimate,
    describe_report,
    describe_scores,
    summarise,
)
from captioner.core.cancellation import CancelToken
from captioner.core.errors import CaptionerError, OutputDamagedError, RunError, SettingsError
from captioner.core.humanize import printable
from captioner.core.subprocesses import ease_garbage_collection, keep_freed_memory
from captioner.core.types import Progress
from captioner.executors.local import run_batch
from captioner.journal.disk import Files
from captioner.journal.journal import find_journal, journal_path, output_of

if TYPE_CHECKING:
    from pathlib import Path

    from captioner.core.types import RunReport
    from captioner.outputs.reader import Reviewed
    from captioner.outputs.viewer import Viewer, ViewerThread
    from captioner.settings.options import OutputFormat
    from captioner.settings.settings import Settings

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SOME_FAILED = 3


def run_in_console(settings: Settings, *, debug: bool = False, as_json: bool = False) -> int:
    """Run to the end or to a signal, show what happens, and return the exit status."""
    ease_garbage_collection()
    keep_freed_memory()
    try:
        report, signalled = run_watched(settings, as_json=as_json)
    except (SettingsError, RunError) as error:
        _tell_end(settings, str(error), error.exit_code)
        return error.exit_code
    except CaptionerError as error:
        _tell_end(settings, str(error), 1)
        return 1
    except Exception as error:
        if debug:
            raise
        text = (
            f"internal error ({type(error).__name__}: {error}). Finished captions are saved. "
            "Please report it; --debug shows where it happened."
        )
        _tell_end(settings, text, 1)
        return 1
    if signalled:
        return 128 + signalled
    left = settings.batch.any and not report.complete and settings.batch.to_batch_file is None
    return SOME_FAILED if report.failed or left else 0


def _tell_end(settings: Settings, text: str, status: int) -> None:
    """Say what ended a run."""
    if settings.run.log_json:
        JsonLog(Progress(), sys.stderr).event("error", message=text, exit_code=status)
    else:
        _say(f"captioner: {text}")


def run_watched(settings: Settings, *, as_json: bool = False) -> tuple[RunReport, int]:
    """Run to the end or to a signal and show what happens; with ``as_json`` print the report.

    Returns:
        What was done, and the signal that stopped it; 0 if none did.

    Raises:
        SettingsError: The settings cannot work.
        RunError: The run stopped early; what was done has been shown.
    """
    import uvloop

    # What Pillow remarks about an image's metadata is no news to whoever watches a million.
    warnings.filterwarnings("ignore", module="PIL")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Session(settings, as_json=as_json).run())


def check_in_console(output: Path, source: Path | None, *, as_json: bool) -> int:
    """Print how an output stands and return the exit status."""
    from captioner.outputs.check import check_output

    try:
        report = asyncio.run(check_output(output_of(output), source))
    except (SettingsError, OSError) as error:
        _say(f"captioner: {error}")
        return SettingsError.exit_code
    print(_json(report) if as_json else describe_check(report))
    return OutputDamagedError.exit_code if report.violations else 0


def estimate_in_console(settings: Settings, *, probe: int, as_json: bool) -> int:
    """Print what a run will take and return the exit status."""
    from captioner.engine.estimate import estimate

    try:
        found = asyncio.run(estimate(settings, probe=probe, warn=_say))
    except (SettingsError, RunError) as error:
        _say(f"captioner: {error}")
        return error.exit_code
    print(_json(found) if as_json else describe_estimate(found, settings))
    return 0


def report_in_console(
    output: Path, target: Path | None, *, sample: int, image_root: Path | None, as_json: bool
) -> int:
    """Print what captions are like, or write a page of it, and return the exit status."""
    from captioner.outputs.report import make_report, write_page

    try:
        images = sample if target is not None else 0
        report = make_report(output, sample=images, image_root=image_root)
        if target is not None:
            write_page(report, target)
    except (SettingsError, RunError) as error:
        _say(f"captioner: {error}")
        return error.exit_code
    if as_json:
        print(_json(report))
    elif target is None:
        print(describe_report(report))
    else:
        _say(f"written: {target}")
    return 0


def score_in_console(output: Path, references: Path, *, as_json: bool) -> int:
    """Print how near captions are to references and return the exit status."""
    from captioner.outputs.scores import score

    try:
        found = score(output, references)
    except (SettingsError, RunError) as error:
        _say(f"captioner: {error}")
        return error.exit_code
    print(_json(found) if as_json else describe_scores(found))
    return 0


def export_in_console(
    output: Path,
    target: Path,
    kind: OutputFormat | None,
    *,
    source: Path | None,
    image_root: Path | None,
    overwrite: bool,
    reviewed: Reviewed,
) -> int:
    """Write the captions of a run in another format and return the exit status."""
    from captioner.outputs.export import check_format, export

    try:
        output = output_of(output)
        journal = find_journal(output, Files())
        kind = check_format(target, kind)
        export(
            journal,
            target,
            kind,
            image_root=image_root,
            source=source,
            overwrite=overwrite,
            reviewed=reviewed,
            output=output,
        )
    except (SettingsError, RunError) as error:
        _say(f"captioner: {error}")
        return error.exit_code
    _say(f"written: {target}")
    return 0


def batches_in_console(output: Path, *, cancel: bool) -> int:
    """Print how the batches of a run are, cancelled or not, and return the exit status."""
    from captioner.executors.batch_api.ledger import Ledger
    from captioner.executors.batch_api.status import look_at_batches

    try:
        ledger = Ledger.of(find_journal(output, Files()))
        for line in asyncio.run(look_at_batches(ledger, cancel=cancel)):
            print(printable(line))
    except (SettingsError, RunError) as error:
        _say(f"captioner: {error}")
        return error.exit_code
    return 0


def view_in_console(output: Path, *, host: str, port: int, image_root: Path | None) -> int:
    """Serve the page of an output until a signal ends it and return the exit status."""
    from captioner.outputs.viewer import Viewer

    try:
        output = output_of(output)
        journal = find_journal(output, Files())
        _refuse_no_captions(journal)
        viewer = Viewer(output, journal=journal, host=host, port=port, image_root=image_root)
        asyncio.run(_view(viewer))
    except (SettingsError, RunError) as error:
        _say(f"captioner: {error}")
        return error.exit_code
    return 0


def _refuse_no_captions(journal: Path) -> None:
    with journal.open("rb") as file:
        if file.read(1) not in (b"", b"{"):
            raise SettingsError(f"{journal} holds no captions of a run; name a run's output")


async def _view(viewer: Viewer) -> None:
    over = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    async with viewer:
        print(viewer.url, flush=True)
        _say("open it in a browser on this machine; Ctrl-C ends it")
        await over.wait()


class _Session:
    """One run with somebody watching."""

    def __init__(self, settings: Settings, *, as_json: bool) -> None:
        self._settings = settings
        self._as_json = as_json
        self._progress = Progress()
        self._cancel = CancelToken()
        self._display = (
            JsonLog(self._progress, sys.stderr)
            if settings.run.log_json
            else Display(self._progress, sys.stderr, budget=settings.run.budget)
        )
        self._signal = 0

    async def run(self) -> tuple[RunReport, int]:
        loop = asyncio.get_running_loop()
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, number)
        report: RunReport | None = None
        metrics = page = None
        try:
            if self._settings.run.view:
                page = self._open_page()
            if (port := self._settings.run.metrics_port) is not None:
                metrics = Metrics(self._progress, port)
            async with self._display:
                if page is not None:
                    self._display.say(f"captions: {page.url}")
                if metrics is not None:
                    self._display.say(f"metrics: http://{ADDRESS}:{metrics.port}/metrics")
                report = await self._run()
        except RunError as error:
            report = error.report
            raise
        finally:
            if metrics is not None:
                await asyncio.to_thread(metrics.close)
            if page is not None:
                await asyncio.to_thread(page.close)
            if report is not None:
                self._tell(report)
        return report, self._signal

    def _open_page(self) -> ViewerThread:
        from captioner.outputs.viewer import Viewer, ViewerThread

        settings = self._settings
        root, kind = settings.records.image_root, settings.run.output_format
        output = settings.output_path
        return ViewerThread(
            Viewer(
                output,
                journal=journal_path(output, kind),
                image_root=root,
                progress=self._progress,
            )
        )

    def _tell(self, report: RunReport) -> None:
        """Show what was done."""
        if isinstance(self._display, JsonLog):
            self._display.event("finished", **report.as_dict())
        else:
            _say(summarise(report, self._settings))
            if self._settings.run.view and report.output:
                _say(f"look at them again: captioner view {shlex.quote(report.output)}")
        if self._as_json:
            print(_json(report))

    async def _run(self) -> RunReport:
        progress, cancel, say = self._progress, self._cancel, self._display.say
        if self._settings.cluster.engine == "ray":
            from captioner.executors.ray.driver import run_on_ray

            return await run_on_ray(self._settings, progress=progress, cancel=cancel, warn=say)
        return await run_batch(self._settings, progress=progress, cancel=cancel, warn=say)

    def _on_signal(self, number: int) -> None:
        # Asked twice, what is on the wire is given up; a third time, Python's own way applies.
        if self._cancel:
            self._cancel.force()
            loop = asyncio.get_running_loop()
            for other in SIGNALS:
                loop.remove_signal_handler(other)
                signal.signal(other, signal.SIG_DFL)
            return
        self._signal = signal.SIGTERM if number == signal.SIGHUP else number
        self._cancel.request()
        self._display.say(
            f"stopping: {self._progress.in_flight} requests may finish within "
            f"{self._settings.run.drain:g} s; once more to give them up"
        )


class _Found(Protocol):
    def as_dict(self) -> dict[str, Any]: ...


def _json(found: _Found) -> str:
    """Return what was found as JSON for scripts."""
    return orjson.dumps(found.as_dict(), option=orjson.OPT_INDENT_2).decode()


def _say(text: str) -> None:
    """Print for a person; nobody reading any more is no error."""
    try:
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
