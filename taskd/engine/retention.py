"""Deletes tasks that ended long ago, and nonces that have expired.

Nothing is deleted by a clock that may be wrong; see `agreed_time`.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from taskd.clock import Clock
from taskd.engine.agreed_time import AgreedTime
from taskd.ports.store import Store

_PURGE_BATCH_MIN, _PURGE_BATCH_MAX = 25, 100
_PURGE_TAKES_S = 0.01
"""How long one step of a purge should take, since other writes wait for it. Its own wait
behind other writes counts too, so a busy store is purged gently."""
_PURGE_PAUSE_S = 0.02
_PURGE_STEADY_S = 3_600.0
"""How long a wall clock that was set has to run evenly before tasks are purged by it."""
_NONCE_BATCH = 2_000
_DAY_MS = 86_400_000


class Retention:
    """See the module.

    Args:
        store, clock: see their ports.
        finished_days: how long tasks are kept after their end.
        nonce_steady_s: how long a wall clock that was set has to run evenly before nonces
            are forgotten by it. After twice the window of timestamps, the nonces that were
            used before have expired by any clock.
        clock_unready: returns why the Store's clock and this machine's disagree, or None;
            nothing is deleted while they do.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        finished_days: int,
        nonce_steady_s: float,
        clock_unready: Callable[[], str | None],
    ) -> None:
        self._store = store
        self._kept_ms = finished_days * _DAY_MS
        self._clock_unready = clock_unready
        self._purge_time = AgreedTime(clock, steady_s=_PURGE_STEADY_S)
        self._nonce_time = AgreedTime(clock, steady_s=nonce_steady_s)

    async def learn_time(self) -> None:
        """Compare the clock with the Store's last write. Call it before this node writes.

        Raises:
            StoreUnavailable: the last write can't be read now.
        """
        written = await self._store.last_moment()
        self._purge_time.confirm(written)
        self._nonce_time.confirm(written)

    def keep(self, finished_days: int) -> None:
        """Change how long tasks are kept after their end."""
        self._kept_ms = finished_days * _DAY_MS

    async def purge_tasks(self) -> None:
        """Delete tasks that ended longer ago than they are kept, in batches that hold up no
        create for long."""
        now = self._time_of(self._purge_time)
        if now is None:
            return
        finished_before = now - self._kept_ms
        limit = _PURGE_BATCH_MIN
        while True:
            began = trio.current_time()
            purged = await self._store.purge(finished_before=finished_before, limit=limit)
            if purged < limit:
                return
            took_s = trio.current_time() - began
            limit = next_purge_batch(limit, took_s)
            # Other writes have the writer for most of the time.
            await trio.sleep(max(_PURGE_PAUSE_S, 2 * took_s))

    async def purge_nonces(self) -> None:
        """Forget nonces that have expired."""
        now = self._time_of(self._nonce_time)
        if now is None:
            return
        while True:
            if await self._store.purge_nonces(now=now, limit=_NONCE_BATCH) < _NONCE_BATCH:
                return
            await trio.sleep(_PURGE_PAUSE_S)

    def _time_of(self, agreed: AgreedTime) -> int | None:
        # It is asked in any case, so that it notices a step.
        now = agreed.now_ms()
        return None if self._clock_unready() is not None else now


def next_purge_batch(limit: int, took_s: float) -> int:
    """Return how many tasks the next step of a purge may delete, after one of ``limit`` took
    ``took_s``: half as many if that was too long, a few more otherwise."""
    if took_s > _PURGE_TAKES_S:
        return max(limit // 2, _PURGE_BATCH_MIN)
    return min(limit + _PURGE_BATCH_MIN, _PURGE_BATCH_MAX)
