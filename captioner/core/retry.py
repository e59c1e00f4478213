"""Waits between retries: exponential backoff with full jitter, and Retry-After."""

from __future__ import annotations

import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

LONGEST_WAIT_S = 60.0
LONGEST_RETRY_AFTER_S = 3_600.0
_NUMBER = re.compile(r"\d+(\.\d+)?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)(?:ec|in|our|ay)?\w*", re.IGNORECASE)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_EPOCH_S = 1_000_000_000
"""A larger number of seconds is a time since 1970."""

_EPOCH_MS = 100_000_000_000
"""A larger time since 1970 is in milliseconds."""

_YEAR_S = 366 * 86_400.0


def waits(longest_s: float = LONGEST_WAIT_S) -> Iterator[float]:
    """Yield the seconds to wait before each retry: 0.5, 1, 2, 4 …, each with full jitter.

    Full jitter (a random value from 0 to the wait) spreads the retries of many workers best.
    """
    generator = backoff.expo(base=2, factor=0.5, max_value=longest_s)
    next(generator)  # backoff's generators start with an empty send
    for value in generator:
        yield backoff.full_jitter(value)


def retry_after_s(
    headers: Mapping[str, str], *, now: Callable[[], float] = time.time
) -> float | None:
    """Return how long to wait before a retry, in seconds: as `asked_wait_s`, an hour at most."""
    seconds = asked_wait_s(headers, now=now)
    return None if seconds is None else min(seconds, LONGEST_RETRY_AFTER_S)


def asked_wait_s(
    headers: Mapping[str, str], *, now: Callable[[], float] = time.time
) -> float | None:
    """Return how long a server asks clients to wait, in seconds; None if it does not say.

    ``retry-after-ms`` takes precedence over ``Retry-After``, which is in seconds or an HTTP date
    (RFC 9110, 10.2.3). Some servers send a duration with units, or a time in seconds or
    milliseconds since 1970, and LiteLLM passes its provider's header on as
    ``llm_provider-retry-after``. Invalid values are ignored, and so are numbers of more than a
    year. A date is compared with the reply's ``Date`` if there is one, because the two clocks may
    differ.

    Args:
        headers: The reply's headers, names in lower case.
        now: The wall clock, seconds since 1970, for replies without a ``Date``.
    """
    millis = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(millis) and float(millis) / 1000 < _EPOCH_S:
        return float(millis) / 1000
    names = ("retry-after", "llm_provider-retry-after")
    value = next((text for name in names if (text := headers.get(name, "").strip())), "")
    if not value:
        return None
    try:
        if _NUMBER.fullmatch(value):
            seconds = float(value)
            if seconds > _EPOCH_S:
                seconds = seconds / 1000 if seconds > _EPOCH_MS else seconds
                seconds -= _sent_at(headers, now)
            if seconds > _YEAR_S:
                return None
        elif unit := _DURATION.fullmatch(value):
            seconds = float(unit[1]) * _UNITS[unit[2].lower()]
        else:
            seconds = _timestamp(value) - _sent_at(headers, now)
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, seconds)


def _sent_at(headers: Mapping[str, str], now: Callable[[], float]) -> float:
    try:
        return _timestamp(headers["date"])
    except (KeyError, ValueError, TypeError, OverflowError):
        return now()


def _timestamp(text: str) -> float:
    date = parsedate_to_datetime(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
