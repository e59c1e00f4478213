"""Two outputs side by side: blind votes, kept in a file, and what they say."""

from __future__ import annotations

import json
import subprocess
import time
from types import SimpleNamespace

import pytest
from conftest import command, rows
from page_requests import ask, send
from waiting import LIMIT_S

from captioner.journal.companions import votes_path
from captioner.outputs.viewer import ViewerStore
from captioner.outputs.viewer.comparison import summary, wilson

COUNT = 12


def write(path, captions):
    lines = ({"id": number, "caption": text} for number, text in captions.items())
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def outputs(tmp_path):
    """Two outputs with captions that name their output; those of record 3 are equal."""
    first = {number: f"first {number}" for number in range(COUNT)}
    second = {number: f"second {number}" for number in reversed(range(COUNT))}
    second[3] = first[3]
    return write(tmp_path / "a.jsonl", first), write(tmp_path / "b.jsonl", second)


@pytest.fixture
def compare(view):
    def opened(first, second):
        page = view(first, versus=ViewerStore(second, image_root=None))
        wait_for_pairs(page)
        return page

    return opened


def wait_for_pairs(page):
    until = time.monotonic() + LIMIT_S
    while not ask(page, "pair")["pairs"]:
        assert time.monotonic() < until
        time.sleep(0.02)


def vote_for(page, choose, most=COUNT):
    """Vote about pairs; `choose` gets the two captions. Return the pairs."""
    seen = []
    found = ask(page, "pair")
    while (pair := found["pair"]) and len(seen) < most:
        seen.append(pair)
        better = choose(*(texts[0] for texts in pair["captions"]))
        send(page, "vote", better=better, **{n: pair[n] for n in ("place", "first", "second")})
        found = ask(page, f"pair?from={pair['next']}")
    return seen


def for_second(left, right):
    return "right" if right.startswith("second") else "left"


def test_each_image_is_voted_about_once(outputs, compare):
    """All pairs but the equal one come once, and the votes are counted for the right output."""
    page = compare(*outputs)
    seen = vote_for(page, for_second)
    assert sorted(pair["number"] for pair in seen) == [0, 1, 2, *range(4, COUNT)]
    found = ask(page, "pair")
    assert found["pair"] is None
    assert (found["voted"], found["equal"], found["left"]) == (COUNT - 1, 1, 0)
    assert ask(page, "result")["votes"] == {"first": 0, "second": COUNT - 1, "equal": 0}


def test_a_vote_is_blind(outputs, compare):
    """The sides are mixed, the same each time, and the response does not tell them apart."""
    page = compare(*outputs)
    seen = vote_for(page, lambda *_: "equal")
    sides = [pair["captions"][0][0].split()[0] for pair in seen]
    assert set(sides) == {"first", "second"}
    votes_path(outputs[0]).unlink()
    again = vote_for(compare(*outputs), lambda *_: "equal")
    assert [pair["captions"] for pair in again] == [pair["captions"] for pair in seen]
    assert set(seen[0]) == {
        "place", "next", "number", "generation", "image", "captions", "first", "second",
    }  # fmt: skip


def test_votes_are_kept_and_continued(outputs, compare):
    """Votes are lines of a file beside the first output; another page goes on after them."""
    vote_for(compare(*outputs), for_second, most=4)
    kept = rows(outputs[0].with_name("a.votes.jsonl"))
    assert [one["better"] for one in kept] == ["second"] * 4
    page = compare(*outputs)
    assert ask(page, "pair")["voted"] == 4
    assert len(vote_for(page, for_second)) == COUNT - 1 - 4


def test_a_vote_can_be_taken_back(outputs, compare):
    """A vote that is taken back is not counted, and its pair comes again."""
    page = compare(*outputs)
    (pair,) = vote_for(page, for_second, most=1)
    about = {name: pair[name] for name in ("place", "first", "second")}
    assert send(page, "vote", better="none", **about)["voted"] == 0
    assert ask(page, "pair")["pair"] == pair
    assert send(page, "vote", better="both", **about) == (400, "'both' is no decision")


