"""Times as clients write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.times import TIME_MS_MAX, format_ms, parse_duration_ms, parse_time_ms

NOW = 1_752_871_354_250


def at(text: str, *, up: bool = False) -> int:
    return parse_time_ms(text, now_ms=NOW, up=up)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2025-07-18T20:42:34Z", 1_752_871_354_000),
        ("2025-07-18T20:42:34.25Z", 1_752_871_354_250),
        ("2025-07-18T22:42:34+02:00", 1_752_871_354_000),
        ("2025-07-18T22:42:34 02:00", 1_752_871_354_000),
        ("2025-07-18 20:42:34", 1_752_871_354_000),
        ("2025-07-18T20:42Z", 1_752_871_320_000),
        ("2025-07-18", 1_752_796_800_000),
        ("1752871354", 1_752_871_354_000),
        ("1752871354.25", 1_752_871_354_250),
        ("1752871354250", 1_752_871_354_250),
        ("now", NOW),
        ("now-1h", NOW - 3_600_000),
        ("now-1d12h", NOW - 129_600_000),
        ("now+250ms", NOW + 250),
    ],
)
def test_each_way_to_write_a_time_is_understood(text: str, ms: int) -> None:
    assert at(text) == ms


def test_finer_times_round_into_the_range_they_bound() -> None:
    assert at("2025-07-18T20:42:34.0005Z") == 1_752_871_354_000
    assert at("2025-07-18T20:42:34.0005Z", up=True) == 1_752_871_354_001
    assert at("1752871354.0001", up=True) == 1_752_871_354_001
    assert at("2025-07-18T20:42:34.001000Z", up=True) == 1_752_871_354_001


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "now-", "now-1", "2025-13-01", "2025-07-18T25:00:00Z", "-5", "1e9", "99999999999999999", "nan"],
)
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no time|is not between"):
        at(text)


@given(st.integers(0, TIME_MS_MAX))
def test_a_time_that_was_told_is_read_back_as_the_same(ms: int) -> None:
    assert at(format_ms(ms)) == ms
    assert at(format_ms(ms), up=True) == ms


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_a_value_error(text: str) -> None:
    try:
        found = at(text)
    except ValueError:
        return
    assert 0 <= found <= TIME_MS_MAX


def test_durations_may_be_combined() -> None:
    assert parse_duration_ms("1h30m") == 5_400_000
    assert parse_duration_ms("250ms") == 250
    assert parse_duration_ms("90") == 90_000
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration_ms("soon")
