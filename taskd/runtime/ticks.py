"""When what a node does again and again is done: in step.

An idle process pays for each time that it is woken, more than for what it then does.
So chores wait for a tick, whole multiples of their period, and those whose periods
are multiples of each other come at once.
"""

from __future__ import annotations

import math

import trio


def next_tick(every_s: float) -> float:
    """The next whole multiple of a period: later than `trio.current_time()`, by the
    period at most. Each process counts from a moment of its own, so that the nodes of
    a cluster do not ask the Store all at once."""
    now = trio.current_time()
    tick = (math.floor(now / every_s) + 1) * every_s
    # On a tick, the quotient may be rounded to just below it.
    return tick if tick > now else tick + every_s
