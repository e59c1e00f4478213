"""Which records a stage with order = "doubt" asks about in each pass."""

from __future__ import annotations

from itertools import chain, pairwise

from captioner.core.types import InputRecord
from captioner.engine.most_doubtful import FEW, MostDoubtfulFirst

MANY = 1_000


def test_a_pass_that_costs_nothing_does_not_end_the_order() -> None:
    """As one whose records all fail before they are paid for: the next ones may cost something."""
    first = MostDoubtfulFirst(lambda: 0.5)
    records = [InputRecord(number, b"{}") for number in range(1, MANY + 1)]
    for record in records:
        first.add(record, record.number / MANY)
    passes = []
    while first.begin_pass():
        passes.append([record.number for record in records if first.takes(record)])
    assert passes[0] == list(range(MANY - FEW + 1, MANY + 1))
    assert len(passes[1]) < MANY / 10
    assert all(min(one) > max(later) for one, later in pairwise(passes))
    assert sorted(chain(*passes)) == [record.number for record in records]
