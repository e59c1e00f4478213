from __future__ import annotations

import json

import pytest
from conftest import rows

from captioner.journal.companions import reviews_path
from captioner.journal.reviews import Review, Reviews, fingerprint

FIELDS = ("caption",)
ROW = {"id": 1, "caption": "a cat"}
KEY = bytes(range(16))


def review(verdict, row=ROW, key=KEY, **more):
    return Review(key, fingerprint(row, FIELDS), verdict, more.pop("captions", {}), **more)


@pytest.fixture
def path(tmp_path):
    return reviews_path(tmp_path / "out.jsonl")


def test_where_they_are(path):
    """Reviews lie beside the output, named as its failures are."""
    assert path.name == "out.review.jsonl"


def test_the_last_word_counts(path):
    """What was said last of a record is what holds, and it is there for whoever reads it later."""
    reviews = Reviews(path)
    reviews.add(review("rejected", note="not a cat"))
    reviews.add(review("accepted"))
    for found in (reviews, Reviews(path)):
        assert found.of(KEY, ROW, FIELDS).verdict == "accepted"
        assert len(found) == 1
    reviews.add(review("none"))
    for found in (reviews, Reviews(path)):
        assert found.of(KEY, ROW, FIELDS) is None
    assert [row["verdict"] for row in rows(path)] == ["rejected", "accepted", "none"]


def test_a_new_caption_has_not_been_reviewed(path):
    """A review holds for the caption it was said of, and for no other of the same record."""
    reviews = Reviews(path)
    reviews.add(review("rejected"))
    assert reviews.of(KEY, {**ROW, "caption": "a dog"}, FIELDS) is None
    assert reviews.rejected() == {(KEY, fingerprint(ROW, FIELDS))}


def test_equal_records_with_different_captions(path):
    """Each caption has a verdict of its own, though the records cannot be told apart."""
    other = {**ROW, "caption": "a dog"}
    reviews = Reviews(path)
    reviews.add(review("rejected"))
    reviews.add(review("accepted", other))
    for found in (reviews, Reviews(path)):
        assert found.of(KEY, ROW, FIELDS).verdict == "rejected"
        assert found.of(KEY, other, FIELDS).verdict == "accepted"


def test_a_field_that_was_not_asked_for_yet(path):
    """A caption stays judged when a further question is asked of later records."""
    reviews = Reviews(path)
    reviews.add(review("rejected"))
    assert reviews.of(KEY, ROW, ("caption", "long")).verdict == "rejected"


def test_two_reviewers(path):
    """What somebody else adds meanwhile is seen at the next look."""
    mine, theirs = Reviews(path), Reviews(path)
    theirs.add(review("edited", captions={"caption": "one cat"}))
    assert mine.of(KEY, ROW, FIELDS) is None
    mine.refresh()
    assert mine.of(KEY, ROW, FIELDS).edited(ROW) == {"id": 1, "caption": "one cat"}


def test_lines_that_are_none_of_ours(path):
    """A line that is no review is passed over; a torn one stands apart from the next."""
    good = {"key": KEY.hex(), "of": fingerprint(ROW, FIELDS), "verdict": "accepted"}
    bad = [
        "rubbish", "[]", "7", "{}", "[" * 100_000,
        json.dumps({**good, "key": "00"}), json.dumps({**good, "verdict": "perhaps"}),
        json.dumps({**good, "captions": [1]}),
    ]  # fmt: skip
    path.write_text("\n".join([*bad, json.dumps(good), '{"key":"torn']))
    reviews = Reviews(path)
    assert [one.verdict for one in reviews] == ["accepted"]
    reviews.add(review("rejected"))
    assert [one.verdict for one in Reviews(path)] == ["rejected"]
    assert path.read_text().endswith("\n")


def test_a_sidecar_that_was_cut(path):
    """Somebody who starts over sees what is there, not what was."""
    reviews = Reviews(path)
    reviews.add(review("rejected"))
    path.write_text("")
    reviews.refresh()
    assert len(reviews) == 0


def test_captions_with_numbers_of_any_size(path):
    """A caption that is an object may hold integers beyond 64 bits."""
    row = {"caption": {"count": 1 << 80}}
    reviews = Reviews(path)
    reviews.add(Review(KEY, fingerprint(row, FIELDS), "accepted", {}))
    assert Reviews(path).of(KEY, row, FIELDS).verdict == "accepted"


def test_a_hole_of_terabytes_is_not_read(path):
    """What stands before it is found."""
    Reviews(path).add(review("rejected"))
    with path.open("r+b") as file:
        file.truncate(1 << 42)
    assert [one.verdict for one in Reviews(path)] == ["rejected"]
