"""Notices that this process did not run for a while: it was stopped, or its machine was.

A deadline that passed meanwhile does not show that the other side was silent: this process
had no turn to read what came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

LONG_S = 2.0
"""A loop that had no turn for so long counts as stopped for a while."""


class _Pauses(trio.abc.Instrument):
    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._due = math.inf

    def before_io_wait(self, timeout: float) -> None:
        """See `trio.abc.Instrument`."""
        now = trio.current_time()
        late = now - self._due
        self._due = now + timeout
        if late > LONG_S:
            self._then()

    def after_io_wait(self, timeout: float) -> None:
        """See `trio.abc.Instrument`. Trio checks deadlines after this."""
        del timeout
        now = trio.current_time()
        late = now - self._due
        self._due = now
        if late > LONG_S:
            self._then()


@contextmanager
def noticed(then: Callable[[], None]) -> Iterator[None]:
    """Have a function called when this loop has had no turn for `LONG_S`, before Trio checks
    any deadline."""
    pauses = _Pauses(then)
    trio.lowlevel.add_instrument(pauses)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(pauses)
