"""Which parameter of a request an error message is about.

Names of parameters are common words: an image may be a "broken data stream", show seed packets or
a thermometer. A name counts in quotes, or next to words that refuse it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_NOUN = r"(?:param(?:eter)?|arg(?:ument)?|kwarg|keyword|field|property|option|key|name|setting)s?"
_VERB = (
    r"(?:is|are|was|does|do|has|must|should|can(?:not|'t)?|may|needs?|values?|modes?"
    r"|param(?:eter)?"
    r"|not|un|of)\b"
)
_REFUSED = (
    r"support|permit|allow|valid|recogni[sz]|accept|deprecat|unknown|unexpected|extra|must be"
    r"|should be|between|range|less than|greater|at most|at least|disabled|removed|incompatible"
    r"|not available|not implemented|cannot be|can only|forbidden|ignored|required"
)
_REFUSING = (
    r"(?:unsupported|unknown|unrecogni[sz]ed|unexpected|invalid|illegal|unused|extra|deprecated"
    r"|not support\w*|n't support|no support for|does not accept|not allow\w*|not permit\w*"
    r"|cannot (?:set|use|specify)|drop|remove|omit|without)"
)
_ALIASES = {
    "stream": r"stream(?:ing)?",
    "max_tokens": r"max[_ ]?(?:output[_ ]?|new[_ ]?)?tokens",
}
_PATH = r"(?:[\w\[\]]{1,40}\.){0,8}"
"""What stands before a name, bounded: a stranger wrote the message."""

_OF_AN_IMAGE = r"(?<!image )(?<!data )(?<!video )(?<!file )(?<!byte )"


def named_in(message: str, parameters: Collection[str], *, quoted: bool) -> str:
    """Return the sent parameter that a message refuses, empty if it refuses none.

    Args:
        message: The message of the endpoint.
        parameters: The names that were sent.
        quoted: A name in quotes is enough; one without needs words beside it that refuse it.
    """
    for name in parameters:
        if " " in name:  # no name of a field
            continue
        in_quotes, beside = _patterns(name)
        if (quoted and in_quotes.search(message)) or beside.search(message):
            return name
    return ""


@lru_cache(256)
def _patterns(name: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of a name in quotes, and of a name beside words that refuse it."""
    word = _ALIASES.get(name) or re.escape(name).replace("_", "_?")
    member = rf"['\"`]?{_PATH}{word}(?![\w-])['\"`]?"
    in_quotes = rf"['\"`]{_PATH}{word}['\"`](?!\s*:)|(?:\w\.|['\"`]){word}(?![\w-])['\"`.:]"
    beside = (
        rf"\b{_NOUN}\b(?: supplied| given| found)?:?\s+{member}"
        rf"|{_OF_AN_IMAGE}(?<![\w-]){member}:?\s*{_VERB}.{{0,40}}?(?:{_REFUSED})"
        rf"|(?<![\w-]){member}:\s.{{0,40}}?(?:{_REFUSED})"
        rf"|{_REFUSING}\b:?\s+(?:the |{_NOUN}:? |value (?:for |of )?)*{member}"
    )
    return re.compile(in_quotes, re.IGNORECASE), re.compile(beside, re.IGNORECASE)
