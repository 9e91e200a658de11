"""Points in time as clients write them."""

from __future__ import annotations

import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.api.wire.strict_json import Fraction
from taskd.api.wire.timestamps import (
    MAX_MS,
    parse_delay,
    parse_runtime,
    parse_wall_seconds,
    readings,
    wall_time,
)
from taskd.errors import InvalidInput

_UTC = ZoneInfo("UTC")
_BERLIN = ZoneInfo("Europe/Berlin")
_SHANGHAI = ZoneInfo("Asia/Shanghai")
_ZONES = st.sampled_from(
    [_UTC, _BERLIN, _SHANGHAI, ZoneInfo("America/St_Johns"), ZoneInfo("Australia/Lord_Howe")]
)
_MOMENTS = st.integers(0, MAX_MS)
_SHOWN = st.integers(86_400_000, MAX_MS - 86_400_000)
"""Moments that clocks everywhere show within 1970 to 9999."""


@pytest.mark.parametrize(
    ("value", "zone", "ms"),
    [
        ("2021-03-05 12:00:00", _UTC, 1_614_945_600_000),
        ("2021-03-05 12:00:00", _SHANGHAI, 1_614_916_800_000),
        ("2021-03-05 12:00:00.007", _UTC, 1_614_945_600_007),
        ("2021-03-05T12:00:00Z", _SHANGHAI, 1_614_945_600_000),
        ("2021-03-05T12:00:00+08:00", _UTC, 1_614_916_800_000),
        ("2021-03-05T12:00:00-03:30", _UTC, 1_614_958_200_000),
        ("2021-03-05T12:00:00.5Z", _UTC, 1_614_945_600_500),
        ("2021-03-05T12:00:00.05Z", _UTC, 1_614_945_600_050),
        ("2021-03-05T12:00:00.123+00:00", _UTC, 1_614_945_600_123),
        ("1970-01-01T00:00:00Z", _BERLIN, 0),
        ("9999-12-31 23:59:59.999", _UTC, MAX_MS),
        (0, _UTC, 0),
        (1_626_418_779, _UTC, 1_626_418_779_000),
        (Fraction("1626418779.1"), _UTC, 1_626_418_779_100),
        (Fraction("1626418779.007"), _UTC, 1_626_418_779_007),
        (Fraction("253402300799.999"), _UTC, MAX_MS),
        # Comes twice: the later reading.
        ("2021-10-31 02:30:00", _BERLIN, 1_635_643_800_000),
    ],
)
def test_the_three_forms(value: object, zone: ZoneInfo, ms: int) -> None:
    assert parse_runtime(value, zone) == ms


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("2021-03-28 02:30:00", "does not exist in the timezone Europe/Berlin: clocks skip it"),
        ("2021-02-29 00:00:00", "is no date and time that exists"),
        ("2021-01-01 24:00:00", "is no date and time that exists"),
        ("2021-01-01 00:00:60", "is no date and time that exists"),
        ("0000-01-01 00:00:00", "is no date and time that exists"),
        ("0001-01-01 00:00:00", "must not be before 1970"),
        ("1970-01-01 00:00:00", "must not be before 1970"),
        ("1969-12-31T23:59:59.999Z", "must not be before 1970"),
        ("9999-12-31T23:59:59.999-00:01", "must not be past the year 9999"),
        ("9999-12-31 23:59:59.9999", "must be YYYY-MM-DD"),
        ("10000-01-01 00:00:00", "must be YYYY-MM-DD"),
        ("2021-03-05", "must be YYYY-MM-DD"),
        ("2021-03-05 12:00", "must be YYYY-MM-DD"),
        ("2021-03-05 12:00:00.1", "must be YYYY-MM-DD"),
        ("2021-03-05 12:00:00.1234", "must be YYYY-MM-DD"),
        ("2021-03-05T12:00:00", "must be YYYY-MM-DD"),
        ("2021-03-05T12:00:00.1234Z", "must be YYYY-MM-DD"),
        ("2021-03-05 12:00:00Z", "must be YYYY-MM-DD"),
        ("2021-03-05t12:00:00z", "must be YYYY-MM-DD"),
        ("2021-03-05T12:00:00+8", "must be YYYY-MM-DD"),
        ("2021-03-05T12:00:00+24:00", "has an offset that does not exist"),
        ("2021-03-05T12:00:00+08:60", "has an offset that does not exist"),
        (" 2021-03-05 12:00:00", "must be YYYY-MM-DD"),
        ("2021-03-05 12:00:00\n", "must be YYYY-MM-DD"),
        ("٢٠٢١-٠٣-٠٥ ١٢:٠٠:٠٠", "must be YYYY-MM-DD"),
        ("1626418779", "must be YYYY-MM-DD"),
        ("", "must be YYYY-MM-DD"),
        (True, "got true"),
        (None, "got null"),
        ([], "got an array"),
        (-1, "must not be before 1970"),
        (2**64 - 1, "must not be past the year 9999"),
        (1_626_418_779_000, "must not be past the year 9999, got 1626418779000: that looks like"),
        (1_626_418_779_000, "milliseconds, did you mean 1626418779?"),
        (1_626_418_779_120, "milliseconds, did you mean 1626418779.12?"),
        (1_626_418_779_123_456, "microseconds, did you mean 1626418779.123?"),
        (1_626_418_779_123_456_789, "nanoseconds, did you mean 1626418779.123?"),
        (Fraction("1626418779000.5"), "milliseconds, did you mean 1626418779?"),
        (Fraction("-0.001"), "must not be before 1970"),
        (Fraction("1.0001"), "at most three decimals"),
        (Fraction("1.0000"), "at most three decimals"),
        (Fraction("1e9"), "at most three decimals"),
        (Fraction("253402300800.0"), "must not be past the year 9999"),
        (Fraction("9" * 5000 + ".5"), "must not be past the year 9999, got 9999"),
        (Fraction("-" + "9" * 5000 + ".5"), "must not be before 1970, got -999"),
        # What is nearly a runtime is told what it lacks.
        ("1626418779.5", "Unix seconds are a number, without quotes"),
        ("30m", "for a time from now on, give delay in place of runtime"),
        ("2021-03-05T12:00:00.123456", "it lacks an offset, such as Z or +08:00"),
        ("2021-03-05 12:00:00+08:00", "with an offset, T joins date and time"),
        ("2021-03-05T12:00:00+0800", "an offset is written with a colon, as +08:00"),
        ("2021-03-05T12:00:00.123456+00:00", "it has more than three decimals"),
    ],
)
def test_what_is_none_of_them(value: object, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_runtime(value, _BERLIN)
    assert caught.value.field == "runtime"
    assert problem in caught.value.problem
    assert len(caught.value.problem) < 300


def test_no_text_of_a_time_that_is_too_late_is_taken_for_milliseconds() -> None:
    with pytest.raises(InvalidInput, match="past the year 9999") as caught:
        parse_runtime("9999-12-31T23:59:59.999-00:01", _UTC)
    assert "looks like" not in caught.value.problem


@given(st.integers(1, 3), st.integers(10**9, 4 * 10**9), st.integers(0, 999))
def test_the_seconds_that_are_proposed_are_the_moment_that_was_meant(
    finer: int, seconds: int, ms: int
) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_runtime((seconds * 1000 + ms) * 1000 ** (finer - 1), _UTC)
    proposed = caught.value.problem.partition("did you mean ")[2].rstrip("?")
    value = Fraction(proposed) if "." in proposed else int(proposed)
    assert parse_runtime(value, _UTC) == seconds * 1000 + ms


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (0, 0),
        (1, 1_000),
        (Fraction("0.001"), 1),
        (Fraction("1.5"), 1_500),
        (Fraction("0.0"), 0),
        ("0s", 0),
        ("90s", 90_000),
        ("30m", 1_800_000),
        ("2h", 7_200_000),
        ("3d", 259_200_000),
        ("1h30m", 5_400_000),
        ("1d2h3m4s", 93_784_000),
        ("007s", 7_000),
        ("100000m", 6_000_000_000),
    ],
)
def test_a_delay_is_seconds_or_a_text_with_units(value: object, ms: int) -> None:
    assert parse_delay(value, 0) == ms
    assert parse_delay(value, 1_626_418_779_123) == 1_626_418_779_123 + ms


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", 'got ""'),
        ("90", ": seconds are a number, without quotes"),
        ("1.5h", 'got "1.5h"'),
        ("-30m", 'got "-30m"'),
        ("30 m", 'got "30 m"'),
        ("30M", 'got "30M"'),
        ("30min", 'got "30min"'),
        ("500ms", 'got "500ms"'),
        ("30m1h", 'got "30m1h"'),
        ("1h1h", 'got "1h1h"'),
        ("٣m", 'got "٣m"'),
        ("30m\n", 'got "30m\\n"'),
        ("PT30M", 'got "PT30M"'),
        ("1234567890123s", 'got "1234567890123s"'),
        ("2030-01-01 00:00:00", ": for a moment, give runtime in place of delay"),
        ("2030-01-01T00:00:00Z", ": for a moment, give runtime in place of delay"),
        (True, "got true"),
        (None, "got null"),
        ([], "got an array"),
        ({}, "got an object"),
        (-1, "must not be negative, got -1"),
        (Fraction("-0.001"), "must not be negative, got -0.001"),
        (Fraction("1.0001"), "at most three decimals"),
        (Fraction("1e2"), "at most three decimals"),
        (2**63, "must not lead past the year 9999, got 9223372036854775808"),
        (Fraction("9" * 5000 + ".5"), "must not lead past the year 9999"),
        ("999999999999d", "must not lead past the year 9999"),
        (253_402_300_800, "must not lead past the year 9999"),
    ],
)
def test_what_is_no_delay(value: object, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_delay(value, 0)
    assert caught.value.field == "delay"
    assert problem in caught.value.problem
    assert len(caught.value.problem) < 300


@given(_MOMENTS, st.data())
def test_a_delay_leads_at_most_to_the_last_moment_there_is(now: int, data: st.DataObject) -> None:
    left_s, left_ms = divmod(MAX_MS - now, 1000)
    assert parse_delay(Fraction(f"{left_s}.{left_ms:03d}"), now) == MAX_MS
    with pytest.raises(InvalidInput):
        parse_delay(left_s + 1, now)
    seconds = data.draw(st.integers(0, left_s))
    assert parse_delay(seconds, now) == parse_delay(f"{seconds}s", now) == now + seconds * 1000


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_units_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s")]
    text = "".join(f"{count}{unit}" for count, unit in parts if count) or "0s"
    told = datetime.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    assert parse_delay(text, 0) == told // datetime.timedelta(milliseconds=1)


@given(
    st.text()
    | st.from_regex(r"[0-9dhms.]*", fullmatch=True)
    | st.integers(-(2**63), 2**64 - 1)
    | st.none()
    | st.booleans(),
    _MOMENTS,
)
def test_any_delay_is_a_moment_from_now_on_or_a_refusal(value: object, now: int) -> None:
    try:
        due_at = parse_delay(value, now)
    except InvalidInput as error:
        sentence = str(error)
    else:
        sentence = f"delay: {due_at}"
        assert now <= due_at <= MAX_MS
    assert sentence.startswith("delay: ")


@given(_SHOWN, _ZONES)
def test_what_clocks_show_is_read_as_that_moment_or_its_later_twin(ms: int, zone: ZoneInfo) -> None:
    found = parse_runtime(f"{wall_time(ms, zone)}.{ms % 1000:03d}", zone)
    assert found >= ms
    assert wall_time(found, zone) == wall_time(ms, zone)
    seconds = parse_wall_seconds(wall_time(ms, zone), zone)
    assert seconds is not None
    assert ms // 1000 * 1000 in seconds


@given(_MOMENTS)
def test_a_number_of_seconds_is_exact_to_the_millisecond(ms: int) -> None:
    assert parse_runtime(Fraction(f"{ms // 1000}.{ms % 1000:03d}"), _UTC) == ms
    short = str(Decimal(ms) / 1000)
    value = Fraction(short) if "." in short else int(short)
    assert parse_runtime(value, _UTC) == ms


@given(_MOMENTS, st.integers(-23 * 60 - 59, 23 * 60 + 59))
def test_iso_8601_is_read_as_python_reads_it(ms: int, offset: int) -> None:
    zone = datetime.timezone(datetime.timedelta(minutes=offset))
    try:
        moment = datetime.datetime.fromtimestamp(ms // 1000, zone).replace(
            microsecond=ms % 1000 * 1000
        )
    except (OverflowError, ValueError):
        return
    assert parse_runtime(moment.isoformat(timespec="milliseconds"), _UTC) == ms


@given(st.text() | st.integers(-(2**63), 2**64 - 1) | st.none() | st.booleans(), _ZONES)
def test_nothing_raises_anything_but_a_refusal(value: object, zone: ZoneInfo) -> None:
    try:
        ms = parse_runtime(value, zone)
    except InvalidInput as error:
        sentence = str(error)
    else:
        sentence = "runtime: " + str(ms)
        assert 0 <= ms <= MAX_MS
    assert sentence.startswith("runtime: ")


@given(st.datetimes(), _ZONES)
def test_readings_are_the_moments_at_which_clocks_show_it(
    wall: datetime.datetime, zone: ZoneInfo
) -> None:
    wall = wall.replace(microsecond=0)
    found = readings(wall, zone)
    assert len(found) <= 2
    assert found == sorted(set(found))
    for ms in found:
        seconds = datetime.timedelta(milliseconds=ms)
        moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + seconds
        assert moment.astimezone(zone).replace(tzinfo=None) == wall


@pytest.mark.parametrize("zone", [ZoneInfo("America/New_York"), _SHANGHAI])
def test_the_last_and_the_first_hours_of_the_calendar_are_refused_or_right(zone: ZoneInfo) -> None:
    for text in ("9999-12-31 23:59:59", "1970-01-01 00:00:00"):
        try:
            ms = parse_runtime(text, zone)
        except InvalidInput as error:
            assert "1970" in error.problem or "9999" in error.problem  # noqa: PT017 - either is right
        else:
            assert wall_time(ms, zone) == text


@pytest.mark.parametrize("text", ["2021-03-05T12:00:00", "2021-03-05 12:00:00.000", "", "x" * 19])
def test_a_timestamp_has_one_spelling(text: str) -> None:
    assert parse_wall_seconds(text, _UTC) is None


def test_a_timestamp_that_clocks_skip_has_no_reading() -> None:
    assert parse_wall_seconds("2021-03-28 02:30:00", _BERLIN) == []
    assert len(parse_wall_seconds("2021-10-31 02:30:00", _BERLIN) or ()) == 2
