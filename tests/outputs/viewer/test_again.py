"""Records captioned again from the page: marked, and by a command to paste or to start here."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time

import pytest
from conftest import rows
from endpoint import Reply, completion
from page_requests import ask, send
from waiting import LIMIT_S

from captioner.outputs.viewer import Viewer, ViewerThread

QUESTION = "How many cats' tails, and what colour?"


def status(page):
    return ask(page, "status")


def mark(page, *numbers):
    generation = status(page)["generation"]
    assert send(page, "judge", numbers=numbers, verdict="again", generation=generation) == {
        "records": len(numbers)
    }


def ended(page):
    """Wait for the end of the run that the page started; return its status."""
    until = time.monotonic() + LIMIT_S
    while (now := status(page))["again"]["running"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    return now


@pytest.fixture
def answer(endpoint):
    """Make the endpoint answer the question, and return the questions that it got."""
    asked = []

    def behave(call):
        asked.append(call.texts[-1])
        return Reply(body=completion(f"{len(asked)} tails of a cat, all black."))

    endpoint.behave = behave
    return asked


def test_the_marked_are_captioned_again(captioned, view, answer):
    """Only they are sent, with the question in place of their own; the old captions are kept."""
    before = rows(captioned)
    page = view(captioned)
    mark(page, 2, 4)
    assert send(page, "again", question=QUESTION)["running"]
    now = ended(page)
    assert any("2 captioned" in line for line in now["again"]["said"])
    assert answer == [QUESTION] * 2
    after = {row["id"]: row["caption"] for row in rows(captioned)}
    changed = {row["id"] for row in before if after[row["id"]] != row["caption"]}
    assert changed == {before[2]["id"], before[4]["id"]}
    until = time.monotonic() + LIMIT_S
    while status(page)["verdicts"]:  # the marks are of captions that are gone
        assert time.monotonic() < until
        time.sleep(0.05)
    kept = rows(captioned.with_name("out.jsonl.replaced-1"))
    assert [row["id"] for row in kept] == [before[2]["id"], before[4]["id"]]


def test_once_more(captioned, view, answer):
    """The next marked record is captioned with the same question or another one."""
    page = view(captioned)
    for question in (QUESTION, QUESTION, "Briefly."):
        mark(page, 0)
        send(page, "again", question=question)
        ended(page)
    assert answer == [QUESTION, QUESTION, "Briefly."]


def test_the_command_can_be_pasted(captioned, view, answer, tmp_path):
    """Typed into a shell, from any folder, it captions what is marked."""
    page = view(captioned)
    mark(page, 0, 1, 2)
    found = send(page, "command", question=QUESTION)
    assert found["obstacle"] == ""
    assert found["model"] == "m"
    assert found["endpoint"].startswith("http://127.0.0.1:")
    words = shlex.split(found["command"])
    assert words[:3] == ["python", "-m", "captioner"]  # as these tests are called
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = subprocess.run(
        [sys.executable, *words[1:]], cwd=elsewhere, capture_output=True, text=True, check=False
    )
    assert answer == [QUESTION] * 3, run.stderr


def test_nothing_else_is_captioned(captioned, view, answer):
    """While other records of the input are pending the page does not start a run."""
    with captioned.with_name("in.jsonl").open("a") as file:
        file.write('{"id":"new","image":"images/0.jpg"}\n')
    page = view(captioned)
    mark(page, 0)
    code, error = send(page, "again", question="")
    assert code == 400
    assert error.startswith("1 record of the input is pending")
    assert answer == []


def test_a_page_for_others_starts_nothing(captioned, view, answer):
    """With --host the page shows the command only."""
    page = view(captioned, host="0.0.0.0")
    page.url = f"http://127.0.0.1:{page.url.split(':')[2]}"
    mark(page, 0)
    reached = "this page can be reached from other machines"
    assert send(page, "command", question="")["obstacle"] == reached
    assert send(page, "again", question="") == (400, reached)
    assert answer == []


def test_a_question_names_no_file(captioned, view):
    """A question that begins with @ would read a file of this machine, and is refused."""
    page = view(captioned)
    code, error = send(page, "command", question=" @/etc/passwd")
    assert (code, error) == (400, "a question must not begin with @, which names a file")
    assert send(page, "again", question="@secret")[0] == 400


def test_an_output_without_a_run(tmp_path, view):
    """Captions of another program can be marked, and the page says why there is no command."""
    output = tmp_path / "out.jsonl"
    output.write_text('{"id":1,"caption":"A cat."}\n')
    page = view(output)
    mark(page, 0)
    assert send(page, "command", question="") == (
        400, "the output does not remember a file or folder as its input",
    )  # fmt: skip


def test_marks_and_export(captioned, view, run_command):
    """An export has a marked caption as it is; with --reviewed only it is left out."""
    page = view(captioned)
    mark(page, 0)
    key = {"verdict": "accepted", "generation": 1, "numbers": [1]}
    send(page, "judge", **key)
    target = captioned.with_name("final.jsonl")
    run_command("export", captioned, "--to", target, cwd=captioned.parent)
    assert len(rows(target)) == 38
    run_command("export", captioned, "--to", target, "--overwrite", "--reviewed", "only")
    assert [row["id"] for row in rows(target)] == [rows(captioned)[1]["id"]]


def test_closing_the_page_ends_the_run(captioned, view, endpoint):
    """A run that the page started does not outlive it; what it sent stays pending."""
    endpoint.behave = lambda _: Reply(fault="hang")
    page = ViewerThread(Viewer(captioned))
    mark(page, 0)
    before = len(endpoint.calls)
    assert send(page, "again", question=QUESTION)["running"]
    until = time.monotonic() + LIMIT_S
    while len(endpoint.calls) == before:
        assert time.monotonic() < until
        time.sleep(0.05)
    pid = int(captioned.with_name("out.jsonl.lock").read_text().split()[1])
    page.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
