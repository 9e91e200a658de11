"""The progress bar of a bulk submission."""

from __future__ import annotations

import shutil
from collections import deque
from typing import TextIO

_WIDTH = 24
_EVERY_S = 0.2
_RATE_OVER = 25
"""Over how many drawings the rate is measured: five seconds."""

_MINUTE, _HOUR = 60, 3600


class Bar:
    """A line on a terminal that is drawn again and again.

    Args:
        stream: where it is drawn.
        live: whether that is a terminal; if not, nothing is drawn.
        size: bytes of the file, None if they are not known.
    """

    def __init__(self, stream: TextIO, *, live: bool, size: int | None) -> None:
        self._stream = stream
        self._live = live
        self._size = size
        self._drawn_at = float("-inf")
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=_RATE_OVER)
        self._shown = False

    def draw(self, now: float, *, done: int, tasks: int, refused: int) -> None:
        """Draw the progress, once in `_EVERY_S` at most.

        Args:
            now: seconds, monotonic.
            done: bytes of the file whose lines are answered.
            tasks: tasks that the daemon has.
            refused: lines that were refused.
        """
        if not self._live or now - self._drawn_at < _EVERY_S:
            return
        self._drawn_at = now
        self._marks.append((now, done, tasks))
        columns = shutil.get_terminal_size().columns
        line = bar_line(self._marks, self._size, refused)[: columns - 1]
        self._stream.write(f"\r\x1b[K{line}")
        self._stream.flush()
        self._shown = True

    def clear(self) -> None:
        """Remove the line, so that text can be printed. The next `draw` draws it below."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False
            self._drawn_at = float("-inf")


def bar_line(marks: deque[tuple[float, int, int]], size: int | None, refused: int) -> str:
    """The bar's text.

    Args:
        marks: moments in seconds, each with the bytes and tasks done by then.
        size: bytes of the file, None if they are not known.
        refused: lines that were refused.
    """
    (began, done_then, tasks_then), (now, done, tasks) = marks[0], marks[-1]
    seconds = now - began
    rate = (tasks - tasks_then) / seconds if seconds else 0.0
    parts = [f"{tasks:,} tasks", f"{rate:,.0f}/s", f"{refused:,} refused"]
    if not size:
        return "  ".join(parts)
    share = min(done / size, 1.0)
    filled = int(share * _WIDTH)
    parts.insert(0, f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {int(share * 100):3} %")
    speed = (done - done_then) / seconds if seconds else 0.0
    if speed and done:
        left = max(size - done, 0)
        parts.append(f"about {round(left * tasks / done):,} left, {_duration(left / speed)}")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole >= _HOUR:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    if whole >= _MINUTE:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole} s"
