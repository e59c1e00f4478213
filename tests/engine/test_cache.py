from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from captioner.core.errors import SettingsError
from captioner.engine.cache import BATCH, FILE, Cache


def opened(folder: Path, settings: bytes = b"s") -> Cache:
    return Cache(folder, settings)


def test_what_was_put_is_there_the_next_time(tmp_path):
    """Answers outlive the run, at once and after it, in a folder made for them."""
    folder = tmp_path / "new" / "cache"
    cache = opened(folder)
    for number in range(BATCH * 3 + 5):
        cache.put(b"k%d" % number, b"v%d" % number)
        assert cache.get(b"k%d" % number) == b"v%d" % number
    assert cache.get(b"none") == b""
    cache.close()
    again = opened(folder)
    assert all(again.get(b"k%d" % n) == b"v%d" % n for n in range(BATCH * 3 + 5))
    again.close()


def test_a_key_tells_settings_and_messages(tmp_path):
    """The same messages with another model or length are another question."""
    one = opened(tmp_path, b"a")
    two = opened(tmp_path, b"b")
    questions = ((b"x", b"y"),)
    assert one.key(questions) == one.key(questions) != two.key(questions)
    assert one.key(questions) != one.key(((b"x", b"z"),))
    assert one.key(questions) == one.key(((b"xy",),))  # pieces are only how it is held
    one.close()
    two.close()


def together(*calls: tuple[Any, ...]) -> None:
    """Run functions in processes of their own at the same time, and see that all end well."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=call, args=given) for call, *given in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0


def fill(folder: Path, name: bytes) -> None:
    cache = Cache(folder, b"s")
    for number in range(500):
        cache.put(name + b"%d" % number, name)
    cache.close()


def test_two_runs_at_once(tmp_path):
    """Two processes that write at the same time lose nothing of each other's."""
    together(*((fill, tmp_path, name) for name in (b"a", b"b")))
    cache = opened(tmp_path)
    assert all(cache.get(b"%s%d" % (n, i)) == n for n in (b"a", b"b") for i in range(500))
    cache.close()


def aside(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{FILE}.damaged-*"))


def test_a_file_that_is_no_cache_is_set_aside(tmp_path, caplog):
    """A file that cannot be read as a cache is renamed, not overwritten, and a new one is used."""
    for number in (1, 2):
        (tmp_path / FILE).write_bytes(b"my own notes" * 100 * number)
        cache = opened(tmp_path)
        cache.put(b"k", b"v")
        cache.close()
        cache = opened(tmp_path)
        assert cache.get(b"k") == b"v"
        cache.close()
        assert aside(tmp_path)[-1].read_bytes() == b"my own notes" * 100 * number
        assert "the cache is damaged" in caplog.messages[-1]
    assert len(caplog.messages) == 2


TABLE = "CREATE TABLE responses (number, key, value, crc)"
ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT x, x, x, x FROM n"


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE TABLE responses (a, b)",
        f"CREATE VIEW responses (number, key, value, crc) AS {ENDLESS}",
        f"{TABLE}; CREATE TRIGGER t BEFORE INSERT ON responses BEGIN SELECT RAISE(ABORT, ''); END",
        "CREATE TABLE mine (x)",
    ],
)
def test_a_database_of_another_program_is_set_aside(tmp_path, caplog, schema):
    """Nothing in it runs: a view could be read for ever, and a trigger refuse each response."""
    database = sqlite3.connect(tmp_path / FILE)
    database.executescript(schema)
    database.close()
    cache = opened(tmp_path)
    assert cache.get(b"k") == b""
    cache.put(b"k", b"v")
    cache.close()
    cache = opened(tmp_path)
    assert cache.get(b"k") == b"v"
    cache.close()
    assert len(aside(tmp_path)) == 1
    assert len(caplog.messages) == 1


def test_a_cache_damaged_inside_is_set_aside_when_that_shows(tmp_path, caplog):
    """Damage found while reading costs what was in the file; the run goes on with a new one."""
    fill(tmp_path, b"a" * 2_000)
    file = tmp_path / FILE
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + b"\xaa" * (len(whole) - 4096))
    cache = opened(tmp_path)
    for number in range(500):
        assert cache.get(b"a" * 2_000 + b"%d" % number) == b""
    cache.put(b"k", b"v")
    cache.close()
    assert len(aside(tmp_path)) == 1
    assert "the cache is damaged" in caplog.text
    cache = opened(tmp_path)
    assert cache.get(b"k") == b"v"
    cache.close()


def test_a_changed_response_is_not_used(tmp_path):
    """Bytes that changed on the disk never become a caption."""
    cache = opened(tmp_path)
    cache.put(b"k", b"a word-for-word value")
    cache.close()
    file = tmp_path / FILE
    for path in (file, tmp_path / f"{FILE}-wal"):
        if path.exists():
            path.write_bytes(path.read_bytes().replace(b"a word-for-word", b"a ward-for-word"))
    cache = opened(tmp_path)
    assert cache.get(b"k") == b""
    cache.close()


def test_responses_of_an_earlier_version_are_kept(tmp_path):
    """The table of an earlier version becomes the new one, with what it holds."""
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("CREATE TABLE answers (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
    connection.execute("INSERT INTO answers VALUES (?, ?)", (b"old", b"kept"))
    connection.commit()
    connection.close()
    cache = opened(tmp_path)
    assert cache.get(b"old") == b"kept"
    cache.close()


def test_a_cache_does_not_outgrow_its_size(tmp_path):
    """The oldest responses go first, and their space is used again."""
    most = 1 << 20
    cache = Cache(tmp_path, b"s", most)
    for number in range(40 * BATCH):
        cache.put(b"%d" % number, b"v" * 1_000)
        if number % BATCH == BATCH - 1:
            cache.close()
            cache = Cache(tmp_path, b"s", most)
    assert cache.get(b"0") == b""
    assert cache.get(b"%d" % (40 * BATCH - 1)) == b"v" * 1_000
    cache.close()
    assert (tmp_path / FILE).stat().st_size < 1.2 * most


def test_a_cache_that_cannot_be_opened_is_said_before_the_run(tmp_path):
    """A file in the place of the folder is no damage that could be set aside."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsError, match="cache"):
        opened(tmp_path / "file")


def test_a_cache_that_cannot_be_written_costs_no_captions(tmp_path, monkeypatch, caplog):
    """Trouble with the cache is told once it happens, and the answers are still there."""
    cache = opened(tmp_path)

    def broken(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(sqlite3, "connect", broken)
    cache.put(b"k", b"v")
    assert cache.get(b"k") == b"v"
    cache.close()
    assert len(caplog.messages) == 1
    assert "cannot be written" in caplog.messages[0]


def begin(folder: Path) -> None:
    Cache(folder, b"s").close()


def test_runs_that_begin_together_on_a_new_cache(tmp_path):
    """Several processes that make the same cache at once all get it."""
    together(*[(begin, tmp_path / "c")] * 4)
