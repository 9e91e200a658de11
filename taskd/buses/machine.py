"""The Bus port between the worker processes of one machine: their supervisor carries it.

Who is alive and who leads the timer the supervisor knows for certain, since it is
the parent of them all. Nonces are kept by the Store, in the transaction of what they
are used for: all workers write to the same file, so that none is taken twice.

Where the lead changes hands, two lead until both have read so. While the supervisor hangs,
signals wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from taskd.buses.signal_wire import Message, NoticeMessage, encode
from taskd.buses.signals import Signals
from taskd.domain.model import NonceUse
from taskd.link import Kind, Uplink
from taskd.ports.bus import Notice, NoticeHandler, Reply, Signal, SignalHandler


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineBusStatistics:
    """What a `MachineBus` has done."""

    sent: int
    """Signals sent to other nodes, repetitions not counted."""
    handled: int
    """Signals of other nodes that were answered."""
    dropped: int
    """Messages that were not understood, or too many."""


class MachineBus:
    """See the module.

    Args:
        uplink: carries the signals; it is run by whoever made it.
    """

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink
        self._signals = _MachineSignals(uplink)

    @property
    def node(self) -> str:
        """See `Bus.node`."""
        return self._uplink.node

    async def serve(
        self,
        handler: SignalHandler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See `Bus.serve`."""
        await self._signals.run(handler, task_status=task_status)

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
        """See `Bus.use_nonce`: the Store keeps them."""
        del nonce
        return False

    def unready(self) -> str | None:
        """See `Bus.unready`: without its supervisor a worker ends."""
        return None

    def leads_timer(self) -> bool:
        """See `Bus.leads_timer`."""
        return self._uplink.leader == self._uplink.node

    def statistics(self) -> MachineBusStatistics:
        """What it has done."""
        signals = self._signals
        return MachineBusStatistics(
            sent=signals.sent, handled=signals.handled, dropped=signals.dropped
        )


class _MachineSignals(Signals):
    def __init__(self, uplink: Uplink) -> None:
        super().__init__(uplink.node)
        self._uplink = uplink
        uplink.on(Kind.SIGNAL, lambda message: self.take([message]))

    async def _publish(self, node: str, message: Message) -> bool:
        await trio.lowlevel.checkpoint()
        if node not in self._uplink.alive:
            return False
        self._uplink.post(Kind.SIGNAL, encode(message), to=node)
        return True

    def _spread(self, message: NoticeMessage) -> None:
        data = encode(message)
        for node in self._uplink.alive - {self.node}:
            self._uplink.post(Kind.SIGNAL, data, to=node)
