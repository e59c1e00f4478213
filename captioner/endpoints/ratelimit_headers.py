"""The limits that an endpoint reports in the headers of a response. Pure, no I/O.

OpenAI and most others send ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` with resets as
durations (``6m0s``, ``12ms``); Anthropic sends ``anthropic-ratelimit-{requests,tokens}-{limit,
remaining,reset}`` with resets as RFC 3339 times. A reset says when a window is full again.
"""

from __future__ import annotations

import math
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class RateLimit(NamedTuple):
    """One limit.

    Attributes:
        per_minute: Units a minute; None if unknown.
        left: Units left now; None if unknown.
    """

    per_minute: float | None = None
    left: float | None = None


NO_LIMITS = RateLimit(), RateLimit()
"""What a reply says that says nothing."""


def read_limits(
    headers: Mapping[str, str], *, now: Callable[[], float] = time.time
) -> tuple[RateLimit, RateLimit]:
    """Return the limits of requests and of tokens that a reply's headers state.

    Args:
        headers: Header names in lower case.
        now: The wall clock, seconds since 1970; only Anthropic's times are compared with it.
    """
    if "x-ratelimit-limit-requests" in headers or "x-ratelimit-limit-tokens" in headers:
        return _read(headers, "x-ratelimit-{1}-{0}", now), _read(
            headers, "x-ratelimit-{1}-{0}", now, "tokens"
        )
    if "anthropic-ratelimit-requests-limit" in headers:
        return _read(headers, "anthropic-ratelimit-{0}-{1}", now), _read(
            headers, "anthropic-ratelimit-{0}-{1}", now, "tokens"
        )
    return NO_LIMITS


def duration_s(text: str) -> float | None:
    """Return the seconds of a duration as OpenAI writes it, ``1h2m3s`` or ``12ms``."""
    parts = _DURATION.findall(text)
    if not parts or "".join(map("".join, parts)) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _read(
    headers: Mapping[str, str], name: str, now: Callable[[], float], what: str = "requests"
) -> RateLimit:
    limit = _number(headers.get(name.format(what, "limit")))
    left = _number(headers.get(name.format(what, "remaining")))
    if limit is None or limit <= 0:
        return RateLimit(None, left)
    reset = _reset_s(headers.get(name.format(what, "reset"), ""), now)
    if left is None or reset is None or reset <= 0 or left >= limit:
        return RateLimit(limit, left)
    # The time to refill gives the window. A limit of an hour or a day is a budget, not a rate.
    refill = (limit - left) / reset * 60.0
    if refill < limit / 2:
        return RateLimit()
    return RateLimit(limit if refill <= limit * 2 else refill, left)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _reset_s(text: str, now: Callable[[], float]) -> float | None:
    if (seconds := duration_s(text.strip())) is not None:
        return seconds
    try:
        return datetime.fromisoformat(text).timestamp() - now()
    except (ValueError, OverflowError):
        return None
