"""A Store's writer that waits for a test, with the deadlines of the real ones."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from taskd.stores.batching import Answers, BatchingWriter, Call, Operation, answers, wake


async def _wait(_session: None, events: Sequence[trio.Event]) -> list[None]:
    for event in events:
        await event.wait()
    return [None] * len(events)


_WAIT = Operation("wait", _wait)


class HeldWriter(BatchingWriter):
    """Begins each call at once, and ends it when its event is set."""

    def __init__(self) -> None:
        super().__init__(self._begin)

    async def hold(self, event: trio.Event, within_s: float | None) -> None:
        """Wait for an event as for a write: see `BatchingWriter.execute`."""
        await self.execute(_WAIT, event, within_s=within_s)

    def _begin(self, call: Call) -> None:
        trio.lowlevel.spawn_system_task(self._carry_out, call)

    async def _carry_out(self, call: Call) -> None:
        await self.carry_out([call])
        wake([call])

    async def _commit(self, calls: Sequence[Call]) -> Answers:
        return await answers(calls, None)

    def _waiting(self) -> int:
        return 0
