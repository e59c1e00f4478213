from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from captioner.core.memory import MemoryBudget


class Started:
    """A call in a separate thread."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=call, daemon=True)
        self._thread.start()

    def waits(self) -> bool:
        self._thread.join(0.05)
        return self._thread.is_alive()

    def ends(self) -> bool:
        self._thread.join(10)
        return not self._thread.is_alive()


def test_waits_for_room():
    """A thread that would hold too much waits until enough has been given back."""
    budget = MemoryBudget(100)
    budget.reserve(60)
    budget.reserve(40)
    thread = Started(lambda: budget.reserve(50))
    assert thread.waits()
    budget.release(40)
    assert thread.waits()
    budget.release(60)
    assert thread.ends()


def test_what_is_larger_than_all_passes_alone():
    """A record larger than the whole budget is not stuck for ever, it waits to be alone."""
    budget = MemoryBudget(100)
    budget.reserve(1000)
    thread = Started(lambda: budget.reserve(1))
    assert thread.waits()
    budget.release(1000)
    assert thread.ends()
    thread = Started(lambda: budget.reserve(1000))
    assert thread.waits()
    budget.release(1)
    assert thread.ends()


def test_who_must_not_wait_does_not():
    """A record that holds some already takes more at once: two such cannot wait for each other."""
    budget = MemoryBudget(100)
    budget.reserve(100)
    budget.reserve(500, wait=False)
    thread = Started(lambda: budget.reserve(1))
    budget.release(500)
    assert thread.waits()
    budget.release(100)
    assert thread.ends()


def test_closing_lets_everybody_through():
    """When the run ends no thread is left hanging, and none hangs afterwards."""
    budget = MemoryBudget(10)
    budget.reserve(10)
    threads = [Started(lambda: budget.reserve(10)) for _ in range(5)]
    assert threads[0].waits()
    budget.close()
    assert all(thread.ends() for thread in threads)
    budget.reserve(10)


@pytest.mark.parametrize("total", [1, 50, 1000])
def test_many_threads_all_get_through(total):
    """Under a crowd the budget is kept and everybody gets a turn."""
    budget = MemoryBudget(total)
    lock = threading.Lock()
    held: list[int] = []
    broken: list[list[int]] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(50):
            size = chance.randint(1, 60)
            budget.reserve(size)
            with lock:
                held.append(size)
                if len(held) > 1 and sum(held) > total:
                    broken.append(list(held))
            with lock:
                held.remove(size)
            budget.release(size)

    threads = [Started(lambda seed=seed: work(seed)) for seed in range(8)]
    assert all(thread.ends() for thread in threads)
    assert not broken
