"""Votes in a file: the last one on two captions counts, and what is no vote is ignored."""

from __future__ import annotations

import pytest

from captioner.core.errors import OutputDamagedError
from captioner.journal.companions import votes_path
from captioner.journal.votes import Vote, Votes

KEY, OTHER = b"k" * 16, b"o" * 16


@pytest.fixture
def path(tmp_path):
    return votes_path(tmp_path / "out.jsonl")


def test_the_last_vote_counts(path):
    """A later vote replaces an earlier one, and `none` withdraws it, also when they are read."""
    votes = Votes(path)
    for key, better in ((KEY, "first"), (OTHER, "equal"), (KEY, "second"), (OTHER, "none")):
        votes.add(Vote(key, "a", "b", better))
    for found in (votes, Votes(path)):
        assert list(found) == [Vote(KEY, "a", "b", "second")]
        assert found.has(KEY, "a", "b")
        assert not found.has(KEY, "a", "other")
        assert not found.has(OTHER, "a", "b")


def test_what_is_no_vote(path):
    """Lines of other kinds and a torn one are ignored, and the next vote has a line of its own."""
    path.write_bytes(b'no JSON\n[]\n{"key":"00"}\n{"key":"' + b"00" * 16 + b'","first":"a"')
    votes = Votes(path)
    assert len(votes) == 0
    votes.add(Vote(KEY, "a", "b", "first"))
    assert list(Votes(path)) == [Vote(KEY, "a", "b", "first")]


def test_votes_of_another_page(path):
    """What another page appends is read at the next look."""
    mine, theirs = Votes(path), Votes(path)
    theirs.add(Vote(KEY, "a", "b", "first"))
    mine.refresh()
    assert list(mine) == list(theirs)


def test_a_link_in_its_place(path, tmp_path):
    """Nothing is written through a link."""
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputDamagedError):
        Votes(path)
