from __future__ import annotations

import json
import sys

import pytest

from captioner.core.jsonbytes import (
    add_fields,
    fields_in,
    one_line,
    quoted,
    replace_values,
    without_fields,
)


def spans(raw):
    return [(member.name, raw[member.value_start : member.value_end]) for member in fields_in(raw)]


def test_members_are_found_as_they_are_spelled():
    """Values of every kind are found whole, whatever brackets and quotes their strings hold."""
    raw = (
        b' { "a" : 1.50 ,"b\\"}":[1,{"c":"]}"}] , "c":{"d":{}} ,\n'
        b'"e":"x\\\\","\\u0066":null,"g":"" } '
    )
    assert spans(raw) == [
        (b'"a"', b"1.50"),
        (b'"b\\"}"', b'[1,{"c":"]}"}]'),
        (b'"c"', b'{"d":{}}'),
        (b'"e"', b'"x\\\\"'),
        (b'"\\u0066"', b"null"),
        (b'"g"', b'""'),
    ]


@pytest.mark.parametrize("raw", [b"{}", b"{ }", b"[]", b'["caption",1]', b"1", b'"caption"', b""])
def test_what_has_no_members_has_none(raw):
    """Empty objects and other values are no reason to crash or to see members."""
    assert fields_in(raw) == []
    assert without_fields(raw, [b'"caption"']) == raw


@pytest.mark.parametrize(
    "raw",
    [b'{"a":"cut, off', b'{"a":1,"b":2', b'{"a":[1,2]', b'{"a":1,', b'{"a":1,"b', b'{"a":"x\\"'],
)
def test_a_torn_object_has_no_members(raw):
    """Half a line is never mistaken for a whole record."""
    assert fields_in(raw) == []


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"{}", b'{"c":1}'),
        (b"{ }", b'{ "c":1}'),
        (b'{"a":1}', b'{"a":1,"c":1}'),
        (b'{"a":1 }', b'{"a":1 ,"c":1}'),
        (b'{"a":{}}', b'{"a":{},"c":1}'),
        (b'{"a":"{"}', b'{"a":"{","c":1}'),
    ],
)
def test_adding_touches_nothing_else(raw, expected):
    """A member is added last, and the rest stays byte for byte."""
    assert add_fields(raw, b'"c":1') == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"c":"old"}', b'{"c":0}'),
        (b'{"c" :\t"old" ,"a":1}', b'{"c" :\t0 ,"a":1}'),
        (b'{"a":{"c":1},"c":{"c":[2]}, "b":3}', b'{"a":{"c":1},"c":0, "b":3}'),
        (b'{"c":1,"c":2}', b'{"c":0,"c":0}'),
        (b'{"a":"\\"c\\":1","c":2}', b'{"a":"\\"c\\":1","c":0}'),
        (b'{"a":"c","b":["c"]}', b'{"a":"c","b":["c"]}'),
    ],
)
def test_replacing_keeps_the_place(raw, expected):
    """Only the record's own member changes: not its namesakes in nested objects or in texts."""
    assert replace_values(raw, b'"c"', b"0") == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"a":1,"c":2}', b'{"a":1}'),
        (b'{"a":1 , "c": 2 }', b'{"a":1 }'),
        (b'{"c":2}', b"{}"),
        (b'{ "c":2}', b"{ }"),
        (b'{"c":1,"c":2}', b"{}"),
        (b'{"c":1,"a":2}', b'{"c":null,"a":2}'),
        (b'{"a":1,"c":{"x":[1]},"b":2,"c":3}', b'{"a":1,"c":null,"b":2}'),
        (b'{"a":{"c":1}}', b'{"a":{"c":1}}'),
    ],
)
def test_removing_undoes_adding_and_replacing(raw, expected):
    """A record without its caption is the same before and after it was captioned."""
    assert without_fields(raw, [b'"c"']) == expected
    assert without_fields(replace_values(raw, b'"c"', b'"other"'), [b'"c"']) == expected


def test_a_record_on_many_lines_becomes_one():
    """A pretty-printed record fits on one output line and still means the same."""
    raw = b'{\r\n  "a": "x\\ny",\n\r  "b": [\n1\r]\n}'
    assert b"\n" not in one_line(raw)
    assert b"\r" not in one_line(raw)
    assert json.loads(one_line(raw)) == json.loads(raw)
    assert one_line(b'{"a": 1}') == b'{"a": 1}'


def test_names_are_quoted_as_utf_8():
    """A field name in any script is written readably, and quotes in it are escaped."""
    assert quoted('é"\n') == '"é\\"\\n"'.encode()


def test_deep_nesting_is_no_recursion():
    """A record nested deeper than Python recurses is still taken apart."""
    depth = sys.getrecursionlimit() * 3
    raw = b'{"a":' + b"[" * depth + b"]" * depth + b',"c":1}'
    assert [name for name, _ in spans(raw)] == [b'"a"', b'"c"']


def test_a_long_torn_text_is_scanned_once():
    """A line cut off inside a megabyte of escaped quotes does not bring the run to a halt."""
    raw = b'{"caption":"' + b'\\"' * 500_000
    assert without_fields(raw, [b'"caption"']) == raw


@pytest.mark.parametrize(
    "nested",
    [
        b"[" + b"[]," * 1_000 + b"{}]",
        b"[" * 900 + b"]" * 900,
        b'{"a":[' * 400 + b"0" + b"]}" * 400,
        b'["]",{"}":"["},' * 300 + b"1" + b"]" * 300,
        b"[" + (b'[["}",' * 12 + b"1" + b"]]" * 12 + b",") * 50 + b"0]",
    ],
    ids=lambda nested: nested[:6].decode(),
)
def test_what_is_nested_is_passed_over_whole(nested):
    """However deep it is, and with brackets in its strings."""
    assert spans(b'{"a":' + nested + b' , "b" : 2}') == [(b'"a"', nested), (b'"b"', b"2")]
    assert spans(b'{"a":' + nested[:-1] + b',"b":2}') == []


def test_a_megabyte_of_brackets_takes_few_steps():
    """A step for each bracket takes most of a second, several times a record."""
    raw = b'{"a":[' + b"[]," * 10_000 + b'0],"b":[' + b"[" * 900 + b"]" * 900 + b"]}"
    steps = 0

    def count(*_):
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        found = fields_in(raw)
    finally:
        sys.setprofile(None)
    assert len(found) == 2
    assert steps < 100
