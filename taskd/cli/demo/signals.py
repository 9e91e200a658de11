"""Handles the signals that end the demo, but not while it starts a thread or process.

Python may run a signal handler between any two steps of the main thread. If it raised
while a thread or process is being started, that would be left behind, half made.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from taskd.cli.boundary import CommandError

_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Turns the signals that end a program into errors, which unwind it."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: int | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Raise `KeyboardInterrupt` or `CommandError` in this block when a signal comes.
        Only in the main thread."""
        before = [(number, signal.signal(number, self._take)) for number in _CAUGHT]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Delay signals until the end of this block, which has to be short."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            number, self._waiting = self._waiting, None
            if number is not None:
                self._end(number)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self._held:
            self._waiting = number
        else:
            self._end(number)

    def _end(self, number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise CommandError(f"ended by {signal.Signals(number).name}")
