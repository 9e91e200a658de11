"""Sends a program's logs, warnings and uncaught exceptions to a handler while it runs."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from taskd.runtime.logs.handlers import LineHandler, LogHandler
from taskd.runtime.logs.lines import ROOT, Style, log_event

_ASKED_OF_THE_SYSTEM = ("logThreads", "logProcesses", "logMultiprocessing")
"""Switches of `logging` for values that no line shows and that take a third of a record's
time."""


@contextmanager
def logging_to(
    stream: TextIO, *, level: str = "info", style: Style = "text", longest: int | None = None
) -> Iterator[LineHandler]:
    """Send all logs, Python warnings and uncaught exceptions to a stream.

    Args:
        stream: takes the lines; usually standard error.
        level: the least level of taskd's own loggers; others log from WARNING on.
        style: how lines look.
        longest: bytes that a line may have; None for any length.
    """
    handler = LineHandler(stream, longest=longest)
    with logging_by(handler, level=level, style=style):
        yield handler


@contextmanager
def logging_by(
    handler: LogHandler, *, level: str = "info", style: Style = "text"
) -> Iterator[None]:
    """Do as `logging_to`, with a given handler, which replaces the present ones and is closed
    at the end."""
    handler.speak(style)
    root, own = logging.getLogger(), logging.getLogger(ROOT)
    former = handlers()
    old_level = own.level
    old_hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    asked = {name: getattr(logging, name) for name in _ASKED_OF_THE_SYSTEM}
    vars(logging).update(dict.fromkeys(asked, False))
    root.handlers = [one for one in root.handlers if one not in former]
    root.addHandler(handler)
    own.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    try:
        yield
    finally:
        vars(logging).update(asked)
        sys.excepthook, threading.excepthook, sys.unraisablehook = old_hooks
        logging.captureWarnings(capture=bool(former))
        own.setLevel(old_level)
        root.removeHandler(handler)
        handler.close()
        for one in former:
            root.addHandler(one)


def handlers() -> list[LogHandler]:
    """Return the handlers that write lines now."""
    return [one for one in logging.getLogger().handlers if isinstance(one, LogHandler)]


def adjust(*, level: str, style: Style) -> None:
    """Change the level and the style of lines, from here on."""
    logging.getLogger(ROOT).setLevel(level.upper())
    for handler in handlers():
        handler.speak(style)


def degraded() -> str | None:
    """Return why lines are not written now, or None if they are."""
    lost = sum(handler.dropped - handler.told for handler in handlers())
    return f"the log: standard error does not take it, {lost} lines are lost" if lost else None


def _log_uncaught(
    kind: type[BaseException], error: BaseException, _traceback: TracebackType | None
) -> None:
    log_event(
        logging.getLogger(ROOT),
        logging.CRITICAL,
        "uncaught exception",
        error=error,
        kind=kind.__name__,
    )


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        log_event(
            logging.getLogger(ROOT),
            logging.CRITICAL,
            "uncaught exception in a thread",
            error=args.exc_value,
            thread=args.thread.name if args.thread else None,
        )


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    log_event(
        logging.getLogger(ROOT),
        logging.ERROR,
        "an exception that nobody could be told of",
        error=args.exc_value,
        where=args.err_msg or repr(args.object)[:200],
    )
