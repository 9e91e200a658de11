"""``/healthz`` and ``/readyz``: unsigned, and cheap however often they are asked."""

from __future__ import annotations

import math
from http import HTTPStatus

import trio

from taskd.api.wire.envelope import Answer, Refusal, done
from taskd.service.service import Service

PROBE_EVERY_S = 1.0
"""An answer of `Health.ready` may be this old."""

PROBE_DEADLINE_S = 3.0

_OK = done([])


class Health:
    """Whether the process lives, and whether it is ready for work."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = trio.Lock()
        self._probed_at = -math.inf
        self._unready: str | None = None

    async def alive(self) -> Answer:
        """The process answers, so it lives."""
        return _OK

    async def ready(self) -> Answer:
        """Whether tasks are accepted and worked on; 503 says why not. ``data.degraded``
        says what does not work and is made up for.

        However many ask, one request at a time probes the store, at most once in
        `PROBE_EVERY_S`.
        """
        async with self._lock:
            if trio.current_time() - self._probed_at >= PROBE_EVERY_S:
                self._unready = await self._probe()
                self._probed_at = trio.current_time()
        # Only the probe, which costs a write, is remembered: a drain shows at once.
        unready = self._service.unready() or self._unready
        if unready is None:
            degraded = self._service.degraded()
            return done({"degraded": degraded}) if degraded else _OK
        raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {unready}")

    async def _probe(self) -> str | None:
        with trio.move_on_after(PROBE_DEADLINE_S):
            return await self._service.store_unready()
        return f"the store has not answered for {PROBE_DEADLINE_S:g} s"