def test_votes_count_for_the_captions_they_were_about(outputs, compare):
    """A caption that was made anew is voted about again; a vote on the old one is refused."""
    page = compare(*outputs)
    (old,) = vote_for(page, for_second, most=1)
    write(outputs[1], {number: f"second {number} anew" for number in range(COUNT)})
    about = {name: old[name] for name in ("place", "first", "second")}
    page = compare(*outputs)
    assert ask(page, "pair")["voted"] == 0
    assert send(page, "vote", better="left", **about) == (
        400, "these captions have changed; load the page again",
    )  # fmt: skip
    third = write(outputs[0].with_name("c.jsonl"), dict.fromkeys(range(COUNT), "third"))
    assert len(vote_for(compare(outputs[0], third), lambda *_: "equal")) == COUNT


def test_outputs_of_inputs_in_different_formats(tmp_path, compare):
    """Where no record is the same, rows are paired by their image."""
    for name, more in (("a", {}), ("b", {"source": "elsewhere"})):
        lines = (
            json.dumps({"image": f"{number}.jpg", **more, "caption": f"{name} {number}"}) + "\n"
            for number in range(5)
        )
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    page = compare(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    found = ask(page, "pair")
    assert (found["pairs"], found["by_image"]) == (5, True)
    left, right = (texts[0].split() for texts in found["pair"]["captions"])
    assert left[1] == right[1]
    assert left[0] != right[0]


def test_winners_are_taken_over(outputs, compare, run_command):
    """The second output's better captions become edits of the first, and export writes them."""
    page = compare(*outputs)
    chosen = iter(["right", "left"] * COUNT)
    seen = vote_for(page, lambda *_: next(chosen))
    better = {pair["number"]: pair["captions"][1 - at % 2][0] for at, pair in enumerate(seen)}
    better[3] = "first 3"
    found = send(page, "adopt")
    assert found["edited"] == sum(text.startswith("second") for text in better.values())
    assert found["accepted"] == COUNT - 1 - found["edited"]
    assert send(page, "adopt") == {}  # what is reviewed stays as it is
    target = outputs[0].with_name("final.jsonl")
    assert run_command("export", outputs[0], "--to", target).returncode == 0
    assert [row["caption"] for row in rows(target)] == [better[one] for one in range(COUNT)]


def test_the_command(outputs, run_command):
    """`captioner view A B` serves the comparison, and says at its end which output is better."""
    refused = run_command("view", outputs[0], outputs[1].with_name("none.jsonl"))
    assert refused.returncode == 2
    assert "there is no output" in refused.stderr
    with subprocess.Popen(
        command("view", *outputs), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            process.stdout.readline()
            url = outputs[0].with_name("a.jsonl.page").read_text().strip()
            page = SimpleNamespace(url=url)
            wait_for_pairs(page)
            vote_for(page, for_second, most=2)
        finally:
            process.terminate()
        assert "b.jsonl is better in 2 of 2 decided pairs" in process.communicate()[1]


@pytest.mark.parametrize(
    ("wins", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_interval(wins, total, low, high):
    """The interval is Wilson's; the last example is of Newcombe (1998)."""
    assert wilson(wins, total) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_the_result_in_words():
    """The better output is named, with its interval, and a difference only if one is shown."""
    assert summary("a", "b", {"first": 0, "second": 0, "equal": 1}) == (
        "No pair is decided yet. 1 pair equally good."
    )
    assert summary("a", "b", {"first": 2, "second": 3, "equal": 0}) == (
        "b is better in 3 of 5 decided pairs: 60 %, 95 % interval 23 to 88 % (Wilson's score). "
        "The interval includes 50 %: no difference is shown yet."
    )
    assert summary("a", "b", {"first": 30, "second": 3, "equal": 2}).startswith(
        "a is better in 30 of 33 decided pairs: 91 %"
    )
