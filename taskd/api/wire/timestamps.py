"""Points in time as clients write them. Pure functions; all results are
milliseconds since the Unix epoch."""

from __future__ import annotations

import datetime
import re
from zoneinfo import ZoneInfo

from taskd.api.wire.envelope import shown
from taskd.api.wire.strict_json import Fraction
from taskd.errors import InvalidInput

MAX_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, UTC."""

_DATE = r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
_TIME = r"([0-9]{2}):([0-9]{2}):([0-9]{2})"
_WALL = re.compile(rf"{_DATE} {_TIME}(?:\.([0-9]{{3}}))?")
_ISO = re.compile(rf"{_DATE}T{_TIME}(?:\.([0-9]{{1,3}}))?(Z|[+-][0-9]{{2}}:[0-9]{{2}})")
_OFFSET = re.compile(r"([+-])([01][0-9]|2[0-3]):([0-5][0-9])")
_DECIMAL = re.compile(r"-?[0-9]+\.([0-9]{1,3})")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_UNITS = re.compile("".join(rf"(?:([0-9]{{1,12}}){unit})?" for unit in "dhms"))
_UNITS_MS = (86_400_000, 3_600_000, 60_000, 1_000)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MILLISECOND = datetime.timedelta(milliseconds=1)

_FORMS = (
    "must be YYYY-MM-DD HH:MM:SS[.mmm] in the server's timezone, ISO 8601 with an offset, or "
    "Unix seconds as a number with at most three decimals"
)
_DELAY_FORMS = (
    "must be seconds as a number with at most three decimals, or a string such as "
    '"90s", "30m", "2h", "3d" or "1h30m"'
)
_TOO_EARLY = "must not be before 1970, got "
_TOO_LATE = "must not be past the year 9999, got "

_FINER = ("milliseconds", "microseconds", "nanoseconds")
"""Units in which others count Unix time, each a thousandth of the one before."""

_SLIPS = (
    (_UNITS, "for a time from now on, give delay in place of runtime"),
    (_NUMBER, "Unix seconds are a number, without quotes"),
    (re.compile(rf"{_DATE}T{_TIME}(?:\.[0-9]+)?"), "it lacks an offset, such as Z or +08:00"),
    (
        re.compile(rf"{_DATE} {_TIME}(?:\.[0-9]+)?(?:Z|[+-].+)"),
        "with an offset, T joins date and time",
    ),
    (
        re.compile(rf"{_DATE}T{_TIME}.*[+-][0-9]{{4}}"),
        "an offset is written with a colon, as +08:00",
    ),
    (re.compile(rf"{_DATE}[T ]{_TIME}\.[0-9]{{4,}}.*"), "it has more than three decimals"),
)
"""Texts that come close to one of the forms, and the hint for each."""

_LONGEST_SLIP = 40
_MAX_DIGITS = len(str(MAX_MS))
_FAR_MS = 10**30


def readings(wall: datetime.datetime, zone: ZoneInfo) -> list[int]:
    """The moments at which clocks in a timezone show this time: none where it is
    skipped, two where it comes twice, in order."""
    found: list[int] = []
    for fold in (0, 1):
        try:
            moment = wall.replace(tzinfo=zone, fold=fold).astimezone(datetime.UTC)
            back = moment.astimezone(zone).replace(tzinfo=None)
        except OverflowError:
            continue
        ms = (moment - _EPOCH) // _MILLISECOND
        if back == wall and ms not in found:
            found.append(ms)
    return sorted(found)


def wall_time(ms: int, zone: ZoneInfo) -> str:
    """The time that clocks in a timezone show: ``YYYY-MM-DD HH:MM:SS``."""
    moment = datetime.datetime.fromtimestamp(ms // 1000, zone)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def parse_wall_seconds(text: str, zone: ZoneInfo) -> list[int] | None:
    """The readings of a date and time written exactly as ``YYYY-MM-DD HH:MM:SS``; None of
    any other text."""
    match = _WALL.fullmatch(text)
    if match is None or match[7] is not None:
        return None
    try:
        return readings(_datetime(match, text), zone)
    except InvalidInput:
        return None


def parse_runtime(value: object, zone: ZoneInfo) -> int:
    """A ``runtime`` field, from 1970 to 9999.

    A wall time that comes twice means the later of its two moments.

    Raises:
        InvalidInput: it is none of the three forms, does not exist, or is out of
            range.
    """
    ms = _from_text(value, zone) if isinstance(value, str) else _from_number(value)
    if ms is None:
        raise _invalid(f"{_FORMS}, got {_written(value)}")
    if ms < 0:
        raise _invalid(_TOO_EARLY + _written(value))
    if ms > MAX_MS:
        hint = "" if isinstance(value, str) else _finer_unit(ms)
        raise _invalid(_TOO_LATE + _written(value) + hint)
    return ms


def parse_delay(value: object, now_ms: int) -> int:
    """The moment that a ``delay`` field leads to, at most the end of 9999.

    Args:
        value: seconds, or a text of days, hours, minutes and seconds.
        now_ms: the moment that the delay counts from.

    Raises:
        InvalidInput: it is neither, is negative, or leads too far.
    """
    ms = _from_units(value) if isinstance(value, str) else _from_number(value)
    if ms is None:
        raise InvalidInput("delay", f"{_DELAY_FORMS}, got {_written(value)}{_delay_slip(value)}")
    if ms < 0:
        raise InvalidInput("delay", f"must not be negative, got {_written(value)}")
    if now_ms + ms > MAX_MS:
        raise InvalidInput("delay", f"must not lead past the year 9999, got {_written(value)}")
    return now_ms + ms


def _from_units(text: str) -> int | None:
    match = _UNITS.fullmatch(text)
    if match is None or not text:
        return None
    counts = zip(match.groups(), _UNITS_MS, strict=True)
    return sum(int(count or 0) * unit_ms for count, unit_ms in counts)


def _delay_slip(value: object) -> str:
    if not isinstance(value, str):
        return ""
    if _WALL.match(value) or _ISO.match(value):
        return ": for a moment, give runtime in place of delay"
    return (
        ": seconds are a number, without quotes" if _NUMBER.fullmatch(value[:_LONGEST_SLIP]) else ""
    )


def _from_number(value: object) -> int | None:
    """The milliseconds of a number of seconds; None if it is no number, has an exponent or
    too many decimals."""
    if type(value) is int:
        return value * 1000
    if not isinstance(value, Fraction) or _DECIMAL.fullmatch(value.text) is None:
        return None
    seconds, _, decimals = value.text.partition(".")
    sign = "-" if seconds.startswith("-") else ""
    if len(seconds) > _MAX_DIGITS:
        return int(f"{sign}{_FAR_MS}")  # past any bound; Python refuses thousands of digits
    return int(seconds) * 1000 + int(sign + decimals.ljust(3, "0"))


def _written(value: object) -> str:
    """A value as it was written: a number's own digits, not those of its float."""
    return shown(value) if not isinstance(value, Fraction) else value.text[:_LONGEST_SLIP]


