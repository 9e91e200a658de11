"""Running a test on Trio's virtual clock, which jumps when nothing can happen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from trio.testing import MockClock

_LIMIT_VIRTUAL_S = 200_000


def on_virtual_clock(test: Callable[[], Awaitable[None]]) -> None:
    """Run an async test; it fails after 200,000 virtual seconds."""

    async def bounded() -> None:
        with trio.fail_after(_LIMIT_VIRTUAL_S):
            await test()

    trio.run(bounded, clock=MockClock(autojump_threshold=0))
