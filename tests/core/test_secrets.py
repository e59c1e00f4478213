"""No key in a text that is shown, whatever was done to it; files have digests of secrets."""

from __future__ import annotations

import base64
import html
import json

import pytest

from captioner.core.secrets import (
    is_secret,
    masked,
    remember,
    sealed,
    secrets_in,
    without_keys,
    without_keys_in,
    without_login,
)
from captioner.endpoints.replies import shown

KEY = "sk-Zq9xT7vB2mN4pL6k"


@pytest.fixture(autouse=True)
def known() -> None:
    remember(KEY)


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        KEY.lower(),
        KEY[:-1],
        KEY[:-4],
        KEY[:8] + " " + KEY[8:],
        KEY[:10] + "\u200b" + KEY[10:],
        KEY[:10] + "\n" + KEY[10:],
        "".join(f"\\u{ord(char):04x}" for char in KEY),
        "".join(f"%{ord(char):02X}" for char in KEY),
        f"https://example.org/{KEY}/x",
        "\\" + "\\".join(KEY),
    ],
)
def test_a_key_is_found_in_any_form(text) -> None:
    """Escaped, wrapped, cut or in lower case: nothing of it is left."""
    for show in (without_keys, masked, shown):
        clean = show(f"bad {text} here")
        assert "***" in clean
        assert KEY[:8].lower() not in clean.lower()
        assert KEY[10:-4].lower() not in clean.lower()
        assert clean.startswith("bad ")
        assert clean.endswith("here")


@pytest.mark.parametrize(
    "page",
    [
        "<html><body>bad " + "".join(f"&#{ord(char)};" for char in KEY) + "</body></html>",
        f"<html><title>bad &#x73;{html.escape(KEY[1:])}</title></html>",
        f"<html><body>bad {KEY[:8]}<wbr>{KEY[8:]}</body></html>",
        "x" * 185 + " " + KEY,
    ],
)
def test_a_key_in_a_page_is_not_shown(page) -> None:
    """What is decoded or cut for showing is looked through afterwards."""
    clean = shown(page)
    assert not any(KEY[at : at + 6] in clean for at in range(len(KEY) - 6))


@pytest.mark.parametrize("word", ["EMPTY", "ollama", "lm-studio", "none", "x", "k", "12345"])
def test_a_placeholder_is_no_secret(word) -> None:
    """A local server's key may be any word, which captions have too."""
    remember(word)
    assert not is_secret(word)
    assert without_keys(f"An {word} street.") == f"An {word} street."


@pytest.mark.parametrize("before", ["", "a", "Bearer ", "user:"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("key", [KEY, "sk-~~~???>>>-123456"])
def test_a_key_in_base64(before, encode, key) -> None:
    """Alone or behind other text, in a response, a message, wrapped, or in the escapes of JSON."""
    remember(key)
    encoded = encode(f"{before}{key}!".encode()).decode()
    texts = [f"bad {encoded} here", f"bad {encoded[:9]}\n{encoded[9:]} here"]
    cleaned = [show(text) for show in (without_keys, masked, shown) for text in texts]
    spelled = (texts[0], texts[0].replace("/", "\\/"), json.dumps(texts[0]))
    cleaned += [without_keys_in(text.encode()).decode() for text in spelled]
    for clean in cleaned:
        assert "***" in clean
        found = (encoded[at : at + 6] for at in range(12, len(encoded) - 10))
        assert not any(piece in clean for piece in found), clean


def test_texts_without_the_key_stay() -> None:
    """What only begins like a key is no key."""
    for text in ("sk-proj", "sk-Zq9x", "A cat, 2 dogs and 3 birds.", ""):
        assert without_keys(text) == text


def test_keys_are_found_by_their_names() -> None:
    """Fields of the body that hold keys, however deep."""
    body = {"api_key": "a1", "seed": 5, "auth": {"token": "b2", "max_tokens": 7}, "model": "c"}
    assert list(secrets_in({**body, "list": [{"X-Api-Key": "d"}]})) == ["a1", "b2", "d"]


def test_settings_in_files_have_digests() -> None:
    """Equal values have equal digests, and those of earlier versions can be compared."""
    one = sealed({"model": "m", "extra_body": '{"api_key":"BODY"}'})
    assert "BODY" not in json.dumps(one)
    assert one["model"] == "m"
    assert sealed(one) == one
    assert one != sealed({"model": "m", "extra_body": '{"api_key":"OTHER"}'})
    assert sealed({"extra_body": None}) == {"extra_body": None}


def test_an_address_without_its_login() -> None:
    url = "https://me:pw@host:8/v1?api-version=2&api_key=K&sig_token=T"
    assert without_login(url) == "https://host:8/v1?api-version=2"


def test_the_login_of_a_url_is_removed_where_a_library_repeats_it_alone() -> None:
    text = 'Invalid bucket name "me:geheim@photos" of s3://me:geheim@photos/out.jsonl'
    clean = 'Invalid bucket name "photos" of s3://photos/out.jsonl'
    assert masked(text, "s3://me:geheim@photos/out.jsonl") == clean
    assert masked("a@b", "s3://photos/a@b") == "a@b"
