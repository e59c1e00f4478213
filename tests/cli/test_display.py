"""What a person sees: numbers that add up, on any terminal, and nothing that commands it."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest
from conftest import command
from endpoint import Reply
from rich.console import Console
from waiting import LIMIT_S

import captioner.cli.display
import captioner.core.progress
from captioner.cli.display import Display, Pace
from captioner.cli.summaries import summarise
from captioner.core.humanize import counted, duration, printable, short, wrapped
from captioner.core.progress import EndpointState, Progress, RunReport
from captioner.settings.settings import Settings


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set by hand."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    made = Clock()
    monkeypatch.setattr(captioner.cli.display, "time", made)
    return made


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(**given: object) -> RunReport:
    """Return a report of a finished run in which nothing happened but what is given."""
    zeros = {"bool": False, "int": 0, "float": 0.0}
    values = {
        one.name: zeros.get(str(one.type).split("[")[0], {})
        for one in dataclasses.fields(RunReport)
    }
    values |= {"output": "out.jsonl", "failures": "out.failed.jsonl", "stopped": ""}
    values |= {"complete": True, "seconds": 10.0, "cost": None, "total_cost": None, "held_by": ""}
    return RunReport(**{**values, **given})


# -- pace --------------------------------------------------------------------------------------


def test_pace_is_what_was_settled_in_the_last_minute(clock):
    """The rate follows what happens now, not what happened hours ago."""
    progress = Progress()
    pace = Pace(progress)
    for _ in range(100):
        clock.now += 1
        progress.captioned += 3
        progress.failed += 1
        pace.tick()
    assert pace.per_s == pytest.approx(4)
    for _ in range(100):
        clock.now += 1
        pace.tick()
    assert pace.per_s == 0


def test_pace_before_anything_happened(clock):
    """Nothing read, nothing done, no time gone: zeros and no arrival time, no division by zero."""
    pace = Pace(Progress())
    pace.tick()
    assert (pace.per_s, pace.fraction, pace.left_s) == (0, 0, None)


def test_the_total_is_estimated_from_the_size_until_all_is_read():
    """How far a run has come is known long before the input has been read."""
    progress = Progress(read=100, position=1000, size=10_000, captioned=40, failed=10)
    pace = Pace(progress)
    assert pace.total == 1000
    assert pace.fraction == pytest.approx(0.05)
    progress.limit = 500
    assert pace.total == 500
    progress.complete, progress.read, progress.limit = True, 900, 0
    assert pace.total == 900


def test_records_of_earlier_runs_count_as_done_but_not_as_speed(clock):
    """After a resume the arrival time is that of what is left, at the speed of this run."""
    progress = Progress(
        read=1000, position=1000, size=1000, complete=True, resumed=600, failed_before=100
    )
    pace = Pace(progress)
    clock.now += 10
    progress.captioned = 100
    pace.tick()
    assert pace.per_s == pytest.approx(10)
    assert pace.fraction == pytest.approx(0.8)
    assert pace.left_s == pytest.approx(20)


def test_the_fraction_never_exceeds_one():
    """An input whose size is unknown or grows shows at most 100%."""
    progress = Progress(read=5, captioned=9, position=50, size=10)
    assert Pace(progress).fraction == 1


# -- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (9.4, "9.4 s"),
        (42, "42 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7620, "2 h 07 min"),
        (4_000_000, "1,111 h 06 min"),
    ],
)
def test_durations_as_people_say_them(seconds, said):
    """No time is shown as 60 s or 60 min."""
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0"),
        (999, "999"),
        (12_345, "12.3k"),
        (4_500_000, "4.5M"),
        (2_000_000_000, "2.0G"),
        (999_999, "1.0M"),
        (999_999_999, "1.0G"),
    ],
)
def test_short_numbers(number, said):
    """Counts take few characters, and none reads 1000.0k."""
    assert short(number) == said


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[31mred\x1b[0m",
        "\x1b]0;title\x07",
        "a\rb",
        "a\nb",
        "\x9b2J",
        "\u202egnp.exe",
        "\x00\x7f",
        "\udc80",
    ],
)
def test_nothing_printed_commands_a_terminal(text):
    """File names and error texts of others cannot move the cursor or forge lines."""
    shown = printable(text)
    assert shown.isprintable()
    assert "\\" in shown


def test_printable_leaves_languages_alone():
    """Names in any script stay readable."""
    assert printable("Öl 日本語 🎨 \\n") == "Öl 日本語 🎨 \\n"


def test_long_lines_end_between_words_and_commands_stay_whole():
    """A command that a terminal wraps is copied as one line; one with a line end is not."""
    told = "to continue: captioner photos -o out.jsonl --where 'size > 1'"
    table = "  --base-url http://localhost:8000/v1   your own server"
    text = f"short\nThe endpoint has given no caption\n{told}\n{table}"
    assert wrapped(text, 20) == f"short\nThe endpoint has\ngiven no caption\n{told}\n{table}"


# -- the display -------------------------------------------------------------------------------


LOCAL = EndpointState("http://gpu:8000/v1", 31, 48, 600.0, 3.0, circuit_open=False)
SICK = EndpointState("http://gpu2:8000/v1", 1, sys.maxsize, math.inf, 0.0, circuit_open=True)
BUSY = Progress(
    captioned=1_234_567,
    failed=89,
    resumed=1000,
    in_flight=256,
    read=2_000_000,
    position=1,
    size=2,
    prompt_tokens=5_000_000,
    completion_tokens=321_000,
    cost=12.5,
    answers=1_000,
    answered_s=850.0,
    retries=77,
    codes=Counter(image_missing=80, filtered=5, bad_json=2, http_400=1, too_large=1),
    waiting="the disk is full",
    states=lambda: [LOCAL, SICK],
)


def shown(progress: Progress, width: int, **options: Any) -> str:
    """Return the live display as it stands on a terminal."""
    display = Display(progress, Terminal(), **options)
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True)
    console.print(display.renderable(width))
    text = console.export_text()
    assert all(len(line) <= width for line in text.splitlines())
    return text


@pytest.mark.parametrize("width", [10, 20, 40, 59, 60, 80, 200])
def test_the_live_display_fits_narrow_terminals(width):
    """No line is wider than the terminal, and on 40 columns every number can still be read."""
    text = " ".join(shown(BUSY, width).split())
    if width >= 40:
        for part in ("1,234,567 done", "89 failed", "256 in flight", "ETA", "the disk is full"):
            assert part in text


def test_what_the_live_display_tells():
    """States, speed, endpoints with their limits, money with a forecast, failures by code."""
    text = shown(BUSY, 200)
    lines = {line.split()[0]: line for line in text.splitlines()[1:]}
    records = "1,234,567 done · 89 failed · 1,000 done before · about 2,764,344 left"
    assert records in lines["records"]
    assert "256 in flight · 0.8 s a request · 77 retries" in lines["speed"]
    assert "5.0M tokens in, 321.0k out · $12.50 · about $40.49 in all" in lines["spent"]
    failures = "80 image_missing · 5 filtered · 2 bad_json · 1 http_400 · and 1 more kind"
    assert failures in lines["failures"]
    assert "http://gpu:8000/v1 · 31 of 48 in flight · 600/min · paused for 3.0 s" in text
    assert (
        "http://gpu2:8000/v1 · 1 in flight · the circuit breaker is open, only probes are sent"
        in text
    )
    assert "$12.50 of $25.00" in shown(BUSY, 200, budget=25.0)


def test_what_holds_the_run_back_is_told():
    """The display says it once it has looked for some seconds, the report with its advice."""
    states = [LOCAL._replace(held_by="gpu")]
    progress = Progress(stage="captioning", in_flight=31, states=lambda: states)
    for _ in range(9):
        progress.bottleneck.look(progress)
    assert "held by" not in shown(progress, 200)
    progress.bottleneck.look(progress)
    assert "held by the server's GPU: requests queue for it" in " ".join(
        shown(progress, 200).split()
    )
    found = report(captioned=1, calls=1, held_by="gpu", held_share=0.834)
    text = summarise(found, Settings.create("in.jsonl"))
    assert "held back by the server's GPU: requests queue for it (83% of the time)" in text
    assert "--replicas" in text


def test_the_oldest_request_is_told(clock, monkeypatch):
    """How long the oldest request on the wire has been there shows that an endpoint hangs."""
    monkeypatch.setattr(captioner.core.progress, "time", clock)
    progress = Progress(in_flight=2, began={1: clock.now - 5, 2: clock.now - 72})
    assert "2 in flight · oldest 1 min 12 s" in shown(progress, 80)


def test_many_endpoints_are_counted():
    """The display of a run over a hundred endpoints does not fill the screen."""
    text = shown(Progress(states=lambda: [LOCAL] * 7), 100)
    assert text.count("http://gpu") == 4
    assert "and 3 more endpoints" in text


@pytest.mark.parametrize("no_color", [True, False])
async def test_colours_can_be_switched_off(monkeypatch, no_color):
    """With NO_COLOR (https://no-color.org) the display is live and without a colour."""
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(captioner.cli.display, "REFRESH_S", 0.001)
    stream = Terminal()
    async with Display(Progress(captioned=50, read=100, complete=True), stream):
        while "50 done" not in stream.getvalue():
            await asyncio.sleep(0.001)
    coloured = re.search(r"\x1b\[[\d;]*([39][0-7]|38;5;\d+|38;2)[\d;]*m", stream.getvalue())
    assert bool(coloured) is not no_color


async def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    """A terminal that cannot go back a line is not filled with a display that only grows."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(captioner.cli.display, "REFRESH_S", 0.001)
    monkeypatch.setattr(captioner.cli.display, "PLAIN_S", 0.0)
    stream = Terminal()
    async with Display(Progress(captioned=77), stream):
        while "77 done" not in stream.getvalue():
            await asyncio.sleep(0.001)
    assert "\x1b" not in stream.getvalue()


@pytest.mark.xdist_group("heavy")
@pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux")
@pytest.mark.parametrize("columns", [80, 40])
def test_in_tmux(endpoint, make_input, tmp_path, columns):
    """On a real terminal the display stands still, fits, and is gone when the run is over."""
    source, done = make_input(20), tmp_path / "done"
    endpoint.behave = lambda call: None if call.number <= 5 else Reply(status=503)
    run = shlex.join(
        command(
            source, "-o", tmp_path / "out.jsonl", "--base-url", endpoint.base_url,
            "--model", "m", "--concurrency", 3,
        )
    )  # fmt: skip
    tmux = ["tmux", "-L", f"captioner-{os.getpid()}", "-f", "/dev/null"]
    shell = f"seq 40; {run}; echo status $? > {shlex.quote(str(done))}; exec sleep 600"
    size = ["-x", str(columns), "-y", "24"]
    subprocess.run([*tmux, "new-session", "-d", *size, "sh", "-c", shell], check=True)

    def screen() -> str:
        taken = [*tmux, "capture-pane", "-p"]
        return subprocess.run(taken, check=True, capture_output=True, text=True).stdout

    parts = ("5 done", "0 failed", "in flight", "ETA", "waiting: the endpoint responded 503")
    until = time.monotonic() + LIMIT_S
    try:
        seen = screen()
        while not all(part in " ".join(seen.split()) for part in parts):
            assert time.monotonic() < until, seen
            time.sleep(0.05)
            seen = screen()
        narrow = columns * 5 // 8
        subprocess.run([*tmux, "resize-window", "-x", str(narrow), "-y", "24"], check=True)
        resized = screen()
        while resized.count("ETA") != 1 or not all(
            part in " ".join(resized.split()) for part in parts
        ):
            assert time.monotonic() < until, resized
            time.sleep(0.05)
            resized = screen()
        endpoint.behave = lambda _: None
        while not done.exists() or not done.read_text():
            assert time.monotonic() < until, screen()
            time.sleep(0.05)
        left = screen()
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    assert all(len(line) <= columns for line in seen.splitlines())
    text = " ".join(seen.split())
    for shown in (text, " ".join(resized.split())):
        assert shown.count("5 done") == 1  # drawn in its place, not below itself
    assert ("records" in text) is (columns == 80)
    assert done.read_text() == "status 0\n"
    assert "20 captioned in" in left
    assert "in flight" not in left


async def test_without_a_terminal_plain_lines_come_now_and_then(monkeypatch):
    """A log file gets a plain line of numbers, no control characters, and nothing at first."""
    stream = io.StringIO()
    monkeypatch.setattr(captioner.cli.display, "REFRESH_S", 0.001)
    async with Display(Progress(captioned=3), stream):
        await asyncio.sleep(0.01)
    assert not stream.getvalue()
    monkeypatch.setattr(captioner.cli.display, "PLAIN_S", 0.0)
    progress = Progress(captioned=1234, failed=5, read=2000, complete=True, waiting="why")
    async with Display(progress, stream):
        while stream.getvalue().count("\n") < 2:
            await asyncio.sleep(0.001)
    line = stream.getvalue().splitlines()[0]
    assert line.isprintable()
    for part in ("1,234 done", "5 failed", "62%", "ETA", "waiting: why"):
        assert part in line


async def test_on_a_terminal_the_live_display_is_wiped_and_messages_stay(monkeypatch):
    """What was said in between is still there at the end; markup in it is shown as it is."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(captioner.cli.display, "REFRESH_S", 0.001)
    stream = Terminal()
    display = Display(Progress(captioned=77), stream)
    async with display:
        while "77 done" not in stream.getvalue():
            await asyncio.sleep(0.001)
        display.say("[red]a\x1b[2Jb")
    assert "[red]a\\x1b[2Jb" in stream.getvalue()
    assert "\x1b[2K" in stream.getvalue().rpartition("77 done")[2]


async def test_the_display_leaves_no_task_behind():
    """Closing the display ends what it started, after an error as well."""
    before = asyncio.all_tasks()
    with pytest.raises(ZeroDivisionError):
        async with Display(Progress(), io.StringIO()):
            raise ZeroDivisionError
    assert asyncio.all_tasks() == before


async def test_a_terminal_that_is_gone_does_not_end_the_run():
    """Nobody reads any more (``2>&1 | head``): saying something is no error."""

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    async with Display(Progress(), Gone()) as display:
        display.say("is anybody there?")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 batches"), (1, "1 batch"), (2_000, "2,000 batches")]
)
def test_a_noun_after_a_count(number, text):
    assert counted(number, "batch", "batches") == text


