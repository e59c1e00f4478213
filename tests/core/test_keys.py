from __future__ import annotations

import json
from collections import defaultdict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from captioner.core.jsonbytes import one_line
from captioner.core.keys import KEY_BYTES, KeyTable, RecordKeys, digest
from captioner.core.types import Caption, InputRecord, Usage
from captioner.journal.row_encoder import RowEncoder

FIELDS = ["caption", 'say "x"', "légende", "back\\slash", ",", "a"]
NUMBERS = ["0", "-0", "1.0", "1.50", "1e5", "1E+02", "-0.0", "18446744073709551616", "9" * 40]
SPACES = ["", "", "", " ", "\t", "  ", "\n", "\r\n", "\r"]


def pairs(raw):
    """Parse without losing anything: order, duplicates and the spelling of numbers."""
    return json.loads(raw, object_pairs_hook=list, parse_int=str, parse_float=str)


def has(raw, field):
    return any(name == field for name, _ in pairs(raw))


def written(raw, field, text="a caption", id_field=None):
    """Return the output line of a record as the writer makes it."""
    rows = RowEncoder(RecordKeys((field,), id_field), (field,))
    caption = Caption(InputRecord(1, raw), text, has(raw, field), 1, Usage())
    line = rows.caption(caption)
    assert line.endswith(b"\n")
    return line[:-1]


def spelled(draw, text):
    """Write a string in one of the ways JSON allows."""
    how = draw(st.sampled_from(["utf-8", "ascii", "escaped"]))
    if how == "escaped":
        units = text.encode("utf-16-be").hex()
        return '"' + "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)) + '"'
    return json.dumps(text, ensure_ascii=how == "ascii").replace(
        "/", draw(st.sampled_from(["/", "\\/"]))
    )


@st.composite
def values(draw, depth=0):
    kind = draw(st.integers(0, 6 if depth < 3 else 4))
    if kind < 2:
        texts = st.one_of(st.text(max_size=8), st.sampled_from([*FIELDS, ',"caption":', "}", "\\"]))
        return spelled(draw, draw(texts))
    if kind < 4:
        return draw(st.sampled_from(NUMBERS))
    if kind == 4:
        return draw(st.sampled_from(["null", "true", "false", "[]", "{}"]))
    if kind == 5:
        space = draw(st.sampled_from(SPACES))
        items = draw(st.lists(values(depth=depth + 1), max_size=3))
        return "[" + space + f"{space},".join(items) + "]"
    return draw(objects(depth=depth + 1))


@st.composite
def objects(draw, depth=0, field="caption"):
    """One object in any style: spaces, escapes, duplicate names, the field anywhere in it."""
    gap = [draw(st.sampled_from(SPACES)) for _ in range(4)]
    names = st.one_of(st.sampled_from(["id", "image", field, *FIELDS]), st.text(max_size=4))
    members = []
    for name in draw(st.lists(names, max_size=5)):
        # The field itself is never spelled with escapes: such a record is refused before.
        plain = json.dumps(name, ensure_ascii=False) if name == field else spelled(draw, name)
        members.append(plain + gap[0] + ":" + gap[1] + draw(values(depth=depth)))
    return "{" + gap[2] + (gap[3] + "," + gap[1]).join(members) + gap[3] + "}"


@st.composite
def records(draw):
    field = draw(st.sampled_from(FIELDS))
    return draw(objects(field=field)).encode(), field


@given(records(), st.text(max_size=20), st.sampled_from([None, "id"]))
@settings(max_examples=400, deadline=None)
@example((b'{"a":1,"caption":"old" }', "caption"), 'so,"caption":"', None)
@example((b'{\n  "a": 1\n}', "caption"), "", None)
@example((b'{"id":{\n"x":1}}', "caption"), "", "id")
@example((b'{"\\u0069d":1}', "caption"), "", "id")
@example((b"{}", "caption"), "", "id")
@example((b'{"x":1,"caption":2,"id":3}', "caption"), "", "id")
def test_a_record_is_known_again_by_its_output_line(record, text, id_field):
    """No record is captioned twice: its output line alone gives back the key of its input."""
    raw, field = record
    if field == id_field:
        return
    identity = RecordKeys((field,), id_field)
    line = written(raw, field, text, id_field)
    assert identity.of_output(line) == identity.of_input(raw)
    assert identity.of_input(line) == identity.of_input(raw)


@given(records(), st.text(max_size=20))
@settings(max_examples=400, deadline=None)
def test_only_the_caption_is_added(record, text):
    """Order, duplicates, big integers, floats and unicode come out as they went in."""
    raw, field = record
    before = pairs(raw)
    line = written(raw, field, text)
    if has(raw, field):
        expected = [(name, text if name == field else value) for name, value in before]
    else:
        expected = [*before, (field, text)]
        assert line.startswith(one_line(raw)[:-1])
    assert pairs(line) == expected
    assert json.loads(line)[field] == text
    assert b"\n" not in line


