"""A stand-in for nsqd 1.3 and nsqlookupd, for tests, benchmarks and demos where the
real ones are not at hand.

It speaks the V2 protocol: IDENTIFY with feature negotiation, TLS, AUTH, SUB, RDY, FIN,
REQ, TOUCH, CLS, NOP, PUB, MPUB and DPUB; heartbeats, and the cut when two stay
unanswered; message timeouts, deferred messages, attempts; output that is buffered until
a client turns that off. Errors have nsqd's codes, and close the connection or leave it
as nsqd does.

By HTTP its topics and channels are paused, emptied and deleted, as nsqadmin does. With a
``--data-path`` it knows which it had, and which were paused, after a kill too. It
registers with every nsqlookupd it is told of (`nsqlookupd`, or a real one),
and answers the lookup itself for what is in its own process.

What it does not do: queue to disk (messages are in memory, and gone with the process,
whatever the signal), deflate and snappy (it never agrees to them), ask an auth server
(there is one secret). Timeouts and deferred messages come up
to 20 ms late; nsqd's own come up to 100 ms late, and those of a new channel up to 5 s.
Errors after their code are worded differently.

In process::

    async with trio.open_nursery() as nursery:
        nsqd = await nursery.start(StandIn().serve)

As a process: ``python -m tools.servers.nsqd_stand_in.nsqd --tcp-port 0 --http-port 0``
prints the bound addresses. Its faults are switched by `StandIn.broker` in process, and
by ``POST /faults`` on the HTTP port else; see `broker.Faults`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Self

import trio

from tools.servers.nsqd_stand_in.broker import Broker
from tools.servers.nsqd_stand_in.http import Producer, answer, daemon_routes, lookup_routes
from tools.servers.nsqd_stand_in.registrar import Registrar
from tools.servers.nsqd_stand_in.session import Options, Session

HOST = "127.0.0.1"
_TICK_S = 0.02
_HANDSHAKE_S = 5.0
_HANG_POLL_S = 0.02
_SPLIT_S = 0.001
_RECEIVE = 64 * 1024


class StandIn:
    """One nsqd, with a lookup that tells of it and of its ``peers``."""

    def __init__(
        self,
        options: Options | None = None,
        *,
        tcp_port: int = 0,
        http_port: int = 0,
        lookupd_port: int = 0,
        tls: ssl.SSLContext | None = None,
        peers: tuple[StandIn, ...] = (),
        data_path: Path | None = None,
        lookupds: Sequence[tuple[str, int]] = (),
        ping_s: float = 15.0,
    ) -> None:
        self.options = options or Options()
        self.broker = Broker(mem_queue_size=self.options.mem_queue_size)
        self._metadata = None if data_path is None else data_path / "nsqd.dat"
        if self._metadata is not None and self._metadata.exists():
            self.broker.restore(json.loads(self._metadata.read_text()))
        self._registrars = [
            Registrar(host, port, self.broker, self._describe, ping_s) for host, port in lookupds
        ]
        self.broker.changed = self._changed
        self.tcp_port = tcp_port
        self.http_port = http_port
        self.lookupd_port = lookupd_port
        self._tls = tls
        self._peers = peers
        self._connections: set[_Connection] = set()
        self._cancel_scope = trio.CancelScope()
        if self.options.tls and tls is None:
            raise ValueError("TLS needs a certificate")

    @property
    def address(self) -> str:
        return f"{HOST}:{self.tcp_port}"

    @property
    def http(self) -> str:
        return f"{HOST}:{self.http_port}"

    @property
    def lookupd(self) -> str:
        return f"{HOST}:{self.lookupd_port}"

    async def serve(self, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, or until `stop`. A port of 0 becomes the bound one."""
        daemon = daemon_routes(self.broker, self.inject, self.cut, trio.current_time)
        lookup = lookup_routes(self._producers)
        with self._cancel_scope:
            async with trio.open_nursery() as nursery:
                self.tcp_port = await _listen(nursery, self.tcp_port, self._client)
                self.http_port = await _listen(
                    nursery, self.http_port, partial(answer, routes=daemon)
                )
                self.lookupd_port = await _listen(
                    nursery,
                    self.lookupd_port,
                    partial(self._lookup, partial(answer, routes=lookup)),
                )
                for registrar in self._registrars:
                    nursery.start_soon(registrar.run)
                task_status.started(self)
                await self._tick()

    def _changed(self) -> None:
        if self._metadata is not None:
            # Whole, or not at all: a kill may come at any time.
            new = self._metadata.with_suffix(".tmp")
            new.write_text(json.dumps(self.broker.metadata()))
            new.replace(self._metadata)
        for registrar in self._registrars:
            registrar.notify()

    def _describe(self) -> dict[str, Any]:
        return Producer(HOST, self.tcp_port, self.http_port).describe()

    def stop(self) -> None:
        """Close everything at once; messages are gone, as the object is."""
        self._cancel_scope.cancel()

    def inject(self, raw: bytes) -> int:
        """Send bytes to every client; how many there were."""
        for connection in self._connections:
            connection.session.inject(raw)
        return len(self._connections)

    def cut(self) -> int:
        """Close the connection of every client at once; how many there were."""
        for connection in self._connections:
            connection.scope.cancel()
        return len(self._connections)

    def _producers(self) -> list[tuple[Producer, Broker]]:
        return [
            (Producer(HOST, each.tcp_port, each.http_port), each.broker)
            for each in (self, *self._peers)
        ]

    async def _lookup(
        self, respond: Callable[[trio.abc.Stream], Awaitable[None]], stream: trio.SocketStream
    ) -> None:
        await _while_hanging(self.broker)
        await respond(stream)

    async def _client(self, stream: trio.SocketStream) -> None:
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:
            await trio.aclose_forcefully(stream)
            return  # it went away before we looked
        connection = _Connection(self, stream, self._tls, f"{host}:{port}")
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    async def _tick(self) -> None:
        while True:
            await trio.sleep(_TICK_S)
            self.broker.tick(trio.current_time())


