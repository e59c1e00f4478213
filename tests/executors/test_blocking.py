"""A run for programs without asyncio."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from conftest import rows
from endpoint import Reply, completion
from waiting import wait_until

from captioner import SettingsError, caption_batch


def test_it_captions_and_resumes(make_input, endpoint):
    source = make_input(3)
    options = {"base_url": endpoint.base_url, "model": "m"}
    report = caption_batch(source, limit=2, **options)
    assert (report.captioned, report.complete) == (2, True)
    report = caption_batch(source, **options)
    assert (report.captioned, report.resumed) == (1, 2)


async def test_it_works_within_a_running_loop(make_input, endpoint):
    """As a cell of a notebook does."""
    report = caption_batch(make_input(2), base_url=endpoint.base_url, model="m")
    assert report.captioned == 2


def test_errors_arrive_at_the_caller(make_input):
    with pytest.raises(SettingsError, match="no option"):
        caption_batch(make_input(1), base="x")


def test_an_interrupt_lets_requests_in_flight_finish(make_input, endpoint):
    """What was sent is paid for: it is written before KeyboardInterrupt is raised."""
    endpoint.behave = lambda call: Reply(body=completion(f"c{call.number}"), delay_s=1.0)
    source = make_input(30)
    code = (
        "import sys\nfrom captioner import caption_batch\n"
        f"caption_batch({str(source)!r}, base_url={endpoint.base_url!r}, model='m', probe=False)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as run:
        wait_until(lambda: endpoint.count > 0, run)
        run.send_signal(signal.SIGINT)
        error = run.stderr.read()
    assert "KeyboardInterrupt" in error
    assert len(rows(source.with_name("input.captions.jsonl"))) == endpoint.count < 30
