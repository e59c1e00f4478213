from __future__ import annotations

import orjson
import pytest

from captioner.core.keys import RecordKeys, digest
from captioner.core.types import Caption, Failure, InputRecord, Usage
from captioner.journal.row_encoder import RowEncoder

IDENTITY = RecordKeys(("caption",))
ROWS = RowEncoder(IDENTITY, ("caption",))


def caption(raw, text, *, replaces=False, rows=ROWS):
    return rows.caption(Caption(InputRecord(1, raw), text, replaces, 1, Usage()))


def failure(raw, **line):
    row = ROWS.failure(Failure(InputRecord(7, raw, **line), "refused", 'it said "no"\n', 2))
    assert row.count(b"\n") == 1
    assert row.endswith(b"}\n")
    return row


@pytest.mark.parametrize(
    ("raw", "row"),
    [
        (b'{"b": 1.50, "a": 1e5}', b'{"b": 1.50, "a": 1e5,"caption":"t"}\n'),
        (b'{"n":18446744073709551616}', b'{"n":18446744073709551616,"caption":"t"}\n'),
        (b"{}", b'{"caption":"t"}\n'),
        (b'{"a":\r\n1,\n"u":"\\u00e9"\n}', b'{"a": 1, "u":"\\u00e9" ,"caption":"t"}\n'),
        (b'{"m":{"caption":1}}', b'{"m":{"caption":1},"caption":"t"}\n'),
    ],
)
def test_caption_added(raw, row):
    """A record comes out as it went in, to the byte, with the caption last, on one line."""
    assert caption(raw, "t") == row


@pytest.mark.parametrize("text", ['say "x"', "two\nlines\r\n", "é 🐈 \u2028", "", "\\"])
def test_caption_of_any_text(text):
    """Whatever the model says, the record stays one line of valid JSON that says the same."""
    row = caption(b'{"a":1}', text)
    assert row.count(b"\n") == 1
    assert b"\r" not in row
    assert orjson.loads(row) == {"a": 1, "caption": text}


def test_caption_replaced_in_place():
    """A caption that a record brought along is replaced where it stands, and only that one."""
    raw = b'{"caption" : "old", "m":{"caption":"mine"}, "z":1.0}'
    row = caption(raw, "new", replaces=True)
    assert row == b'{"caption" : "new", "m":{"caption":"mine"}, "z":1.0}\n'
    assert IDENTITY.of_output(row[:-1]) == IDENTITY.of_input(raw)


def test_what_is_said_of_a_replaced_caption_goes():
    """What the input has in a field of such a name, without a caption, is its own."""
    raw = b'{"caption":"old","caption_model":"a"}'
    assert caption(raw, "new", replaces=True) == b'{"caption":"new","caption_model":null}\n'
    raw = b'{"caption_prompt":"mine","caption_raw":1}'
    row = caption(raw, "new", replaces=True)
    assert row == b'{"caption_prompt":"mine","caption_raw":1,"caption":"new"}\n'
    assert IDENTITY.of_output(row[:-1]) == IDENTITY.of_input(raw)


def test_output_field_of_any_name():
    """The caption goes into the member that was asked for, whatever its name is made of."""
    name = 'say "x"\\'
    row = caption(b'{"caption":1}', "t", rows=RowEncoder(RecordKeys((name,)), (name,)))
    assert orjson.loads(row) == {"caption": 1, name: "t"}


def test_failure_members():
    """A failure says where, which, why and after how many requests, with the record in it."""
    raw = b'{"b": 1.50, "n":18446744073709551616,\n"a":2}'
    row = failure(raw)
    assert orjson.loads(row) | {"record": None} == {
        "line": 7,
        "key": IDENTITY.of_input(raw).hex(),
        "code": "refused",
        "message": 'it said "no"\n',
        "attempts": 2,
        "record": None,
    }
    assert row.endswith(b',"record":{"b": 1.50, "n":18446744073709551616, "a":2}}\n')


@pytest.mark.parametrize("raw", [b'{"torn": ', b"\xff\xfe{}", b'a\nb"', b""])
def test_failure_of_unreadable_record(raw):
    """A line that is no JSON is kept as text, so that the file of failures can always be read."""
    row = orjson.loads(failure(raw))
    assert row["record"] == raw.decode(errors="replace")
    assert row["key"] == IDENTITY.of_input(raw).hex()


def test_failure_with_a_key_of_its_own():
    """A record too long to be held is known again by the key that its source computed."""
    key = digest(b"the whole of it")
    row = orjson.loads(failure(b'{"beginning": "', key=key, fault=("too_long", "it is")))
    assert row["key"] == key.hex()


def test_what_was_said_of_the_caption_before_is_emptied():
    """A model, a prompt or settings of another caption would be taken for this one's."""
    raw = (
        b'{"caption":"old","caption_model":"m","caption_prompt":"p","n":1,'
        b'"caption_settings":"5d","caption_flag":"short"}'
    )
    more = (("caption_model", "new"),)
    row = ROWS.caption(Caption(InputRecord(1, raw), "t", True, 1, Usage(), more))
    assert orjson.loads(row) == {
        "caption": "t", "caption_model": "new", "caption_prompt": None, "n": 1,
        "caption_settings": None, "caption_flag": None,
    }  # fmt: skip
