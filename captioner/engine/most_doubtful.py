"""Ask the most doubtful records first, until the budget is used (``order = "doubt"``)."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from captioner.core.types import InputRecord

FEW = 20
"""Records that are asked first, to learn what the stage costs."""

_SHARE = 0.9
"""Part of the rest of the budget that a pass may cost by what is known before."""

_LEVELS = 0xFFFF


class PostponedError(Exception):
    """A record waits until the stage has asked about more doubtful ones."""

    def __init__(self, waiting: MostDoubtfulFirst, doubt: float) -> None:
        super().__init__()
        self._waiting = waiting
        self._doubt = doubt

    def add(self, record: InputRecord) -> None:
        """Postpone another record, which asks the same."""
        self._waiting.add(record, self._doubt)


class MostDoubtfulFirst:
    """Chooses the records of which a stage asks, in several passes over the input.

    The first pass postpones each record when it comes to the stage; its earlier answers are kept.
    Each later pass takes the most doubtful of those that wait, as many as nine tenths of the rest
    of the budget pay for, by what the pass before cost, but at least `FEW`; after one that cost
    nothing, because no record got an answer, twice as many. When the budget is used, the last pass
    takes all others, and their rows do without the stage. Two bytes are kept for each record of
    the input.

    Args:
        used: Returns which part of the budget is used, from 0 to 1.

    Attributes:
        is_used: The budget pays for no further request.
        left_out: Records whose row does without the stage.
    """

    def __init__(self, used: Callable[[], float]) -> None:
        self._used = used
        self._levels = array("H")  # by the number of the record: its doubt from 1; 0: none waited
        self._lowest = self._above = _LEVELS + 1
        self._passes = self._each_pass()
        self.is_used = False
        self.left_out = 0

    def add(self, record: InputRecord, doubt: float) -> None:
        """Postpone a record whose last answer has a doubt from 0 to 1."""
        if (missing := record.number + 1 - len(self._levels)) > 0:
            self._levels.frombytes(bytes(2 * max(missing, len(self._levels) // 8)))
        self._levels[record.number] = 1 + round(min(1.0, max(0.0, doubt)) * (_LEVELS - 1))

    def admit(self, record: InputRecord, doubt: float) -> None:
        """Return if the stage may ask about a record in this pass.

        Raises:
            PostponedError: It waits for a later pass.
        """
        if not self.takes(record):
            self.add(record, doubt)
            raise PostponedError(self, doubt)

    def takes(self, record: InputRecord) -> bool:
        """Return whether a record is one of this pass."""
        known = record.number < len(self._levels)
        return known and self._lowest <= self._levels[record.number] < self._above

    def begin_pass(self) -> bool:
        """Begin the next pass if records wait for one. It blocks."""
        return next(self._passes, False)

    def _each_pass(self) -> Iterator[Literal[True]]:
        counts = Counter(self._levels)
        levels = iter(sorted(counts.keys() - {0}, reverse=True))
        enough, before = float(FEW), self._used()
        while True:
            count = 0
            self._above = self._lowest
            while count < enough and (level := next(levels, 0)):
                self._lowest = level
                count += counts[level]
            if not count:
                return
            yield True
            now = self._used()
            more = now - before
            if self.is_used:
                enough = math.inf
            elif more > 0:
                enough = max(FEW, _SHARE * (1 - now) / more * count)
            else:
                enough = 2 * count
            before = now
