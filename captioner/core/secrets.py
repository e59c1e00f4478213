"""Removal of secrets from messages and logs."""

from __future__ import annotations

import re


def without_secrets(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    return _SECRET.sub(lambda found: "//" if found[0][0] == "/" else "", url)


def masked(text: str) -> str:
    """Return a text on one line, with secrets removed from its URLs."""
    return re.sub(r"\w+://\S+", lambda found: without_secrets(found[0]), " ".join(text.split()))


_SECRET = re.compile(r"//[^/]*@|[?#].*", re.DOTALL)
