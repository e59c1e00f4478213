from __future__ import annotations

import orjson

from captioner.core.keys import KeyTable, RecordKeys, digest
from captioner.core.progress import Progress
from captioner.core.types import InputRecord
from captioner.journal.resume_filter import ResumeFilter

WHOLE = RecordKeys(("caption",))
BY_ID = RecordKeys(("caption",), "id")


def lines(*records):
    return [
        InputRecord(number, record if isinstance(record, bytes) else orjson.dumps(record))
        for number, record in enumerate(records, 1)
    ]


def table(*keys):
    made = KeyTable()
    for key in keys:
        made.add(key)
    return made


class Case:
    """A matching over what earlier runs left of some records."""

    def __init__(self, identity=WHOLE, *, done=(), failed=(), retrying=(), duplicates="keep"):
        self.progress = Progress()
        contents = KeyTable()
        for line in done if identity.by_field else ():
            contents.add(identity.of_input(line.raw), identity.content(line.raw))
        tables = [
            table(*(line.key or identity.of_input(line.raw) for line in part))
            for part in (done, failed, retrying)
        ]
        self.done, self.failed, retry = tables
        self.resume_filter = ResumeFilter(
            identity,
            self.done,
            self.failed,
            contents,
            retry,
            duplicates=duplicates,
            progress=self.progress,
        )

    def numbers(self, batch):
        return [line.number for line in self.resume_filter.pending(batch)]


def test_first_run():
    """On a first run every record is to be done, in the order of the input, equal ones, too."""
    case = Case()
    batch = lines({"a": 1}, {"a": 1}, b"no json")
    assert case.resume_filter.pending(batch) == batch
    assert case.progress.settled == 0


def test_done_before_failed_before_pending():
    """A captioned record is never sent again, nor is a failed one; both are counted once."""
    batch = lines(*({"n": n} for n in range(5)))
    case = Case(done=[batch[0], batch[1]], failed=[batch[1], batch[2]])
    assert case.numbers(batch) == [4, 5]
    assert (case.progress.resumed, case.progress.failed_before) == (2, 1)
    assert len(case.failed) == 1  # what the caption of 2 overtook is left to be removed
    assert not len(case.done)


def test_failures_tried_again():
    """Failures that are to be tried again are pending, and known by the key they had."""
    batch = lines({"n": 1}, {"n": 2})
    case = Case(done=batch[:1], retrying=batch[1:])
    (found,) = case.resume_filter.pending(batch)
    assert (found.number, found.key) == (2, WHOLE.of_input(batch[1].raw))
    assert case.progress.failed_before == 0


def test_equal_records_are_kept():
    """Each of several equal records gets a caption of its own, over any number of runs."""
    batch = lines({"a": 1}, {"a": 1}, {"a": 1}, {"a": 1})
    case = Case(done=batch[:2], failed=batch[2:3])
    assert case.numbers(batch[:3]) == []
    assert case.numbers(batch[3:]) == [4]
    assert (case.progress.resumed, case.progress.failed_before) == (2, 1)


def test_equal_records_are_skipped():
    """With --equal-records skip only the first is captioned, and the others are counted."""
    batch = lines({"a": 1}, {"b": 1}, {"a": 1}, {"a": 1}, {"b": 1})
    case = Case(done=batch[:1], duplicates="skip")
    assert case.numbers(batch[:3]) == [2]
    assert case.numbers(batch[3:]) == []  # also over batches
    assert (case.progress.resumed, case.progress.skipped) == (1, 3)


def test_id_of_two_records():
    """Two different records with one id are told: the second fails rather than take the first's."""
    batch = lines({"id": 1, "q": "a"}, {"id": 1, "q": "b"}, {"id": 1, "q": "a"})
    found = {line.number: line for line in Case(BY_ID).resume_filter.pending(batch)}
    assert sorted(found) == [1, 2, 3]  # equal in all they hold is no clash
    assert found[2].fault[0] == "duplicate_id"
    assert found[1].fault is found[3].fault is None
    again = Case(BY_ID, done=[batch[0], batch[2]], failed=[found[2]])
    assert again.numbers(batch) == []
    assert (again.progress.resumed, again.progress.failed_before) == (2, 1)


def test_changed_content():
    """A captioned record known by its id whose content changed is not sent again, but counted."""
    before = lines({"id": 1, "q": "a"}, {"id": 2, "q": "b"})
    after = lines({"id": 2, "q": "new"}, {"id": 1, "q": "a"}, {"id": 3, "q": "c"})
    case = Case(BY_ID, done=before)
    assert case.numbers(after) == [3]
    assert (case.progress.resumed, case.progress.changed) == (2, 1)


def test_unreadable_records():
    """A record that the source could not deliver is known again by the key the source gave it."""
    key = digest(b"all of it")
    faulty = InputRecord(2, b'{"id": 1, "beg', 0, ("too_long", "it is"), key)
    batch = [*lines({"id": 1}), faulty]
    for identity in (WHOLE, BY_ID):
        case = Case(identity, done=batch[:1], failed=[faulty])
        assert case.numbers(batch) == []
        assert case.progress.failed_before == 1
        (found,) = Case(identity, done=batch[:1]).resume_filter.pending(batch)
        assert (found.key, found.fault) == (key, faulty.fault)
