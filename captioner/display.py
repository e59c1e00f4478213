"""What a person sees of a run: a live display on a terminal, else a plain line now and then."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections import deque
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

    from captioner.check import CheckReport
    from captioner.records import Estimate, Progress, RunReport
    from captioner.report import Report
    from captioner.scores import Scores
    from captioner.settings import Settings

REFRESH_S = 0.25
PLAIN_S = 30.0
_WINDOW_S = 60.0


class Display:
    """Shows a run's progress while it is open.

    Args:
        progress: Read at every refresh.
        stream: Where to; a terminal gets the live display.
    """

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        self._progress = progress
        self._stream = stream
        self._pace = Pace(progress)
        self._live: Live | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to show."""
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(file=self._stream), auto_refresh=False, transient=True
            )
            self._live.start()
        self._task = asyncio.create_task(self._show())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop showing; a live display is wiped away."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print one line for good."""
        line = printable(text)
        with contextlib.suppress(OSError):  # nobody reads any more: no reason to stop
            if self._live is not None:
                self._live.console.print(line, markup=False, highlight=False)
            else:
                print(line, file=self._stream, flush=True)

    async def _show(self) -> None:
        last_plain = time.monotonic()
        while True:
            await asyncio.sleep(REFRESH_S)
            self._pace.tick()
            if self._live is not None:
                self._live.update(self._renderable(), refresh=True)
            elif time.monotonic() - last_plain >= PLAIN_S:
                last_plain = time.monotonic()
                self.say(" · ".join(self._facts()))

    def _renderable(self) -> Group:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        fraction = self._pace.fraction
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        bar.add_row(
            ProgressBar(total=1, completed=fraction),
            Text(f"{fraction:4.0%}  {self._eta()}"),
        )
        return Group(bar, Text(" · ".join(self._facts())))

    def _facts(self) -> list[str]:
        """Return the numbers, each with its word; zeros that say nothing are left out."""
        now = self._progress
        facts = [f"{now.captioned:,} done", f"{now.failed:,} failed"]
        if now.resumed:
            facts.append(f"{now.resumed:,} done before")
        if now.shared:
            facts.append(f"{now.shared:,} shared")
        if now.cached:
            facts.append(f"{now.cached:,} from the cache")
        if now.failed_before:
            facts.append(f"{now.failed_before:,} failed before")
        facts.append(f"{self._pace.per_s:.1f}/s")
        facts.append(f"{now.in_flight} in flight")
        if tokens := now.prompt_tokens + now.completion_tokens:
            facts.append(f"{short(tokens)} tokens")
        if now.cost:
            facts.append(f"${now.cost:,.2f}")
        if self._live is None:
            facts.append(f"{self._pace.fraction:.0%}")
            facts.append(self._eta())
        if now.waiting:
            facts.append(f"waiting: {now.waiting}")
        elif now.stage != "captioning":
            facts.append(now.stage)
        return facts

    def _eta(self) -> str:
        left = self._pace.left_s
        return f"ETA {duration(left)}" if left is not None else "ETA -"


class Pace:
    """How fast a run goes and how far it has come. Records of earlier runs count for neither."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def tick(self) -> None:
        """Take a sample."""
        now = time.monotonic()
        self._samples.append((now, self._progress.captioned + self._progress.failed))
        while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW_S:
            self._samples.popleft()

    @property
    def per_s(self) -> float:
        """Records settled per second over the last minute."""
        (began, before), (ended, after) = self._samples[0], self._samples[-1]
        return (after - before) / (ended - began) if ended > began else 0.0

    @property
    def total(self) -> float:
        """Records of the input, estimated from its size until it has all been read."""
        now = self._progress
        if now.complete or not now.position:
            return now.read
        return now.read * max(1.0, now.size / now.position)

    @property
    def fraction(self) -> float:
        """Share of the input that is settled, 0 to 1."""
        return min(1.0, self._progress.settled / self.total) if self.total else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds to the end, None while nothing moves."""
        return self.total * (1 - self.fraction) / self.per_s if self.per_s else None


def summarise(report: RunReport, settings: Settings) -> str:
    """Return what a run did, in a few lines, and what to do next."""
    if report.complete and not (report.calls or report.captioned or report.failed):
        what = f"all {report.resumed:,} were captioned before"
        return f"nothing to do: {what if report.resumed else 'the input has no records'}"
    rate = f", {report.captioned / report.seconds:.1f}/s" if report.captioned else ""
    lines = [f"{report.captioned:,} captioned in {duration(report.seconds)}{rate}"]
    if report.resumed:
        lines[0] += f"; {report.resumed:,} were done before"
    tokens = f"{short(report.prompt_tokens)} in, {short(report.completion_tokens)} out"
    lines.append(f"{report.calls:,} requests, {report.retries:,} of them retries; tokens: {tokens}")
    if report.cost:
        lines[-1] += f"; ${report.cost:,.2f}"
    if report.shared:
        lines.append(f"{report.shared:,} records share the answer to an equal one (--dedup)")
    if report.cached:
        lines.append(f"{report.cached:,} answers came from the cache")
    lines.append(f"captions: {report.output}")
    if report.skipped:
        lines.append(f"{report.skipped:,} records skipped: equal ones came before them")
    if report.changed:
        lines.append(
            f"{report.changed:,} records have changed since they were captioned (same id); their "
            "captions were kept. Remove their lines and run with --accept-edits to redo them"
        )
    if report.orphans:
        lines.append(
            f"{report.orphans:,} captions belong to records that the input no longer has; "
            "they are kept at the end"
        )
    if report.failed:
        lines.append(f"{report.failed:,} failed: {report.failures}")
        for code, count in sorted(report.codes.items(), key=lambda item: -item[1]):
            number, message = report.examples[code]
            lines.append(f"  {count:,} {code}, for example line {number:,}: {message}")
        lines.append(f"retry them, with the same options: {_again(settings, '--retry-failed')}")
    if not report.complete:
        lines.append(_how_to_go_on(settings))
    return "\n".join(printable(line) for line in lines)


