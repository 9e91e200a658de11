"""The listeners, and every connection that was accepted on them.

serve ─► say_goodbye ─► stop_accepting ─► close(grace_s)
 │          │                 │               │
 │          │                 │               └ idle ones end at once, requests in hand
 │          │                 │                 may take `grace_s`, then every
 │          │                 │                 stream is closed
 │          │                 └ listeners are closed
 │          └ connections are told to close with their next answer
 └ until cancelled, or closed
"""

from __future__ import annotations

import logging
import math
import resource
import socket
import ssl
from functools import partial

import trio

from taskd.api.app import Api
from taskd.api.http.admission import Admission, Stage
from taskd.api.http.connection import Connection
from taskd.api.http.file_shortage import Spare, Tally
from taskd.api.http.listeners import BACKLOG, accept, authority, bind, borrowed, go_deaf, queued
from taskd.api.http.rendering import Renderer
from taskd.api.http.stream import Stream, Wire
from taskd.config import Config
from taskd.link import Handover
from taskd.runtime.certificates import server_context
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.api")

MAX_CONNECTIONS = 1000
"""Connections of signers (see `admission`)."""

STRANGERS = 4
"""How many connections strangers may have for each one of a signer's."""

_TELL_EVERY_S = 10.0
WATCH_S = 0.5
"""How often connections are looked at; this costs less than a timer set twice per request."""


