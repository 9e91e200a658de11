"""Handlers that write lines to a stream: by a thread that gathers them, or at once."""

from __future__ import annotations

import logging
import threading
from collections import deque
from select import PIPE_BUF
from typing import TextIO

from taskd.runtime import signals
from taskd.runtime.logs.lines import (
    JsonFormatter,
    LineFormatter,
    Style,
    TextFormatter,
    drop_record,
    unformattable_record,
)
from taskd.runtime.logs.output import Output

GATHER_S = 0.05
"""How long a line of level INFO or below may wait for others."""

MAX_WAITING = 50_000
"""Lines kept for a standard error that does not take them; more are dropped, and their number
is logged later."""

MAX_WAITING_CHARACTERS = 16 * 1024 * 1024
"""The same bound for their length."""

_CLOSE_S = 0.5


class LogHandler(logging.Handler):
    """The base of both handlers.

    Args:
        stream: takes the lines.
        longest: bytes that a line may have, its end not counted; None for any length.

    Attributes:
        dropped: lines that the stream did not take in time, so far.
        told: how many of them a line has told of.
    """

    def __init__(self, stream: TextIO, *, longest: int | None) -> None:
        super().__init__()
        self.dropped = 0
        self.told = 0
        self._output = Output(stream)
        self._longest = longest
        self._lines: LineFormatter = TextFormatter()

    def speak(self, style: Style) -> None:
        """Choose how lines look, from here on."""
        if style == "json":
            self._lines = JsonFormatter(ascii_only=not self._output.unicode)
        else:
            self._lines = TextFormatter()
        self.setFormatter(self._lines)

    def _line_of(self, record: logging.LogRecord) -> str:
        try:
            line = self._lines.format(record)
        except Exception as error:  # noqa: BLE001 - a bad record must not end its caller
            # Not `handleError`: it writes several lines, and waits for the stream.
            record = unformattable_record(record, error)
            line = self._lines.format(record)
        longest = self._longest
        if longest is not None and len(line) > longest // 4 and len(line.encode()) > longest:
            return self._lines.shortened(record, longest)
        return line

    def _drop_line(self) -> str:
        return self._lines.format(drop_record(self.dropped - self.told))


class LineHandler(LogHandler):
    """Gathers lines and has a thread of its own write them to a stream: thousands of lines a
    second cost the event loop no system call and cannot block it. No line is lost at exit;
    SIGKILL loses the lines of the last `GATHER_S`."""

    def __init__(self, stream: TextIO, *, longest: int | None = None) -> None:
        super().__init__(stream, longest=longest)
        self._waiting: deque[str] = deque()
        self._length = 0
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._closed = False
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="taskd-logs", daemon=True)
        signals.start_deaf(self._thread)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line; never waits for the stream."""
        if len(self._waiting) >= MAX_WAITING or self._length >= MAX_WAITING_CHARACTERS:
            self.dropped += 1
            return
        line = self._line_of(record)
        self._waiting.append(line)
        self._length += len(line)
        if record.levelno >= logging.WARNING:
            self._hurry.set()
        if not self._wake.is_set():
            self._wake.set()

    def flush(self) -> None:
        """Write the gathered lines; gives up on a stream that takes none."""
        # A closed handler has no lines left, or has given its stream up: the flush at the
        # interpreter's end must not wait once more.
        if self._closed or not self._writing.acquire(timeout=_CLOSE_S):
            return
        try:
            self._write()
        finally:
            self._writing.release()

    def close(self) -> None:
        """Write the gathered lines and end the thread, within `_CLOSE_S`."""
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
            # Cleared before writing: a line that comes later sets them again.
            self._hurry.clear()
            self._wake.clear()
            with self._writing:
                self._write()

    def _write(self) -> None:
        self.acquire()  # a thread that logs holds this lock, too
        try:
            lines, self._waiting, self._length = list(self._waiting), deque(), 0
        finally:
            self.release()
        dropped = self.dropped
        if dropped > self.told:
            lines.append(self._drop_line())
        if not lines:
            return
        taken = self._output.write(lines)
        if dropped > self.told:
            if taken == len(lines):
                self.told = dropped
                return
            taken = min(taken, len(lines) - 1)
            lines.pop()
        self.dropped += len(lines) - taken


class DirectHandler(LogHandler):
    """Writes each line at once, without a thread: for a process that forks and logs little.
    Never waits for the stream; a line that it does not take is dropped, and counted in a line
    before the next one."""

    def __init__(self, stream: TextIO) -> None:
        # A pipe that takes any bytes takes so many as a whole.
        super().__init__(stream, longest=PIPE_BUF - 1)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if the stream takes one now."""
        if self.dropped > self.told and self._took(self._drop_line()):
            self.told = self.dropped
        if not self._took(self._line_of(record)):
            self.dropped += 1

    def _took(self, line: str) -> bool:
        return self._output.takes_more() and bool(self._output.write([line]))
