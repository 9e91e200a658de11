"""Signals inside one process: a call."""

from __future__ import annotations

import trio

from taskd.buses.signals import ask, note
from taskd.domain.model import NonceUse
from taskd.ports.bus import Notice, NoticeHandler, Reply, Signal, SignalHandler


class LocalBus:
    """The Bus port for a node that is alone: it leads, and signals only itself.

    Args:
        node: this node's name, which no earlier node had.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._handler: SignalHandler | None = None
        self._notice_handler: NoticeHandler | None = None

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
        """See `Bus.serve`."""
        self._handler = handler
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._handler = None

    async def send(self, node: str, signal: Signal) -> Reply | None:
        """See `Bus.send`."""
        if node != self._node or self._handler is None:
            await trio.lowlevel.checkpoint()
            return None
        return await ask(self._handler, signal, sender=node)

    def on_notice(self, handler: NoticeHandler) -> None:
        """See `Bus.on_notice`."""
        self._notice_handler = handler

    def announce(self, notice: Notice) -> None:
        """See `Bus.announce`: there is no other node."""
        note(self._notice_handler, notice, sender=self._node)

    async def use_nonce(self, nonce: NonceUse) -> bool:
        """See `Bus.use_nonce`: the Store keeps nonces, in the transaction of the request
        that uses them."""
        del nonce
        return False

    def unready(self) -> str | None:
        """See `Bus.unready`."""
        return None

    def leads_timer(self) -> bool:
        """See `Bus.leads_timer`."""
        return True
