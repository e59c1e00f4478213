"""A run at a terminal: signals, event loop, display, summary, exit code.

Each command imports what only it needs, so that runs start fast.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shlex
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol

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
from captioner.core.log import forward_warnings
from captioner.core.progress import Progress
from captioner.core.subprocesses import ease_garbage_collection, keep_freed_memory
from captioner.executors.local import run_batch
from captioner.journal.companions import find_journal, journal_path, output_of
from captioner.journal.disk import Files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from captioner.core.progress import RunReport
    from captioner.outputs.reader import Reviewed
    from captioner.outputs.viewer import Viewer, ViewerThread
    from captioner.settings.options import OutputFormat
    from captioner.settings.settings import Settings

P = ParamSpec("P")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SOME_FAILED = 3


def run_in_console(settings: Settings, *, debug: bool = False, as_json: bool = False) -> int:
    """Run to the end or to a signal, show the progress, and return the exit status."""
    ease_garbage_collection()
    keep_freed_memory()
    try:
        report, signalled = run_watched(settings, as_json=as_json)
    except Exception as error:
        if isinstance(error, CaptionerError):
            text, status = str(error), getattr(error, "exit_code", 1)
        elif debug:
            raise
        else:
            status = 1
            text = (
                f"internal error ({type(error).__name__}: {error}). Finished captions are saved. "
                "Please report it; --debug shows where it happened."
            )
        if settings.run.log_json:
            JsonLog(Progress(), sys.stderr).event("error", message=text, exit_code=status)
        else:
            _say(f"captioner: {text}")
        return status
    if signalled:
        return 128 + signalled
    pending = settings.batch.any and not report.complete and settings.batch.to_batch_file is None
    return SOME_FAILED if report.failed or pending else 0


def run_watched(
    settings: Settings, *, as_json: bool = False, summary: bool = True
) -> tuple[RunReport, int]:
    """Run to the end or to a signal and show the progress; with ``as_json`` print the report.

    ``summary=False`` leaves out the lines at the end, which name flags of the command.

    Returns:
        The report, and the signal that stopped the run or 0.

    Raises:
        SettingsError: The settings are invalid.
        RunError: The run stopped early, after its report was shown.
    """
    import uvloop

    # Pillow's remarks about the metadata of single images would flood the terminal.
    warnings.filterwarnings("ignore", module="PIL")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Session(settings, as_json=as_json, summary=summary).run())


def shows_warnings(command: Callable[P, int]) -> Callable[P, int]:
    """Print the warnings that are logged while a command runs."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        with forward_warnings(_say):
            return command(*args, **kwargs)

    return wrapped


@shows_warnings
def check_in_console(output: Path, source: Path | None, *, as_json: bool) -> int:
    """Print the state of an output and return the exit status."""
    from captioner.outputs.check import check_output

    try:
        report = asyncio.run(check_output(output_of(output), source))
    except OSError as error:
        raise SettingsError(str(error)) from None
    print(_json(report) if as_json else describe_check(report))
    return OutputDamagedError.exit_code if report.violations else 0


@shows_warnings
def estimate_in_console(settings: Settings, *, probe: int, as_json: bool) -> int:
    """Print what a run will take and return the exit status."""
    from captioner.engine.estimate import estimate

    found = asyncio.run(estimate(settings, probe=probe))
    print(_json(found) if as_json else describe_estimate(found, settings))
    return 0


@shows_warnings
def report_in_console(
    output: Path, target: Path | None, *, sample: int, image_root: Path | None, as_json: bool
) -> int:
    """Print a report on captions, or write it as a page, and return the exit status."""
    from captioner.outputs.report import make_report, write_page

    images = sample if target is not None else 0
    report = make_report(output, sample=images, image_root=image_root)
    if target is not None:
        write_page(report, target)
    if as_json:
        print(_json(report))
    elif target is None:
        print(describe_report(report))
    else:
        _say(f"written: {target}")
    return 0


@shows_warnings
def score_in_console(output: Path, references: Path, *, as_json: bool) -> int:
    """Print the scores of captions against references and return the exit status."""
    from captioner.outputs.scores import score

    found = score(output, references)
    print(_json(found) if as_json else describe_scores(found))
    return 0


