"""What endpoints say of their limits is understood, and nonsense is not believed."""

from __future__ import annotations

import pytest

from captioner.endpoints.ratelimit_headers import RateLimit, duration_s, read_limits

NOTHING = RateLimit()


def openai_headers(what: str, limit: object, left: object, reset: object) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(left),
        f"x-ratelimit-reset-{what}": str(reset),
    }


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("12ms", 0.012),
        ("1h2m3s", 3723),
        ("0.5s", 0.5),
        ("", None),
        ("soon", None),
        ("1s?", None),
        ("5", None),
    ],
)
def test_durations_are_read_as_openai_writes_them(text, seconds) -> None:
    """`ms` is no minutes, and what is no duration is none."""
    assert duration_s(text) == (pytest.approx(seconds) if seconds is not None else None)


def test_limits_by_the_minute() -> None:
    """A bucket of 600 that refills in a minute is 600 a minute; tokens are told apart."""
    headers = openai_headers("requests", 600, 599, "100ms")
    headers |= openai_headers("tokens", 150000, 149000, "400ms")
    assert read_limits(headers) == (RateLimit(600, 599), RateLimit(150000, 149000))


def test_limits_by_the_day_are_not_taken_for_limits_by_the_minute() -> None:
    """14,400 requests that refill in a day are a budget: they may be spent in an hour."""
    requests, _ = read_limits(openai_headers("requests", 14400, 14370, "3m0s"))
    assert requests.per_minute is None


def test_anthropics_headers() -> None:
    """Resets as times of day are compared with the clock."""
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "1970-01-01T00:16:41Z",
        "anthropic-ratelimit-tokens-limit": "40000",
        "anthropic-ratelimit-tokens-remaining": "39000",
        "anthropic-ratelimit-tokens-reset": "1970-01-01T00:16:41Z",
    }
    requests, tokens = read_limits(headers, now=lambda: 1000.0)
    assert requests == RateLimit(50, 49)
    assert tokens == RateLimit(40000, 39000)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/json"},
        {"x-ratelimit-limit-requests": "many"},
        {"x-ratelimit-limit-requests": "-5", "x-ratelimit-limit-tokens": "nan"},
        {"x-ratelimit-limit-requests": "0"},
    ],
)
def test_no_limit_is_made_up(headers) -> None:
    """Missing, senseless and zero limits are no limits."""
    assert read_limits(headers) == (NOTHING, NOTHING)


def test_a_limit_without_a_reset_is_by_the_minute() -> None:
    """Where nothing tells otherwise the common case holds."""
    headers = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "7"}
    assert read_limits(headers)[0] == RateLimit(60, 7)
