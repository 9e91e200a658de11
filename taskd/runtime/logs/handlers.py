"""Where lines go: through a thread that gathers them, or at once."""

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
"""Lines kept for a standard error that does not take them; more are dropped,
and the drop is told."""

MAX_WAITING_CHARACTERS = 16 * 1024 * 1024
"""The same, of their length."""

_CLOSE_S = 0.5


class LogHandler(logging.Handler):
    """What both handlers share.

    Args:
        stream: where lines go.
        longest: bytes that a line may have, its end not counted; None for any length.

    Attributes:
        dropped: lines that the stream did not take in time, so far.
        told: as many of them as it was told of.
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
    """Gathers lines and has a thread of its own write them to a stream: thousands of
    lines a second cost the event loop no system call and cannot block it, and nothing is
    lost at exit. Only SIGKILL loses what came in the last `GATHER_S`."""

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
        self.acquire()  # whoever logs holds this, too
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
    """Writes each line at once, with no thread: for a process that forks, and has
    little to say. Never waits for the stream; a line that it does not take is dropped,
    and told of with the next one."""

    def __init__(self, stream: TextIO) -> None:
        # So much a pipe that takes anything takes as a whole.
        super().__init__(stream, longest=PIPE_BUF - 1)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if the stream takes one now."""
        if self.dropped > self.told and self._took(self._drop_line()):
            self.told = self.dropped
        if not self._took(self._line_of(record)):
            self.dropped += 1

    def _took(self, line: str) -> bool:
        return self._output.takes_more() and bool(self._output.write([line]))