# -- the summary -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ["1 was done before", "1 request, 1 retry among them", "1 record has the caption",
             "1 answer came", "1 record skipped", "1 record has new content",
             "1 caption belongs to a record"]),
        (2, ["2 were done before", "2 requests, 2 retries among them", "2 records have the caption",
             "2 answers came", "2 records skipped", "2 records have new content",
             "2 captions belong to records"]),
    ],
)  # fmt: skip
def test_each_count_has_its_noun(count, expected):
    names = ("resumed", "calls", "retries", "shared", "cached", "skipped", "changed", "orphans")
    found = report(captioned=count, **dict.fromkeys(names, count))
    text = summarise(found, Settings.create("in.jsonl"))
    for part in expected:
        assert part in text


def test_the_summary_of_a_good_run_is_short():
    """What was done, how fast, what it cost, where it is; nothing about failures."""
    text = summarise(
        report(captioned=1500, calls=1510, retries=10, prompt_tokens=150_000, resumed=500),
        Settings.create("in.jsonl"),
    )
    assert "1,500 captioned in 10 s, 150.0/s" in text
    assert "500 were done before" in text
    assert "1,510 requests" in text
    assert "150.0k" in text
    assert "out.jsonl" in text
    assert "fail" not in text
    assert "continue" not in text


def test_the_records_of_a_summary_add_up():
    """Also after a resume: what earlier runs did is part of the sum."""
    given = {"captioned": 3, "resumed": 20, "failed": 2, "skipped": 4, "existing": 1, "pending": 5}
    text = summarise(report(**given), Settings.create("in.jsonl"))
    expected = (
        "35 records: 3 captioned, 20 captioned before, 2 failed, 4 skipped, 1 kept, 5 pending"
    )
    assert expected in text.splitlines()


