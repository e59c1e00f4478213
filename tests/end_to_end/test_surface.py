"""The package as others see it: its names, its manners in somebody else's process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import jpeg
from endpoint import completion
from waiting import LIMIT_S

import captioner
from captioner.core.types import InputRecord, Response

PUBLIC = [
    "CancelToken",
    "Caption",
    "CaptionBatch",
    "CaptionError",
    "Captioner",
    "CaptionerError",
    "Dialect",
    "DiskError",
    "EndpointGaveOutError",
    "EndpointRefusedError",
    "Failure",
    "InputRecord",
    "Line",
    "Outcome",
    "OutputBusyError",
    "OutputDamagedError",
    "Progress",
    "RunError",
    "RunReport",
    "Settings",
    "SettingsError",
    "Sink",
    "Source",
    "Stopping",
    "Transport",
    "caption_batch",
    "caption_stream",
    "run_batch",
    "run_on_ray",
]


def python(code: str, *arguments: str) -> str:
    """Run code in a fresh process and return what it prints last."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- names -------------------------------------------------------------------------------------


def test_the_public_names():
    """What users import does not vanish or grow by accident."""
    assert captioner.__all__ == PUBLIC
    assert dir(captioner) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name):
    """Each name can be imported from the package, and is documented."""
    value = getattr(captioner, name)
    assert name == "Outcome" or value.__doc__
    assert name == "Outcome" or value.__module__.startswith("captioner.")


def test_an_unknown_name_is_an_attribute_error():
    """Misspelled names and feature tests behave as with any module."""
    assert not hasattr(captioner, "caption_streams")
    with pytest.raises(ImportError, match="cannot import name"):
        from captioner import nothing  # noqa: F401 - must not be there


def test_importing_costs_next_to_nothing():
    """Neither the network nor the imaging nor the command-line library is loaded at once."""
    loaded = python("import captioner, sys; print(*sys.modules)").split()
    heavy = {"aiohttp", "PIL", "click", "rich", "uvloop", "orjson", "asyncio"}
    assert not heavy.intersection(loaded)


def test_the_library_needs_nothing_of_the_command():
    """A program that captions does not load the command line, the display or uvloop."""
    loaded = python(
        "import sys; from captioner import *; import captioner.engine.stream; print(*sys.modules)"
    ).split()
    assert not {
        "captioner.cli.main",
        "click",
        "rich",
        "uvloop",
        "numpy",
        "rapidocr",
    }.intersection(loaded)


# -- manners -----------------------------------------------------------------------------------

MANNERS = """
import asyncio, json, logging, signal, sys, threading, warnings
import captioner

url, path = sys.argv[1:]

def state():
    return (
        [signal.getsignal(n) for n in sorted(signal.valid_signals()) if n not in (9, 19)],
        type(asyncio.get_event_loop_policy()),
        list(logging.root.handlers), logging.root.level, logging.root.manager.disable,
        sys.excepthook, threading.excepthook, sys.unraisablehook, sys.stdout, sys.stderr,
        list(warnings.filters),
    )

before = state()

async def main():
    loop = asyncio.get_running_loop()
    inside = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    handler = loop.get_exception_handler()
    report = await captioner.run_batch(path, base_url=url, model="m")
    assert report.captioned == 2, report
    assert report.failed == 1, report
    options = {"base_url": url, "model": "m"}
    outcomes = [o async for o in captioner.caption_stream([path, path + "x"], **options)]
    assert not any(o.ok for o in outcomes)
    async with captioner.Captioner(**options) as one:
        with open(path) as file:
            record = json.loads(file.readline())
        record["image"] = path.rpartition("/")[0] + "/" + record["image"]
        assert await one.caption(record)
    assert inside == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert handler is loop.get_exception_handler()
    assert asyncio.all_tasks() == {asyncio.current_task()}

asyncio.run(main())
after = state()
# Importing Pillow and others may add filters of their own; none is taken away.
assert before[:-1] == after[:-1], (before, after)
for thread in set(threading.enumerate()) - {threading.main_thread()}:
    thread.join(10)  # one may be about to end
assert threading.active_count() == 1, threading.enumerate()
"""


