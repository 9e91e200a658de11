"""The listeners and connections of the API, on hypercorn's protocol code.

The listeners and the streams are held here, because a stop needs both: the
former are closed at once, and the latter by force once the time is up. Hypercorn
sends shielded from cancellation and without a deadline, so a client that does
not read would else keep the daemon from ending for ever.

::

    serving ── stop_accepting ── kept connections are still answered,
                                 with `Connection: close`
            ── close(grace) ──── idle ones end, the others have `grace` seconds
"""

from __future__ import annotations

import errno
import logging
import ssl
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    ConnectionState,
    LifespanState,
    Scope,
)
from hypercorn.utils import wrap_app

from taskd.config import Config
from taskd.errors import ConfigError
from taskd.logs import log_event

logger = logging.getLogger("taskd.api")

BACKLOG = 1024
MAX_CONNECTIONS = 1000

KEEP_ALIVE_S = 75.0
_HANDSHAKE_S = 10.0
_FULL_PAUSE_S = 0.1

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]
Listener = trio.SocketListener | trio.SSLListener[trio.SocketStream]


class ApiServer:
    """Serves the API.

    Args:
        app: what answers the requests.
        config: its section ``server`` counts.
    """

    def __init__(self, app: ASGIFramework, config: Config) -> None:
        self._app = app
        self._config = config
        self._hypercorn = _hypercorn_config()
        self._context = WorkerContext(None)
        self._streams: set[Stream] = set()
        self._accepting = trio.CancelScope()
        self._draining = False
        self._none_left = trio.Event()

    async def serve(
        self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled; reports the bound URLs.

        Raises:
            ConfigError: the certificate can't be used.
            OSError: the address can't be bound.
        """
        tls = self._tls_context()
        app = wrap_app(self._framework, self._hypercorn.wsgi_max_body_size, "asgi")
        state: LifespanState = {}
        lifespan = Lifespan(app, self._hypercorn, state)
        listeners = await self._listen(tls)
        async with trio.open_nursery() as nursery:
            await nursery.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            handler = partial(self._handle, app, state)
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(self._accept, listener, handler, nursery)
                task_status.started([_url(listener, tls) for listener in listeners])

    def stop_accepting(self) -> None:
        """Close the listeners. Requests on connections that stand are still
        answered, each telling the client that the connection ends with it."""
        self._draining = True
        self._accepting.cancel()

    async def close(self, grace: float) -> None:
        """End idle connections at once, and every other one after ``grace``
        seconds, whatever it is doing."""
        self.stop_accepting()
        await self._context.terminated.set()
        with trio.move_on_after(grace):
            while self._streams:
                await self._none_left.wait()
                self._none_left = trio.Event()
        if self._streams:
            log_event(
                logger,
                logging.WARNING,
                "connections were closed by force",
                connections=len(self._streams),
            )
        for stream in list(self._streams):
            _close_by_force(stream)
        with trio.move_on_after(grace):
            while self._streams:
                await self._none_left.wait()
                self._none_left = trio.Event()

    async def _listen(self, tls: ssl.SSLContext | None) -> list[Listener]:
        server = self._config.server
        listeners = await trio.open_tcp_listeners(server.port, host=server.host, backlog=BACKLOG)
        if tls is None:
            return list(listeners)
        return [trio.SSLListener(listener, tls, https_compatible=True) for listener in listeners]

    async def _accept(
        self,
        listener: Listener,
        handler: Callable[[Stream], Awaitable[None]],
        nursery: trio.Nursery,
    ) -> None:
        with self._accepting:
            async with listener:
                while True:
                    if len(self._streams) >= MAX_CONNECTIONS:
                        await trio.sleep(_FULL_PAUSE_S)  # the backlog waits meanwhile
                        continue
                    try:
                        stream = await listener.accept()
                    except OSError as error:
                        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                            raise
                        log_event(
                            logger, logging.ERROR, "can't accept connections", error=str(error)
                        )
                        await trio.sleep(_FULL_PAUSE_S)
                        continue
                    self._streams.add(stream)
                    nursery.start_soon(handler, stream)

    async def _handle(self, app: AppWrapper, state: LifespanState, stream: Stream) -> None:
        try:
            await TCPServer(
                app,
                self._hypercorn,
                self._context,
                ConnectionState(state.copy()),
                stream,  # type: ignore[arg-type] # takes both
            )
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            log_event(logger, logging.DEBUG, "a connection broke")
        except* Exception as group:  # noqa: BLE001 - one connection's failure, not the daemon's
            log_event(logger, logging.ERROR, "a connection failed", error=group)
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._none_left.set()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _framework(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """The app, whose answers end the connection while draining."""
        if not self._draining or scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_last(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.start" and scope["http_version"] != "2":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, send_last)

    def _tls_context(self) -> ssl.SSLContext | None:
        server = self._config.server
        if server.tls_cert is None or server.tls_key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(self._hypercorn.alpn_protocols)
        try:
            context.load_cert_chain(server.tls_cert, server.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"[server] tls_cert, tls_key: can't be used as a certificate: {error}"
            ) from error
        return context


def _hypercorn_config() -> HypercornConfig:
    hypercorn = HypercornConfig()
    hypercorn.accesslog = None
    hypercorn.errorlog = logging.getLogger("taskd.hypercorn")
    hypercorn.include_server_header = False
    hypercorn.keep_alive_timeout = KEEP_ALIVE_S
    hypercorn.ssl_handshake_timeout = _HANDSHAKE_S
    return hypercorn


def _url(listener: Listener, tls: ssl.SSLContext | None) -> str:
    sock = listener.transport_listener.socket if tls else listener.socket  # type: ignore[union-attr]
    host, port, *_ = sock.getsockname()
    host = f"[{host}]" if ":" in host else host
    return f"{'http' if tls is None else 'https'}://{host}:{port}"


def _close_by_force(stream: Stream) -> None:
    """Close the socket under a task that may be sending on it: the send ends."""
    transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    transport.socket.close()
