"""Points in time as clients write them. Pure functions; all results are
milliseconds since the Unix epoch."""

from __future__ import annotations

import datetime
import re
from zoneinfo import ZoneInfo

from taskd.api.envelope import shown
from taskd.api.jsontext import Fraction
from taskd.errors import InvalidInput

MAX_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, UTC."""

_DATE = r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
_TIME = r"([0-9]{2}):([0-9]{2}):([0-9]{2})"
_WALL = re.compile(rf"{_DATE} {_TIME}(?:\.([0-9]{{3}}))?")
_ISO = re.compile(rf"{_DATE}T{_TIME}(?:\.([0-9]{{1,3}}))?(Z|[+-][0-9]{{2}}:[0-9]{{2}})")
_OFFSET = re.compile(r"([+-])([01][0-9]|2[0-3]):([0-5][0-9])")
_DECIMAL = re.compile(r"-?[0-9]+\.([0-9]{1,3})")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MILLISECOND = datetime.timedelta(milliseconds=1)

_FORMS = (
    "must be YYYY-MM-DD HH:MM:SS[.mmm] in the server's timezone, ISO 8601 with an offset, or "
    "Unix seconds as a number with at most three decimals"
)
_TOO_EARLY = "must not be before 1970, got "
_TOO_LATE = "must not be past the year 9999, got "


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
    """What clocks in a timezone show: ``YYYY-MM-DD HH:MM:SS``."""
    moment = datetime.datetime.fromtimestamp(ms // 1000, zone)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def parse_wall_seconds(text: str, zone: ZoneInfo) -> list[int] | None:
    """The readings of exactly ``YYYY-MM-DD HH:MM:SS``; None if it is not that."""
    match = _WALL.fullmatch(text)
    if match is None or match[7] is not None:
        return None
    try:
        return readings(_datetime(match, text), zone)
    except InvalidInput:
        return None


def parse_runtime(value: object, zone: ZoneInfo) -> int:
    """A ``runtime`` field, from 1970 to 9999.

    A wall time that comes twice is the later of the two.

    Raises:
        InvalidInput: it is none of the three forms, does not exist, or is out of
            range.
    """
    if type(value) is int:
        ms = value * 1000
    elif isinstance(value, Fraction):
        ms = _from_fraction(value)
    elif isinstance(value, str):
        ms = _from_text(value, zone)
    else:
        raise _invalid(f"{_FORMS}, got {shown(value)}")
    if ms < 0:
        raise _invalid(_TOO_EARLY + shown(value))
    if ms > MAX_MS:
        raise _invalid(_TOO_LATE + shown(value))
    return ms


def _from_fraction(value: Fraction) -> int:
    match = _DECIMAL.fullmatch(value.text)
    if match is None:
        raise _invalid(f"{_FORMS}, got {value.text[:40]}")
    seconds, _, decimals = value.text.partition(".")
    if len(seconds) > len(str(MAX_MS)):
        raise _invalid("must be from 1970 to the year 9999")
    sign = "-" if seconds.startswith("-") else ""
    return int(seconds) * 1000 + int(sign + decimals.ljust(3, "0"))


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
        raise _invalid(f"{_FORMS}, got {shown(text)}")
    wall = _datetime(match, text)
    offset = datetime.timedelta(0)
    if match[8] != "Z":
        parts = _OFFSET.fullmatch(match[8])
        if parts is None:
            raise _invalid(f"has an offset that does not exist, got {shown(text)}")
        offset = datetime.timedelta(hours=int(parts[2]), minutes=int(parts[3]))
        offset = -offset if parts[1] == "-" else offset
    return (wall.replace(tzinfo=datetime.UTC) - _EPOCH - offset) // _MILLISECOND


def _datetime(match: re.Match[str], text: str) -> datetime.datetime:
    year, month, day, hour, minute, second = (int(match[at]) for at in range(1, 7))
    microsecond = int((match[7] or "").ljust(3, "0")) * 1000
    try:
        return datetime.datetime(year, month, day, hour, minute, second, microsecond)  # noqa: DTZ001 - its timezone is given by the caller
    except ValueError as error:
        raise _invalid(f"is no date and time that exists ({error}), got {shown(text)}") from error


def _invalid(problem: str) -> InvalidInput:
    return InvalidInput("runtime", problem)
