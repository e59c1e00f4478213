"""Removal of secrets from messages, logs and files."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
"""What names of variables and parameters that may hold a secret have in them."""

SEALED = frozenset({"extra_body"})
"""Settings that may hold a secret; files have their digests instead."""

_DIGEST = "blake2b:"

SHORTEST = 8
"""Characters from which a value may be a secret: shorter ones are words of captions as well."""

_LONG = 20
"""Characters from which a secret needs no digit to be distinguished from words (``lm-studio``)."""

_NAME = re.compile(
    r"(?:key|token|secret|password|passwd|authorization|auth|credentials?|cookie|sig|signature)\Z",
    re.IGNORECASE,
)
_GAP = r"[\s\u00ad\u200b-\u200f\u2060\ufeff]{0,2}"
"""What may stand between the letters of a secret that a page or a terminal wrapped."""

_known: dict[str, Callable[[str, str], str]] = {}
"""The secrets and what base64 makes of them, each with what makes a regular expression of it."""

_in_bytes: tuple[tuple[bytes, str], ...] = ()
"""The same, each as it stands in a response before it."""


def sealed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the digests of those that may hold a secret.

    Digests stay as they are, so that settings from files of earlier versions can be compared.
    """
    return {name: _seal(value) if name in SEALED else value for name, value in settings.items()}


def _seal(value: Any) -> Any:
    if value is None or str(value).startswith(_DIGEST):
        return value
    return _DIGEST + blake2b(str(value).encode(), digest_size=16).hexdigest()


def without_secrets(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    return _SECRET.sub(lambda found: "//" if found[0][0] == "/" else "", url)


def without_login(url: str) -> str:
    """Return a URL without user and password, and without parameters that may be a secret."""
    parts = urlsplit(url)
    query = [one for one in parts.query.split("&") if not _may_be_secret(one.split("=")[0])]
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=netloc, query="&".join(query)))


def _may_be_secret(name: str) -> bool:
    return SECRET_NAME.search(name) is not None or names_secret(name)


def masked(text: str, url: str = "") -> str:
    """Return a text on one line, without known keys and with secrets removed from its URLs.

    Args:
        text: The text.
        url: A URL whose user and password the text may have alone.
    """
    login = url.partition("://")[2].partition("/")[0].rpartition("@")[0]
    line = " ".join((text.replace(f"{login}@", "") if login else text).split())
    return without_keys(re.sub(r"\w+://\S+", lambda found: without_secrets(found[0]), line))


def remember(secret: str) -> None:
    """Have a secret removed from every response and every text of this process, if it is one."""
    global _in_bytes  # noqa: PLW0603 - a loop over a tuple costs a response no calls
    if is_secret(secret):
        _known[secret] = in_any_escape
        _known.update(dict.fromkeys(_in_base64(secret), _wrapped))
        _in_bytes = tuple((one.encode(), one) for one in _known)


def _in_base64(secret: str) -> Iterator[str]:
    """Yield what base64 makes of a secret, alone or inside a longer text, in both alphabets."""
    data = secret.encode()
    for before in range(3):
        start, end = -(-before * 8 // 6), (before + len(data)) * 8 // 6
        encoded = b64encode(bytes(before) + data)[start:end].decode()
        yield encoded
        yield encoded.translate({ord("+"): "-", ord("/"): "_"})


def is_secret(value: str) -> bool:
    """Return whether a value is no word that a caption may have too."""
    return len(value) >= _LONG or (len(value) >= SHORTEST and any(map(str.isdigit, value)))


def names_secret(name: str) -> bool:
    """Return whether the name of a header, parameter or field is that of a secret."""
    return _NAME.search(name) is not None


def secrets_in(value: Any) -> Iterator[str]:
    """Yield the texts in JSON-like data whose names are those of secrets."""
    members = value.items() if isinstance(value, dict) else ()
    for name, member in members:
        if isinstance(member, str) and names_secret(name):
            yield member
        yield from secrets_in(member)
    for member in value if isinstance(value, list) else ():
        yield from secrets_in(member)


def without_keys(text: str) -> str:
    """Return a text without the known secrets, also escaped, wrapped, or half of one."""
    for secret, spelled in tuple(_known.items()):
        text = _in_any_form(secret, spelled).sub("***", text)
    return text


def without_keys_in(body: bytes) -> bytes:
    """Return a response without the known secrets, also escaped in JSON.

    A response costs one search for each form of a secret.
    """
    has_escapes = b"\\" in body and _ESCAPED_ASCII.search(body) is not None
    for plain, secret in _in_bytes:
        if has_escapes:
            body = _escaped(secret).sub(b"***", body)
        elif plain in body:
            body = body.replace(plain, b"***")
    return body


def in_any_escape(secret: str, between: str = "") -> str:
    """Return a regular expression that finds a secret however JSON or a URL may have escaped it."""
    return between.join(
        rf"(?:\\?{re.escape(char)}|\\u{ord(char):04x}|%{ord(char):02x})" for char in secret
    )


@lru_cache(512)
def _escaped(secret: str) -> re.Pattern[bytes]:
    return re.compile(in_any_escape(secret).encode(), re.IGNORECASE)


def _wrapped(secret: str, between: str) -> str:
    return between.join(map(re.escape, secret))


@lru_cache(512)
def _in_any_form(secret: str, spelled: Callable[[str, str], str]) -> re.Pattern[str]:
    half = max(SHORTEST, (len(secret) + 1) // 2)
    first, rest = spelled(secret[:half], _GAP), spelled(secret[half:], _GAP)
    form = rf"{first}(?:{_GAP}{rest}|[\w~+/=.%\\-]*)"
    if len(secret) - half >= SHORTEST:
        form += f"|{rest}"
    return re.compile(form, re.IGNORECASE)


_ESCAPED_ASCII = re.compile(rb"\\(?:u00[2-7]|/)")
"""What JSON may hide a character of a key in; hardly any caption has it."""

_SECRET = re.compile(r"//[^/]*@|[?#].*", re.DOTALL)
