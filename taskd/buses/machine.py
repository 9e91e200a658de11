"""The Bus port between the worker processes of one machine: their supervisor carries it.

The supervisor is the parent of all workers, so it knows for certain which of them are
alive, and says which one leads the timer. The Store keeps nonces, in the transaction of
the request that uses them: all workers write to the same file, so none is taken twice.

When the lead changes, two workers lead until both have read the supervisor's message.
While the supervisor hangs, signals wait.
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
    """Messages dropped: malformed, or more than can be handled."""


class MachineBus:
    """See the module.

    Args:
        uplink: carries the signals. The caller runs it.
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
        """See `Bus.use_nonce`: the Store keeps nonces."""
        del nonce
        return False

    def unready(self) -> str | None:
        """See `Bus.unready`: always ready, since a worker without a supervisor ends."""
        return None

    def leads_timer(self) -> bool:
        """See `Bus.leads_timer`."""
        return self._uplink.leader == self._uplink.node

    def statistics(self) -> MachineBusStatistics:
        """What the bus has done."""
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
