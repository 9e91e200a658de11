"""Points in time as clients write them."""

from __future__ import annotations

import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.api.jsontext import Fraction
from taskd.api.moments import (
    MAX_MS,
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
        (1_626_418_779_000, "must not be past the year 9999"),
        (Fraction("-0.001"), "must not be before 1970"),
        (Fraction("1.0001"), "at most three decimals"),
        (Fraction("1.0000"), "at most three decimals"),
        (Fraction("1e9"), "at most three decimals"),
        (Fraction("253402300800.0"), "must not be past the year 9999"),
        (Fraction("9" * 400 + ".5"), "from 1970 to the year 9999"),
    ],
)
def test_what_is_none_of_them(value: object, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_runtime(value, _BERLIN)
    assert caught.value.field == "runtime"
    assert problem in caught.value.problem
    assert len(caught.value.problem) < 300


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