@pytest.mark.parametrize(
    ("cost", "total", "expected"),
    [
        (None, None, "out"),
        (0.0, 0.0, "out; $0.00"),
        (0.5, 0.5, "out; $0.5000"),
        (0.5, 2.0, "out; $0.5000, with earlier runs $2.00"),
    ],
)
def test_the_summary_says_what_a_run_has_cost_where_that_is_known(cost, total, expected):
    found = report(captioned=1, calls=1, cost=cost, total_cost=total)
    (line,) = [
        one for one in summarise(found, Settings.create("in.jsonl")).splitlines() if "tokens" in one
    ]
    assert line.endswith(expected)


def test_the_summary_names_failures_by_kind_most_first():
    """What failed is told by kind with one example each, and how to try again."""
    text = summarise(
        report(
            failed=1003,
            codes={"bad_json": 3, "image_missing": 1000},
            examples={
                "bad_json": (7, "not \x1b[31mJSON"),
                "image_missing": (1234, "there is none"),
            },
        ),
        Settings.create("my in.jsonl", "out.jsonl"),
    )
    lines = text.splitlines()
    first = next(at for at, line in enumerate(lines) if "image_missing" in line)
    assert "1,000 image_missing" in lines[first]
    assert "line 1234: there is none" in lines[first]
    assert "3 bad_json" in lines[first + 1]
    assert "\x1b" not in text
    assert "1,003 failed: out.failed.jsonl" in text
    assert "python -m captioner 'my in.jsonl' -o out.jsonl --retry failed" in text


