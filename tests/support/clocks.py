"""A wall clock that runs with Trio's (virtual or real) and can be stepped."""

from __future__ import annotations

import trio

START_MS = 1_700_000_000_000


class SteppableClock:
    """Wall time = Trio's time + an offset that a test may change."""

    def __init__(self, start_ms: int = START_MS) -> None:
        self._start_ms = start_ms
        self._zero = trio.current_time()
        self._stepped_ms = 0

    def now_ms(self) -> int:
        elapsed = (trio.current_time() - self._zero) * 1000
        # A hair is added, for the virtual clock's sums of binary fractions.
        return self._start_ms + self._stepped_ms + int(elapsed + 1e-6)

    def now_ns(self) -> int:
        elapsed_s = trio.current_time() - self._zero
        return (self._start_ms + self._stepped_ms) * 1_000_000 + round(elapsed_s * 1e9)

    def step(self, ms: int) -> None:
        self._stepped_ms += ms
