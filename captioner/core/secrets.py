"""Removal of secrets from messages, logs and files."""

from __future__ import annotations

import base64
import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
"""What the names of variables, headers and fields with secrets have in them."""

SEALED = frozenset({"extra_body"})
"""Settings that may hold a secret; files have their digests instead."""

_DIGEST = "blake2b:"


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
    query = [one for one in parts.query.split("&") if not SECRET_NAME.search(one.split("=")[0])]
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=netloc, query="&".join(query)))


def masked(text: str) -> str:
    """Return a text on one line, with secrets removed from its URLs."""
    return re.sub(r"\w+://\S+", lambda found: without_secrets(found[0]), " ".join(text.split()))


_SECRET = re.compile(r"//[^/]*@|[?#].*", re.DOTALL)

SECRET_LENGTH = 8
"""Characters from which a header's value may be a key, and is masked."""

_UNLIKE_WORDS = 10  # characters of a secret that no caption has by chance


def secrets_of(
    url: str, key: str | None, headers: Iterable[tuple[str, str]], body: Any
) -> Iterator[str]:
    """Yield what must not be shown of what is sent to an endpoint.

    Args:
        url: Its address.
        key: Its key, if it has one.
        headers: Further headers.
        body: Further fields of requests: an object with any values.
    """
    if key:
        yield key
    if "@" in urlsplit(url).netloc:
        user = urlsplit(url).netloc.rpartition("@")[0]
        password = user.partition(":")[2]
        yield from (one for one in (password, unquote(password)) if len(one) >= SECRET_LENGTH)
        yield base64.b64encode(unquote(user).encode()).decode()
    for _, value in headers:
        # After the scheme, as in "Bearer ...".
        yield from (one for one in (value, value.split(" ")[-1]) if len(one) >= SECRET_LENGTH)
    yield from _secret_fields(body, secret=False)


def _secret_fields(value: Any, *, secret: bool) -> Iterator[str]:
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _secret_fields(one, secret=bool(SECRET_NAME.search(str(name))))
    elif isinstance(value, list):
        for one in value:
            yield from _secret_fields(one, secret=secret)
    elif secret and isinstance(value, str) and len(value) >= SECRET_LENGTH:
        yield value


_ESCAPED_ASCII = re.compile(
    rb"\\(?:u00[2-7]|u\{|x[2-7]|[01][0-7]{2}|/)|%[2-7][0-9a-fA-F]|&(?:#|amp;|lt;|gt;|quot;|apos;)"
)
"""What a printable character may be hidden in; hardly any caption has it."""


class Mask:
    """Replaces secrets by ``***``, however they are escaped.

    Args:
        secrets: The secrets, ASCII text.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        found = sorted({one for one in secrets if one}, key=len, reverse=True)
        self._pattern = _in_any_escape(found)
        distinct = [
            one for one in found if len(one) >= _UNLIKE_WORDS and re.search(r"\d", one) is not None
        ]
        self._distinct = _in_any_escape(distinct)
        self._plain = tuple(one.encode() for one in distinct)

    def errors(self, data: bytes) -> bytes:
        """Return an error response without the secrets."""
        return self._pattern.sub(b"***", data) if self._pattern else data

    def captions(self, data: bytes) -> bytes:
        """Return a response with a caption without those secrets that are unlike any word.

        A short one might be a word of a caption.
        """
        if self._distinct is None:
            return data
        for plain in self._plain:
            if plain in data:
                break
        else:
            escaped = b"\\" in data or b"%" in data or b"&" in data
            if not escaped or _ESCAPED_ASCII.search(data) is None:
                return data
        return self._distinct.sub(b"***", data)


def _in_any_escape(secrets: list[str]) -> re.Pattern[bytes] | None:
    """Return a pattern that finds secrets however JSON, a URL or HTML may have escaped them."""
    whole = b"|".join(b"".join(map(_escapes_of, one.encode())) for one in secrets)
    return re.compile(whole) if whole else None


_NAMED = {ord("&"): "amp", ord("<"): "lt", ord(">"): "gt", ord('"'): "quot", ord("'"): "apos"}


def _escapes_of(byte: int) -> bytes:
    code = "".join(f"[{digit}{digit.upper()}]" if digit > "9" else digit for digit in f"{byte:02x}")
    plain = re.escape(chr(byte)) if byte < 128 else re.escape(bytes([byte]).decode("latin-1"))
    ways = [
        plain,
        rf"\\{{1,4}}(?:{plain}|u00{code}|u\{{0{{0,4}}{code}\}}|x{code}|{byte:03o})",
        rf"%(?:25){{0,4}}{code}",
        rf"&(?:amp;){{0,4}}#(?:0{{0,6}}{byte}|[xX]0{{0,6}}{code});?",
    ]
    if byte in _NAMED:
        ways.append(f"&(?:amp;){{0,4}}{_NAMED[byte]};")
    return f"(?:{'|'.join(ways)})".encode("latin-1")
