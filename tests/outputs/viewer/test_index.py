"""The page's index finds what the rows say, and opens no file of a stranger."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from endpoint import Reply, completion

from captioner.core.keys import RecordKeys
from captioner.journal.companions import index_path, reviews_path
from captioner.journal.reviews import Review, Reviews, fingerprint
from captioner.outputs.viewer import finding, index, indexer
from captioner.outputs.viewer.finding import find
from captioner.outputs.viewer.index import RowIndex
from captioner.outputs.viewer.search import Query
from captioner.outputs.viewer.store import ViewerStore

LONG = "a small brown dog runs over the wet sand of a wide beach while two children look at it "
LONG = LONG + LONG.replace("dog", "cat") + LONG.replace("a ", "the ")
CAPTIONS = [
    "Two cats.", "Two cats.", LONG + "from afar", LONG + "from far", "Straße im Nebel",
    "oﬃce chair, 50% off", "a zebra_crossing at night", "シマウマが道を渡る", "Two dogs sleep here",
    "Two dogs sleep there",
]  # fmt: skip


def write(path, captions, **more):
    with path.open("a") as file:
        for number, caption in enumerate(captions):
            row = {"id": number, "image": f"{number}.jpg", "caption": caption, **more}
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "out.jsonl"
    write(path, CAPTIONS)
    return path


def indexed(output):
    store = ViewerStore(output, image_root=None)
    while store.indexer.advance():
        pass
    return store


def numbers(store, step=1, **query):
    """Return everything that is found, as the page asks for it."""
    at, found = 0 if step > 0 else len(store.rows) - 1, []
    while at is not None:
        some = find(store, "rows", Query(**query), at, step)
        found, at = found + some.numbers, some.next
    return found


def review(output, number, verdict, **captions):
    """Review a row as another program would, by its line in the file of reviews."""
    line = output.read_bytes().splitlines()[number]
    row = json.loads(line)
    key = RecordKeys(("caption",)).of_output(line)
    of = fingerprint(row, ("caption",))
    Reviews(reviews_path(output)).add(Review(key, of, verdict, captions))


@pytest.mark.parametrize(
    "query",
    [
        {"text": "zebra"}, {"text": "bra_cross"}, {"text": "STRASSE"}, {"text": "office"},
        {"text": "ウマが"}, {"text": "wo dogs sl"}, {"text": "50% o"}, {"text": "%"}, {"text": "s"},
        {"text": ".jpg"}, {"text": "nowhere"}, {"text": '"'}, {"text": "two", "longest": 9},
        {"text": "changed"}, {"text": "there"}, {"verdict": "none"}, {"verdict": "edited"},
        {"verdict": "rejected", "text": "two"}, {"shortest": 40}, {"longest": 9},
        {"flag": "any"}, {"flag": "truncated"},
    ],
    ids=lambda query: " ".join(f"{name}={value}" for name, value in query.items()),
)  # fmt: skip
def test_it_finds_what_the_rows_say(output, query):
    """With the index, and without it, the same rows are found, forward and backward."""
    write(output, ["cut off her"], caption_flag="truncated")
    review(output, 0, "accepted")
    review(output, 8, "rejected")
    review(output, 9, "edited", caption="changed by hand")
    plain = ViewerStore(output, image_root=None)
    plain.rows.refresh()
    with closing(plain), closing(indexed(output)) as store:
        assert store.indexer.index.count == 11
        assert numbers(store, **query) == numbers(plain, **query)
        assert numbers(store, step=-1, **query) == numbers(plain, step=-1, **query)


def test_repeated_captions(output):
    """Captions that are there twice, or nearly twice, are found with what they repeat."""
    with closing(indexed(output)) as store:
        assert numbers(store, repeated="exactly") == [0, 1]
        assert numbers(store, repeated="nearly") == [0, 1, 2, 3]
        assert numbers(store, repeated="nearly", text="dog") == [2, 3]
        assert numbers(store, step=-1, repeated="nearly", longest=20) == [1, 0]


def test_choices(output):
    """Openings that several captions have, prompts and models are offered with their rows."""
    write(output, ["Two dogs sleep here too"], caption_model="other", prompt="Why?")
    with closing(indexed(output)) as store:
        choices = store.indexer.choices()
        opening = {one["text"]: one for one in choices["opening"]}
        assert opening.keys() == {"two cats", "a small brown dog", "two dogs sleep here"}
        assert numbers(store, opening=opening["two dogs sleep here"]["value"]) == [8, 10]
        model = next(one for one in choices["model"] if one["text"] == "other")
        assert model["rows"] == len(numbers(store, model=model["value"])) == 1
        prompt = next(one for one in choices["prompt"] if one["text"] == "Why?")
        assert numbers(store, prompt=prompt["value"]) == [10]


def test_it_follows_the_output_and_the_reviews(output):
    """Rows that are added and reviews by others are found; a file in their place is read anew."""
    with closing(indexed(output)) as store:
        write(output, ["Two cats.", "a late zebra"])
        store.rows.refresh()
        assert numbers(store, text="zebra") == [6, 11]  # not indexed yet
        store.indexer.advance()
        assert numbers(store, repeated="exactly") == [0, 1, 10]
        review(output, 2, "rejected")
        store.reviews.refresh()
        assert numbers(store, verdict="rejected") == [2]
        review(output, 2, "none")
        store.reviews.refresh()
        assert numbers(store, verdict="rejected") == []
        other = output.with_name("other")
        write(other, ["only a zebra"])
        other.replace(output)
        store.rows.refresh()
        assert numbers(store, text="zebra") == [0]  # by the rows: the index is of the others
        assert numbers(store, verdict="none") == [0]
        store.indexer.advance()
        assert numbers(store, text="zebra") == [0]
        assert numbers(store, repeated="exactly") == []


def between_lines(at, act, of):
    """Return a trace function that acts once, before a line of some files: the one at a number."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        if frame.f_code.co_filename not in of:
            return None
        if event == "line":
            if seen == at:
                act()
            seen += 1
        return trace

    return trace, lambda: seen


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"text": "number 1"}, [1, *range(10, 16)]),
        ({"verdict": "none"}, [*range(16)]),
        ({"longest": 8}, [*range(10)]),
        ({"text": "number 1", "model": "m"}, [1, *range(10, 16)]),
        ({"text": "1", "model": "m"}, [1, *range(10, 16)]),
        ({"model": "m"}, [*range(16)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("terms", [500, 1], ids=["narrowed", "not narrowed"])
def test_rows_that_are_indexed_during_a_search(tmp_path, monkeypatch, query, expected, terms):
    """Wherever the indexer takes a step between two lines of a search, no row is missed."""
    monkeypatch.setattr(indexer, "ROWS", 4)
    monkeypatch.setattr(index, "_MOST_TERMS", terms)
    path = tmp_path / "out.jsonl"
    write(path, [f"number {n}" for n in range(16)], caption_model="m")
    files = {finding.__file__, index.__file__}
    point, reached = 0, True
    with ThreadPoolExecutor(1) as other:
        while reached:
            store = ViewerStore(path, image_root=None)
            for _ in range(2):
                store.indexer.advance()

            def step(store=store):
                other.submit(step_if_free, store).result()

            trace, seen = between_lines(point, step, files)
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                some = find(store, "rows", asked(store, query), 0, 1)
            finally:
                sys.settrace(before)
            reached, point = seen() > point, point + 1
            found = some.numbers
            while store.indexer.advance():
                pass
            while some.end < len(store.rows):  # as the page does when more is indexed
                some = find(store, "rows", asked(store, query), some.next or some.end, 1)
                found += some.numbers
            assert found == expected
            store.indexer.close(keep=False)
            store.close()
    assert point > 20


def asked(store, query):
    """Return a query; a model is named as the page names it, by its hash."""
    return Query(**query | ({"model": str(index.hashed("m"))} if "model" in query else {}))


def step_if_free(store):
    """Index some rows, unless the search excludes the indexer just now."""
    locks = store.indexer._lock, store.indexer.index._lock
    free = [lock for lock in locks if lock.acquire(blocking=False)]
    for lock in free:
        lock.release()
    if len(free) == len(locks):
        store.indexer.advance()


def test_a_review_can_be_found_when_it_is_announced(output):
    """A row that is indexed after its review was taken from the changes has it all the same."""
    reviews = Reviews(reviews_path(output), followed=True)
    seen = []

    class Announced(deque):
        def append(self, one):
            seen.append((one.verdict, getattr(reviews.get(one.key, one.of), "verdict", "none")))

    reviews.changes = Announced()
    row = json.loads(output.read_bytes().splitlines()[0])
    for verdict in ("accepted", "none"):
        reviews.add(Review(bytes(16), fingerprint(row, ("caption",)), verdict, {}))
    assert seen == [("accepted", "accepted"), ("none", "none")]


def test_lines_that_are_no_rows(output):
    """Rubbish between the rows costs only itself, and what no text can hold is indexed."""
    odd = f'{{"id":{10**20},"caption":"late \\ud800 zebra","n":[{{"a":[]}}]}}'
    with output.open("a") as file:
        file.write("rubbish\n\n[1]\n7\n" + odd + "\n")
    with closing(indexed(output)) as store:
        assert store.indexer.index.count == len(CAPTIONS) + 5
        assert numbers(store, text="zebra") == [6, 14]
        assert numbers(store, verdict="none") == [*range(10), 14]


def test_a_disk_that_is_full(output, monkeypatch):
    """An index that cannot be written is given up; the rows are searched line by line."""

    def refuse(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(RowIndex, "add", refuse)
    with closing(indexed(output)) as store:
        assert store.indexer.index is None
        assert numbers(store, text="zebra") == [6]
        assert store.status()["indexed"] is None
        assert not index_path(output).exists()


def test_it_is_private_and_used_again(output):
    """The file is for its owner only. The next page goes on with it, also after rows were added."""
    indexed(output).close()
    path = index_path(output)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.stat().st_ino
    write(output, ["one more zebra"])
    review(output, 1, "rejected")
    store = ViewerStore(output, image_root=None)
    with closing(store):
        store.indexer.advance()
        assert path.stat().st_ino == before
        assert numbers(store, text="zebra") == [6, 10]
        assert numbers(store, verdict="rejected") == [1]


def _link(path, elsewhere):
    path.unlink()
    path.symlink_to(elsewhere)


def _copy(path, elsewhere):
    shutil.copy2(path, elsewhere)
    shutil.copy2(path, other := path.with_name("other"))
    other.replace(path)


def _hard_link(path, elsewhere):
    elsewhere.unlink()
    os.link(path, elsewhere)


def _open_to_others(path, elsewhere):
    path.chmod(0o644)


def _left_open(path, elsewhere):
    """What a crash leaves: a file that was not closed."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 0")


def _pipe(path, elsewhere):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "change",
    [_link, _copy, _hard_link, _open_to_others, _left_open, _pipe],
    ids=lambda one: one.__name__,
)
def test_a_file_that_is_not_ours_is_made_anew(output, change):
    """A link, a copy, a file that others can write and what a crash left are never opened."""
    indexed(output).close()
    path, elsewhere = index_path(output), output.with_name("elsewhere")
    elsewhere.write_bytes(b"")
    change(path, elsewhere)
    kept = elsewhere.read_bytes()
    before = path.lstat().st_ino
    held = os.open(path, os.O_PATH | os.O_NOFOLLOW)  # so that its inode is not used again
    with closing(indexed(output)) as store:
        assert numbers(store, text="zebra") == [6]
        found = path.lstat()
        assert (found.st_ino != before, found.st_mode & 0o777) == (True, 0o600)
    assert elsewhere.read_bytes() == kept
    os.close(held)


def test_rows_that_were_edited_in_place_are_indexed_anew(output):
    """An editor that keeps the file's inode and length is noticed by its time."""
    indexed(output).close()
    text = output.read_text().replace("zebra", "horse")
    with output.open("r+") as file:
        file.write(text)
    os.utime(output, (1, 1))
    with closing(indexed(output)) as store:
        assert numbers(store, text="zebra") == []
        assert numbers(store, text="horse") == [6]


def test_two_pages_of_one_output(output):
    """The second page has a temporary index, and leaves that of the first alone."""
    with closing(indexed(output)) as first:
        before = index_path(output).stat().st_ino
        with closing(indexed(output)) as second:
            assert numbers(second, repeated="exactly") == [0, 1]
        assert index_path(output).stat().st_ino == before
        assert numbers(first, repeated="exactly") == [0, 1]


def test_a_folder_that_is_in_the_place_of_the_index(output):
    """Where the file cannot be made, a temporary one does."""
    index_path(output).mkdir()
    with closing(indexed(output)) as store:
        assert numbers(store, repeated="exactly") == [0, 1]


def test_remove_takes_the_index_away(endpoint, make_input, run_command, tmp_path):
    """captioner remove removes the index with the output."""
    output = tmp_path / "out.jsonl"
    endpoint.behave = lambda _: Reply(body=completion("Two cats."))
    run_command(make_input(3), "-o", output, "--base-url", endpoint.base_url, "--model", "m")
    indexed(output).close()
    assert index_path(output).exists()
    assert run_command("remove", output, "--yes").returncode == 0
    assert not index_path(output).exists()


def test_rows_that_different_models_made(endpoint, make_input, run_command, tmp_path):
    """Model and prompt are those that made each row, also after others captioned some again."""
    source, output = make_input(4), tmp_path / "out.jsonl"
    first = ["--model", "small", "--ask", "caption=Briefly.", "--base-url", endpoint.base_url]
    assert run_command(source, "-o", output, *first).returncode == 0
    review(output, 2, "again")
    second = ["--model", "large", "--ask", "caption=At length.", "--redo=review == 'again'"]
    assert run_command(source, "-o", output, *second).returncode == 0
    with closing(indexed(output)) as store:
        choices = store.indexer.choices()
        assert {one["text"]: one["rows"] for one in choices["model"]} == {"small": 3, "large": 1}
        assert {one["text"]: one["rows"] for one in choices["prompt"]} == {
            "Briefly.": 3, "At length.": 1,
        }  # fmt: skip
        (large,) = (one["value"] for one in choices["model"] if one["text"] == "large")
        (again,) = numbers(store, model=large)
        assert store.display("rows", [again])[0]["model"] == "large"
        assert store.status()["model"] == "large and small"
        assert store.status()["verdicts"] == {}  # the mark was on a caption that is gone


def test_sqlite_restores_nothing_from_a_log_of_a_stranger(output, tmp_path):
    """Beside an index that is ours, a log would put any page in the place of ours."""
    indexed(output).close()
    path, copy = index_path(output), tmp_path / "copy"
    before = path.lstat().st_ino
    shutil.copy(path, copy)
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("UPDATE rows SET chars = 1")
        shutil.copy(f"{copy}-wal", f"{path}-wal")
    store = indexed(output)
    assert path.lstat().st_ino == before
    assert numbers(store, longest=2) == []
    store.close()
    assert not path.with_name(path.name + "-wal").exists()
