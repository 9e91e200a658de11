"""The signals that end the demo, none of them in the midst of starting something.

Python runs a handler between any two steps of the main thread. An error raised by
one while a thread or a process is being started would leave it behind, half made.
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
        """Raise `KeyboardInterrupt` or `CommandError` in this block, the main
        thread's, when a signal comes."""
        before = [(number, signal.signal(number, self._take)) for number in _CAUGHT]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal wait for the end of this block, which is to be short."""
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