def describe_estimate(found: Estimate, settings: Settings) -> str:
    """Return what a run will take, in a few lines."""
    bad = sum(found.bad.values())
    counts = f"{found.records:,} records, {found.requests:,} requests, {found.pictures:,} pictures"
    lines = [f"{counts}, {short(found.upload_bytes)}B to upload"]
    if bad:
        codes = ", ".join(f"{count:,} {code}" for code, count in sorted(found.bad.items()))
        lines.append(f"{bad:,} records cannot be sent: {codes}")
    if found.unfetched:
        lines.append(f"{found.unfetched:,} pictures are elsewhere; their size was guessed")
    by = (
        f"corrected by {found.probed:,} requests that were sent"
        if found.probed
        else "by formula; --probe 20 sends 20 records to correct it"
    )
    lines.append(
        f"tokens: {short(found.prompt_tokens)} in, {short(found.completion_tokens)} out ({by})"
    )
    if found.cost is not None and found.batch_cost is not None:
        lines.append(f"cost: ${found.cost:,.2f}, or ${found.batch_cost:,.2f} with --batch-api")
    else:
        lines.append(
            f"cost: no price is known for {settings.endpoint.model or 'the model'} (--prices, or "
            "pip install 'captioner[prices]')"
        )
    if found.seconds is not None:
        lines.append(f"time at the limits that are known: {duration(found.seconds)}")
    return "\n".join(printable(line) for line in lines)


def describe_report(report: Report) -> str:
    """Return what captions are like, in a few lines."""
    quality = report.quality
    failed = sum(one.total for one in report.failures.values())
    chars = quality.chars
    lines = [
        f"{report.output}: {quality.captions:,} captions, {failed:,} failed",
        f"characters: {chars['min']:,} to {chars['max']:,}, median {chars['median']:,}",
        f"duplicates: {quality.duplicates:,}, nearly: {quality.near_duplicates:,} of a sample",
        f"read like a refusal: {quality.refusals:,}",
        f"different words: {quality.vocabulary:,}",
    ]
    if quality.openings:
        shown = "; ".join(f"{count:,} {text!r}" for text, count in quality.openings[:3])
        lines.append(f"repeated openings: {shown}")
    if quality.languages:
        shown = ", ".join(f"{count:,} {name}" for name, count in [*quality.languages.items()][:5])
        lines.append(f"languages of a sample: {shown}")
    lines += [f"{one.total:,} failed as {code}" for code, one in report.failures.items()]
    return "\n".join(printable(line) for line in lines)


def describe_scores(found: Scores) -> str:
    """Return how near captions are to references, in a few lines."""
    lines = [f"{found.captions:,} captions compared with their references"]
    if found.unmatched:
        lines.append(f"{found.unmatched:,} have none")
    lines.append(f"BLEU {found.bleu:.2f}, chrF {found.chrf:.2f}, CIDEr-D {found.cider:.3f}")
    lines.append(f"BLEU signature: {found.bleu_signature}")
    return "\n".join(printable(line) for line in lines)


def describe_check(report: CheckReport) -> str:
    """Return how an output stands, in a few lines."""
    lines = [f"{report.output}: {report.captioned:,} captioned, {report.failed:,} failed"]
    if report.pending is None:
        lines[0] += "; pending unknown, for the input is not at hand (--input)"
    else:
        lines[0] += f", {report.pending:,} pending of {report.input}"
    if report.orphans:
        lines.append(f"{report.orphans:,} captions belong to records the input no longer has")
    if report.tail_bytes:
        lines.append(f"the last {report.tail_bytes:,} bytes are torn; the next run cuts them")
    if report.torn_failures:
        lines.append(
            f"{report.torn_failures:,} bytes of the failures are torn; their records are pending"
        )
    if report.unsynced_bytes:
        lines.append(f"{report.unsynced_bytes:,} bytes are not yet known to be on disk")
    if report.checkpoint != "ok":
        lines.append("there is no checkpoint; the next run reads the output with more care")
    if report.in_use_by:
        lines.append(f"being written by {report.in_use_by}")
    lines += [f"damaged: {violation}" for violation in report.violations]
    return "\n".join(printable(line) for line in lines)


def _how_to_go_on(settings: Settings) -> str:
    """Return what to type where a run has left something to do."""
    if settings.batch.to_batch_file is None:
        return f"not finished; with the same options continue: {_again(settings)}"
    answered = _again(settings, "--from-batch-file", "ANSWERS")
    file = settings.batch.to_batch_file
    return f"requests: {file}; when they are answered, with the same options: {answered}"


def _again(settings: Settings, *more: str) -> str:
    words = ["python", "-m", "captioner", str(settings.input)]
    if settings.output is not None:
        words += ["-o", str(settings.output)]
    return shlex.join([*words, *more])


def printable(text: str) -> str:
    """Return text that cannot command a terminal: control characters are shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def duration(seconds: float) -> str:
    """Return seconds as people say them: ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"


def short(number: int) -> str:
    """Return a count in few characters: ``950``, ``12.3k``, ``4.5M``."""
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if number >= size - size // 20_000:  # what rounds up to the next unit is written in it
            return f"{number / size:.1f}{unit}"
    return str(number)