def test_the_library_leaves_the_process_alone(endpoint, make_input):
    """No signal handler, no logging, no policy, no hook, no word on stdout or stderr, no thread."""
    path = make_input(2)
    with path.open("a") as file:
        file.write("broken\n")
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", MANNERS, endpoint.base_url, path],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


# -- seams -------------------------------------------------------------------------------------


class ListSource:
    """Records of a list, in batches as given."""

    size = 0

    def __init__(self, *batches: list[bytes]) -> None:
        self._batches = batches

    async def batches(self):
        number = 0
        for batch in self._batches:
            lines = []
            for raw in batch:
                number += 1
                lines.append(InputRecord(number, raw))
            yield lines


class ListSink:
    def __init__(self) -> None:
        self.outcomes: list[captioner.Outcome] = []

    async def put(self, outcomes: Sequence[captioner.Outcome]) -> None:
        self.outcomes += outcomes


class Parrot:
    """A transport that answers every request with its question."""

    closed = False

    async def send(self, request):
        asked = json.loads(b"".join(request.pieces))
        text = asked["messages"][-1]["content"][-1]["text"]
        return Response(200, {}, json.dumps(completion(text)).encode())

    async def close(self) -> None:
        self.closed = True


def record(folder: Path, number: int) -> bytes:
    path = folder / f"{number}.jpg"
    path.write_bytes(jpeg(number))
    return json.dumps({"image": str(path), "prompt": f"q{number}"}).encode()


async def test_every_seam_can_be_passed_in(tmp_path):
    """Source, sink and transport of one's own make a run without file, endpoint or network."""
    sink, transport = ListSink(), Parrot()
    source = ListSource([record(tmp_path, 1), b"{}"], [record(tmp_path, 2)])
    report = await captioner.run_batch(
        captioner.Settings.create(model="m"), source=source, sink=sink, transport=transport
    )
    captions = {o.record.number: o.text for o in sink.outcomes if o.ok}
    assert captions == {1: "q1", 3: "q2"}
    assert [o.code for o in sink.outcomes if not o.ok] == ["no_image"]
    assert (report.captioned, report.failed, report.complete) == (2, 1, True)
    assert report.output is None
    assert not transport.closed, "whoever opened a transport closes it"


async def test_a_source_may_have_nothing_to_yield_for_now(tmp_path):
    """An empty batch of a source is no record, and no error."""
    sink = ListSink()
    source = ListSource([], [record(tmp_path, 1)], [])
    report = await captioner.run_batch(
        captioner.Settings.create(model="m"), source=source, sink=sink, transport=Parrot()
    )
    assert report.captioned == 1


async def test_a_sink_of_ones_own_means_no_output_file(tmp_path, make_input):
    """The report names no file that was never written."""
    report = await captioner.run_batch(
        make_input(1), sink=ListSink(), transport=Parrot(), model="m"
    )
    assert report.captioned == 1
    assert report.output is None
    assert report.failures is None
    assert not list(tmp_path.glob("*.captions*"))


async def test_settings_and_options_together_are_refused():
    """Nobody has to guess which of two values counts."""
    with pytest.raises(captioner.SettingsError, match="not both"):
        await captioner.run_batch(captioner.Settings.create("in.jsonl"), model="m")


async def test_without_input_or_output_the_reason_is_told():
    """A call that cannot work says which of the two is wanting."""
    with pytest.raises(captioner.SettingsError, match="input"):
        await captioner.run_batch(captioner.Settings.create(model="m"), transport=Parrot())
    with pytest.raises(captioner.SettingsError, match="output"):
        await captioner.run_batch(
            captioner.Settings.create(model="m"), source=ListSource(), transport=Parrot()
        )


async def test_a_source_of_ones_own_writes_to_an_output(tmp_path):
    """Records from anywhere are resumed like those of a file."""
    source = ListSource([record(tmp_path, 1), record(tmp_path, 2)])
    settings = captioner.Settings.create(None, tmp_path / "out.jsonl", model="m")
    for captioned, resumed in ((2, 0), (0, 2)):
        report = await captioner.run_batch(settings, source=source, transport=Parrot())
        assert (report.captioned, report.resumed) == (captioned, resumed)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["caption"] for line in lines] == ["q1", "q2"]
