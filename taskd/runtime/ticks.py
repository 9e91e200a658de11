"""Ticks: the moments at which a node does its recurring chores, in step with each other.

An idle process pays more for each time that it is woken than for its work then. So a chore
waits for a tick, a whole multiple of its period, and chores whose periods are multiples of
each other run at once.
"""

from __future__ import annotations

import math

import trio


def next_tick(every_s: float) -> float:
    """Return the next whole multiple of a period: later than `trio.current_time()`, by the
    period at most. Each process counts from a moment of its own, so that the nodes of a
    cluster do not all ask the Store at once."""
    now = trio.current_time()
    tick = (math.floor(now / every_s) + 1) * every_s
    # On a tick, the quotient may be rounded to just below a whole number.
    return tick if tick > now else tick + every_s
