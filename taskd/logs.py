"""Logs: one line per event, on standard error.

Text for people (``time LEVEL message key=value …``) or one JSON object per
line. A line never holds a raw control character, whatever a value contains, so
nobody can forge a line. Lines are handed to a thread that writes what has
gathered in one go: thousands of lines a second cost the event loop no system
call and cannot block it, and nothing is lost at exit. Only SIGKILL loses what
came in the last `GATHER_S`.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import select
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from select import PIPE_BUF
from types import TracebackType
from typing import Literal, TextIO

from taskd.clock import iso_utc

GATHER_S = 0.05
"""How long a line of level INFO or below may wait for others."""

MAX_WAITING = 50_000
"""Lines kept for a standard error that does not take them; more are dropped,
and the drop is told."""

WITHHELD = "[withheld]"

_CLOSE_S = 1.0
_ROOT = "taskd"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NOT_PLAIN = re.compile("[\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff\"'=\\\\]")
_PRIVATE = re.compile(r"secret|signature|^content$|^payload$|password", re.IGNORECASE)
_ASKED_OF_THE_SYSTEM = ("logThreads", "logProcesses", "logMultiprocessing")
"""Switches of `logging` for what no line says, and what takes a third of a record."""

_OWN = frozenset({"time", "level", "logger", "message", "exception"})

Scalar = str | int | float | bool | None


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
        message: what happened, the same words each time.
        error: what went wrong: an exception adds its traceback, escaped.
        fields: what an operator needs to know of it.
    """
    if not logger.isEnabledFor(level):
        return
    exc_info: tuple[type[BaseException], BaseException, TracebackType | None] | None = None
    if isinstance(error, BaseException):
        exc_info = (type(error), error, error.__traceback__)
    elif error is not None:
        fields["error"] = error
    record = logging.LogRecord(logger.name, level, "", 0, message, (), exc_info)
    record.fields = fields
    logger.handle(record)


@functools.cache
def _private(name: str) -> bool:
    return _PRIVATE.search(name) is not None


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"


def _uncontrolled(line: str) -> str:
    """A line of JSON, whose encoder has escaped what is below a space, without any
    other control character."""
    # Most lines are ASCII, which a string knows of itself.
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


class _LineFormatter(logging.Formatter):
    """What both formats share: the time, kept per second."""

    def __init__(self) -> None:
        super().__init__()
        self._kept = (-1, "")  # replaced as a whole: two threads may format at a time

    def time_of(self, record: logging.LogRecord) -> str:
        now, ms = divmod(int(record.created * 1000), 1000)
        second, stamp = self._kept
        if now != second:
            stamp = iso_utc(now * 1000)[:-4]
            self._kept = (now, stamp)
        return f"{stamp}{ms:03d}Z"


class TextFormatter(_LineFormatter):
    """``2021-07-16T06:59:39.000Z INFO    attempt task=42 outcome=succeeded``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, without its end."""
        message = record.getMessage()
        if _CONTROL.search(message):
            message = _CONTROL.sub(_escape, message)
        parts = [f"{self.time_of(record)} {record.levelname:<7} {message}"]
        for name, value in _fields_of(record).items():
            if value is not None:
                parts.append(f"{name}={WITHHELD if _private(name) else _text_value(value)}")
        if record.name != _ROOT and not record.name.startswith("taskd."):
            parts.append(f"logger={_text_value(record.name)}")
        if (exception := _exception_of(record)) is not None:
            parts.append(f"exception={_text_value(exception)}")
        return " ".join(parts)


def _text_value(value: object) -> str:
    # Numbers first: most of an attempt's fields are some, and need no look inside.
    kind = type(value)
    if kind is int or kind is float:
        return repr(value)
    if kind is bool:
        return "true" if value else "false"
    text = str(value)
    if text and not _NOT_PLAIN.search(text):
        return text
    return _CONTROL.sub(_escape, json.dumps(text, ensure_ascii=False))


class JsonFormatter(_LineFormatter):
    """One JSON object per line: time, level, logger, message, then the fields."""

    def __init__(self) -> None:
        super().__init__()
        # An encoder of its own: `json.dumps` with options makes one per call.
        self._encode = json.JSONEncoder(ensure_ascii=False, default=str, check_circular=False)

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, without its end."""
        event: dict[str, object] = {
            "time": self.time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _fields_of(record).items():
            if value is not None:
                key = f"{name}_" if name in _OWN else name
                event[key] = WITHHELD if _private(name) else value
        if (exception := _exception_of(record)) is not None:
            event["exception"] = exception
        return _uncontrolled(self._encode.encode(event))


class LineHandler(logging.Handler):
    """Gathers lines and has a thread of its own write them to a stream.

    Attributes:
        dropped: lines that the stream did not take in time, so far.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.dropped = 0
        self._told = 0
        self._stream = stream
        self._waiting: deque[str] = deque()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._closed = False
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="taskd-logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line; never waits for the stream."""
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
            return
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a bad record must not end its caller
            # Not `handleError`: it writes several lines, and waits for the stream.
            line = self.format(_unformattable_record(record, error))
        self._waiting.append(line)
        if record.levelno >= logging.WARNING:
            self._hurry.set()
        if not self._wake.is_set():
            self._wake.set()

    def flush(self) -> None:
        """Write what has gathered; gives up on a stream that takes nothing."""
        # Once closed there is nothing left, or a stream that was given up: the
        # interpreter's end flushes once more, and is not to wait once more.
        if self._closed or not self._writing.acquire(timeout=_CLOSE_S):
            return
        try:
            self._write()
        finally:
            self._writing.release()

    def close(self) -> None:
        """Write what has gathered and end the thread, within `_CLOSE_S`."""
        if self._closed:
            return
        self._closed = True
        self._hurry.set()
        self._wake.set()
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            self._write()
        super().close()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._hurry.wait(GATHER_S)
            # Cleared before writing: a line that comes from here on sets them anew.
            self._hurry.clear()
            self._wake.clear()
            with self._writing:
                self._write()

    def _write(self) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if (dropped := self.dropped) > self._told:
            lines.append(self.format(_drop_record(dropped - self._told)))
            self._told = dropped
        if not lines:
            return
        try:
            for text in _portions(lines):
                self._stream.write(text)
                self._stream.flush()
        except (OSError, ValueError):
            # Standard error is gone: there is no place left to tell it.
            self.dropped += len(lines)


