"""The composition root: puts the parts of one node together, and ends them from the top down.

::

    api ── service ── dispatcher ── execution ── delivery ── transport
              │           ▲
              └─ timer ───┴─ janitor        over the adapters for Store, Queue and Bus
"""

from __future__ import annotations

import logging
import random
import resource
import ssl
from dataclasses import dataclass

import trio

from taskd.api import create_api
from taskd.api.server import ApiServer
from taskd.config import Config
from taskd.config.sections import WorkerConfig
from taskd.daemon.adapters import Adapters
from taskd.delivery.attempt import Delivery
from taskd.delivery.discretion import Discretion
from taskd.delivery.egress import Egress
from taskd.delivery.transport import Transport, validate_link_url
from taskd.delivery.transport.tls import Contexts, tls_contexts
from taskd.engine.engine import Bounds, Engine
from taskd.errors import StoreUnavailable
from taskd.link import Handover
from taskd.runtime.certificates import server_context
from taskd.runtime.logs import log_event
from taskd.runtime.logs.task_log import TaskLog
from taskd.runtime.pause import FinePause
from taskd.runtime.proxy_url import Proxy, parse_proxy
from taskd.service.service import Service

logger = logging.getLogger("taskd.daemon")

_FAREWELL_S = 1.0
_UNWIND_S = 0.4
_NOTE_STOPPING_S = 0.4
_CLOSE_CONNECTIONS_S = 0.15
CLOSE_STORE_S = 0.3
"""A drain may take a second beyond its drain_timeout. These and the bus's farewell of 0.1 s
come to less, even if the store answers nothing any more; the next start then reclaims the
leases that were not given back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """The objects made of a configuration that may be made anew while a node runs, and whose
    making may fail."""

    egress: Egress
    receivers_tls: Contexts
    """For connections to receivers."""
    proxy: Proxy | None
    """The proxy that callbacks go through, if any."""
    own_tls: ssl.SSLContext | None
    """For the API's connections; None without TLS."""

    @classmethod
    def of(cls, config: Config) -> Made:
        """Make them of a configuration.

        Raises:
            ConfigError: one can't be made; names the key to blame.
        """
        server, delivery = config.server, config.delivery
        own_tls = None
        if server.tls_cert is not None and server.tls_key is not None:
            own_tls = server_context(server.tls_cert, server.tls_key)
        return cls(
            egress=Egress(
                strict=config.auth.open_registration,
                denied_networks=delivery.denied_networks,
                allowed_networks=delivery.allowed_networks,
            ),
            receivers_tls=tls_contexts(delivery.ca_file, delivery.client_files),
            proxy=_proxy_of(config),
            own_tls=own_tls,
        )


