"""The commands at work: event loop, signals, display, summaries, exit status.

Each command imports what only it needs, so that runs start fast.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from captioner.cli.display import Display
from captioner.cli.jsonlog import JsonLog, log_file
from captioner.cli.page_address import address_file, how_to_open
from captioner.cli.printing import PrintSink, is_single
from captioner.cli.prometheus import ADDRESS, Metrics
from captioner.cli.signals import SIGNALS, awake, handled, status_of, unwinding
from captioner.cli.summaries import (
    describe_check,
    describe_estimate,
    describe_report,
    describe_scores,
    summarise,
)
from captioner.core.cancellation import CancelToken
from captioner.core.errors import CaptionerError, OutputDamagedError, RunError, SettingsError
from captioner.core.humanize import counted, printable, printable_json, printable_lines, wrapped
from captioner.core.log import forward_warnings
from captioner.core.progress import Progress
from captioner.core.regular import reading
from captioner.core.shortage import refuse_too_little, shortage
from captioner.core.subprocesses import ease_garbage_collection, keep_freed_memory
from captioner.executors.local import run_batch
from captioner.executors.opening import options_before
from captioner.journal.companions import find_journal, journal_path, output_of
from captioner.journal.disk import Files
from captioner.settings.locations import check_folder, location, storage_url

if TYPE_CHECKING:
    from captioner.core.progress import RunReport
    from captioner.outputs.viewer import ViewerThread
    from captioner.settings.options import OutputFormat
    from captioner.settings.settings import Settings

SOME_FAILED = 3


def _say(text: str) -> None:
    """Print to standard error, also if nothing reads it; on a terminal between words."""
    text = printable_lines(text)
    with contextlib.suppress(OSError, ValueError):  # standard error is no terminal
        text = wrapped(text, os.get_terminal_size(sys.stderr.fileno()).columns or 80)
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _json(report: Any) -> str:
    return printable_json(orjson.dumps(report.as_dict(), option=orjson.OPT_INDENT_2).decode())


@forward_warnings(_say)
def options_to_recall(settings: Settings) -> dict[str, Any]:
    """Return the options that the output of a run remembers, and say why it may use none."""
    return options_before(settings)


def run_in_console(settings: Settings, *, debug: bool = False, as_json: bool = False) -> int:
    """Run to the end or to a signal, show the progress, and return the exit status."""
    ease_garbage_collection()
    keep_freed_memory()
    try:
        report, signalled = run_watched(settings, as_json=as_json)
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, CaptionerError):
            text, status = str(error), getattr(error, "exit_code", 1)
        elif debug:
            raise
        else:
            status = 1
            text = shortage(error) or (
                f"internal error ({type(error).__name__}: {error}). Finished captions are saved. "
                "Please report it; --debug shows where it happened."
            )
        if settings.run.log_json:
            JsonLog(Progress(), sys.stderr).event("error", message=text, exit_code=status)
        else:
            _say(f"captioner: {text}")
        return status
    if signalled:
        return status_of(signalled)
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
    refuse_too_little()
    import uvloop

    # Pillow's remarks about the metadata of single images would flood the terminal.
    warnings.filterwarnings("ignore", module="PIL")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Session(settings, as_json=as_json, summary=summary).run())


@forward_warnings(_say)
def check_in_console(*, output: Path, source: Path | None, as_json: bool) -> int:
    """Print the state of an output and return the exit status."""
    from captioner.outputs.check import check_output

    try:
        report = asyncio.run(awake(check_output(output_of(output), source)))
    except OSError as error:
        raise SettingsError(str(error)) from None
    print(_json(report) if as_json else describe_check(report))
    return OutputDamagedError.exit_code if report.violations else 0


@forward_warnings(_say)
def estimate_in_console(settings: Settings, *, probe: int, as_json: bool) -> None:
    """Print what a run will take."""
    from captioner.engine.estimate import estimate

    found = asyncio.run(awake(estimate(settings, probe=probe)))
    print(_json(found) if as_json else describe_estimate(found, settings))


@unwinding()
@forward_warnings(_say)
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
        print(_json(report))
    elif html is None:
        print(describe_report(report))
    else:
        _say(f"written: {html}")


@forward_warnings(_say)
def eval_in_console(*, output: Path, references: Path, as_json: bool) -> None:
    """Print the scores of captions against references."""
    from captioner.outputs.scores import score

    found = score(output, references)
    print(_json(found) if as_json else describe_scores(found))


@unwinding()
@forward_warnings(_say)
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
    _say(f"written: {to}")
    found = asyncio.run(check_output(output, options.get("source")))
    if found.pending:
        records = found.captioned + found.failed + found.pending
        _say(
            f"the run is not finished: {found.captioned:,} captioned, {found.failed:,} failed, "
            f"{found.pending:,} pending of {counted(records, 'record')}"
        )


@unwinding()
@forward_warnings(_say)
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
        _say(f"left alone: the files in {output}")
    for path in own.strange:
        _say(f"left alone, for captioner did not write it: {path}")
    print(printable_lines("\n".join(map(str, own.found))), flush=True)
    if not yes:
        if not sys.stdin.isatty():
            raise SettingsError("nothing was removed: add --yes to remove these files")
        if input(f"remove {counted(len(own.found), 'file')}? [y/N] ").lower() not in ("y", "yes"):
            _say("nothing was removed")
            return 1
    try:
        remove_files(own, files)
    except OSError as error:
        raise SettingsError(f"{error.filename}: {error.strerror}") from None
    _say(f"{counted(len(own.found), 'file')} removed")
    return 0


@unwinding()
@forward_warnings(_say)
def batch_in_console(*, output: Path, cancel: bool) -> None:
    """Print the state of a run's batches, cancelled or not."""
    from captioner.executors.batch_api.ledger import Ledger
    from captioner.executors.batch_api.status import look_at_batches

    ledger = Ledger.of(find_journal(output, Files()))
    for line in asyncio.run(awake(look_at_batches(ledger, cancel=cancel))):
        print(printable(line))


