"""Waits between retries: exponential backoff with full jitter, and Retry-After."""

from __future__ import annotations

import math
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
    """Return how long a server asks clients to wait; None if it does not say.

    ``retry-after-ms`` takes precedence over ``Retry-After``, which is in seconds or an HTTP date
    (RFC 9110, 10.2.3). Invalid values are ignored, long ones limited to an hour. A date is compared
    with the reply's ``Date`` if there is one, because the two clocks may differ.

    Args:
        headers: The reply's headers, names in lower case.
        now: The wall clock, seconds since 1970, for replies without a ``Date``.
    """
    millis = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(millis):
        return min(float(millis) / 1000, LONGEST_RETRY_AFTER_S)
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if _NUMBER.fullmatch(value):
        return min(float(value), LONGEST_RETRY_AFTER_S)
    try:
        seconds = _timestamp(value) - _sent_at(headers, now)
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_S) if math.isfinite(seconds) else None


def _sent_at(headers: Mapping[str, str], now: Callable[[], float]) -> float:
    try:
        return _timestamp(headers["date"])
    except (KeyError, ValueError, TypeError, OverflowError):
        return now()


def _timestamp(text: str) -> float:
    date = parsedate_to_datetime(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
