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


def test_a_file_that_is_no_cache_is_left_alone(tmp_path):
    """A cache that cannot be opened is said before the run, and not overwritten."""
    (tmp_path / FILE).write_bytes(b"my own notes" * 100)
    with pytest.raises(SettingsError, match="cache: cannot use"):
        opened(tmp_path)
    assert (tmp_path / FILE).read_bytes() == b"my own notes" * 100
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsError, match="cache"):
        opened(tmp_path / "file")


def test_a_cache_that_cannot_be_written_costs_no_captions(tmp_path, monkeypatch, caplog):
    """Trouble with the cache is told once it happens, and the answers are still there."""
    cache = opened(tmp_path)

    def broken() -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(cache, "_connect", broken)
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
