"""Changes of many captions at once: shown before they are made, and undone in one step."""

from __future__ import annotations

import json

import page_requests
import pytest
from conftest import rows
from page_requests import ask

from captioner.journal.companions import reviews_path

CAPTIONS = ["A cat sits.", "A cat and a cat.", "A dog.", "No animal.", {"objects": ["cat"]}]


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "out.jsonl"
    lines = ({"id": number, "caption": caption} for number, caption in enumerate(CAPTIONS))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def send(page, what, **body):
    return page_requests.send(page, what, **{"generation": 1, **body})


def shown(page, *numbers):
    ask(page, "status")
    asked = ",".join(map(str, numbers or range(len(CAPTIONS))))
    found = ask(page, f"rows?numbers={asked}")
    return [(row["verdict"], row["captions"]["caption"]) for row in found]


@pytest.fixture
def page(output, view):
    page = view(output)
    shown(page)
    return page


def test_a_preview_changes_nothing(page, output):
    """A preview shows each change as it would be, and writes no review."""
    found = send(page, "edit", numbers=[0, 1, 2, 4], find="cat", replacement="lion")
    assert found["changes"] == [
        {"number": 0, "before": "A cat sits.", "after": "A lion sits."},
        {"number": 1, "before": "A cat and a cat.", "after": "A lion and a lion."},
    ]
    assert found["records"] == 2
    assert not reviews_path(output).exists()


@pytest.mark.parametrize(
    ("edit", "second", "third"),
    [
        ({"find": "cat", "replacement": ""}, "A  and a .", "A dog."),
        (
            {"find": r"(\w+)\.$", "replacement": r"[\1]", "is_pattern": True},
            "A cat and a [cat]", "A [dog]",
        ),
        ({"find": ".", "replacement": "!"}, "A cat and a cat!", "A dog!"),
        ({"prefix": "photo, ", "suffix": " 4k"}, "photo, A cat and a cat. 4k", "photo, A dog. 4k"),
        ({"prefix": "A "}, "A cat and a cat.", "A dog."),
    ],
)  # fmt: skip
def test_edits_become_reviews_and_are_undone_at_once(
    page, output, run_command, edit, second, third
):
    """Every change is a line of the reviews, export writes it, and one step takes all back."""
    before = shown(page)
    send(page, "edit", numbers=list(range(5)), apply=True, **edit)
    now = shown(page)
    assert [now[1][1], now[2][1], now[4]] == [second, third, before[4]]
    done = run_command("export", output, "--to", output.with_name("final.jsonl"))
    assert done.returncode == 0, done.stderr
    assert [row["caption"] for row in rows(output.with_name("final.jsonl"))][1:3] == [second, third]
    assert send(page, "undo")["records"] == sum(one[0] == "edited" for one in now)
    assert shown(page) == before
    assert send(page, "undo")["records"] == 0


def test_rejected_captions_and_notes_stay(page):
    """A rejected caption is not changed, an edited one is changed further; undo knows both."""
    send(page, "judge", numbers=[0], verdict="rejected")
    send(page, "edit", numbers=[1], find="cat", replacement="lion", apply=True)
    send(page, "edit", numbers=[0, 1], find="A", replacement="One", apply=True)
    assert shown(page, 0, 1) == [("rejected", "A cat sits."), ("edited", "One lion and a lion.")]
    send(page, "undo")
    assert shown(page, 1) == [("edited", "A lion and a lion.")]


def test_many_are_accepted_and_undone(page):
    """A selection is accepted in one step; edits stay edits."""
    send(page, "edit", numbers=[1], find="cat", replacement="lion", apply=True)
    assert send(page, "judge", numbers=[0, 1, 2], verdict="accepted")["records"] == 2
    assert [verdict for verdict, _ in shown(page)] == [
        "accepted",
        "edited",
        "accepted",
        "none",
        "none",
    ]
    send(page, "undo")
    assert [verdict for verdict, _ in shown(page, 0, 1, 2)] == ["none", "edited", "none"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"find": "(", "is_pattern": True}, "the pattern is invalid"),
        ({"find": "(A)", "replacement": r"\7", "is_pattern": True}, "the replacement is invalid"),
        ({"numbers": [0] * 50_001}, "at most 50000 captions"),
        ({"generation": 9}, "another order"),
    ],
)
def test_edits_that_are_refused(page, output, body, why):
    """An edit that cannot be made is refused in a sentence."""
    status, said = send(page, "edit", **{"numbers": [0], "apply": True, **body})
    assert status == 400
    assert why in said
    assert not reviews_path(output).exists()


def test_a_pattern_takes_no_endless_time(tmp_path, view):
    """A pattern that would keep a backtracking engine busy for years is matched in linear time."""
    output = tmp_path / "out.jsonl"
    output.write_text(json.dumps({"caption": "a" * 5_000}) + "\n")
    page = view(output)
    shown(page, 0)
    found = send(page, "edit", numbers=[0], find="(a+)+$b", replacement="", is_pattern=True)
    assert found["records"] == 0