@given(records(), st.text(max_size=10), st.data())
@settings(max_examples=150, deadline=None)
@example((b'{"a":1}', "caption"), "A dog, a cat", None)
@example((b'{"caption":1,"a":2}', "caption"), "A dog, a cat", None)
def test_a_torn_output_line_is_no_captioned_record(record, text, data):
    """A line that a crash cut off is captioned again, wherever the cut is."""
    raw, field = record
    line = written(raw, field, text)
    ends = range(len(line))
    if data is not None:
        ends = [data.draw(st.integers(0, len(line) - 1))]
    assert [end for end in ends if RecordKeys((field,)).of_output(line[:end]) is not None] == []


@pytest.mark.parametrize(
    "line",
    [
        b'{"a":1}',
        b'{"a":"caption"}',
        b'{"a":{"caption":"x"}}',
        b'{"a":{"b":1,"caption":"x"}}',
        b'["caption"]',
        b"",
        b"junk",
    ],
)
def test_a_line_without_a_caption_has_no_key(line):
    """A record whose caption is missing from the output is not taken for done."""
    assert RecordKeys(("caption",)).of_output(line) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a":1}', b'{"a":1.0}'),
        (b'{"a":18446744073709551616}', b'{"a":18446744073709551617}'),
        (b'{"a":1,"b":2}', b'{"b":2,"a":1}'),
        (b'{"a":{"caption":1}}', b'{"a":{"caption":2}}'),
        (b'{"caption":1,"a":1}', b'{"a":1,"caption":1}'),
        (b'{"a":1,"caption":"x', b'{"a":1,"caption":"y'),
        (b'{"caption":"x","a', b'{"caption":"y","b'),
        (b'{"caption":"x","a', b"{}"),
        (b"junk", b"junk "),
    ],
)
def test_different_records_have_different_keys(one, other):
    """No record is taken for another: neither rounded numbers nor broken lines are equal."""
    identity = RecordKeys(("caption",))
    assert identity.of_input(one) != identity.of_input(other)


def test_an_old_caption_is_no_part_of_the_record():
    """Running again over one's own output finds the same records."""
    identity = RecordKeys(("caption",))
    keys = {identity.of_input(b'{"a":1,"caption":%b}' % old) for old in (b'"x"', b"null", b"[1]")}
    assert keys == {identity.of_input(b'{"a":1}')}


def test_an_id_alone_identifies():
    """With an id field the rest of the record may change; the last of two ids counts."""
    identity = RecordKeys(("caption",), "id")
    key = identity.of_input(b'{"id":7,"a":1}')
    assert identity.of_input(b'{"b":{"id":1}, "id": 7 }') == key
    assert identity.of_input(b'{"id":1,"id":7}') == key
    assert identity.of_input(b'{"id":"7","a":1}') != key
    assert identity.of_output(b'{"id":7,"a":1}') is None


@given(st.binary(max_size=60), st.sampled_from([None, "id"]))
@settings(max_examples=300, deadline=None)
@example(b'{"caption":', None)
@example(b']}"caption":1}', None)
def test_any_bytes_have_a_key(raw, id_field):
    """A line of garbage is recognised too, so that its failure is known again."""
    identity = RecordKeys(("caption",), id_field)
    assert len(identity.of_input(raw)) == KEY_BYTES
    assert identity.of_output(raw) in (None, identity.of_input(raw))


KEYS = [digest(b"%d" % number) for number in range(12)]
# Repetitive bytes, with offsets like them: found at a wrong place they would look alike.
KEYS += [bytes([number]) * KEY_BYTES for number in range(3)]
OFFSETS = st.one_of(
    st.integers(0, 2**48 - 1), st.sampled_from([0, 0x010101010101, 0x020202020202, 2**48 - 1])
)


@pytest.mark.parametrize("expected", [0, 1, 13, 1_000, 100_000])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "add", "take"]), st.sampled_from(KEYS), OFFSETS),
        max_size=60,
    )
)
@settings(max_examples=40, deadline=None)
def test_a_key_table_is_a_multiset(expected, steps):
    """Equal records count as often as they were put in, oldest first, whatever was expected."""
    table = KeyTable(expected)
    model = defaultdict(list)
    for action, key, offset in steps:
        if action == "add":
            table.add(key, offset)
            model[key].append(offset)
        else:
            assert table.take(key) == (model[key].pop(0) if model[key] else None)
        assert (key in table) == bool(model[key])
    left = sorted(offset for offsets in model.values() for offset in offsets)
    assert len(table) == len(left)
    assert sorted(table.offsets()) == left


@pytest.mark.parametrize("expected", [0, 20_000, 10_000_000])
def test_many_keys_are_all_found(expected):
    """None of many thousand records is lost from the table or found in it by mistake."""
    table = KeyTable(expected)
    keys = [digest(b"%d" % number) for number in range(20_000)]
    for offset, key in enumerate(keys):
        table.add(key, offset)
    assert len(table) == len(keys)
    assert all(digest(b"x%d" % number) not in table for number in range(1_000))
    assert [table.take(key) for key in keys] == list(range(len(keys)))
    assert len(table) == 0
    assert list(table.offsets()) == []
