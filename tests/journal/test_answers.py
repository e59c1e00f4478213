"""Answers of finished stages: what is kept is found again, by whoever kept it."""

from __future__ import annotations

import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from captioner.core.keys import digest
from captioner.journal import answers
from captioner.journal.answers import KeptAnswers

ONE, TWO = b"1" * 16, b"2" * 16


def kept(path: Path) -> KeptAnswers:
    """Return the answers of another run."""
    return KeptAnswers(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "out.jsonl.answers"
    first = kept(made)
    first.put(ONE, b'[["one"]]')
    first.put(TWO, b'[["' + b"a" * 300_000 + b'"]]')
    first.close()
    return made


def test_answers_are_found_by_the_next_run(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    again = kept(path)
    assert again.get(ONE) == b'[["one"]]'
    assert again.get(TWO) == b'[["' + b"a" * 300_000 + b'"]]'
    assert again.get(b"3" * 16) == b""
    again.close()
    assert not caplog.records


def test_answers_that_were_changed_are_not_used(path: Path) -> None:
    """Before the file is read, and after."""
    again = kept(path)
    assert again.get(ONE)
    path.write_bytes(path.read_bytes().replace(b"one", b"lie"))
    assert again.get(ONE) == b""
    again.close()
    assert kept(path).get(ONE) == b""


def test_answers_that_change_places_are_not_mixed_up(path: Path) -> None:
    """Both lines are sealed, but each answers its own question."""
    first = kept(path)
    first.put(b"3" * 16, b'[["six"]]')
    first.close()
    again = kept(path)
    assert again.get(ONE)
    one, two, three = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(three + two + one)
    assert (again.get(ONE), again.get(b"3" * 16)) == (b"", b"")
    again.close()
    assert kept(path).get(ONE) == b'[["one"]]'


def test_lines_without_end_are_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set may bring gigabytes of them. What was kept before them is found."""
    monkeypatch.setattr(answers, "MOST_OTHERS", 100)
    sealed = []
    make = KeptAnswers._sealed
    monkeypatch.setattr(
        KeptAnswers, "_sealed", lambda self, body: sealed.append(body) or make(self, body)
    )
    with path.open("ab") as file:
        file.write(b"\n" * 10_000)
    assert kept(path).get(ONE) == b'[["one"]]'
    assert len(sealed) < 200


def test_answers_of_another_user_are_not_used(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They came with a data set: their author could have written any caption."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    other = kept(path)
    with caplog.at_level(logging.WARNING):
        assert other.get(ONE) == b""
    (said,) = [one.getMessage() for one in caplog.records]
    assert said.startswith("out.jsonl.answers: 2 lines are not used")
    other.put(ONE, b'[["mine"]]')
    other.close()
    assert kept(path).get(ONE) == b'[["mine"]]'


def test_a_line_that_was_cut_short_does_not_spoil_the_next(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])
    again = kept(path)
    again.put(TWO, b'[["two"]]')
    again.close()
    assert (kept(path).get(ONE), kept(path).get(TWO)) == (b'[["one"]]', b'[["two"]]')


def test_a_hole_of_terabytes_is_not_read(path: Path) -> None:
    """What was kept before it is found."""
    with path.open("r+b") as file:
        file.truncate(1 << 42)
    again = kept(path)
    assert again.get(ONE) == b'[["one"]]'
    again.close()


def test_answers_are_found_while_others_are_kept(path: Path) -> None:
    """Threads look for answers while the event loop keeps more, for which the table grows."""
    both = KeptAnswers(path, at_once=True)
    assert both.get(ONE)
    ended = threading.Event()

    def look() -> int:
        missed = 0
        while not ended.is_set():
            missed += not both.get(ONE)
        return missed

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            looking = [threads.submit(look) for _ in range(2)]
            try:
                for number in range(7_000):
                    both.put(digest(b"%d" % number), b"[]")
            finally:
                ended.set()
            assert [one.result() for one in looking] == [0, 0]
    finally:
        sys.setswitchinterval(interval)
        both.close()
