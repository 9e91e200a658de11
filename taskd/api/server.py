"""The listeners, and every connection that was accepted on them.

serve ─► say_goodbye ─► stop_accepting ─► close(grace)
 │          │                 │               │
 │          │                 │               └ idle ones end at once, requests in hand
 │          │                 │                 may take `grace` seconds, then every
 │          │                 │                 stream is closed
 │          │                 └ listeners are closed
 │          └ connections are told to close with their next answer
 └ until cancelled, or closed
"""

from __future__ import annotations

import ctypes
import errno
import logging
import math
import os
import socket
import ssl
import struct
from collections.abc import Iterator

import trio

from taskd.api.app import Api
from taskd.api.connection import Connection, Stage, Stream
from taskd.api.rendering import Renderer
from taskd.certificates import server_context
from taskd.config import Config, ServerConfig
from taskd.logs import log_event
from taskd.uplink import Handover

logger = logging.getLogger("taskd.api")

MAX_CONNECTIONS = 1000
_SO_ATTACH_FILTER = 26
BACKLOG = 1024

_TELL_EVERY_S = 10.0
WATCH_S = 0.5
"""How often connections are looked at, instead of setting a timer twice per request."""


class ApiServer:
    """Serves the API on the addresses of ``[server]``.

    Args:
        api: what `create_api` made.
        config: its section ``server`` counts.
        max_connections: connections held at a time. One that comes when all are
            taken replaces the one that has been idle, or is turned away.
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
        self._front = api.front
        self._config = config
        self._max_connections = max_connections
        self._renderer = Renderer()
        self._connections: dict[Connection, None] = {}
        self._accepting = trio.CancelScope()
        self._leaving = trio.lowlevel.ParkingLot()
        self._all_closed = trio.Event()
        self._tls: ssl.SSLContext | None = None
        self._listeners: list[trio.SocketListener] = []
        self._nursery: trio.Nursery | None = None
        self._turned_away = 0
        self._told_at = -math.inf

    @property
    def connections(self) -> int:
        """How many are open, but for those whose last answer is sent."""
        return sum(one.stage is not Stage.LINGERING for one in self._connections)

    def reconfigure(self, config: Config, tls: ssl.SSLContext | None) -> None:
        """Take what may change while requests are answered. Connections that are open
        keep the certificate that they have seen.

        Args:
            config: its section ``server`` counts.
            tls: of its certificate.
        """
        self._config = config
        self._tls = tls
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
            self._listeners = await self._bind()
        listeners = self._listeners
        scheme = "http" if self._tls is None else "https"
        urls = [f"{scheme}://{authority(one.socket.getsockname()[:2])}" for one in listeners]
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch)
            try:
                task_status.started(urls)
                with self._accepting:
                    if self._handover is not None:
                        await self._handover.run(self._take_over)
                    else:
                        await trio.serve_listeners(
                            self._handle_plain, listeners, handler_nursery=nursery
                        )
                await self._all_closed.wait()
            finally:
                self._front.log.ration.settle(all_of_them=True)
                nursery.cancel_scope.cancel()

    async def _watch(self) -> None:
        """Look after connections, and after what is still to be told of them."""
        while True:
            await trio.sleep(WATCH_S)
            for connection in self._connections:
                connection.look()
            self._front.log.ration.settle()

    def say_goodbye(self) -> None:
        """Tell every client, with its next answer, that its connection ends. New
        ones are still accepted: who asks for `/readyz` is to be told."""
        self._renderer.closing = True

    def stop_accepting(self) -> None:
        """Close the listeners. Connections that are kept alive are answered still,
        and told to close; those that the system has accepted are served."""
        self._renderer.closing = True
        if self._accepting.cancel_called:
            return
        # Who came before the close is taken over from the system, which would reset
        # them; who comes after it is refused, and knows that nothing was done.
        for listener in self._listeners:
            go_deaf(listener.socket)
            for sock in queued(listener):
                self._take_over(sock)
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

    async def close(self, grace: float) -> None:
        """End all connections; requests in hand may take ``grace`` seconds more, those
        that have come and were not read yet among them."""
        kept = list(self._connections)
        self.stop_accepting()
        for connection in kept:
            connection.finish()
        # Who was accepted in this very pass, or taken over now, is a connection after the
        # next one: whatever the order in which Trio runs what is ready.
        for _ in range(2):
            await trio.lowlevel.checkpoint()
        with trio.move_on_after(grace):
            await self.farewell()
        if cut_off := self.connections:
            log_event(logger, logging.INFO, "connections cut off", number=cut_off)
        for connection in list(self._connections):
            if connection.stage is Stage.LINGERING:
                connection.finish()
            else:
                connection.end()
        with trio.move_on_after(grace):
            while self._connections:
                await self._leaving.park()
        self._all_closed.set()

    async def _handle_plain(self, plain: trio.SocketStream) -> None:
        stream: Stream = plain
        if self._tls is not None:
            stream = trio.SSLStream(plain, self._tls, server_side=True, https_compatible=True)
        await self._handle(stream)

    async def _handle(self, stream: Stream) -> None:
        if not self._has_room():
            self._tell_turned_away()
            await trio.aclose_forcefully(stream)
            return
        connection = Connection(
            stream, self._front, self._renderer, on_last=self._leaving.unpark_all
        )
        self._connections[connection] = None
        try:
            await connection.run()
        finally:
            del self._connections[connection]
            self._leaving.unpark_all()

    def _has_room(self) -> bool:
        """Whether one more may come; ends the longest idle one to make it so."""
        if len(self._connections) < self._max_connections:
            return True
        staying = [one for one in self._connections if not one.ending]
        if len(staying) < self._max_connections:
            return True
        idle = min(
            (one for one in staying if one.stage in {Stage.IDLE, Stage.LINGERING}),
            key=_idle_since,
            default=None,
        )
        if idle is not None:
            idle.end()
        return idle is not None

    def _tell_turned_away(self) -> None:
        self._turned_away += 1
        now = trio.current_time()
        if now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            log_event(
                logger,
                logging.WARNING,
                "connections turned away: all are taken by requests in hand",
                connections=self._max_connections,
                turned_away=self._turned_away,
            )

    async def _bind(self) -> list[trio.SocketListener]:
        server = self._config.server
        try:
            return await trio.open_tcp_listeners(server.port, host=server.host, backlog=BACKLOG)
        except OSError as error:
            raise unbound(server, error) from error

    def _load_tls(self) -> ssl.SSLContext | None:
        server = self._config.server
        if server.tls_cert is None or server.tls_key is None:
            return None
        return server_context(server.tls_cert, server.tls_key)


def unbound(server: ServerConfig, error: OSError) -> OSError:
    """What an operator is told where the address can't be bound."""
    where = f"[server] host and port: can't listen on {server.host} port {server.port}"
    return OSError(error.errno or errno.EADDRNOTAVAIL, f"{where}: {error.strerror or error}")


def go_deaf(listener: trio.socket.SocketType) -> None:
    """Have the kernel drop what comes to a listening socket from here on, so that no
    connection is made between the last that is accepted and the close: the close would
    reset it. Who tried asks again after a second, by TCP's rule, and is refused."""
    # A classic BPF program of one instruction, "return 0"; see socket(7).
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    pointing = struct.pack("@HP", 1, ctypes.addressof(program))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointing)
    except OSError as error:
        log_event(
            logger,
            logging.INFO,
            "who connects in the moment of the end may be reset",
            reason=str(error),
        )


def queued(listener: trio.SocketListener) -> Iterator[socket.socket]:
    """The connections that the system has accepted for a listener."""
    with socket.socket(fileno=os.dup(listener.socket.fileno())) as queue:
        queue.settimeout(0)
        while True:
            try:
                sock, _ = queue.accept()
            except OSError:
                return
            sock.settimeout(0)
            yield sock


def authority(address: tuple[str, int]) -> str:
    """An address as a URL has it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _idle_since(connection: Connection) -> float:
    return connection.idle_since
