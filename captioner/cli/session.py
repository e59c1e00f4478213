"""A run on the command line: event loop, signals, display, summary, exit status."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any

from captioner.cli.console import json_of, say
from captioner.cli.display import Display
from captioner.cli.jsonlog import JsonLog, log_file
from captioner.cli.page_address import address_file
from captioner.cli.printing import PrintSink, is_single
from captioner.cli.prometheus import ADDRESS, Metrics
from captioner.cli.signals import SIGNALS, handled, status_of
from captioner.cli.summaries import summarise
from captioner.core.cancellation import CancelToken
from captioner.core.errors import CaptionerError, RunError, SettingsError
from captioner.core.humanize import counted
from captioner.core.log import forward_warnings
from captioner.core.progress import Progress
from captioner.core.shortage import refuse_too_little, shortage
from captioner.core.subprocesses import ease_garbage_collection, keep_freed_memory
from captioner.executors.local import run_batch
from captioner.executors.opening import options_before
from captioner.journal.companions import journal_path

if TYPE_CHECKING:
    from captioner.core.progress import RunReport
    from captioner.outputs.viewer import ViewerThread
    from captioner.settings.settings import Settings

SOME_FAILED = 3


@forward_warnings(say)
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
            say(f"captioner: {text}")
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
        settings = self._settings
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
            self._say(
                "--workers has no effect without --ray; --concurrency sets the requests in flight, "
                "--processes the processes"
            )
        if page is not None:
            self._say(f"captions: {self._address(page, stack)}")
        if metrics is not None:
            self._say(f"metrics: http://{ADDRESS}:{metrics.port}/metrics")
        if settings.cluster.engine == "ray":
            from captioner.executors.ray.driver import run_on_ray

            return await run_on_ray(settings, progress=progress, cancel=cancel)
        sink = PrintSink(settings, self._say, bare=self._is_single) if self._prints else None
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
            say(summarise(report, self._settings))
            if self._settings.run.view and report.output:
                say(f"view them again: captioner view {shlex.quote(report.output)}")
        if self._as_json:
            print(json_of(report))

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
