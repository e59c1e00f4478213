"""The progress of a run: a live display on a terminal, else a plain line every 30 seconds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Self, TextIO

from captioner.core.bottleneck import CAUSES
from captioner.core.humanize import counted, duration, money, printable, short

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

    from captioner.core.progress import EndpointState, Progress

REFRESH_S = 0.25
PLAIN_S = 30.0
ENDPOINTS = 4
"""Endpoints that are shown; further ones are only counted."""

CODES = 4
"""Failure codes that are shown."""

_WINDOW_S = 60.0
_NARROW = 60
"""Columns below which the lines have no names."""


class Display:
    """Shows a run's progress while it is open.

    Args:
        progress: Read at every refresh.
        stream: Where to print. A terminal gets the live display.
        budget: US dollars that the run may cost, if limited.
        quiet: Only print what is said.
    """

    def __init__(
        self,
        progress: Progress,
        stream: TextIO,
        *,
        budget: float | None = None,
        quiet: bool = False,
    ) -> None:
        self._progress = progress
        self._stream = stream
        self._budget = budget
        self._quiet = quiet
        self._pace = Pace(progress)
        self._live: Live | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start the display."""
        if self._quiet:
            return self
        if self._stream.isatty():
            from rich.console import Console

            console = Console(file=self._stream)
            if not console.is_dumb_terminal:  # it cannot move the cursor up
                self._live = _drawn_on(console)
        self._task = asyncio.create_task(self._show())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop; a live display is erased."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        line = printable(text)
        with contextlib.suppress(OSError):  # nothing reads the stream; the run continues
            if self._live is not None:
                # The terminal wraps long lines, so that they are copied as one.
                self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(line, file=self._stream, flush=True)

    async def _show(self) -> None:
        last_plain = time.monotonic()
        while True:
            await asyncio.sleep(REFRESH_S)
            self._pace.tick()
            if self._live is not None:
                with contextlib.suppress(OSError, ValueError):
                    # Rich prefers COLUMNS, which a parent shell may have left outdated.
                    self._live = _resized(self._live, *os.get_terminal_size(self._stream.fileno()))
                self._live.update(self.renderable(self._live.console.width), refresh=True)
            elif time.monotonic() - last_plain >= PLAIN_S:
                last_plain = time.monotonic()
                self.say(self.line())

    def renderable(self, width: int) -> Group:
        """Return the live display for a terminal of this width."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        fraction = self._pace.fraction
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        bar.add_row(
            ProgressBar(total=1, completed=fraction), Text(f"{fraction:4.0%}  {self._eta()}")
        )
        lines = Table.grid(padding=(0, 1))
        if width >= _NARROW:
            lines.add_column(style="dim", no_wrap=True)
        lines.add_column(overflow="fold")
        for name, facts in self._lines():
            text = Text(printable(" · ".join(facts)))
            lines.add_row(*([name] if width >= _NARROW else []), text)
        return Group(bar, lines)

    def line(self) -> str:
        """Return the whole state in one line, for a log."""
        facts = [fact for _, facts in self._lines() for fact in facts]
        return " · ".join([f"{self._pace.fraction:.0%}", self._eta(), *facts])

    def _lines(self) -> list[tuple[str, list[str]]]:
        """Return the lines that are not empty, with their names."""
        now = self._progress
        codes = now.codes.most_common(CODES)
        more = len(now.codes) - len(codes)
        failures = [f"{count:,} {code}" for code, count in codes]
        if more:
            failures.append(f"and {counted(more, 'more kind', 'more kinds')}")
        states = now.states()
        other = len(states) - ENDPOINTS
        if now.waiting:
            stage = [f"waiting: {now.waiting}"]
        else:
            stage = [str(now.stage)] if now.stage != "captioning" else []
        lines = [
            ("records", self._records()),
            ("speed", self._speed()),
            *(("endpoint", _describe(state)) for state in states[:ENDPOINTS]),
            ("", [f"and {counted(other, 'more endpoint')}"] if other > 0 else []),
            ("held by", [CAUSES[held].what] if (held := now.bottleneck.now) else []),
            ("spent", self._spent()),
            ("failures", failures),
            ("now", stage),
        ]
        return [(name, facts) for name, facts in lines if facts]

    def _records(self) -> list[str]:
        now = self._progress
        optional = (
            (now.resumed, "done before"),
            (now.shared, "shared"),
            (now.cached, "from the cache"),
            (now.failed_before, "failed before"),
            (now.skipped, "skipped"),
            (now.existing, "had a caption"),
        )
        facts = [f"{now.captioned:,} done", f"{now.failed:,} failed"]
        facts += [f"{count:,} {what}" for count, what in optional if count]
        left = round(self._pace.total) - now.settled
        if left > 0:
            facts.append(f"{'' if now.complete else 'about '}{left:,} left")
        return facts

    def _speed(self) -> list[str]:
        now = self._progress
        facts = [f"{self._pace.per_s:.1f}/s", f"{now.in_flight} in flight"]
        if oldest := now.oldest_s:
            facts.append(f"oldest {duration(oldest)}")
        if now.answers:
            facts.append(f"{duration(now.answered_s / now.answers)} a request")
        if now.retries:
            facts.append(counted(now.retries, "retry", "retries"))
        return facts

    def _spent(self) -> list[str]:
        now = self._progress
        facts = []
        tokens_in, tokens_out = now.prompt_tokens, now.completion_tokens
        if tokens_in or tokens_out:
            facts.append(f"{short(tokens_in)} tokens in, {short(tokens_out)} out")
        if now.cost is not None:
            before = now.spent_before.cost
            earlier = f" ({money(before + now.cost)} with earlier runs)" if before else ""
            of = f" of {money(self._budget)}" if self._budget is not None else ""
            facts.append(f"{money(now.cost)}{earlier}{of}")
            settled = now.captioned + now.failed
            left = self._pace.total - now.settled
            if settled and left > 0:
                facts.append(f"about {money(now.cost * (1 + left / settled))} in all")
        return facts

    def _eta(self) -> str:
        left = self._pace.left_s
        return f"ETA {duration(left)}" if left is not None else "ETA -"


def _drawn_on(console: Console) -> Live:
    from rich.live import Live

    live = Live(console=console, auto_refresh=False, transient=True)
    live.start()
    return live


def _resized(live: Live, columns: int, lines: int) -> Live:
    """Return the live display for a terminal of a size, erased if the terminal was wider.

    A terminal wraps lines that became too long, so the old display takes more lines than it had.
    """
    from rich.console import ConsoleDimensions
    from rich.control import Control
    from rich.segment import ControlType, Segment

    console = live.console
    if not (columns and lines):
        return live
    drawn = console.render_lines(live.get_renderable(), pad=False)
    narrower = columns < console.width
    console.size = ConsoleDimensions(columns, lines)
    if narrower:
        lengths = map(Segment.get_line_length, drawn)
        more = sum(max(0, length - 1) // columns for length in lengths)
        live.stop()  # draws it a last time, and erases that
        console.control(
            Control(*[(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * more)
        )
        return _drawn_on(console)
    return live


def _describe(state: EndpointState) -> list[str]:
    limit = f" of {state.limit:,}" if state.limit < sys.maxsize else ""
    facts = [state.name, f"{state.in_flight:,}{limit} in flight"]
    if state.per_minute < float("inf"):
        facts.append(f"{state.per_minute:,.0f}/min")
    if state.paused_s:
        facts.append(f"paused for {duration(state.paused_s)}")
    if state.circuit_open:
        facts.append("the circuit breaker is open, only probes are sent")
    return facts


class Pace:
    """Speed and progress of a run. The speed ignores records of earlier runs."""

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
        total = now.read * max(1.0, now.size / now.position)
        return min(total, now.limit) if now.limit else total

    @property
    def fraction(self) -> float:
        """Share of the input that is settled, 0 to 1."""
        return min(1.0, self._progress.settled / self.total) if self.total else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds to the end, None if no record was settled."""
        return self.total * (1 - self.fraction) / self.per_s if self.per_s else None