class _Connection:
    """Moves bytes between a socket and a session."""

    def __init__(
        self, server: StandIn, stream: trio.SocketStream, tls: ssl.SSLContext | None, peer: str
    ) -> None:
        self._broker = server.broker
        self._stream: trio.abc.Stream = stream
        self._tls = tls
        self._output = trio.Event()
        self._sending = trio.Lock()
        self._pulse = trio.CancelScope()
        self.scope = trio.CancelScope()
        self.session = Session(
            server.broker, server.options, peer=peer, clock=trio.current_time, wake=self._wake
        )

    def _wake(self) -> None:
        self._output.set()

    async def run(self) -> None:
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send, nursery)
                    nursery.start_soon(self._heartbeats)
                    await self._serve(nursery)
                    nursery.cancel_scope.cancel()
        finally:
            self.session.end()
            await trio.aclose_forcefully(self._stream)

    async def _serve(self, nursery: trio.Nursery) -> None:
        session = self.session
        identified = False
        while await self._receive_command():
            if session.closing:
                # The sender closes, after the error that says why.
                await trio.sleep(_HANDSHAKE_S)
                return
            if session.upgrading and not await self._upgrade():
                return
            if session.identified and not identified:
                identified = True
                self._pulse.cancel()  # at the rate that was agreed on, from now on
                if session.buffer_timeout_s:
                    nursery.start_soon(self._flushes)

    async def _receive_command(self) -> bool:
        """Work on what arrives until a command is complete; False at its end, and
        when none came within two heartbeats."""
        session, faults = self.session, self._broker.faults
        before = session.commands
        while session.commands == before and not session.closing:
            with trio.move_on_after(2 * session.heartbeat_s or float("inf")) as silence:
                while session.commands == before and not session.closing:
                    try:
                        data = await self._stream.receive_some(_RECEIVE)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        return False
                    if not data:
                        return False
                    if faults.hang:
                        silence.deadline = float("inf")
                        await _while_hanging(self._broker)
                    session.feed(data)
            if silence.cancelled_caught:
                if not faults.hang:
                    return False
                await _while_hanging(self._broker)
        return True

    async def _send(self, nursery: trio.Nursery) -> None:
        session = self.session
        while not session.closing or session.unsent:
            await self._output.wait()
            self._output = trio.Event()
            await _while_hanging(self._broker)
            async with self._sending:
                if not await self._write(session.take()):
                    break
        nursery.cancel_scope.cancel()

    async def _write(self, data: bytes) -> bool:
        """Whether the client took it, within a heartbeat."""
        with trio.move_on_after(self.session.heartbeat_s or float("inf")) as deadline:
            try:
                for piece in self._pieces(data):
                    await self._stream.send_all(piece)
                    if self._broker.faults.split:
                        await trio.sleep(_SPLIT_S)  # or the pieces arrive as one
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return False
        return not deadline.cancelled_caught

    def _pieces(self, data: bytes) -> list[bytes]:
        if not data or not self._broker.faults.split:
            return [data] if data else []
        pieces = []
        at = 0
        while at < len(data):
            size = self._broker.random.randint(1, 7)
            pieces.append(data[at : at + size])
            at += size
        return pieces

    async def _upgrade(self) -> bool:
        """Send the answer to IDENTIFY, and make the TLS handshake."""
        assert self._tls is not None
        async with self._sending:
            if not await self._write(self.session.take()):
                return False
            stream = trio.SSLStream(self._stream, self._tls, server_side=True)
            with trio.move_on_after(_HANDSHAKE_S) as deadline:
                try:
                    await stream.do_handshake()
                except trio.BrokenResourceError:
                    # Trio keeps the alert that says why; nsqd sends it.
                    await self._tell(stream._outgoing.read())
                    return False
            if deadline.cancelled_caught:
                return False
            self._stream = stream
        self.session.secured()
        return True

    async def _tell(self, alert: bytes) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._stream.send_all(alert)

    async def _heartbeats(self) -> None:
        while True:
            with trio.CancelScope() as self._pulse:
                await trio.sleep(self.session.heartbeat_s or float("inf"))
                self.session.heartbeat()

    async def _flushes(self) -> None:
        while True:
            await trio.sleep(self.session.buffer_timeout_s)
            self.session.flush()