def _finer_unit(ms: int) -> str:
    """A hint for seconds past the year 9999: the finer unit that they may be in."""
    for unit in _FINER:
        ms //= 1000
        if ms <= MAX_MS:
            seconds = f"{ms // 1000}.{ms % 1000:03d}".rstrip("0").rstrip(".")
            return f": that looks like {unit}, did you mean {seconds}?"
    return ""


def _from_text(text: str, zone: ZoneInfo) -> int:
    if (match := _WALL.fullmatch(text)) is not None:
        found = readings(_datetime(match, text), zone)
        if not found and match[1] < "1970":
            raise _invalid(_TOO_EARLY + shown(text))
        if not found and match[1] == "9999":
            raise _invalid(_TOO_LATE + shown(text))
        if not found:
            raise _invalid(f"{text} does not exist in the timezone {zone.key}: clocks skip it")
        return found[-1]
    if (match := _ISO.fullmatch(text)) is None:
        raise _invalid(f"{_FORMS}, got {shown(text)}{_runtime_slip(text)}")
    wall = _datetime(match, text)
    offset = datetime.timedelta(0)
    if match[8] != "Z":
        parts = _OFFSET.fullmatch(match[8])
        if parts is None:
            raise _invalid(f"has an offset that does not exist, got {shown(text)}")
        offset = datetime.timedelta(hours=int(parts[2]), minutes=int(parts[3]))
        offset = -offset if parts[1] == "-" else offset
    return (wall.replace(tzinfo=datetime.UTC) - _EPOCH - offset) // _MILLISECOND


def _runtime_slip(text: str) -> str:
    if 0 < len(text) <= _LONGEST_SLIP:
        for form, hint in _SLIPS:
            if form.fullmatch(text):
                return f": {hint}"
    return ""


def _datetime(match: re.Match[str], text: str) -> datetime.datetime:
    year, month, day, hour, minute, second = (int(match[at]) for at in range(1, 7))
    microsecond = int((match[7] or "").ljust(3, "0")) * 1000
    try:
        return datetime.datetime(year, month, day, hour, minute, second, microsecond)  # noqa: DTZ001 - its timezone is given by the caller
    except ValueError as error:
        raise _invalid(f"is no date and time that exists ({error}), got {shown(text)}") from error


def _invalid(problem: str) -> InvalidInput:
    return InvalidInput("runtime", problem)