class ApiServer:
    """Serves the API on the addresses of ``[server]``.

    Args:
        api: what `create_api` made.
        config: of which the section ``server`` is used.
        max_connections: see `Admission.most`; fewer where files are short.
        handover: where connections come from, in a process that does not listen.
    """

    def __init__(
        self,
        api: Api,
        config: Config,
        *,
        max_connections: int = MAX_CONNECTIONS,
        handover: Handover | None = None,
    ) -> None:
        self._handover = handover
        self._api = api
        self._router = api.router
        self._config = config
        self._places = Admission(
            *_shared_out(max_connections), trusted=config.server.trusted_proxies
        )
        self._renderer = Renderer()
        self._connections: dict[Connection, None] = {}
        self._accepting = trio.CancelScope()
        self._leaving = trio.lowlevel.ParkingLot()
        self._all_closed = trio.Event()
        self._tls: ssl.SSLContext | None = None
        self._listeners: list[trio.SocketListener] = []
        self._spares: dict[trio.SocketListener, Spare] = {}
        """Empty with TLS, where no client can be answered without a handshake."""
        self._turned_away = Tally(logger)
        self._nursery: trio.Nursery | None = None
        self._told = 0
        self._told_at = -math.inf

    @property
    def connections(self) -> int:
        """How many are open, without those whose last answer is sent."""
        return sum(one.stage is not Stage.LINGERING for one in self._connections)

    @property
    def full(self) -> bool:
        """Whether one more client that signs would push out another, or be refused."""
        return self._places.full

    def reconfigure(self, config: Config, tls: ssl.SSLContext | None) -> None:
        """Use the settings that may change while requests are answered. Connections that
        are open keep the certificate that they have seen.

        Args:
            config: of which the section ``server`` is used.
            tls: made of its certificate.
        """
        self._config = config
        self._tls = tls
        self._places.trust(config.server.trusted_proxies)
        self._api.reconfigure(config)

    async def serve(
        self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen and serve, until cancelled or closed. Reports the bound URLs; none
        where it does not listen itself.

        Raises:
            ConfigError: the certificate or its key can't be used.
            OSError: the address can't be bound.
        """
        self._tls = self._load_tls()
        if self._handover is None:
            self._listeners = await bind(self._config.server)
        listeners = self._listeners
        if self._tls is None:
            self._spares = {listener: Spare(self._turned_away) for listener in listeners}
        scheme = "http" if self._tls is None else "https"
        urls = [f"{scheme}://{authority(one.socket.getsockname()[:2])}" for one in listeners]
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch)
            try:
                task_status.started(urls)
                with self._accepting:
                    if self._handover is not None:
                        places = self._places
                        await self._handover.run(self._take_over, places.make_room, places.at_once)
                    else:
                        await self._accept(listeners)
                await self._all_closed.wait()
            finally:
                for listener in listeners:
                    listener.socket.close()
                for spare in self._spares.values():
                    spare.close()
                self._turned_away.tell(math.inf)
                self._router.log.ration.settle(all_of_them=True)
                nursery.cancel_scope.cancel()

    async def _accept(self, listeners: list[trio.SocketListener]) -> None:
        places = self._places
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                spare = self._spares.get(listener)
                nursery.start_soon(
                    partial(
                        accept,
                        listener,
                        self._take_over,
                        places.make_room,
                        places.at_once,
                        spare=spare,
                    )
                )

    async def _watch(self) -> None:
        """Every `WATCH_S`, close connections that are late or too many; log what was held
        back."""
        while True:
            await trio.sleep(WATCH_S)
            for connection in self._connections:
                connection.look()
            self._places.sweep()
            self._tell_closed()
            self._turned_away.tell(trio.current_time())
            self._router.log.ration.settle()

    def say_goodbye(self) -> None:
        """Tell every client, with its next answer, that its connection ends. New
        connections are still accepted, so that `/readyz` can say that the daemon drains."""
        self._renderer.closing = True

    def stop_accepting(self) -> None:
        """Close the listeners. Connections that are kept alive are still answered, and told
        to close; those that the system has accepted are taken over and served."""
        self._renderer.closing = True
        if self._accepting.cancel_called:
            return
        # Connections made before the close are taken over from the system, which would
        # reset them. Clients that come after it are refused, and know that nothing was
        # done.
        for listener in self._listeners:
            go_deaf(listener.socket)
            try:
                for sock in queued(listener):
                    self._take_over(sock)
            except OSError:  # there is no room for more
                if (spare := self._spares.get(listener)) is not None:
                    with borrowed(listener) as queue:
                        spare.turn_away_all(queue, BACKLOG)
        if self._handover is not None:
            for sock in self._handover.waiting():
                self._take_over(sock)
            self._handover.close()
        self._accepting.cancel()
        for listener in self._listeners:
            listener.socket.close()

    def _take_over(self, sock: socket.socket) -> None:
        if self._nursery is not None:
            plain = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            self._nursery.start_soon(self._handle_plain, plain)

    async def farewell(self) -> None:
        """Return once every connection has had its last answer."""
        while self.connections:
            await self._leaving.park()

    async def close(self, grace_s: float) -> None:
        """End all connections. Requests that have come, read or not, may take ``grace_s``
        more."""
        kept = list(self._connections)
        self.stop_accepting()
        for connection in kept:
            connection.finish()
        # A socket that was accepted in this pass, or taken over now, is a connection within
        # two passes, in whatever order Trio runs what is ready.
        for _ in range(2):
            await trio.lowlevel.checkpoint()
        with trio.move_on_after(grace_s):
            await self.farewell()
        if cut_off := self.connections:
            log_event(logger, logging.INFO, "connections cut off", number=cut_off)
        for connection in list(self._connections):
            if connection.stage is Stage.LINGERING:
                connection.finish()
            else:
                connection.end()
        with trio.move_on_after(grace_s):
            while self._connections:
                await self._leaving.park()
        self._all_closed.set()

    async def _handle_plain(self, plain: trio.SocketStream) -> None:
        try:
            client = plain.socket.getpeername()[0]
        except OSError:  # it has left already
            await trio.aclose_forcefully(plain)
            return
        stream: Stream = plain
        if self._tls is not None:
            stream = trio.SSLStream(plain, self._tls, server_side=True, https_compatible=True)
        connection = Connection(
            Wire(stream),
            client,
            self._router,
            self._renderer,
            places=self._places,
            on_last=self._leaving.unpark_all,
        )
        self._connections[connection] = None
        self._places.enter(connection, client)
        try:
            await connection.run()
        finally:
            self._places.leave(connection)
            del self._connections[connection]
            self._leaving.unpark_all()

    def _tell_closed(self) -> None:
        """Log how many were closed for others or refused, at most once in `_TELL_EVERY_S`."""
        places = self._places
        number = places.given_up + places.refused
        now = trio.current_time()
        if number > self._told and now - self._told_at >= _TELL_EVERY_S:
            log_event(
                logger,
                logging.WARNING,
                "too many connections: some were closed for others",
                closed=number - self._told,
                open=len(self._connections),
                most_from=places.busiest or None,
            )
            self._told, self._told_at = number, now

    def _load_tls(self) -> ssl.SSLContext | None:
        server = self._config.server
        if server.tls_cert is None or server.tls_key is None:
            return None
        return server_context(server.tls_cert, server.tls_key)


def _shared_out(most: int) -> tuple[int, int]:
    """How many connections signers may have, and how many more strangers may. Half of the
    files that this process may have open are left for deliveries and the store."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = most * (1 + STRANGERS)
    if files != resource.RLIM_INFINITY:
        room = max(2, min(room, files // 2))
    signers = min(most, room - room // 4)
    return signers, room - signers