@shows_warnings
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

    output = output_of(output)
    export(
        find_journal(output, Files()),
        target,
        check_format(target, kind),
        image_root=image_root,
        source=source,
        overwrite=overwrite,
        reviewed=reviewed,
        output=output,
    )
    _say(f"written: {target}")
    return 0


@shows_warnings
def batches_in_console(output: Path, *, cancel: bool) -> int:
    """Print the state of a run's batches, cancelled or not, and return the exit status."""
    from captioner.executors.batch_api.ledger import Ledger
    from captioner.executors.batch_api.status import look_at_batches

    ledger = Ledger.of(find_journal(output, Files()))
    for line in asyncio.run(look_at_batches(ledger, cancel=cancel)):
        print(printable(line))
    return 0


@shows_warnings
def view_in_console(output: Path, *, host: str, port: int, image_root: Path | None) -> int:
    """Serve the page of an output until a signal arrives and return the exit status."""
    from captioner.outputs.viewer import Viewer

    output = output_of(output)
    journal = find_journal(output, Files())
    with journal.open("rb") as file:
        if file.read(1) not in (b"", b"{"):
            raise SettingsError(f"{journal} does not hold captions; name a run's output")
    viewer = Viewer(output, journal=journal, host=host, port=port, image_root=image_root)
    asyncio.run(_view(viewer))
    return 0


async def _view(viewer: Viewer) -> None:
    stop = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with viewer:
        print(viewer.url, flush=True)
        _say("open it in a browser on this machine; Ctrl-C ends it")
        await stop.wait()


class _Session:
    """One run with its display, metrics server and page."""

    def __init__(self, settings: Settings, *, as_json: bool, summary: bool) -> None:
        self._settings = settings
        self._as_json = as_json
        self._summary = summary
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
        with forward_warnings(self._display.say):
            report = await self._watched()
        return report, self._signal

    async def _watched(self) -> RunReport:
        """Run with the page and the metrics server of the settings, and show the result."""
        report: RunReport | None = None
        metrics = page = None
        try:
            if self._settings.run.view:
                page = self._open_page()
            if (port := self._settings.run.metrics_port) is not None:
                metrics = Metrics(self._progress, port)
            async with self._display:
                if self._settings.cluster.workers and self._settings.cluster.engine == "local":
                    self._display.say(
                        "--workers has no effect without --ray; --concurrency sets the requests in "
                        "flight, --processes the processes"
                    )
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
            if report is not None and self._summary:
                self._show(report)
        return report

    def _open_page(self) -> ViewerThread:
        from captioner.outputs.viewer import Viewer, ViewerThread

        output = self._settings.output_path
        viewer = Viewer(
            output,
            journal=journal_path(output, self._settings.run.output_format),
            image_root=self._settings.records.image_root,
            progress=self._progress,
        )
        return ViewerThread(viewer)

    def _show(self, report: RunReport) -> None:
        if isinstance(self._display, JsonLog):
            self._display.event("finished", **report.as_dict())
        else:
            _say(summarise(report, self._settings))
            if self._settings.run.view and report.output:
                _say(f"view them again: captioner view {shlex.quote(report.output)}")
        if self._as_json:
            print(_json(report))

    async def _run(self) -> RunReport:
        progress, cancel = self._progress, self._cancel
        if self._settings.cluster.engine == "ray":
            from captioner.executors.ray.driver import run_on_ray

            return await run_on_ray(self._settings, progress=progress, cancel=cancel)
        return await run_batch(self._settings, progress=progress, cancel=cancel)

    def _on_signal(self, number: int) -> None:
        # The second signal abandons the requests in flight; a third one has its default effect.
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
            f"{self._settings.run.drain:g} s; repeat the signal to abandon them"
        )


class _Report(Protocol):
    def as_dict(self) -> dict[str, Any]: ...


def _json(report: _Report) -> str:
    return orjson.dumps(report.as_dict(), option=orjson.OPT_INDENT_2).decode()


def _say(text: str) -> None:
    """Print to standard error, also if its reader is gone."""
    try:
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
