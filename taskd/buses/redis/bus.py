"""The Bus port on Redis: signals and notices, nonces and leadership in a cluster.

==========  ==========================================================
`nonces`    nonces, and the epoch from which on Redis remembers them
`pulse`     presence, leadership of the timer, whether Redis answers
`signals`   sends signals and notices, encoded by `signal_wire`
`listener`  the thread that receives them
`link`      one connection; `batcher` shares its round trips
==========  ==========================================================

Redis is not the truth: data that it loses costs time, or has requests refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from taskd.buses.redis.health import Health
from taskd.buses.redis.link import Link
from taskd.buses.redis.listener import Listener
from taskd.buses.redis.nonces import Nonces
from taskd.buses.redis.pulse import Pulse
from taskd.buses.redis.signals import RedisSignals
from taskd.buses.redis.target import RedisTarget
from taskd.clock import Clock
from taskd.domain.model import NonceUse
from taskd.errors import BusUnavailable
from taskd.ports.bus import Notice, NoticeHandler, Reply, Signal, SignalHandler

_THREADS = 8
"""Four are in use; the others replace those that hang until their timeout."""

_FIRST_EPOCH_S = 3.0
_GLANCE_S = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisBusStatistics:
    """What a `RedisBus` does and has done."""

    nonces: int
    """Nonces that Redis was asked about."""
    nonce_trips: int
    """Round trips for them."""
    sent: int
    """Signals sent to other nodes, repetitions not counted."""
    handled: int
    """Signals of other nodes that were answered."""
    dropped: int
    """Messages dropped: malformed, or more than can be handled or sent."""
    outages: int
    """How often Redis became unusable."""
    subscribed: bool
    """Whether this node receives signals now."""
    leadership: int
    """Number of this node's leadership of the timer, 0 while another leads."""
    epoch: int | None
    """Since when Redis is known to remember nonces, in Unix ms; None if it is not known."""


class RedisBus:
    """See the module. Works while `serve` runs.

    Args:
        target: the server.
        node: this node's name, which no other has or had.
        clock: the clock that the timestamps of requests are checked against, the same for
            all nodes.
    """

    def __init__(self, target: RedisTarget, *, node: str, clock: Clock) -> None:
        self._node = node
        self._health = Health()
        limiter = trio.CapacityLimiter(_THREADS)
        prefix = target.prefix
        self._links = [Link(target, limiter) for _ in range(3)]
        nonces, pulse, signals = self._links
        self._nonces = Nonces(nonces, clock, self._health, prefix=prefix)
        self._pulse = Pulse(pulse, self._nonces, self._health, node=node, prefix=prefix)
        self._signals = RedisSignals(signals, self._health, node=node, prefix=prefix)
        self._listener = Listener(target, limiter, self._signals.channels, self._signals.take)

    @property
    def node(self) -> str:
        """See `Bus.node`."""
        return self._node

    async def serve(
        self,
        handler: SignalHandler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See `Bus.serve`. Started once Redis was tried, whether it answers or not."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._signals.run, handler)
                await nursery.start(self._nonces.batcher.run)
                async with trio.open_nursery() as first:
                    first.start_soon(nursery.start, self._listener.run)
                    first.start_soon(nursery.start, self._pulse.run)
                await self._await_epoch()
                task_status.started()
        finally:
            for link in self._links:
                link.close()

    async def send(self, node: str, signal: Signal) -> Reply | None:
        """See `Bus.send`."""
        return await self._signals.send(node, signal)

    def on_notice(self, handler: NoticeHandler) -> None:
        """See `Bus.on_notice`."""
        self._signals.on_notice(handler)

    def announce(self, notice: Notice) -> None:
        """See `Bus.announce`."""
        self._signals.announce(notice)

    async def use_nonce(self, nonce: NonceUse) -> bool:
        """See `Bus.use_nonce`. False: the Store has to keep the nonce as well."""
        if self._health.unready is not None:
            # Redis is known not to answer: refuse at once, rather than wait for a timeout.
            await trio.lowlevel.checkpoint()
            raise BusUnavailable(self._health.unready)
        return await self._nonces.use(nonce)

    def unready(self) -> str | None:
        """See `Bus.unready`."""
        return self._health.unready or self._nonces.unready()

    def leads_timer(self) -> bool:
        """See `Bus.leads_timer`."""
        return self._pulse.leads()

    def statistics(self) -> RedisBusStatistics:
        """What the bus does and has done."""
        return RedisBusStatistics(
            nonces=self._nonces.batcher.calls,
            nonce_trips=self._nonces.batcher.trips,
            sent=self._signals.sent,
            handled=self._signals.handled,
            dropped=self._signals.dropped,
            outages=self._health.outages,
            subscribed=self._listener.subscribed,
            leadership=self._pulse.number,
            epoch=self._nonces.epoch,
        )

    async def _await_epoch(self) -> None:
        """Wait until requests can be accepted, for `_FIRST_EPOCH_S` at most."""
        deadline = trio.current_time() + _FIRST_EPOCH_S
        while self._health.unready is None and self._nonces.unready() is not None:
            if trio.current_time() > deadline:
                return
            await trio.sleep(_GLANCE_S)
