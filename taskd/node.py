"""The composition root: the parts of one node, put together, and taken apart from the
top down.

::

    api ── service ── worker ── execution ── delivery ── transport
              │         ▲
              └─ timer ─┴─ janitor          over the adapters for Store, Queue and Bus
"""

from __future__ import annotations

import logging
import random

import trio

from taskd.adapters import Adapters
from taskd.api import create_app
from taskd.api.server import ApiServer
from taskd.config import Config
from taskd.delivery import Delivery
from taskd.egress import Egress
from taskd.errors import StoreUnavailable
from taskd.execution import Executor
from taskd.janitor import Janitor
from taskd.logs import log_event
from taskd.model import DueTask
from taskd.registry import Registry
from taskd.service import Service
from taskd.shields import Shields
from taskd.timer import Timer
from taskd.transport import Transport, parse_target, validate_link_url
from taskd.uplink import Handover
from taskd.worker import Worker

logger = logging.getLogger("taskd.daemon")

_FAREWELL_S = 1.0
_UNWIND_S = 0.4
_NOTE_STOPPING_S = 0.4
_CLOSE_CONNECTIONS_S = 0.15
CLOSE_STORE_S = 0.3
"""Together, with the bus's farewell of 0.1 s, under the second that a drain may take
beyond its drain_timeout, even where the store answers nothing any more; what is then
not written, the next start reclaims."""


class Node:
    """See the module. Its parts are run by whoever made it.

    Args:
        config: of this process.
        adapters: opened.
        handover: brings the connections, where a supervisor accepts them.
    """

    def __init__(self, config: Config, adapters: Adapters, handover: Handover | None) -> None:
        self._adapters = adapters
        self.stopping = trio.Event()
        egress = Egress(
            strict=config.auth.open_registration,
            denied_networks=config.delivery.denied_networks,
            allowed_networks=config.delivery.allowed_networks,
        )
        self.transport = Transport(
            egress=egress,
            ca_file=config.delivery.ca_file,
            max_response=config.delivery.max_response,
        )
        self.registry = Registry()
        self.shields = Shields()
        self.timer = Timer(
            store=adapters.store,
            queue=adapters.queue,
            bus=adapters.bus,
            clock=adapters.clock,
            sweep_from=_sweep_from(adapters),
        )
        self.worker = self._make_worker(config)
        self.janitor = Janitor(
            store=adapters.store,
            clock=adapters.clock,
            registry=self.registry,
            schedule=self._schedule,
            lease_ms=config.worker.lease * 1000,
            finished_days=config.retention.finished_days,
            close_idle=self.transport.close_idle,
            nonce_hold_s=2 * config.auth.window,
            leads=adapters.bus.leads_timer,
            clock_obstacle=self._clock_obstacle,
            shared=adapters.shared,
        )
        self.api = self._make_api(config, egress, handover)

    def _make_worker(self, config: Config) -> Worker:
        adapters = self._adapters
        delivery = Delivery(
            self.transport, adapters.clock, header_style=config.delivery.header_style
        )
        executor = Executor(
            store=adapters.store,
            delivery=delivery,
            clock=adapters.clock,
            schedule=self._schedule,
            shields=self.shields,
        )
        return Worker(
            store=adapters.store,
            queue=adapters.queue,
            clock=adapters.clock,
            executor=executor,
            registry=self.registry,
            node=adapters.bus.node,
            origin_of=lambda url: parse_target(url).origin,
            max_running=config.worker.max_running,
            max_per_origin=config.worker.max_per_origin,
            lease_ms=config.worker.lease * 1000,
            shared=adapters.shared,
        )

    def _make_api(self, config: Config, egress: Egress, handover: Handover | None) -> ApiServer:
        adapters = self._adapters
        service = Service(
            store=adapters.store,
            queue=adapters.queue,
            bus=adapters.bus,
            clock=adapters.clock,
            schedule=self._schedule,
            worker=self.worker,
            obstacle=self.obstacle,
            shields=self.shields,
            note=adapters.note,
        )
        app = create_app(
            service,
            config,
            adapters.clock,
            check_link_url=lambda url: validate_link_url(url, egress),
            # In a cluster what is accepted now is done by the other nodes.
            draining=(lambda: False) if adapters.clustered else self.stopping.is_set,
        )
        return ApiServer(app, config, handover=handover)

    def _schedule(self, task: DueTask) -> None:
        """Have a task that is durable fired at its time."""
        if task.due_at <= self._adapters.clock.now_ms():
            self._adapters.queue.publish((task,))
        else:
            self.timer.offer(task)

    def obstacle(self) -> str | None:
        """Why this node is not ready for work, or None."""
        if self.stopping.is_set():
            return "the daemon is draining"
        return self._clock_obstacle() or self.timer.obstacle()

    def _clock_obstacle(self) -> str | None:
        timekeeper = self._adapters.timekeeper
        return None if timekeeper is None else timekeeper.obstacle()

    async def _note_stopping(self) -> None:
        """Keep that this node was told to stop, for whoever finds its leases should it be
        killed before it has given them back."""
        if not self.registry and not self.worker.reserved:
            return
        adapters = self._adapters
        reason = f"the store did not answer within {_NOTE_STOPPING_S:g} s"
        with trio.move_on_after(_NOTE_STOPPING_S):
            try:
                await adapters.store.note_stopping(adapters.bus.node, now=adapters.clock.now_ms())
            except StoreUnavailable as error:
                reason = str(error)
            else:
                return
        log_event(
            logger,
            logging.WARNING,
            "the store does not know that this node stops: should it be killed before it has "
            "stopped, its tasks are suspected",
            reason=reason,
        )

    async def drain(self, patience_s: float) -> None:
        """Let attempts end for ``patience_s``, give back the rest, then close what is
        open to the outside."""
        log_event(logger, logging.INFO, "draining", running=len(self.registry))
        self.api.say_goodbye()
        said_at = trio.current_time()
        self.shields.end_by(trio.current_time() + patience_s + _UNWIND_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._note_stopping)
            await self.worker.drain(patience_s=patience_s, unwind_s=_UNWIND_S)
        if self._adapters.clustered:
            # Whoever keeps a connection hears of the end with its next answer, and
            # not by a reset in the middle of a request.
            with trio.move_on_at(said_at + min(patience_s, _FAREWELL_S)):
                await self.api.farewell()
        await self.api.close(_CLOSE_CONNECTIONS_S)
        await self.transport.aclose()


def _sweep_from(adapters: Adapters) -> float:
    """Where the sweep begins: nodes that share a backlog and can't divide it should not
    all begin with the same of it."""
    return random.random() if adapters.clustered else 0.0  # noqa: S311 - no secret