def test_the_summary_of_an_interrupted_run_says_how_to_go_on():
    """After Ctrl-C the same command continues, and that is said."""
    text = summarise(report(complete=False, captioned=3), Settings.create("in.jsonl"))
    assert "continue: python -m captioner in.jsonl" in text


@pytest.mark.parametrize(
    ("options", "stopped", "told"),
    [
        ({"redo": "all"}, "", "continue: python -m captioner in.jsonl --redo"),
        ({"redo": "length < 9"}, "", "continue: python -m captioner in.jsonl '--redo=length < 9'"),
        ({"retry": ["x", "rejected"]}, "", "in.jsonl --retry=x --retry=rejected"),
        (
            {"budget": 2.0},
            "LimitReachedError",
            "continue with a larger budget: python -m captioner in.jsonl --budget AMOUNT",
        ),
        ({"budget": 2.0}, "", "continue: python -m captioner in.jsonl"),
        ({"budget_per_run": 2.0}, "LimitReachedError", "continue: python -m captioner in.jsonl"),
    ],
)
def test_the_command_that_continues_has_what_is_not_remembered(options, stopped, told):
    """The same records are captioned again, and a budget that is used up is not used again."""
    text = summarise(
        report(complete=False, stopped=stopped), Settings.create("in.jsonl", **options)
    )
    assert text.endswith(told)


@pytest.mark.parametrize(
    "given", [{"failed": 1, "codes": {"x": 1}, "examples": {"x": (1, "m")}}, {"complete": False}]
)
def test_a_command_to_run_again_can_be_pasted(given):
    """The command ends its line: a shell does not know what a remark in brackets is."""
    text = summarise(report(**given), Settings.create("in.jsonl"))
    line = next(line for line in text.splitlines() if "python -m captioner" in line)
    assert line.endswith(("in.jsonl", "--retry failed"))
