from __future__ import annotations

import itertools
import math
import time

import backoff
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.core.retry import LONGEST_RETRY_AFTER_S, LONGEST_WAIT_S, retry_after_s, waits

NOW = 1_445_412_420.0  # Wed, 21 Oct 2015 07:27:00 GMT


def test_waits_double_up_to_a_longest(monkeypatch):
    """Pauses grow from half a second to a minute and stay there."""
    monkeypatch.setattr(backoff, "full_jitter", lambda value: value)
    assert list(itertools.islice(waits(), 10)) == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert list(itertools.islice(waits(3), 5)) == [0.5, 1, 2, 3, 3]


def test_waits_are_spread_over_their_whole_range():
    """Many workers that fail together do not come back together: full jitter, never above."""
    seconds = [list(itertools.islice(waits(), 12)) for _ in range(300)]
    for step, column in enumerate(zip(*seconds, strict=True)):
        longest = min(0.5 * 2**step, LONGEST_WAIT_S)
        assert 0 <= min(column) < longest / 4
        assert longest * 3 / 4 < max(column) <= longest


def test_waits_never_end():
    """An outage of days does not run out of pauses."""
    assert next(itertools.islice(waits(), 5000, None)) <= LONGEST_WAIT_S


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 7 ", 7),
        ("1.5", 1.5),
        ("3600", 3600),
        ("86400", LONGEST_RETRY_AFTER_S),
        ("1445412480", 60),
        ("1445412480000", 60),
        ("1445412480.5", 60.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 60),
        ("Wednesday, 21-Oct-15 07:28:00 GMT", 60),
        ("Wed, 21 Oct 2015 09:28:00 +0200", 60),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_RETRY_AFTER_S),
    ],
)
def test_retry_after(value, seconds):
    """Seconds and dates are understood; what has passed is no wait, what is far off an hour."""
    assert retry_after_s({"retry-after": value}, now=lambda: NOW) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "-1",
        "+1",
        "1e3",
        "nan",
        "inf",
        "NaN",
        "soon",
        "9" * 400,
        "99999999999999999",
        "0x10",
        "1,5",
        "1 2",
        "--",
        "GMT",
        "Wed, 99 Foo 2015 07:28:00 GMT",
        "Wed, 21 Oct 2015 99:28:00 GMT",
        "Wed, 21 Oct",
        "\0",
    ],
)
def test_senseless_retry_after_counts_as_unsaid(value):
    """Nonsense neither stops the run nor makes it wait."""
    assert retry_after_s({"retry-after": value}, now=lambda: NOW) is None
    assert retry_after_s({"retry-after-ms": value, "retry-after": "3"}, now=lambda: NOW) == 3
    assert retry_after_s({"retry-after-ms": value}, now=lambda: NOW) is None


def test_milliseconds_go_first():
    """The finer of the two headers is believed."""
    assert retry_after_s({"retry-after-ms": "1500", "retry-after": "60"}) == 1.5
    assert retry_after_s({"retry-after-ms": "0"}) == 0
    assert retry_after_s({"retry-after-ms": "99999999999"}) == LONGEST_RETRY_AFTER_S
    assert retry_after_s({}) is None


@pytest.mark.parametrize("zone", ["UTC0", "XXX-9", "YYY+8"])
@pytest.mark.parametrize("value", ["Wed Oct 21 07:28:00 2015", "Wed, 21 Oct 2015 07:28:00 -0000"])
def test_dates_without_a_zone_are_in_utc(monkeypatch, zone, value):
    """C's form of a date, which HTTP allows, means the same wherever the command runs."""
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            assert retry_after_s({"retry-after": value}, now=lambda: NOW) == 60
    finally:
        time.tzset()


@given(st.text(max_size=60) | st.from_regex(r"[A-Za-z]{0,3},? ?[0-9A-Za-z:+ .-]{0,40}"))
def test_no_header_is_harmful(value):
    """Whatever stands in the headers gives a wait from nothing to an hour, or none."""
    for name in ("retry-after", "retry-after-ms", "llm_provider-retry-after"):
        seconds = retry_after_s({name: value}, now=lambda: NOW)
        if seconds is not None:
            assert math.isfinite(seconds)
            assert 0 <= seconds <= LONGEST_RETRY_AFTER_S


def test_a_date_is_compared_with_the_replys_own_clock():
    """Our clock may be an hour off; what the server calls now is in the same reply."""
    headers = {
        "retry-after": "Wed, 25 Nov 2026 10:00:30 GMT",
        "date": "Wed, 25 Nov 2026 10:00:00 GMT",
    }
    assert retry_after_s(headers, now=lambda: 5.0) == 30
    assert retry_after_s({**headers, "date": "today"}, now=lambda: 5.0) == 3_600


def test_a_gateway_passes_the_wait_of_its_provider_on():
    """LiteLLM's own header comes first."""
    assert retry_after_s({"llm_provider-retry-after": "7"}) == 7
    assert retry_after_s({"llm_provider-retry-after": "7", "retry-after": "3"}) == 3
