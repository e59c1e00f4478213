"""Cases 9, 23, 24, 29 and 30: odd outputs, changing inputs, many records, hostile captions."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import rows
from endpoint import Reply, completion
from fakes import IMAGE, EchoTransport
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tally import LONG

from captioner import RunReport, SettingsError, run_batch

URL = IMAGE


def record(name: object) -> str:
    return json.dumps({"id": name, "image": URL, "prompt": str(name)})


async def caption(
    source: Path, transport: EchoTransport | None = None, **options: object
) -> RunReport:
    return await run_batch(source, transport=transport or EchoTransport(), model="m", **options)


# -- case 9: outputs that cannot be --------------------------------------------------------------


@pytest.mark.parametrize("what", ["folder", "link", "fifo", "device", "no folder", "the input"])
def test_an_output_that_cannot_be_is_refused_before_anything_happens(
    make_input, endpoint, run_command, what
) -> None:
    """Exit 2 with a sentence, no call made, no file touched."""
    source = make_input(2)
    output = source.with_name("out.jsonl")
    if what == "folder":
        output.mkdir()
    elif what == "link":
        output.symlink_to(source)
    elif what == "fifo":
        os.mkfifo(output)
    elif what == "device":
        output = Path("/dev/null")
    elif what == "no folder":
        output = source.parent / "missing" / "out.jsonl"
    else:
        output = source
    before = sorted(path.name for path in source.parent.iterdir()), source.read_bytes()
    done = run_command(source, "-o", output, "--base-url", endpoint.base_url, "--model", "m")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert (sorted(path.name for path in source.parent.iterdir()), source.read_bytes()) == before
    assert endpoint.count == 0


# -- case 23: the input changes between runs -----------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    versions=st.lists(st.lists(st.integers(0, 12), max_size=14), min_size=2, max_size=4),
    limits=st.lists(st.none() | st.integers(1, 10), min_size=4, max_size=4),
)
def test_whatever_becomes_of_the_input_only_what_is_new_is_done(
    tmp_path_factory, versions, limits
) -> None:
    """Edited, reordered, appended, prepended, shrunk, repeated: after the last run each record
    of the last input has its own row, in order, and nothing was asked for needlessly."""
    folder = tmp_path_factory.mktemp("edits")
    source = folder / "in.jsonl"
    transport = EchoTransport()
    most: dict[str, int] = {}
    report = None
    for version, limit in zip(versions, [*limits[: len(versions) - 1], None], strict=False):
        for name in set(version):
            most[str(name)] = max(most.get(str(name), 0), version.count(name))
        source.write_text("".join(record(name) + "\n" for name in version))
        # Another input altogether is accepted only when the user says so.
        report = asyncio.run(caption(source, transport, limit=limit, accept_changes=True))
    last = versions[-1]
    got = [row["id"] for row in rows(folder / "in.captions.jsonl")]
    assert got[: len(last)] == last
    assert report is not None
    assert report.complete
    assert report.orphans == len(got) - len(last)
    assert all(transport.calls[name] <= count for name, count in most.items())


async def test_an_edited_record_is_captioned_again_and_the_old_row_kept(tmp_path) -> None:
    """A new question about the same image is new work; the paid answer is reported, not lost."""
    source = tmp_path / "in.jsonl"
    source.write_text(record("a") + "\n" + record("b") + "\n")
    await caption(source)
    source.write_text(record("b") + "\n" + record("a").replace('"prompt": "a"', '"prompt": "A"'))
    report = await caption(source)
    assert (report.captioned, report.resumed, report.orphans) == (1, 1, 1)
    got = [(row["prompt"], row["caption"]) for row in rows(tmp_path / "in.captions.jsonl")]
    assert got == [("b", "about b"), ("A", "about A"), ("a", "about a")]


async def test_ids_that_differ_only_above_64_bits_stay_two_records(tmp_path) -> None:
    """Integers that a parser would round to the same float are different ids."""
    ids = ["123456789012345678901", "123456789012345678902"]
    source = tmp_path / "in.jsonl"
    lines = [f'{{"id":{i},"image":"{URL}","prompt":"same"}}\n' for i in ids]
    source.write_text("".join(lines))
    for options in ({}, {"id_field": "id", "output": tmp_path / "by-id.jsonl"}):
        transport = EchoTransport()
        report = await caption(source, transport, **options)
        assert report.captioned == 2
        again = await caption(source, transport, **options)
        assert (again.resumed, again.captioned) == (2, 0)
        lines = Path(report.output).read_text().splitlines()
        assert [line.partition(",")[0] for line in lines] == [f'{{"id":{i}' for i in ids]


async def test_duplicates_are_kept_skipped_or_refused(tmp_path) -> None:
    """keep gives each its row, skip the first one only, error refuses before any call."""
    source = tmp_path / "in.jsonl"
    source.write_text("".join(record(name) + "\n" for name in "abaca"))
    kept = await caption(source)
    assert (kept.captioned, kept.skipped) == (5, 0)
    skipped = await caption(source, output=tmp_path / "skip.jsonl", duplicates="skip")
    assert (skipped.captioned, skipped.skipped, skipped.complete) == (3, 2, True)
    assert [row["id"] for row in rows(tmp_path / "skip.jsonl")] == ["a", "b", "c"]
    again = await caption(source, output=tmp_path / "skip.jsonl", duplicates="skip")
    assert (again.calls, again.resumed, again.skipped) == (0, 3, 2)
    transport = EchoTransport()
    with pytest.raises(SettingsError, match="line 3 of the input repeats line 1"):
        await caption(source, transport, output=tmp_path / "error.jsonl", duplicates="error")
    assert not transport.calls
    assert not (tmp_path / "error.jsonl").exists()


async def test_with_an_id_field_other_members_may_change(tmp_path) -> None:
    """A record known by its id is not paid for again when a column is added; it is reported."""
    source = tmp_path / "in.jsonl"
    source.write_text(record(1) + "\n" + record(2) + "\n")
    await caption(source, id_field="id")
    source.write_text(record(2).replace("}", ', "split": "train"}') + "\n" + record(1) + "\n")
    report = await caption(source, id_field="id")
    assert (report.resumed, report.captioned, report.changed) == (2, 0, 1)


async def test_one_id_for_two_records_is_a_failure_not_a_guess(tmp_path) -> None:
    """Of two different records with one id the second fails; equal ones each get their row."""
    source = tmp_path / "in.jsonl"
    other = record(1).replace('"prompt": "1"', '"prompt": "other"')
    source.write_text("\n".join([record(1), other, record(1), record(2)]))
    for _ in range(2):
        report = await caption(source, id_field="id")
        assert report.failed == 1
    assert [row["id"] for row in rows(tmp_path / "in.captions.jsonl")] == [1, 1, 2]
    (failure,) = rows(tmp_path / "in.captions.failed.jsonl")
    assert (failure["line"], failure["code"]) == (2, "duplicate_id")


# -- case 24: many records ------------------------------------------------------------------------


MANY = 1_000_000 if LONG else 200_000
FEW = 2_000
FIXED_GROWTH_MB = 25  # buffers and queues that a short run does not fill
BYTES_PER_RECORD = 120  # of the keys and offsets that put the output into input order

MEASURED_RUN = r"""
import asyncio, pathlib, resource, sys
sys.path.insert(0, sys.argv[1])
from fakes import EchoTransport
from captioner import run_batch

