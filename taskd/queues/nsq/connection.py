"""One connection to one nsqd, on Trio streams.

::

    connect: dial ─ IDENTIFY ─ TLS ─ AUTH ─ SUB      (one deadline for all of it)
    run:     read for ever, write for ever, until one of them fails

It ends for good with the first failure: the stream ends, bytes are no frame, nsqd
answers an error that closes the connection, reads nothing, or sends nothing for two
heartbeats. Commands never wait: they are put into a buffer, and the writer sends the
whole buffer at once.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio
from nsq.response import Error, Message, Response  # type: ignore[import-untyped]  # no types

from taskd import __version__
from taskd.errors import QueueUnavailable
from taskd.queues.nsq import wire
from taskd.queues.nsq.target import Address
from taskd.runtime.json_depth import load_json

logger = logging.getLogger("taskd.queues.nsq")

_CONNECT_S = 5.0
_WRITE_S = 5.0
_PUBLISH_S = 1.0
_HEARTBEAT_S = 5.0
_MISSED = 2
_RECEIVE_BYTES = 65_536
_MAX_BUFFERED_BYTES = 4 * 1024 * 1024
_MIN_MESSAGE_TIMEOUT_S = 1.0
_BAD_BODY = "E_BAD_BODY"
_OF_NO_PUBLISH = "E_INVALID"
"""nsqd's error for commands that are out of place, as RDY may be: not about a publish."""
_CERTIFICATE = "a client certificate: give cert_file and key_file in the URL"
_MS_PER_S = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionSettings:
    """The settings that all connections of a queue have in common."""

    topic: str
    channel: str
    client_id: str
    """Names this node in nsqd's statistics."""
    tls: ssl.SSLContext | None = None
    """None: not encrypted."""
    shows_certificate: bool = False
    """Whether ``tls`` has a certificate for an nsqd that asks for one."""
    secret: str | None = field(default=None, repr=False)
    heartbeat_s: float = _HEARTBEAT_S
    """How often nsqd is to send a heartbeat; at least 1."""
    message_timeout_s: float = 60.0
    """After this long without FIN or TOUCH, nsqd gives a message to another node."""
    connect_s: float = _CONNECT_S
    write_s: float = _WRITE_S
    publish_s: float = _PUBLISH_S
    """How long nsqd may take to confirm a publish."""


class _Reply:
    """nsqd's answer to a publish, once it has come."""

    __slots__ = ("arrived", "ok")

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.ok = False


