"""A log record as one line: text for people (``time LEVEL message key=value …``), or a
JSON object.

A line never holds a raw control character, whatever a value contains, so no value can forge
a line.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Literal

from taskd.clock import SystemClock, iso_utc

Style = Literal["text", "json"]

WITHHELD = "[withheld]"

ROOT = "taskd"
# Characters that end a line, or have the rest of it shown in another order.
_STEERING = "\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL = re.compile(f"[\x00-\x1f{_STEERING}]")
_NOT_PLAIN = re.compile(f"[\x00-\x20\xa0\"'=\\\\{_STEERING}]")
_PRIVATE = re.compile(r"secret|signature|^content$|^payload$|password", re.IGNORECASE)
_ELLIPSIS = "…"
_NEVER_CUT = 40
"""Characters that a value keeps, however long the other values are."""

_OWN = frozenset({"time", "level", "logger", "message", "exception"})

Scalar = str | int | float | bool | None

_clock = SystemClock()


def log_event(
    logger: logging.Logger,
    level: int,
    message: str,
    /,
    *,
    error: BaseException | str | None = None,
    **fields: Scalar,
) -> None:
    """Log one event as one wide line.

    Cheap enough for every attempt: no call stack is walked. A field that is
    None is left out, and one whose name speaks of a secret, a signature,
    content or payload has its value withheld.

    Args:
        logger: one of taskd's loggers.
        level: one of `logging`'s levels.
        message: says what happened, in the same words each time.
        error: says what went wrong; an exception adds its traceback, escaped.
        fields: the values that an operator needs to know.
    """
    if not logger.isEnabledFor(level):
        return
    exc_info: tuple[type[BaseException], BaseException, TracebackType | None] | None = None
    if isinstance(error, BaseException):
        exc_info = (type(error), error, error.__traceback__)
    elif error is not None:
        fields["error"] = error
    handlers = logging.root.handlers
    if len(handlers) == 1 and isinstance(handlers[0].formatter, LineFormatter):
        # There is no other handler: no logger of taskd's has one of its own.
        handlers[0].handle(_Event(logger.name, level, message, fields, exc_info))
        return
    record = logging.LogRecord(logger.name, level, "", 0, message, (), exc_info)
    record.fields = fields
    logger.handle(record)


class _Event(logging.LogRecord):
    """A record with only the attributes that our lines show, made in a quarter of the time."""

    def __init__(
        self,
        name: str,
        level: int,
        message: str,
        fields: Mapping[str, Scalar],
        exc_info: tuple[type[BaseException], BaseException, TracebackType | None] | None,
    ) -> None:
        # It does not call its class's, which takes longer than making the line.
        self.name = name
        self.levelno = level
        self.levelname = logging.getLevelName(level)
        self.msg = message
        self.args = ()
        self.created = _clock.now_ms() / 1000
        self.exc_info = exc_info
        self.exc_text = self.stack_info = None
        self.pathname, self.lineno = "", 0
        self.fields = fields


@functools.cache
def _private(name: str) -> bool:
    return _PRIVATE.search(name) is not None


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"


def _uncontrolled(line: str) -> str:
    """Escape the control characters of a JSON line that its encoder left, which are those
    above a space."""
    # Most lines are ASCII, which a string can tell at once.
    if line.isascii() and "\x7f" not in line:
        return line
    return _CONTROL.sub(_escape, line)


def _fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    fields: Mapping[str, object] = getattr(record, "fields", {})
    return fields


def _exception_of(record: logging.LogRecord) -> str | None:
    if not record.exc_info or record.exc_info[1] is None:
        return None
    return "".join(traceback.format_exception(record.exc_info[1])).rstrip()


class LineFormatter(logging.Formatter):
    """The base of both formats: makes the time, and keeps it per second."""

    def __init__(self) -> None:
        super().__init__()
        self._kept = (-1, "")  # replaced as a whole: two threads may format at a time

    def shortened(self, record: logging.LogRecord, most: int) -> str:
        """Return the record as a line of ``most`` bytes at most, cut if it would be longer."""
        raise NotImplementedError

    def time_of(self, record: logging.LogRecord) -> str:
        """Return the moment of the record, as ISO 8601 in UTC."""
        now, ms = divmod(int(record.created * 1000), 1000)
        second, stamp = self._kept
        if now != second:
            stamp = iso_utc(now * 1000)[:-4]
            self._kept = (now, stamp)
        return f"{stamp}{ms:03d}Z"


class TextFormatter(LineFormatter):
    """``2021-07-16T06:59:39.000Z INFO    attempt task=42 outcome=succeeded``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, without its end."""
        message = record.getMessage()
        if _CONTROL.search(message):
            message = _CONTROL.sub(_escape, message)
        line = f"{self.time_of(record)} {record.levelname:<7} {message}"
        for name, value in _fields_of(record).items():
            if value is not None:
                shown = WITHHELD if _private(name) else _text_value(value)
                line += f" {name}={shown}"
        if record.name != ROOT and not record.name.startswith("taskd."):
            line += f" logger={_text_value(record.name)}"
        if (exception := _exception_of(record)) is not None:
            line += f" exception={_text_value(exception)}"
        return line

    def shortened(self, record: logging.LogRecord, most: int) -> str:
        """See `LineFormatter.shortened`."""
        return _cut(self.format(record), most)


def _text_value(value: object) -> str:
    # Numbers first: most of an attempt's fields are numbers, which need no escaping.
    kind = type(value)
    if kind is int or kind is float:
        return repr(value)
    if kind is bool:
        return "true" if value else "false"
    text = value if isinstance(value, str) else str(value)
    if text and not _NOT_PLAIN.search(text):
        return text
    return _CONTROL.sub(_escape, json.dumps(text, ensure_ascii=False))


class JsonFormatter(LineFormatter):
    """One JSON object per line: time, level, logger, message, then the fields.

    Args:
        ascii_only: escape all characters that are not ASCII, for a stream that is not UTF-8.
    """

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__()
        # An encoder of its own: `json.dumps` with options makes one per call.
        self._encode = json.JSONEncoder(ensure_ascii=ascii_only, default=str, check_circular=False)

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, without its end."""
        # Put together here, which takes half as long as to have a dict of it encoded.
        encode = self._encode.encode
        line = (
            f'{{"time": "{self.time_of(record)}"{_json_source(record.levelname, record.name)}'
            f"{encode(record.getMessage())}"
        )
        for name, value in _fields_of(record).items():
            if value is not None:
                key, withheld = _json_key(name)
                kind = type(value)
                if withheld:
                    line += key
                elif kind is int:
                    line += f"{key}{value}"
                elif isinstance(value, float) and math.isfinite(value):
                    line += f"{key}{value!r}"
                else:
                    line += f"{key}{encode(_json_value(value))}"
        if (exception := _exception_of(record)) is not None:
            line += f', "exception": {encode(exception)}'
        return _uncontrolled(line + "}")

    def shortened(self, record: logging.LogRecord, most: int) -> str:
        """See `LineFormatter.shortened`."""
        event = self._event_of(record)
        line = self._line_of(event)
        longest = most
        while len(line.encode()) > most and longest:
            longest = longest * 3 // 4
            line = self._line_of({key: _cut_value(value, longest) for key, value in event.items()})
        if longest:
            return line
        # There are so many fields that none can be shown.
        own = {key: _cut_value(event[key], 0) for key in ("time", "level", "logger", "message")}
        return self._line_of(own)

    def _line_of(self, event: Mapping[str, object]) -> str:
        return _uncontrolled(self._encode.encode(event))

    def _event_of(self, record: logging.LogRecord) -> dict[str, object]:
        event: dict[str, object] = {
            "time": self.time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _fields_of(record).items():
            if value is not None:
                event[_json_name(name)] = WITHHELD if _private(name) else _json_value(value)
        if (exception := _exception_of(record)) is not None:
            event["exception"] = exception
        return event


@functools.cache
def _json_source(level: str, logger: str) -> str:
    """The line's part from behind the time to the message."""
    return f', "level": {json.dumps(level.lower())}, "logger": {json.dumps(logger)}, "message": '


@functools.cache
def _json_key(name: str) -> tuple[str, bool]:
    """A field's part before its value, and whether that is withheld; it follows then."""
    key = f", {json.dumps(_json_name(name))}: "
    return (key + json.dumps(WITHHELD), True) if _private(name) else (key, False)


def _json_name(name: str) -> str:
    return f"{name}_" if name in _OWN else name


def _json_value(value: object) -> object:
    """The value, or its text where JSON has no such number."""
    return str(value) if type(value) is float and not math.isfinite(value) else value


def _cut(text: str, most: int) -> str:
    """Return a text of ``most`` bytes at most, with a mark where it was cut."""
    data = text.encode()
    if len(data) <= most:
        return text
    return data[: max(most - len(_ELLIPSIS.encode()), 0)].decode(errors="ignore") + _ELLIPSIS


def _cut_value(value: object, most: int) -> object:
    """Return a value, without its middle if it is long: a traceback says at its end what went
    wrong, and at its start where."""
    if not isinstance(value, str) or len(value) <= max(most, _NEVER_CUT):
        return value
    half = max(most, _NEVER_CUT) // 2
    return f"{value[:half]} {_ELLIPSIS} {value[-half:]}"


def unformattable_record(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    """Return the record that is logged in place of one that can't be made a line."""
    told = "a log record could not be formatted"
    substitute = logging.LogRecord(record.name, logging.ERROR, "", 0, told, (), None)
    substitute.fields = {
        "error": type(error).__name__,
        "logged_in": f"{record.pathname}:{record.lineno}",
    }
    return substitute


def drop_record(lines: int) -> logging.LogRecord:
    """Return the record that says how many lines were lost."""
    told = "log lines were dropped: standard error did not take them"
    record = logging.LogRecord(ROOT, logging.WARNING, "", 0, told, (), None)
    record.fields = {"lines": lines}
    return record
