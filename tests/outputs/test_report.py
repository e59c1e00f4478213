"""The statistics of captions, and the page that shows them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from conftest import rows
from endpoint import Reply, completion

from captioner import run_batch
from captioner.outputs.statistics import caption_statistics

HOSTILE = '</figcaption><script>alert(1)</script><img src=x onerror="alert(2)">&amp; "quoted"'


def test_lengths_and_repetition():
    texts = ["a cat on a mat"] * 3 + ["a dog in the rain", "I'm sorry, I can't help with that."]
    found = caption_statistics(texts)
    assert (found.captions, found.duplicates, found.refusals) == (5, 2, 1)
    assert found.chars["min"] == 14
    assert found.openings[0] == ("a cat on a", 3)
    assert sum(count for _, count in found.histogram) == 5
    assert caption_statistics([]).captions == 0


def test_near_duplicates_are_found_and_others_are_not():
    long = "a wide photograph of a harbour at dusk with many small boats and a lighthouse " * 3
    other = "two children play chess on a wooden table in front of a large bookshelf " * 3
    assert caption_statistics([long, long + "seen", other]).near_duplicates == 1
    assert caption_statistics([long, other]).near_duplicates == 0


def test_languages_of_a_sample():
    found = caption_statistics(
        ["Une photo d'un chat sur la table", "A photograph of a cat on the table"]
    )
    assert set(found.languages) == {"fr", "en"}


@pytest.fixture
def hostile_output(make_input, endpoint, run_command):
    """Captions, prompts and failures that try to be more than text."""
    endpoint.behave = lambda call: (
        Reply(400, {"error": {"message": f"no {HOSTILE}"}})
        if call.number == 3
        else Reply(body=completion(f"{HOSTILE} {call.number}"))
    )
    source = make_input(6)
    ended = run_command(source, "--base-url", endpoint.base_url, "--model", "<b>m</b>")
    assert ended.returncode == 3
    return source.with_name("input.captions.jsonl")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data) -> None:
        self.texts.append(data)


def test_the_page_needs_nothing_and_runs_nothing(hostile_output, run_command):
    """Captions are text only, images are embedded, and there is no script and no address."""
    target = hostile_output.with_name("report.html")
    ended = run_command("report", hostile_output, "--html", target)
    assert (ended.returncode, ended.stderr) == (0, f"written: {target}\n")
    text = target.read_text("utf-8")
    parsed = Tags(text)
    assert not {"script", "b", "iframe", "link"} & set(parsed.tags)
    assert parsed.tags.count("img") == 5
    assert sum(HOSTILE in one for one in parsed.texts) >= 5
    assert "Content-Security-Policy" in text
    assert not re.findall(r'(?:src|href)="(?!data:image/)', text)
    assert text.count("data:image/jpeg;base64,") == 5
    assert "http_400" in text


def test_numbers_for_people_and_scripts(hostile_output, run_command):
    ended = run_command("report", hostile_output)
    assert "5 captions, 1 failed" in ended.stdout
    assert "1 failed as http_400" in ended.stdout
    found = json.loads(run_command("report", hostile_output, "--json").stdout)
    assert found["quality"]["captions"] == len(rows(hostile_output)) == 5
    assert found["failures"]["http_400"]["total"] == 1
    assert run_command("report", hostile_output.with_name("no.jsonl")).returncode == 2


async def test_a_report_of_several_questions(make_input, endpoint, run_command):
    source = make_input(3)
    await run_batch(
        source, base_url=endpoint.base_url, model="m", ask=("a=What?", "b=Where?"), samples=2
    )
    found = run_command("report", source.with_name("input.captions.jsonl"), "--json").stdout
    assert json.loads(found)["quality"]["captions"] == 12


def test_a_report_is_written_over_no_journal(hostile_output, run_command):
    before = hostile_output.read_bytes()
    assert run_command("report", hostile_output, "--html", hostile_output).returncode == 2
    assert hostile_output.read_bytes() == before
    page = hostile_output.with_name("r.html")
    for _ in range(2):
        assert run_command("report", hostile_output, "--html", page).returncode == 0