def _portions(lines: list[str]) -> Iterator[str]:
    """Lines in portions that a pipe takes as a whole, so that those of processes that
    write to the same one do not end up within each other."""
    portion: list[str] = []
    size = 0
    for line in lines:
        length = len(line) + 1 if line.isascii() else len(line.encode()) + 1
        if portion and size + length > PIPE_BUF:
            yield "".join(portion)
            portion, size = [], 0
        portion += (line, "\n")
        size += length
    yield "".join(portion)


class DirectHandler(logging.Handler):
    """Writes each line at once, with no thread: for a process that forks, and has
    little to say. Never waits for the stream; a line that it does not take is dropped,
    and told of with the next one."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if the stream takes one now."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a bad record must not end its caller
            line = self.format(_unformattable_record(record, error))
        try:
            if not self._takes_more():
                self._dropped += 1
                return
            if self._dropped:
                line = f"{self.format(_drop_record(self._dropped))}\n{line}"
                self._dropped = 0
            # So much a pipe that takes anything takes as a whole.
            data = line.encode()[: PIPE_BUF - 1].decode(errors="ignore")
            self._stream.write(data + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            # Standard error is gone: there is no place left to tell it.
            self._dropped += 1

    def _takes_more(self) -> bool:
        look = select.poll()
        look.register(self._stream, select.POLLOUT)
        return any(event & select.POLLOUT for _, event in look.poll(0))


def _unformattable_record(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    told = "a log record could not be formatted"
    substitute = logging.LogRecord(record.name, logging.ERROR, "", 0, told, (), None)
    substitute.fields = {
        "error": type(error).__name__,
        "logged_in": f"{record.pathname}:{record.lineno}",
    }
    return substitute


def _drop_record(lines: int) -> logging.LogRecord:
    told = "log lines were dropped: standard error did not take them"
    record = logging.LogRecord(_ROOT, logging.WARNING, "", 0, told, (), None)
    record.fields = {"lines": lines}
    return record


@contextmanager
def logging_to(
    stream: TextIO, *, level: str = "info", style: Literal["text", "json"] = "text"
) -> Iterator[LineHandler]:
    """Send all logs, Python warnings and uncaught exceptions to a stream.

    Args:
        stream: where lines go, usually standard error.
        level: the least level of taskd's own loggers; others log from WARNING on.
        style: how lines look.
    """
    handler = LineHandler(stream)
    with logging_by(handler, level=level, style=style):
        yield handler


@contextmanager
def logging_by(
    handler: logging.Handler, *, level: str = "info", style: Literal["text", "json"] = "text"
) -> Iterator[None]:
    """As `logging_to`, with a handler that is given. It is closed at the end."""
    handler.setFormatter(_formatter(style))
    root, own = logging.getLogger(), logging.getLogger(_ROOT)
    old_level, old_hook, old_thread_hook = own.level, sys.excepthook, threading.excepthook
    asked = {name: getattr(logging, name) for name in _ASKED_OF_THE_SYSTEM}
    vars(logging).update(dict.fromkeys(asked, False))
    root.addHandler(handler)
    own.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    try:
        yield
    finally:
        vars(logging).update(asked)
        sys.excepthook, threading.excepthook = old_hook, old_thread_hook
        logging.captureWarnings(capture=False)
        own.setLevel(old_level)
        root.removeHandler(handler)
        handler.close()


def adjust(*, level: str, style: Literal["text", "json"]) -> None:
    """Change what is logged from here on, and how it looks."""
    logging.getLogger(_ROOT).setLevel(level.upper())
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LineHandler | DirectHandler):
            handler.setFormatter(_formatter(style))


def _formatter(style: Literal["text", "json"]) -> logging.Formatter:
    return JsonFormatter() if style == "json" else TextFormatter()


def _log_uncaught(
    kind: type[BaseException], error: BaseException, _traceback: TracebackType | None
) -> None:
    log_event(
        logging.getLogger(_ROOT),
        logging.CRITICAL,
        "uncaught exception",
        error=error,
        kind=kind.__name__,
    )


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        log_event(
            logging.getLogger(_ROOT),
            logging.CRITICAL,
            "uncaught exception in a thread",
            error=args.exc_value,
            thread=args.thread.name if args.thread else None,
        )