async def _while_hanging(broker: Broker) -> None:
    while broker.faults.hang:
        await trio.sleep(_HANG_POLL_S)


async def _listen(
    nursery: trio.Nursery, port: int, handler: Callable[[trio.SocketStream], Awaitable[None]]
) -> int:
    """Serve connections in the nursery; the bound port."""
    listeners = await trio.open_tcp_listeners(port, host=HOST)
    nursery.start_soon(trio.serve_listeners, handler, listeners)
    bound: int = listeners[0].socket.getsockname()[1]
    return bound


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.servers.nsqd_stand_in.nsqd",
        description="A stand-in for nsqd 1.3 and nsqlookupd.",
    )
    for name in ("--tcp-port", "--http-port", "--lookupd-port"):
        parser.add_argument(name, type=int, default=0, help="0 (the default) takes a free one")
    for option in fields(Options):
        if option.name != "tls":
            flag = "--" + option.name.replace("_", "-")
            if isinstance(option.default, bool):
                parser.add_argument(flag, action="store_true")
            elif option.name.endswith("_ms"):
                # As nsqd calls it, too: it takes a duration such as 90s.
                own = flag.removesuffix("-ms").replace("heartbeat", "heartbeat-interval")
                parser.add_argument(
                    flag, own, dest=option.name, type=_milliseconds, default=option.default
                )
            else:
                kind = int if isinstance(option.default, int) else str
                parser.add_argument(flag, type=kind, default=option.default)
    parser.add_argument("--tls-cert", type=Path, help="offer TLS with this certificate")
    parser.add_argument("--tls-key", type=Path, help="the certificate's key")
    parser.add_argument("--tls-client-ca", type=Path, help="want a certificate of this CA")
    parser.add_argument("--data-path", type=Path, help="keep topics and channels here")
    parser.add_argument("--ping-s", type=float, default=15.0, help="to each nsqlookupd")
    parser.add_argument(
        "--lookupd-tcp-address", action="append", default=[], help="register there; repeatable"
    )
    parser.add_argument("--faults", type=json.loads, default={}, help="as JSON, see Faults")
    return parser.parse_args(argv)


_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "": 1}


def _milliseconds(text: str) -> int:
    number = text.rstrip("mhs")
    return int(number) * _UNITS[text.removeprefix(number)]


async def _main(arguments: argparse.Namespace) -> None:
    tls = None
    if arguments.tls_cert is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(arguments.tls_cert, arguments.tls_key)
        if arguments.tls_client_ca is not None:
            tls.load_verify_locations(arguments.tls_client_ca)
            tls.verify_mode = ssl.CERT_REQUIRED
    options = {
        option.name: getattr(arguments, option.name)
        for option in fields(Options)
        if option.name != "tls"
    }
    stand_in = StandIn(
        Options(**options, tls=tls is not None),
        tcp_port=arguments.tcp_port,
        http_port=arguments.http_port,
        lookupd_port=arguments.lookupd_port,
        tls=tls,
        data_path=arguments.data_path,
        lookupds=[
            (host, int(port))
            for host, _, port in (each.rpartition(":") for each in arguments.lookupd_tcp_address)
        ],
        ping_s=arguments.ping_s,
    )
    stand_in.broker.change_faults(arguments.faults)
    async with trio.open_nursery() as nursery:
        await nursery.start(stand_in.serve)
        sys.stdout.write(
            f"nsqd stand-in: tcp {stand_in.address}, http {stand_in.http},"
            f" lookupd {stand_in.lookupd}\n"
        )
        sys.stdout.flush()


def main(argv: list[str] | None = None) -> None:
    """Serve until a signal ends the process."""
    arguments = _arguments(argv)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.set_threshold(50_000, 20, 100)  # the messages of a backlog are no cycles
    with contextlib.suppress(KeyboardInterrupt):
        trio.run(_main, arguments)


if __name__ == "__main__":
    main()
