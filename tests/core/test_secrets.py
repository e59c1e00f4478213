"""Secrets are found however they are escaped, and replaced by digests in files."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote

import pytest

from captioner.core.secrets import Mask, sealed, secrets_of, without_login

KEY = "sk-AbC123/+x&y<z>"

ESCAPES = {
    "plain": KEY,
    "JSON": json.dumps(KEY)[1:-1],
    "JSON with slashes": KEY.replace("/", "\\/"),
    "JSON in JSON": json.dumps(json.dumps(KEY))[3:-3],
    "\\u": "".join(f"\\u{ord(char):04x}" for char in KEY),
    "\\U": "".join(f"\\u{ord(char):04X}" for char in KEY),
    "\\u in JSON": "".join(f"\\\\u{ord(char):04x}" for char in KEY),
    "\\u{}": "".join(f"\\u{{{ord(char):x}}}" for char in KEY),
    "\\x": "".join(f"\\x{ord(char):02x}" for char in KEY),
    "octal": "".join(f"\\{ord(char):03o}" for char in KEY),
    "URL": quote(KEY, safe=""),
    "URL, all": "".join(f"%{ord(char):02X}" for char in KEY),
    "URL twice": quote(quote(KEY, safe=""), safe=""),
    "HTML": html.escape(KEY),
    "HTML twice": html.escape(html.escape(KEY)),
    "HTML numbers": "".join(f"&#{ord(char)};" for char in KEY),
    "HTML hex": "".join(f"&#x{ord(char):X};" for char in KEY),
    "mixed": "\\u0073k-" + KEY[3:6] + "%31" + KEY[7:],
}


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES)
def test_a_key_is_masked_in_any_escape(text):
    mask = Mask([KEY])
    assert mask.errors(f'before "{text}" after'.encode()) == b'before "***" after'
    assert mask.captions(f'before "{text}" after'.encode()) == b'before "***" after'


def test_a_secret_that_may_be_a_word_stays_in_captions():
    """A caption must not be changed because a header has one of its words."""
    mask = Mask(["captions", "photograph of"])
    data = b'{"content":"captions: a photograph of 50% \\u00e9"}'
    assert mask.captions(data) is data
    assert b"***" in mask.errors(data)


def test_no_secret():
    assert Mask([]).errors(b"x") == Mask([""]).captions(b"x") == b"x"


def test_what_is_secret_of_a_request():
    found = set(
        secrets_of(
            "http://me:pass%2Fword1@host/v1",
            "sk-1",
            [("X-Auth", "Bearer hdr-token-1"), ("X-Short", "abc")],
            {"api_key": "body-key-1", "seed": 7, "more": [{"session_token": "deep-token"}]},
        )
    )
    basic = base64.b64encode(b"me:pass/word1").decode()
    assert {"sk-1", "pass%2Fword1", "pass/word1", basic, "hdr-token-1"} <= found
    assert {"body-key-1", "deep-token"} <= found
    assert not {"abc", "Bearer", "7"} & found


def test_settings_in_files_have_digests():
    """Equal values have equal digests, and those of earlier versions can be compared."""
    one = sealed({"model": "m", "extra_body": '{"api_key":"BODY"}'})
    assert "BODY" not in json.dumps(one)
    assert one["model"] == "m"
    assert sealed(one) == one
    assert one != sealed({"model": "m", "extra_body": '{"api_key":"OTHER"}'})
    assert sealed({"extra_body": None}) == {"extra_body": None}


def test_an_address_without_its_login():
    url = "https://me:pw@host:8/v1?api-version=2&api_key=K&sig_token=T"
    assert without_login(url) == "https://host:8/v1?api-version=2"
