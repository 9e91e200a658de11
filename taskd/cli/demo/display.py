"""Shows the demo's stories: as a live display on a terminal, otherwise as lines."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from typing import TextIO

from taskd.cli.boundary import plain

_SPINNER = "|/-\\"
_KEY_WIDTH = 10


def is_live(stream: TextIO) -> bool:
    """Whether the stream is a terminal whose lines can be redrawn."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Display:
    """Shows the news of the stories, from any thread.

    As lines: all news is printed as it comes. Live: there is one line per story, redrawn
    with its latest news. Only the table printed at the end (`results`) shows how each story
    has ended.

    Args:
        stream: where to print.
        keys: the stories' keys.
        live: whether to redraw lines.
        noun: what the stories are called when counted.
    """

    def __init__(
        self, stream: TextIO, keys: Sequence[str], *, live: bool, noun: str = "tasks"
    ) -> None:
        self._stream = stream
        self._live = live
        self._noun = noun
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._latest = dict.fromkeys(keys, "")
        self._marks: dict[str, str] = {}
        self._drawn = 0
        self._muted = False

    def say(self, text: str) -> None:
        """Print a line that belongs to no story."""
        with self._lock:
            self._print(plain(text))

    def tell(self, key: str, text: str, *, lasting: bool = False) -> None:
        """Show news of a story. With ``lasting`` it stays on a terminal."""
        text = plain(text)
        with self._lock:
            if self._muted:
                return
            self._latest[key] = text
            if lasting or not self._live:
                at = time.monotonic() - self._began
                self._print(f"{at:6.2f} s  {key:<{_KEY_WIDTH}} {text}")
            if self._live:
                self._draw()

    def end(self, key: str, text: str, *, kept: bool) -> None:
        """Note the end of a story, and whether its promise was kept."""
        self._marks[key] = "ok" if kept else "!!"
        if self._live:
            self.tell(key, text)

    def results(self, rows: Sequence[tuple[str, bool, str]], *, noun: str) -> None:
        """Print the table of results in place of the live lines: of each story its promise,
        whether that was kept, and what was seen."""
        told = [(noun, "kept", "seen")]
        told += [(promise, "yes" if kept else "NO", plain(seen)) for promise, kept, seen in rows]
        with self._lock:
            self._print("\n".join(["", *table(told)]))

    def mute(self) -> None:
        """Show no further news, since the stories are being stopped."""
        with self._lock:
            self._muted = True

    def tick(self) -> None:
        """Redraw a live display, so that its clock goes on."""
        if self._live:
            with self._lock:
                self._draw()

    def _print(self, line: str) -> None:
        if self._live:  # in place of the drawn lines; the next `_draw` puts them below
            up = f"\x1b[{self._drawn}A" if self._drawn else ""
            self._stream.write(f"{up}\x1b[J")
            self._drawn = 0
        self._stream.write(line + "\n")
        self._stream.flush()

    def _draw(self) -> None:
        width = shutil.get_terminal_size().columns
        at = time.monotonic() - self._began
        spinner = _SPINNER[int(at * 8) % len(_SPINNER)]
        lines = [f"{at:5.1f} s   {len(self._marks)} of {len(self._latest)} {self._noun} have ended"]
        for key, text in self._latest.items():
            lines.append(f"{self._marks.get(key, spinner + ' ')} {key:<{_KEY_WIDTH}} {text}")
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._stream.write(up + "".join(f"\x1b[2K{line[: width - 1]}\n" for line in lines))
        self._stream.flush()
        self._drawn = len(lines)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with their columns aligned; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
