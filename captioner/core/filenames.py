"""Names of files that are not text, and other spellings of a path that people write."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

_ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")
_AROUND = " \t\r\n\"'"
_OTHER = re.compile(r"[%\\]")


def escaped(name: str) -> str:
    r"""Return a name of a file as text: a byte that is not UTF-8 becomes ``\xNN``."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def spellings(path: str) -> list[str]:
    r"""Return the other paths that a path may mean, most likely first.

    They are the one without blanks and quotes around it, the one with the bytes that `escaped`
    wrote as ``\xNN``, the one that was percent-encoded, and the one with ``/`` in place of the
    backslashes of Windows.
    """
    if (bare := path.strip(_AROUND)) != path:
        return [bare, *spellings(bare)]
    if _OTHER.search(path) is None:
        return []
    data = path.encode("utf-8", "surrogateescape")
    found = [os.fsdecode(_ESCAPED.sub(lambda byte: bytes.fromhex(byte[1].decode()), data))]
    for one in (path, unquote(path, errors="surrogateescape")):
        found += [one, one.replace("\\", "/")]
    return [one for one in dict.fromkeys(found) if one != path]
