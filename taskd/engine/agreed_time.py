"""The time that the wall clock and the monotonic clock agree on, for deletions.

A wall clock may be wrong for a while and then be set right. Deliveries are only late or
early meanwhile, but deletions can't be undone. So nothing is deleted by the wall clock
alone: it has to have run in step with the monotonic clock for a while, or the Store has
to have written down a time shortly before.

    start ──► wall clock a little past what the Store last wrote? ── yes ──► believed
                       │ no                                                    ▲   │
                       ▼                                                       │   │ it steps
                  not believed: time goes on from what was believed last ──────┘◄──┘
                                                            in step for `steady_s`
"""

from __future__ import annotations

import trio

from taskd.clock import Clock

STEP_MS = 500.0
"""A wall clock that moves by more than this against the monotonic one was set: the kernel's
own corrections move it by 0.5 ms a second at most."""

_RECENT_MS = 86_400_000
"""At a start within a day of the Store's last write, the wall clock is believed. After a
longer pause it has to prove itself."""


class ClockSteps:
    """Notices that the wall clock was set."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_ms = self._read_offset_ms()

    def _read_offset_ms(self) -> float:
        return self._clock.now_ms() - trio.current_time() * 1000

    def look(self) -> float:
        """Return by how many milliseconds the wall clock was set since the last look,
        negative if back; 0 if it was not set."""
        before_ms, self._offset_ms = self._offset_ms, self._read_offset_ms()
        moved_ms = self._offset_ms - before_ms
        return moved_ms if abs(moved_ms) > STEP_MS else 0.0


class AgreedTime:
    """The latest time that both clocks agree has come.

    Args:
        clock: the wall clock.
        steady_s: how long the wall clock has to run in step with the monotonic clock, after
            a step and after a start without evidence, before it is believed.
    """

    def __init__(self, clock: Clock, *, steady_s: float) -> None:
        self._clock = clock
        self._steady_s = steady_s
        self._steps = ClockSteps(clock)
        self._in_step_since = trio.current_time()
        self._agreed: tuple[int, float] | None = None
        """A wall time that was believed, and when that was."""

    def confirm(self, written_ms: int | None) -> None:
        """Take as evidence the latest time that the Store held before this process wrote to
        it. None: the Store holds none, so there is nothing to delete."""
        now = self._clock.now_ms()
        if written_ms is None or now - written_ms <= _RECENT_MS:
            self._agreed = (now, trio.current_time())
            self._in_step_since = trio.current_time() - self._steady_s

    def now_ms(self) -> int | None:
        """Return the time by which data may be deleted, never later than the wall clock's;
        None while none is known."""
        stepped = self._steps.look()
        wall, moment = self._clock.now_ms(), trio.current_time()
        if stepped:
            self._in_step_since = moment
        if moment - self._in_step_since >= self._steady_s:
            self._agreed = (wall, moment)
            return wall
        if self._agreed is None:
            return None
        believed, since = self._agreed
        return min(wall, believed + int((moment - since) * 1000))