@forward_warnings(_say)
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
                    _say(how_to_open(what, host, viewer.port, os.environ))
                    await stop.wait()
                if viewer.comparison is not None:
                    _say((await asyncio.to_thread(viewer.comparison.result))["summary"])

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


class _Session:
    """One run with its display, metrics server and page."""

    def __init__(self, settings: Settings, *, as_json: bool, summary: bool) -> None:
        self._settings = settings
        self._as_json = as_json
        self._summary = summary
        self._progress = Progress()
        self._cancel = CancelToken()
        self._is_single = is_single(settings) and not as_json
        self._prints = self._is_single or settings.is_to_stdout
        if as_json and self._prints:
            raise SettingsError("json: the report would be among the rows; name a file with -o")
        self._display: JsonLog | Display = JsonLog(self._progress, sys.stderr)
        if not settings.run.log_json:
            quiet = self._is_single or (self._prints and sys.stdout.isatty())
            budget = settings.run.budget
            self._display = Display(self._progress, sys.stderr, budget=budget, quiet=quiet)
        self._log: JsonLog | None = None
        self._signal = 0

    async def run(self) -> tuple[RunReport, int]:
        """Run with the page and the metrics server of the settings, and show the result."""
        with (
            handled(self._on_signal),
            forward_warnings(self._say),
            log_file(self._settings, self._progress) as self._log,
        ):
            try:
                async with contextlib.AsyncExitStack() as stack:
                    report = await self._run(stack)
            except CaptionerError as error:
                if self._log is not None:
                    self._log.event("error", message=str(error))
                if isinstance(error, RunError) and error.report is not None:
                    self._show(error.report)
                raise
            self._show(report)
        return report, self._signal

    def _say(self, text: str) -> None:
        """Print a line, and add it to the log file."""
        self._display.say(text)
        if self._log is not None:
            self._log.say(text)

    async def _run(self, stack: contextlib.AsyncExitStack) -> RunReport:
        settings, say = self._settings, self._say
        progress, cancel = self._progress, self._cancel
        page = metrics = None
        if settings.run.view:
            page = self._open_page()
            stack.push_async_callback(asyncio.to_thread, page.close)
        if (port := settings.run.metrics_port) is not None:
            metrics = Metrics(progress, port)
            stack.push_async_callback(asyncio.to_thread, metrics.close)
        await stack.enter_async_context(self._display)
        if self._log is not None:
            await stack.enter_async_context(self._log)
        if settings.cluster.workers and settings.cluster.engine == "local":
            say(
                "--workers has no effect without --ray; --concurrency sets the requests in flight, "
                "--processes the processes"
            )
        if page is not None:
            say(f"captions: {self._address(page, stack)}")
        if metrics is not None:
            say(f"metrics: http://{ADDRESS}:{metrics.port}/metrics")
        if settings.cluster.engine == "ray":
            from captioner.executors.ray.driver import run_on_ray

            return await run_on_ray(settings, progress=progress, cancel=cancel)
        sink = PrintSink(settings, say, bare=self._is_single) if self._prints else None
        return await run_batch(settings, sink=sink, progress=progress, cancel=cancel)

    def _address(self, page: ViewerThread, stack: contextlib.AsyncExitStack) -> str:
        """Return the page's address; its token is for terminals, not for logs."""
        if sys.stderr.isatty() and not self._settings.run.log_json:
            return page.url
        path = stack.enter_context(address_file(page.url, self._settings.output_path))
        return f"{page.origin} (the address with its token is in {path})"

    def _open_page(self) -> ViewerThread:
        from captioner.outputs.viewer import Viewer, ViewerThread

        output = self._settings.output_path
        return ViewerThread(
            Viewer(
                output,
                journal=journal_path(output, self._settings.run.output_format),
                image_root=self._settings.records.image_root,
                progress=self._progress,
            )
        )

    def _show(self, report: RunReport) -> None:
        if self._log is not None:
            self._log.event("finished", **report.as_dict())
        if not self._summary:
            return
        if isinstance(self._display, JsonLog):
            self._display.event("finished", **report.as_dict())
        elif not self._is_single:
            _say(summarise(report, self._settings))
            if self._settings.run.view and report.output:
                _say(f"view them again: captioner view {shlex.quote(report.output)}")
        if self._as_json:
            print(_json(report))

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
            f"stopping: {counted(self._progress.in_flight, 'request')} may finish within "
            f"{self._settings.run.drain:g} s; repeat the signal to abandon them"
        )