class Node:
    """See the module. Its maker runs its parts.

    Args:
        config: of this process.
        adapters: opened ones.
        handover: brings the connections, if a supervisor accepts them.
        stopping: set once the node has to stop.
    """

    def __init__(
        self,
        config: Config,
        adapters: Adapters,
        handover: Handover | None,
        stopping: trio.Event,
    ) -> None:
        self._adapters = adapters
        self.stopping = stopping
        self._egress = Egress(
            strict=config.auth.open_registration,
            denied_networks=config.delivery.denied_networks,
            allowed_networks=config.delivery.allowed_networks,
        )
        self.transport = Transport(
            egress=self._egress,
            ca_file=config.delivery.ca_file,
            client=config.delivery.client_files,
            proxy=_proxy_of(config),
            max_response=config.delivery.max_response,
            keep_alive_s=config.delivery.keep_alive,
        )
        self._task_log = TaskLog()
        discretion = Discretion(self._egress) if config.auth.open_registration else None
        self.engine = Engine(
            store=adapters.store,
            queue=adapters.queue,
            bus=adapters.bus,
            clock=adapters.clock,
            delivery=Delivery(
                self.transport,
                adapters.clock,
                header_style=config.delivery.header_style,
                discretion=discretion,
            ),
            bounds=Bounds(
                max_running=slots_within(config.worker),
                max_per_origin=config.worker.max_per_origin,
                max_bytes=config.worker.max_bytes,
                lease_ms=config.worker.lease * 1000,
                finished_days=config.retention.finished_days,
                nonce_steady_s=2 * config.auth.window,
            ),
            clustered=adapters.clustered,
            alive=adapters.alive,
            clock_unready=self._clock_unready,
            discretion=discretion,
            pause=FinePause(),
            sweep_from=_sweep_from(adapters),
            tidy=self._tidy,
        )
        self.api = self._make_api(config, self._egress, handover)

    def _make_api(self, config: Config, egress: Egress, handover: Handover | None) -> ApiServer:
        adapters = self._adapters
        service = Service(
            self.engine,
            unready=self.unready,
            note=adapters.note,
            deliveries=self.transport.degraded,
            named=not config.auth.open_registration,
            log=self._task_log,
        )
        api = create_api(
            service,
            config,
            adapters.clock,
            check_link_url=lambda url: validate_link_url(url, egress),
            # In a cluster the other nodes do the tasks that are accepted now.
            draining=(lambda: False) if adapters.clustered else self.stopping.is_set,
        )
        return ApiServer(api, config, handover=handover)

    def _tidy(self) -> None:
        self.transport.close_idle()
        self._task_log.settle()

    def reconfigure(self, config: Config) -> None:
        """Apply another configuration's live keys.

        Args:
            config: of this process.

        Raises:
            ConfigError: it can't be used, and nothing has changed.
        """
        made = Made.of(config)
        self._egress.adopt(made.egress)
        self.transport.renew(
            made.receivers_tls,
            proxy=made.proxy,
            max_response=config.delivery.max_response,
            keep_alive_s=config.delivery.keep_alive,
        )
        self.engine.dispatcher.limit(
            max_running=slots_within(config.worker),
            max_per_origin=config.worker.max_per_origin,
            max_bytes=config.worker.max_bytes,
        )
        self.engine.retention.keep(config.retention.finished_days)
        self.api.reconfigure(config, made.own_tls)

    def log_status(self) -> None:
        """Log the node's state, as one line."""
        work, transport = self.engine.dispatcher.statistics(), self.transport.statistics()
        log_event(
            logger,
            logging.INFO,
            "status",
            running=work.running,
            reserved=self.engine.dispatcher.reserved,
            started=work.started,
            refused=work.refused,
            connections=self.api.connections,
            receivers=transport.active,
            receivers_idle=transport.idle,
            resolving=transport.resolving,
            unready=self.unready(),
        )

    def unready(self) -> str | None:
        """Return why this node is not ready for work, or None."""
        if self.stopping.is_set():
            return "the daemon is draining"
        return self.engine.unready()

    def _clock_unready(self) -> str | None:
        clock_sync = self._adapters.clock_sync
        return None if clock_sync is None else clock_sync.unready()

    async def _note_stopping(self) -> None:
        """Write to the Store that this node was told to stop, so that its tasks are no
        suspects if it is killed before it has given its leases back."""
        if not self.engine.registry and not self.engine.dispatcher.reserved:
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
        """Let attempts end for ``patience_s``, give back the rest, then close listeners and
        connections."""
        log_event(logger, logging.INFO, "draining", running=len(self.engine.registry))
        self.api.say_goodbye()
        said_at = trio.current_time()
        self.engine.end_by(trio.current_time() + patience_s + _UNWIND_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._note_stopping)
            await self.engine.dispatcher.drain(patience_s=patience_s, unwind_s=_UNWIND_S)
        if self._adapters.clustered:
            # A client that keeps its connection open learns of the end by its next answer,
            # not by a reset in the middle of a request.
            with trio.move_on_at(said_at + min(patience_s, _FAREWELL_S)):
                await self.api.farewell()
        await self.api.close(_CLOSE_CONNECTIONS_S)
        self._task_log.settle(all_of_them=True)
        await self.transport.aclose()


def _proxy_of(config: Config) -> Proxy | None:
    url = config.delivery.proxy
    return None if url is None else parse_proxy(url)


def slots_within(worker: WorkerConfig) -> int:
    """Return how many attempts may be under way: each has a file open, and half of the files
    that may be open are for other uses."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or files // 2 >= worker.max_running:
        return worker.max_running
    log_event(
        logger,
        logging.WARNING,
        "the limit of open files leaves room for fewer attempts than [worker] max_running: "
        "raise it (LimitNOFILE= in the unit, ulimit -n in a shell), or lower that",
        open_files=files,
        max_running=worker.max_running,
        places=max(files // 2, 1),
    )
    return max(files // 2, 1)


def _sweep_from(adapters: Adapters) -> float:
    """Return where the sweep begins: nodes that share a backlog and can't divide it should
    not all begin with the same tasks."""
    return random.random() if adapters.clustered else 0.0  # noqa: S311 - no secret