class Transport(EchoTransport):
    async def send(self, request):
        self.n = getattr(self, "n", 0) + 1
        self.calls.clear()
        return await super().send(request)

transport = Transport()
report = asyncio.run(
    run_batch(sys.argv[2], transport=transport, model="m", concurrency=64, pass_urls=True)
)
status = pathlib.Path("/proc/self/status")
if status.exists():  # ru_maxrss counts what the process was before it became this program
    peak = int(status.read_text().partition("VmHWM:")[2].split()[0]) >> 10
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20
print(report.captioned, transport.n, peak)
"""


def peak_mb(folder: Path, count: int) -> int:
    """Caption records in a process of their own, check the rows, return its peak memory."""
    source = folder / f"{count}.jsonl"
    with source.open("w") as file:
        for n in range(count):
            file.write(f'{{"id":{n},"image":"https://example.org/i","prompt":"q{n}"}}\n')
    done = subprocess.run(
        [sys.executable, "-c", MEASURED_RUN, str(Path(__file__).parents[2] / "support"), source],
        capture_output=True,
        text=True,
        check=True,
    )
    captioned, calls, peak = map(int, done.stdout.split())
    assert (captioned, calls) == (count, count)
    with (folder / f"{count}.captions.jsonl").open() as file:
        ids = [int(line.removeprefix('{"id":').partition(",")[0]) for line in file]
    assert ids == list(range(count))
    return peak


@pytest.mark.timeout(900)
@pytest.mark.xdist_group("heavy")
def test_many_records_need_little_more_memory_than_a_few(tmp_path) -> None:
    """Each of many records is captioned once; a record adds at most BYTES_PER_RECORD of memory."""
    growth = peak_mb(tmp_path, MANY) - peak_mb(tmp_path, FEW)
    assert growth < FIXED_GROWTH_MB + MANY * BYTES_PER_RECORD / 2**20


# -- case 29: hostile captions --------------------------------------------------------------------


HOSTILE = [
    "A door in \x1b[2J\x1b[31mred\x07 paint",
    "two\nlines\r\nand\x7fmore",
    "\u2028\u2029 separators \ufeff",
    '","caption":"forged"}\n{"id":0,"caption":"forged"}',
    "=cmd|' /C calc'!A0",
    "../../etc/passwd",
    "\u202eevil",
    "A cat 😀👍🏽 and \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "</script><script>alert(1)</script>",
    "\\ud800 \\u0000 \\",
]


async def test_captions_of_every_kind_stay_on_their_line_and_come_back_equal(
    make_input, endpoint
) -> None:
    """Whatever a model says, one record is one line, and reading it back gives what was said."""
    endpoint.behave = lambda call: Reply(body=completion(HOSTILE[int(call.texts[0][1:])]))
    source = make_input(len(HOSTILE))
    report = await run_batch(source, base_url=endpoint.base_url, model="m")
    data = Path(report.output).read_bytes()
    assert data.count(b"\n") == len(HOSTILE)
    assert not any(byte < 32 and byte != 10 for byte in data)
    assert [row["caption"] for row in rows(Path(report.output))] == [h.strip() for h in HOSTILE]
    again = await run_batch(source, base_url=endpoint.base_url, model="m")
    assert (again.resumed, again.calls) == (len(HOSTILE), 0)


def test_hostile_messages_cannot_command_the_terminal(make_input, endpoint, run_command) -> None:
    """Control characters from an endpoint or a path are shown as escapes, in log and summary."""
    bad = Reply(400, {"error": {"message": "\x1b[2Jno\x07 sk-1"}})
    endpoint.behave = lambda _: bad
    source = make_input(1)
    with source.open("a") as file:
        file.write('{"image":"\\u001b[31m.jpg"}\n')
    done = run_command(source, "--base-url", endpoint.base_url, "--model", "m")
    assert done.returncode == 3
    assert "\x1b" not in done.stderr
    assert "\x07" not in done.stderr


# -- case 30: outputs of earlier versions --------------------------------------------------------


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("folder", sorted(GOLDEN.iterdir()), ids=lambda path: path.name)
async def test_an_output_begun_by_an_earlier_version_is_continued(tmp_path, folder) -> None:
    """Every release's half-done run is resumed by this one: nothing is asked for twice."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = (tmp_path / "in.captions.jsonl").read_bytes()
    transport = EchoTransport()
    options = {"accept_changes": True, "pass_urls": True}
    report = await caption(tmp_path / "in.jsonl", transport, **options)
    assert (report.resumed, report.captioned, report.failed) == (3, 2, 1)
    after = (tmp_path / "in.captions.jsonl").read_bytes()
    assert sorted(before.splitlines()) == sorted(
        line for line in after.splitlines() if line in before.splitlines()
    )
    assert [row["id"] for row in rows(tmp_path / "in.captions.jsonl")] == [0, 1, 2, 3, 5]
    again = await caption(tmp_path / "in.jsonl", transport, **options)
    assert again.calls == 0


def test_random_order_of_the_same_records_resumes_completely(tmp_path) -> None:
    """Shuffling the input costs no call; the output follows the new order."""
    names = list(range(200))
    source = tmp_path / "in.jsonl"
    source.write_text("".join(record(name) + "\n" for name in names))
    asyncio.run(caption(source))
    random.Random(3).shuffle(names)
    source.write_text("".join(record(name) + "\n" for name in names))
    report = asyncio.run(caption(source))
    assert (report.calls, report.resumed) == (0, 200)
    assert [row["id"] for row in rows(tmp_path / "in.captions.jsonl")] == names
