"""Families of finish reasons: why a model's text ended, whatever the server calls it.

To teach captioner another reason, add its stem to a family. Names are compared in lower case, with
every run of other characters than letters and digits as one `_`. The first family that matches
decides.
"""

from __future__ import annotations

import re
from functools import lru_cache

_STOP = re.compile(
    r"(?:|stop|eos|eod|eot|eom|end|done|finish(?:ed)?|completed?|completion|success(?:ful)?|normal"
    r"|natural|final|ok|none|null|im_end|tool_(?:use|calls?)|function_calls?|endoftext)"
    r"(?:_(?:token|id|str|string|seq|sequence|words?|criteria|reason|reached|hit|matched|turn|text"
    r"|of_(?:text|turn|sentence|sequence|stream|message)))*"
)
"""Reasons of a whole text. They are compared whole, because `stop` is part of many others."""

_BY_STEM = (
    ("filter", re.compile(
        r"safety|recitation|prohibit|block(?:ed|list|_?reason)|(?:\A|_)block\Z|spii|sensitive"
        r"|filter|refus|polic|language|guardrail|moderat|violat|(?:\A|_)risk|toxic|armor|secur"
        r"|harm(?!on)|nsfw|unsafe|illegal|censor|copyright|abus|inappropriate|explicit|forbidden"
        r"|violen|(?:\A|_)hate|sexual|complian|malicious|jailbreak|banned|flagged|denied"
        r"|违规|敏感|屏蔽|审核"
    )),
    ("loop", re.compile(r"repet|repeat|loop|degenerat")),
    ("broken", re.compile(
        r"abort|error|insufficient|overload|cancel|time_?out|timed_out|interrupt|preempt|malform"
        r"|unavailab|disconnect|evict|kill|crash|fail|expire|exception|terminated|shut_?down|panic"
        r"|(?:\A|_)oom|memory|reset|closed|dropped|reject|invalid|corrupt|network|internal|fault"
        r"|deadline|throttl|quota|busy|stall|hung|resource|rate_?limit|time_?limit|max_?time"
        r"|异常|错误|中断|超时"
    )),
    ("length", re.compile(
        r"length|max\w*tokens?|tokens?_?(?:limit|exceed|exhaust)|limit|context|truncat|incomplete"
        r"|(?:out|run|ran)_(?:out_)?of_tokens|exhaust|overflow|max_output|cut_?off|n(?:um)?_predict"
        r"|max_seq|budget|超长|截断"
    )),
)  # fmt: skip

_OTHER = re.compile(r"[\W_]+")
_OWN_NAME = re.compile(r"\A(?:(?:finish|stop)_?reason|finish)_(?=.)")
LONGEST = 100
"""Characters of a reason that are looked at."""


@lru_cache(256)
def finish_family(reason: str) -> str:
    """Return the family of a finish reason: stop, length, filter, broken, loop or unknown."""
    word = _OTHER.sub("_", reason[:LONGEST].lower()).strip("_")
    word = _OWN_NAME.sub("", word)
    if _STOP.fullmatch(word):
        return "stop"
    return next((family for family, stems in _BY_STEM if stems.search(word)), "unknown")
