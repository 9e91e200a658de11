"""One connection to nsqd, against a peer that is scripted byte for byte."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trustme
from nsq.response import Error, Message, Response  # type: ignore[import-untyped]  # no types

from taskd.errors import QueueUnavailable
from taskd.queues.nsq.connection import ConnectionSettings, NsqConnection, connect
from taskd.queues.nsq.link import NsqLink
from taskd.queues.nsq.queue import _tls_context
from taskd.queues.nsq.target import Address, NsqTarget
from tests.support.nsq_queue import until

pytestmark = pytest.mark.deadline(30)

SETTINGS = ConnectionSettings(
    topic="top", channel="chan", client_id="node-1", heartbeat_s=1.0, connect_s=2.0, secret="s3cret"
)
OK = Response.pack(b"OK")
HEARTBEAT = Response.pack(b"_heartbeat_")
ID = b"0123456789abcdef"


class Peer:
    """nsqd's end."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._buffer = b""

    async def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = await self.stream.receive_some()
            assert data, f"the client closed after {self._buffer!r}"
            self._buffer += data
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    async def line(self) -> bytes:
        while b"\n" not in self._buffer:
            data = await self.stream.receive_some()
            assert data, f"the client closed after {self._buffer!r}"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    async def body(self) -> bytes:
        (size,) = struct.unpack(">l", await self.read(4))
        return await self.read(size)

    async def identify(self, **answer: object) -> dict[str, object]:
        """Read magic and IDENTIFY, and answer."""
        assert await self.read(4) == b"  V2"
        assert await self.line() == b"IDENTIFY"
        asked: dict[str, object] = json.loads(await self.body())
        await self.stream.send_all(Response.pack(json.dumps(answer).encode()))
        return asked

    async def accept(self, **answer: object) -> None:
        """The whole handshake."""
        await self.identify(**answer)
        assert await self.line() == b"SUB top chan"
        await self.stream.send_all(OK)


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def listening(script: Script) -> AsyncIterator[Address]:
    """A peer that plays a script to each connection, and holds it open."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await script(Peer(stream))
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield Address("127.0.0.1", listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def refused(script: Script, settings: ConnectionSettings = SETTINGS) -> str:
    """Why a connection was not made."""
    with trio.fail_after(10):
        async with listening(script) as address:
            with pytest.raises(QueueUnavailable) as error:
                await connect(address, settings)
    return str(error.value)


@asynccontextmanager
async def running(
    script: Script, settings: ConnectionSettings = SETTINGS
) -> AsyncIterator[tuple[NsqConnection, list[Message], list[str]]]:
    """A connection at work; what it got, and why it ended."""
    messages: list[Message] = []
    ends: list[str] = []

    async def run_it(connection: NsqConnection) -> None:
        try:
            await connection.run(messages.extend)
        except QueueUnavailable as error:
            ends.append(str(error))

    async with listening(script) as address, trio.open_nursery() as nursery:
        connection = await connect(address, settings)
        nursery.start_soon(run_it, connection)
        yield connection, messages, ends
        nursery.cancel_scope.cancel()
    await connection.aclose()


async def test_the_handshake_and_what_it_asks_for() -> None:
    asked: dict[str, object] = {}

    async def script(peer: Peer) -> None:
        asked.update(await peer.identify(max_rdy_count=100, msg_timeout=30_000, auth_required=True))
        assert await peer.line() == b"AUTH"
        assert await peer.body() == b"s3cret"
        await peer.stream.send_all(HEARTBEAT + Response.pack(b'{"identity":"x"}'))
        assert await peer.line() == b"NOP"
        assert await peer.line() == b"SUB top chan"
        await peer.stream.send_all(OK)

    async with running(script) as (connection, _, _):
        assert connection.max_rdy == 100
        assert connection.message_timeout_s == 30
    assert asked["output_buffer_size"] == -1
    assert asked["heartbeat_interval"] == 1000
    assert asked["feature_negotiation"] is True
    assert asked["tls_v1"] is False
    assert asked["client_id"] == "node-1"
    assert "s3cret" not in json.dumps(asked)


async def test_a_secret_is_not_sent_unasked() -> None:
    async with running(Peer.accept) as (connection, _, _):
        assert connection.usable
    assert "s3cret" not in repr(SETTINGS)


async def test_an_rdy_over_nsqds_own_limit_is_never_taken_from_the_peer() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept(max_rdy_count=10**9, msg_timeout=-1)

    async with running(script) as (connection, _, _):
        assert connection.max_rdy == 2500
        assert connection.message_timeout_s == SETTINGS.message_timeout_s


async def close(peer: Peer) -> None:
    await peer.stream.aclose()


async def say_nothing(_: Peer) -> None:
    await trio.lowlevel.checkpoint()


async def answer_ok_only(peer: Peer) -> None:
    await peer.line()
    await peer.stream.send_all(OK)


async def answer_a_list(peer: Peer) -> None:
    await peer.line()
    await peer.stream.send_all(Response.pack(b"[1]"))


async def refuse_subscription(peer: Peer) -> None:
    await peer.identify()
    await peer.line()
    await peer.stream.send_all(Error.pack(b"E_BAD_TOPIC no"))


async def send_message_early(peer: Peer) -> None:
    await peer.identify()
    await peer.stream.send_all(Message.pack(1, 1, ID, b"x"))


async def cut_in_a_frame(peer: Peer) -> None:
    await peer.line()
    await peer.stream.send_all(OK[:7])
    await peer.stream.aclose()


async def speak_http(peer: Peer) -> None:
    await peer.stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (close, "closed|broke"),
        (say_nothing, "within 0.3 s|for 0.3 s"),
        (answer_ok_only, "is it an nsqd"),
        (answer_a_list, "is it an nsqd"),
        (refuse_subscription, "E_BAD_TOPIC"),
        (send_message_early, "not asked for"),
        (cut_in_a_frame, "closed"),
        (speak_http, "no frame"),
    ],
)
async def test_a_handshake_that_fails_says_why(script: Script, reason: str) -> None:
    problem = await refused(script, replace(SETTINGS, connect_s=0.3))
    assert any(word in problem for word in reason.split("|")), problem


async def test_nobody_there() -> None:
    async with listening(say_nothing) as address:
        pass
    with pytest.raises(QueueUnavailable, match=r"(?i)refused"):
        await connect(address, SETTINGS)


async def test_messages_and_what_is_answered_for_them() -> None:
    lines: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        lines.append(await peer.line())
        await peer.stream.send_all(Message.pack(1, 7, ID, b"body") + HEARTBEAT)
        lines.extend([await peer.line() for _ in range(4)])

    async with running(script) as (connection, messages, _):
        connection.set_ready(3)
        await until(lambda: messages)
        connection.touch(ID)
        connection.requeue(ID, 50)
        connection.finish(ID)
        await until(lambda: len(lines) == 5)
    assert [(one.id, one.attempts, one.body) for one in messages] == [(ID, 7, b"body")]
    assert lines == [b"RDY 3", b"NOP", b"TOUCH " + ID, b"REQ " + ID + b" 50", b"FIN " + ID]


async def test_publishes_are_confirmed_in_their_order() -> None:
    bodies: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        for _ in range(2):
            assert await peer.line() == b"MPUB top"
            bodies.append(await peer.body())
        await peer.stream.send_all(OK + OK)

    async with running(script) as (connection, _, _), trio.open_nursery() as nursery:
        nursery.start_soon(connection.publish, [b"a", b"bb"])
        nursery.start_soon(connection.publish, [b"ccc"])
    assert sorted(bodies) == [
        struct.pack(">ll", 1, 3) + b"ccc",
        struct.pack(">ll", 2, 1) + b"a" + struct.pack(">l", 2) + b"bb",
    ]


async def test_a_publish_that_is_given_up_does_not_take_the_next_ones_answer() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.line()
        await peer.body()
        await peer.line()
        # The second has come; only the first is confirmed.
        await peer.stream.send_all(OK)

    settings = replace(SETTINGS, publish_s=0.4)
    async with running(script, settings) as (connection, _, ends):
        with trio.move_on_after(0.05):
            await connection.publish([b"first"])
        with pytest.raises(QueueUnavailable, match="confirm"):
            await connection.publish([b"second"])
        await until(lambda: ends)


async def test_a_link_says_why_before_its_connection_is_missed() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.stream.aclose()

    told: list[str | None] = []
    async with listening(script) as address:
        link = NsqLink(
            address,
            SETTINGS,
            on_up=lambda _: None,
            on_leave=lambda _: None,
            on_down=lambda _: told.append(link.degraded),
            on_messages=lambda *_: None,
            wanted=lambda _: False,
        )
        await link.run()
    assert told == ["it closed the connection"]


async def test_a_publish_fails_at_once_when_the_connection_ends() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.line()
        await peer.stream.send_all(Error.pack(b"E_MPUB_FAILED disk full"))

    async with running(script) as (connection, _, ends):
        started = trio.current_time()
        with pytest.raises(QueueUnavailable, match="E_MPUB_FAILED"):
            await connection.publish([b"x"])
        assert trio.current_time() - started < SETTINGS.publish_s / 2
        with pytest.raises(QueueUnavailable, match="E_MPUB_FAILED"):
            await connection.publish([b"x"])
        await until(lambda: ends)
        connection.set_ready(1)  # does nothing, and raises nothing


async def test_silence_for_two_heartbeats_ends_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(0.3)
        await peer.stream.send_all(HEARTBEAT)

    settings = replace(SETTINGS, heartbeat_s=0.3)
    started = trio.current_time()
    async with running(script, settings) as (_, _, ends):
        await until(lambda: ends)
        assert "sign of life" in ends[0]
        assert 0.8 < trio.current_time() - started < 2


@pytest.mark.parametrize("buffered", [False, True], ids=["deadline", "buffer"])
async def test_a_peer_that_takes_nothing_ends_it(*, buffered: bool) -> None:
    settings = replace(SETTINGS, write_s=30.0 if buffered else 0.3, publish_s=30.0)
    async with running(Peer.accept, settings) as (connection, _, ends):
        commands = 400_000 if buffered else 200_000
        while not ends and commands:
            for _ in range(20_000):
                connection.finish(ID)
            commands -= 20_000
            await trio.sleep(0.01)
        await until(lambda: ends)
        assert "took nothing" in ends[0] or "takes nothing" in ends[0]


async def test_the_last_commands_are_sent_when_the_task_is_cancelled() -> None:
    lines: list[bytes] = []

    done = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.accept()
        lines.append(await peer.line())
        done.set()

    async with listening(script) as address:
        connection = await connect(address, SETTINGS)
        with trio.move_on_after(0.05):
            await connection.run(lambda _: None)
        connection.finish(ID)
        with trio.CancelScope() as scope:
            scope.cancel()
            await connection.say_goodbye(0.5)
        await connection.aclose()
        await done.wait()
    assert lines == [b"FIN " + ID]


async def test_what_is_said_before_tls_does_not_count_as_said_under_it(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))

    async def script(peer: Peer) -> None:
        await peer.line()
        answer = Response.pack(json.dumps({"tls_v1": True}).encode())
        await peer.stream.send_all(answer + OK + OK)

    problem = await refused(
        script, replace(SETTINGS, tls=_tls_context(NsqTarget(nsqds=(), tls=True, ca_file=ca_file)))
    )
    assert "before TLS" in problem


async def test_a_certificate_for_another_name_is_not_accepted(tmp_path: Path) -> None:
    import ssl  # noqa: PLC0415 - of this test alone

    authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("other.test").configure_cert(context)

    async def script(peer: Peer) -> None:
        await peer.line()
        await peer.stream.send_all(Response.pack(json.dumps({"tls_v1": True}).encode()))
        stream = trio.SSLStream(peer.stream, context, server_side=True)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()

    problem = await refused(
        script, replace(SETTINGS, tls=_tls_context(NsqTarget(nsqds=(), tls=True, ca_file=ca_file)))
    )
    assert "certificate is not accepted" in problem


async def test_an_end_right_after_tls_may_be_for_want_of_a_certificate(tmp_path: Path) -> None:
    import ssl  # noqa: PLC0415 - of this test and the one above

    authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def script(peer: Peer) -> None:
        await peer.line()
        await peer.stream.send_all(Response.pack(json.dumps({"tls_v1": True}).encode()))
        stream = trio.SSLStream(peer.stream, context, server_side=True)
        await stream.do_handshake()
        await trio.aclose_forcefully(peer.stream)

    tls = _tls_context(NsqTarget(nsqds=(), tls=True, ca_file=ca_file))
    problem = await refused(script, replace(SETTINGS, tls=tls))
    assert "perhaps it asks for a client certificate: give cert_file and key_file" in problem