class NsqConnection:
    """See the module. Made by `connect`; usable while `run` runs."""

    def __init__(
        self, stream: trio.abc.Stream, address: Address, settings: ConnectionSettings
    ) -> None:
        self.address = address
        self.max_rdy = wire.MAX_RDY
        """The largest RDY that this nsqd takes."""
        self.message_timeout_s = settings.message_timeout_s
        """The message timeout that nsqd has agreed to."""
        self.rdy = 0
        """The RDY that was sent last."""
        self.ready_since = float("inf")
        """Since when messages may be in flight here, in Trio's time."""
        self.full_at = float("-inf")
        """When messages last had to wait in nsqd because so many were in flight here, in
        Trio's time."""
        self.refusal: str | None = None
        """Why nsqd did not take a publish, if that ended the connection."""
        self.answered = False
        """Whether nsqd answered the ``refusal`` itself."""
        self.not_in_flight = 0
        """Messages that nsqd had timed out before FIN, REQ or TOUCH."""
        self._stream = stream
        self._settings = settings
        self._framer = wire.Framer()
        self._frames: deque[Response] = deque()
        self._buffer = bytearray()
        self._outgoing = trio.Event()
        self._sending = False
        self._replies: deque[_Reply] = deque()
        self._failure: str | None = None
        self._scope: trio.CancelScope | None = None

    @property
    def usable(self) -> bool:
        """Whether it has not failed yet."""
        return self._failure is None

    def set_ready(self, count: int) -> None:
        """RDY: allow ``count`` messages in flight here."""
        if not count:
            self.ready_since = float("inf")
        elif not self.rdy:
            self.ready_since = trio.current_time()
        self.rdy = count
        self._send(wire.ready(count))

    def finish(self, message_id: bytes) -> None:
        """FIN: the message is done with."""
        self._send(wire.finish(message_id))

    def requeue(self, message_id: bytes, delay_ms: int) -> None:
        """REQ: the message may go elsewhere, after a delay."""
        self._send(wire.requeue(message_id, delay_ms))

    def touch(self, message_id: bytes) -> None:
        """TOUCH: the message's timeout begins anew."""
        self._send(wire.touch(message_id))

    async def publish(self, bodies: Sequence[bytes]) -> None:
        """Publish messages, and return once nsqd has them.

        Raises:
            QueueUnavailable: nsqd may or may not have them. The connection has ended.
        """
        if self._failure is not None:
            raise QueueUnavailable(self._failure)
        reply = _Reply()
        self._replies.append(reply)
        self._send(wire.publish(self._settings.topic, bodies))
        with trio.move_on_after(self._settings.publish_s):
            await reply.arrived.wait()
        if not reply.ok:
            if self._failure is None:
                self.refusal = f"it did not confirm a publish within {self._settings.publish_s:g} s"
            raise QueueUnavailable(self.fail(self.refusal or "it did not confirm a publish"))

    async def run(self, deliver: Callable[[list[Message]], None]) -> None:
        """Read and write until the connection fails.

        Args:
            deliver: called with the messages that have come.

        Raises:
            QueueUnavailable: always, unless cancelled.
        """
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            if self._failure is None:
                nursery.start_soon(self._write_forever)
                await self._read_forever(deliver)
            nursery.cancel_scope.cancel()
        raise QueueUnavailable(self.fail("the connection was closed"))

    def fail(self, reason: str) -> str:
        """End the connection, and all publishes that wait. Returns the reason: the first
        one given counts."""
        if self._failure is None:
            self._failure = reason
        if self._scope is not None:
            self._scope.cancel()
        for reply in self._replies:
            reply.arrived.set()
        self._replies.clear()
        self._buffer.clear()
        return self._failure

    async def say_goodbye(self, within_s: float) -> None:
        """Send the last commands, still in the buffer, although the task is cancelled.
        Only after `run` was cancelled."""
        data = bytes(self._buffer)
        # After half a command nothing can follow.
        if not data or self._sending or self._failure is not None:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + within_s):
            try:
                await self._stream.send_all(data)
            except trio.BrokenResourceError as error:
                logger.debug("%s: no goodbye: %s", self.address, reason_of(error))

    async def aclose(self) -> None:
        """Close the stream at once. nsqd gives messages in flight to other nodes only
        after their timeout."""
        self.fail("the connection was closed")
        await trio.aclose_forcefully(self._stream)

    def _send(self, data: bytes) -> None:
        if self._failure is not None:
            return
        self._buffer += data
        if len(self._buffer) > _MAX_BUFFERED_BYTES:
            self.fail("it takes nothing of what is sent")
            return
        self._outgoing.set()

    async def _write_forever(self) -> None:
        while True:
            await self._outgoing.wait()
            self._outgoing = trio.Event()
            data, self._buffer = bytes(self._buffer), bytearray()
            self._sending = True
            try:
                with trio.move_on_after(self._settings.write_s) as scope:
                    await self._stream.send_all(data)
            except trio.BrokenResourceError as error:
                self.fail(f"the connection broke: {reason_of(error)}")
                return
            if scope.cancelled_caught:
                self.fail(f"it took nothing for {self._settings.write_s:g} s")
                return
            self._sending = False

    async def _read_forever(self, deliver: Callable[[list[Message]], None]) -> None:
        try:
            while True:
                frames = list(self._frames) or await self._receive(self._silence_s)
                self._frames.clear()
                messages = [frame for frame in frames if isinstance(frame, Message)]
                for frame in frames:
                    if not isinstance(frame, Message):
                        self._handle(frame)
                if messages:
                    deliver(messages)
        except QueueUnavailable as error:
            self.fail(str(error))

    @property
    def _silence_s(self) -> float:
        return self._settings.heartbeat_s * _MISSED

    async def _receive(self, patience_s: float) -> list[Response]:
        data: bytes | bytearray | None = None
        try:
            with trio.move_on_after(patience_s):
                data = await self._stream.receive_some(_RECEIVE_BYTES)
        except trio.BrokenResourceError as error:
            raise QueueUnavailable(f"the connection broke: {reason_of(error)}") from error
        if data is None:
            raise QueueUnavailable(f"it gave no sign of life for {patience_s:g} s")
        if not data:
            raise QueueUnavailable("it closed the connection")
        return self._framer.feed(data)

    def _handle(self, frame: Response) -> None:
        if isinstance(frame, Error):
            text = wire.error_text(frame)
            if wire.is_fatal(frame):
                if self._replies and not text.startswith(_OF_NO_PUBLISH):
                    self.refusal = f"it answered {text}"
                    self.answered = True
                raise QueueUnavailable(f"it answered {text}")
            # The message has timed out, and nsqd may have given it to another node.
            self.not_in_flight += 1
            logger.debug("%s: %s", self.address, text)
        elif frame.data == wire.HEARTBEAT:
            self._send(wire.nop())
        elif frame.data == wire.OK and self._replies:
            reply = self._replies.popleft()
            reply.ok = True
            reply.arrived.set()
        else:
            raise QueueUnavailable("it sent an answer to nothing that was asked")

    async def begin(self) -> None:
        """Shake hands and subscribe. The caller sets a deadline.

        Raises:
            QueueUnavailable: it failed.
        """
        settings = self._settings
        asked = {
            "client_id": settings.client_id,
            "hostname": settings.client_id,
            "user_agent": f"taskd/{__version__}",
            "feature_negotiation": True,
            "heartbeat_interval": int(settings.heartbeat_s * _MS_PER_S),
            # Without buffers: a wake-up would wait until one is full, or for 250 ms.
            "output_buffer_size": -1,
            "output_buffer_timeout": -1,
            "msg_timeout": int(settings.message_timeout_s * _MS_PER_S),
            "tls_v1": settings.tls is not None,
        }
        try:
            frame = await self._ask(wire.MAGIC + wire.identify(asked))
        except QueueUnavailable as error:
            if _BAD_BODY not in str(error):
                raise
            raise QueueUnavailable(f"{_limits(settings, str(error))} ({error})") from error
        answer = _negotiated(frame)
        self._agree(answer)
        if settings.tls is not None:
            await self._begin_tls(settings.tls, offered=answer.get("tls_v1") is True)
        if answer.get("auth_required") is True:
            if settings.secret is None:
                raise QueueUnavailable("it asks for a secret: give nsq://:SECRET@HOST")
            await self._ask(wire.auth(settings.secret))
        await self._expect_ok(wire.subscribe(settings.topic, settings.channel))

    def _agree(self, answer: dict[str, object]) -> None:
        max_rdy = answer.get("max_rdy_count")
        if isinstance(max_rdy, int) and max_rdy > 0:
            self.max_rdy = min(max_rdy, wire.MAX_RDY)
        most_ms = answer.get("max_msg_timeout")
        if isinstance(most_ms, int) and 0 < most_ms < self._settings.message_timeout_s * _MS_PER_S:
            raise QueueUnavailable(_limits(self._settings, "timeout"))
        timeout_ms = answer.get("msg_timeout")
        if isinstance(timeout_ms, int) and timeout_ms > 0:
            self.message_timeout_s = max(timeout_ms / _MS_PER_S, _MIN_MESSAGE_TIMEOUT_S)

    async def _begin_tls(self, context: ssl.SSLContext, *, offered: bool) -> None:
        if not offered:
            raise QueueUnavailable("it does not offer TLS")
        if self._frames or self._framer.pending:
            # These bytes came in the clear, and would be read as if they came under TLS.
            raise QueueUnavailable("it sent more before TLS had begun")
        name = self.address.host.rstrip(".")
        stream = trio.SSLStream(self._stream, context, server_hostname=name)
        self._stream = stream
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            raise QueueUnavailable(f"TLS failed: {reason_of(error)}") from error
        try:
            await self._expect_ok(b"")
        except QueueUnavailable as error:
            if self._settings.shows_certificate or "cert_file" in str(error):
                raise
            # nsqd may close without an alert for the missing certificate, or it was lost.
            raise QueueUnavailable(
                f"{error}, right after TLS had begun: perhaps it asks for {_CERTIFICATE}"
            ) from error

    async def _expect_ok(self, command: bytes) -> None:
        frame = await self._ask(command)
        if frame.data != wire.OK:
            raise QueueUnavailable("it sent an answer to nothing that was asked")

    async def _ask(self, command: bytes) -> Response:
        """Send a command and return the answer; heartbeats are answered on the way."""
        await self._send_now(command)
        while True:
            while not self._frames:
                self._frames += await self._receive(self._settings.connect_s)
            frame = self._frames.popleft()
            if isinstance(frame, Error):
                raise QueueUnavailable(f"it answered {wire.error_text(frame)}")
            if isinstance(frame, Message):
                raise QueueUnavailable("it sent a message that was not asked for")
            if frame.data != wire.HEARTBEAT:
                return frame
            await self._send_now(wire.nop())

    async def _send_now(self, data: bytes) -> None:
        if not data:
            return
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise QueueUnavailable(f"the connection broke: {reason_of(error)}") from error


async def connect(address: Address, settings: ConnectionSettings) -> NsqConnection:
    """Dial an nsqd, shake hands, subscribe.

    Raises:
        QueueUnavailable: it can't be used, and why.
    """
    connection: NsqConnection | None = None
    begun = False
    try:
        with trio.fail_after(settings.connect_s):
            # TCP_NODELAY is set by Trio: a lone wake-up leaves at once.
            stream = await trio.open_tcp_stream(address.host, address.port)
            connection = NsqConnection(stream, address, settings)
            await connection.begin()
        begun = True
    except trio.TooSlowError as error:
        raise QueueUnavailable(f"it did not answer within {settings.connect_s:g} s") from error
    except OSError as error:
        raise QueueUnavailable(f"it can't be reached: {reason_of(error)}") from error
    finally:
        if connection is not None and not begun:
            await connection.aclose()
    return connection


def _limits(settings: ConnectionSettings, said: str) -> str:
    """Which of nsqd's limits is below what is asked for. nsqd's words tell which one; both
    are named if they don't."""
    timeout = f"--max-msg-timeout is under {settings.message_timeout_s:g}s"
    heartbeat = f"--max-heartbeat-interval is under {settings.heartbeat_s:g}s"
    if "heartbeat" in said:
        limit = heartbeat
    elif "timeout" in said:
        limit = timeout
    else:
        limit = f"{timeout}, or its {heartbeat}"
    return f"its {limit}, which taskd asks for: raise it"


def _negotiated(frame: Response) -> dict[str, object]:
    try:
        answer = load_json(bytes(frame.data))
    except ValueError as error:
        raise QueueUnavailable("it does not negotiate features: is it an nsqd?") from error
    if not isinstance(answer, dict):
        raise QueueUnavailable("it does not negotiate features: is it an nsqd?")
    return answer


def reason_of(error: BaseException) -> str:
    """The root cause of a failure, in a few words."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, BaseExceptionGroup):
        return reason_of(error.exceptions[0])
    if isinstance(error, ssl.SSLError) and error.reason:
        return _tls_reason(error)
    if isinstance(error, OSError) and error.strerror:
        if error.errno and not isinstance(error, socket.gaierror):
            # Trio's own text for a failed connect names the address once more.
            return os.strerror(error.errno)
        return error.strerror
    return str(error) or type(error).__name__


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message.rstrip('.')}"
    if "CERTIFICATE_REQUIRED" in error.reason:
        return f"it asks for {_CERTIFICATE}"
    return error.reason.replace("_", " ").lower()
