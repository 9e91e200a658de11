"""One client of the nsqd stand-in: the bytes of its commands in, frames out. No I/O.

The codes of errors, and which of them close the connection, are nsqd's; the words after
a code are the stand-in's own, so a client must not depend on them.
"""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from tools.servers.nsqd_stand_in.broker import (
    VERSION,
    Broker,
    Channel,
    DiskFull,
    Message,
    NotInFlight,
)

RESPONSE, ERROR, MESSAGE = 0, 1, 2
MAX_READY = 2500
_MAX_LINE = 16 * 1024
_MAX_REQUEUE_MS = 3_600_000
_NAME = re.compile(rb"[.a-zA-Z0-9_-]{1,64}(#ephemeral)?")
_FRAME = struct.Struct(">iiqH16s")
_SIZE = struct.Struct(">i")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an operator may set; the defaults are nsqd's."""

    max_msg_size: int = 1024 * 1024
    max_body_size: int = 5 * 1024 * 1024
    msg_timeout_ms: int = 60_000
    min_msg_timeout_ms: int = 1_000
    max_msg_timeout_ms: int = 900_000
    mem_queue_size: int = 10_000
    heartbeat_ms: int = 30_000
    min_heartbeat_ms: int = 1_000
    max_heartbeat_ms: int = 60_000
    tls: bool = False
    tls_required: bool = False
    auth_secret: str | None = None
    """What AUTH has to say; without one there is no AUTH."""
    auth_topics: str = ".*"
    """Pattern of the topics that the secret gives access to."""
    auth_permissions: str = "publish subscribe"
    """What it may be used for there."""


class State(Enum):
    """INIT until SUB, SUBSCRIBED until CLS."""

    INIT = auto()
    SUBSCRIBED = auto()
    CLOSING = auto()


class Refused(Exception):
    """A command is answered with an error; ``fatal`` closes the connection."""

    def __init__(self, code: str, text: str, *, fatal: bool = True) -> None:
        super().__init__(f"{code} {text}")
        self.fatal = fatal


class _Incomplete(Exception):
    """The rest of the command is still under way."""


class Session:
    """Give it what arrives by `feed`, and send what `take` returns whenever it asks
    for that by ``wake``."""

    def __init__(
        self,
        broker: Broker,
        options: Options,
        *,
        peer: str,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._options = options
        self._peer = peer
        self._clock = clock
        self._wake = wake
        self._input = bytearray()
        self._output = bytearray()
        self._flushed = 0  # how much of the output may leave
        self._magic = False
        self._authorized = False
        self._state = State.INIT
        self._channel: Channel | None = None
        self._ready = 0
        self._in_flight = 0
        self._msg_timeout_s = options.msg_timeout_ms / 1000
        self._sample_rate = 0
        self._buffer_size = 16 * 1024
        self._client: dict[str, Any] = {}
        self._counts = {"message_count": 0, "finish_count": 0, "requeue_count": 0}
        self.heartbeat_s = options.heartbeat_ms / 1000
        self.buffer_timeout_s = 0.25
        self.identified = False
        self.secure = False
        self.upgrading = False
        """The next thing to do is a TLS handshake, once all output is sent."""
        self.closing = False
        """The connection is to be closed, once all output is sent."""
        self.commands = 0
        """How many were complete."""

    # -- in

    def feed(self, data: bytes | bytearray) -> None:
        """Work on what arrived: every command that is complete now."""
        self._input += data
        try:
            if not self._magic and not self._read_magic():
                return
            while self._input and not self.closing and not self.upgrading:
                self._command()
                self.commands += 1
        except _Incomplete:
            pass

    def _read_magic(self) -> bool:
        if len(self._input) < 4:
            return False
        if self._input[:4] != b"  V2":
            self._send(ERROR, b"E_BAD_PROTOCOL")
            self.closing = True
            return False
        del self._input[:4]
        self._magic = True
        return True

    def _command(self) -> None:
        end = self._input.find(b"\n")
        if end < 0 or end > _MAX_LINE:
            if len(self._input) > _MAX_LINE:
                self.closing = True
                self._wake()
            raise _Incomplete
        name, *parameters = bytes(self._input[:end]).removesuffix(b"\r").split(b" ")
        self._body_at = end + 1
        try:
            answer = self._run_of(name)(self, parameters)
        except Refused as refused:
            self._send(ERROR, str(refused).encode())
            self.closing = self.closing or refused.fatal
            answer = None
        del self._input[: self._body_at]
        if answer is not None:
            self._send(RESPONSE, answer)

    def _run_of(self, name: bytes) -> _Run:
        if self._options.tls_required and not self.secure and name != b"IDENTIFY":
            raise Refused("E_INVALID", f"{_shown(name)} needs TLS")
        run = _COMMANDS.get(name)
        if run is None:
            raise Refused("E_INVALID", f"there is no command {_shown(name)}")
        return run

    def _body(self, code: str, most: int) -> bytes:
        """The body of the command in hand."""
        start = self._body_at
        if len(self._input) < start + 4:
            raise _Incomplete
        (size,) = _SIZE.unpack_from(self._input, start)
        if size <= 0 or size > most:
            raise Refused(code, f"a body of {size} bytes is not between 1 and {most}")
        if len(self._input) < start + 4 + size:
            raise _Incomplete
        self._body_at = start + 4 + size
        return bytes(self._input[start + 4 : self._body_at])

    # -- commands

    def _identify(self, _: list[bytes]) -> bytes | None:
        self._need(State.INIT, "IDENTIFY")
        if self.identified:
            raise Refused("E_INVALID", "IDENTIFY was said already")
        try:
            said = json.loads(self._body("E_BAD_BODY", self._options.max_body_size))
        except ValueError:
            raise Refused("E_BAD_BODY", "IDENTIFY takes JSON") from None
        if not isinstance(said, dict):
            raise Refused("E_BAD_BODY", "IDENTIFY takes an object")
        self._negotiate(said)
        self.identified = True
        if not said.get("feature_negotiation"):
            return b"OK"
        self.upgrading = self._options.tls and bool(said.get("tls_v1"))
        return json.dumps(
            {
                "max_rdy_count": MAX_READY,
                "version": VERSION,
                "max_msg_timeout": self._options.max_msg_timeout_ms,
                "msg_timeout": round(self._msg_timeout_s * 1000),
                "tls_v1": self.upgrading,
                "deflate": False,
                "deflate_level": 0,
                "max_deflate_level": 6,
                "snappy": False,
                "sample_rate": self._sample_rate,
                "auth_required": self._options.auth_secret is not None,
                "output_buffer_size": self._buffer_size,
                "output_buffer_timeout": round(self.buffer_timeout_s * 1000),
            }
        ).encode()

    def _negotiate(self, said: dict[str, Any]) -> None:
        options = self._options
        self._client = said
        heartbeat = _asked(
            said, "heartbeat_interval", options.min_heartbeat_ms, options.max_heartbeat_ms
        )
        if heartbeat:
            self.heartbeat_s = max(0, heartbeat) / 1000
        size = _asked(said, "output_buffer_size", 64, 64 * 1024)
        if size:
            self._buffer_size = max(1, size)
        timeout = _asked(said, "output_buffer_timeout", 25, 30_000)
        if timeout:
            self.buffer_timeout_s = max(0, timeout) / 1000
        timeout = _asked(
            said, "msg_timeout", options.min_msg_timeout_ms, options.max_msg_timeout_ms, off=False
        )
        if timeout:
            self._msg_timeout_s = timeout / 1000
        self._sample_rate = _asked(said, "sample_rate", 1, 99, off=False)

    def _auth(self, parameters: list[bytes]) -> bytes:
        self._need(State.INIT, "AUTH")
        if parameters:
            raise Refused("E_INVALID", "AUTH takes no parameter")
        secret = self._body("E_BAD_BODY", self._options.max_body_size)
        if self._authorized:
            raise Refused("E_INVALID", "AUTH was said already")
        if self._options.auth_secret is None:
            raise Refused("E_AUTH_DISABLED", "nobody needs AUTH here")
        if secret != self._options.auth_secret.encode():
            raise Refused("E_AUTH_FAILED", "AUTH is not right")
        self._authorized = True
        return b'{"identity":"stand-in","identity_url":"","permission_count":1}'

    def _check_auth(self, command: str, topic: str) -> None:
        if self._options.auth_secret is None:
            return
        if not self._authorized:
            raise Refused("E_AUTH_FIRST", f"{command} needs AUTH before it")
        needed = "subscribe" if command == "SUB" else "publish"
        may = needed in self._options.auth_permissions.split()
        if not may or not re.fullmatch(self._options.auth_topics, topic):
            raise Refused("E_UNAUTHORIZED", f"{command} of {topic} is not allowed")

    def _sub(self, parameters: list[bytes]) -> bytes:
        self._need(State.INIT, "SUB")
        if not self.heartbeat_s:
            raise Refused("E_INVALID", "SUB needs heartbeats")
        if len(parameters) < 2:
            raise Refused("E_INVALID", "SUB takes a topic and a channel")
        topic = _name(parameters[0], "E_BAD_TOPIC", "SUB")
        channel = _name(parameters[1], "E_BAD_CHANNEL", "SUB")
        self._check_auth("SUB", topic)
        self._channel = self._broker.subscribe(topic, channel, self, self._clock())
        self._state = State.SUBSCRIBED
        return b"OK"

    def _rdy(self, parameters: list[bytes]) -> None:
        if self._state is State.CLOSING:
            return
        self._need(State.SUBSCRIBED, "RDY")
        count = _number(parameters[0], "RDY") if parameters else 1
        if not 0 <= count <= MAX_READY:
            raise Refused("E_INVALID", f"RDY {count} is not between 0 and {MAX_READY}")
        self._ready = count
        self._pump()
        if not self.wants:
            self.flush()

    def _fin(self, parameters: list[bytes]) -> None:
        channel, message_id = self._held("FIN", parameters, 1)
        try:
            channel.finish(message_id, self)
        except NotInFlight as error:
            raise Refused("E_FIN_FAILED", _of("FIN", message_id, error), fatal=False) from None
        self._counts["finish_count"] += 1
        self._in_flight -= 1
        self._pump()

    def _req(self, parameters: list[bytes]) -> None:
        channel, message_id = self._held("REQ", parameters, 2)
        delay_ms = min(max(_number(parameters[1], "REQ"), 0), _MAX_REQUEUE_MS)
        try:
            channel.requeue(message_id, self, self._clock(), delay_ms / 1000)
        except NotInFlight as error:
            raise Refused("E_REQ_FAILED", _of("REQ", message_id, error), fatal=False) from None
        self._counts["requeue_count"] += 1
        self._in_flight -= 1
        self._pump()

    def _touch(self, parameters: list[bytes]) -> None:
        channel, message_id = self._held("TOUCH", parameters, 1)
        try:
            channel.touch(message_id, self, self._clock(), self._msg_timeout_s)
        except NotInFlight as error:
            raise Refused("E_TOUCH_FAILED", _of("TOUCH", message_id, error), fatal=False) from None

    def _held(self, command: str, parameters: list[bytes], least: int) -> tuple[Channel, bytes]:
        if self._channel is None:
            raise Refused("E_INVALID", f"{command} comes after SUB")
        if len(parameters) < least:
            raise Refused("E_INVALID", f"{command} takes {least} parameters")
        if len(parameters[0]) != 16:
            raise Refused("E_INVALID", f"{_shown(parameters[0])} is no id of a message")
        return self._channel, parameters[0]

    def _cls(self, _: list[bytes]) -> bytes:
        self._need(State.SUBSCRIBED, "CLS")
        self._ready = 0
        self._state = State.CLOSING
        return b"CLOSE_WAIT"

    def _nop(self, _: list[bytes]) -> None:
        pass

    def _pub(self, parameters: list[bytes]) -> bytes:
        if not parameters:
            raise Refused("E_INVALID", "PUB takes a topic")
        topic = _name(parameters[0], "E_BAD_TOPIC", "PUB")
        body = self._body("E_BAD_MESSAGE", self._options.max_msg_size)
        return self._publish("PUB", topic, [body])

    def _dpub(self, parameters: list[bytes]) -> bytes:
        if len(parameters) < 2:
            raise Refused("E_INVALID", "DPUB takes a topic and a delay")
        topic = _name(parameters[0], "E_BAD_TOPIC", "DPUB")
        delay_ms = _number(parameters[1], "DPUB")
        if not 0 <= delay_ms <= _MAX_REQUEUE_MS:
            raise Refused("E_INVALID", f"DPUB {delay_ms} is not between 0 and {_MAX_REQUEUE_MS}")
        body = self._body("E_BAD_MESSAGE", self._options.max_msg_size)
        return self._publish("DPUB", topic, [body], delay_ms / 1000)

    def _mpub(self, parameters: list[bytes]) -> bytes:
        if not parameters:
            raise Refused("E_INVALID", "MPUB takes a topic")
        topic = _name(parameters[0], "E_BAD_TOPIC", "MPUB")
        body = self._body("E_BAD_BODY", self._options.max_body_size)
        return self._publish("MPUB", topic, _messages(body, self._options.max_msg_size))

    def _publish(
        self, command: str, topic: str, bodies: list[bytes], delay_s: float = 0.0
    ) -> bytes:
        self._check_auth(command, topic)
        if self._broker.faults.refuse_publish:
            raise Refused(f"E_{command}_FAILED", f"{command} is refused for a test")
        try:
            self._broker.topic(topic).publish(bodies, self._clock(), time.time_ns(), delay_s)
        except DiskFull as error:
            raise Refused(f"E_{command}_FAILED", f"{command}: {error}") from None
        return b"OK"

    def _need(self, state: State, command: str) -> None:
        if self._state is not state:
            raise Refused("E_INVALID", f"{command} is out of place")

    def _pump(self) -> None:
        if self._channel is not None and self._channel.ready:
            self._channel.pump(self._clock())

    # -- as a consumer

    @property
    def wants(self) -> bool:
        return self._ready > self._in_flight and not self.closing

    def deliver(self, message: Message, channel: Channel, now: float) -> None:
        if self._sample_rate and self._broker.random.randrange(100) > self._sample_rate:
            return
        channel.start(message, self, now, self._msg_timeout_s)
        self._in_flight += 1
        self._counts["message_count"] += 1
        self._output += _FRAME.pack(
            len(message.body) + 30, MESSAGE, message.timestamp_ns, message.attempts, message.id
        )
        self._output += message.body
        # It leaves when the buffer is full, when no more can follow, or with the next
        # flush; so a client that wants it at once turns the buffer off.
        if len(self._output) - self._flushed >= self._buffer_size or not self.wants:
            self.flush()

    def lost(self) -> None:
        self._in_flight -= 1

    def close(self) -> None:
        self.closing = True
        self._wake()

    def describe(self) -> dict[str, Any]:
        return {
            "client_id": self._client.get("client_id", ""),
            "hostname": self._client.get("hostname", ""),
            "user_agent": self._client.get("user_agent", ""),
            "version": "V2",
            "remote_address": self._peer,
            "state": {State.SUBSCRIBED: 3, State.CLOSING: 4}.get(self._state, 0),
            "ready_count": self._ready,
            "in_flight_count": self._in_flight,
            "tls": self.secure,
            "authed": self._authorized,
            **self._counts,
        }

    # -- out

    def heartbeat(self) -> None:
        self._send(RESPONSE, b"_heartbeat_")

    def secured(self) -> None:
        """The TLS handshake was made."""
        self.secure = True
        self.upgrading = False
        self._send(RESPONSE, b"OK")

    def inject(self, raw: bytes) -> None:
        """Send bytes that are no answer to anything."""
        self._output += raw
        self.flush()

    def flush(self) -> None:
        """Let go what is buffered."""
        if len(self._output) > self._flushed:
            self._flushed = len(self._output)
            self._wake()

    @property
    def unsent(self) -> bool:
        """Whether there is something to `take`."""
        return self._flushed > 0

    def take(self) -> bytes:
        """What is to be sent now."""
        taken = bytes(self._output[: self._flushed])
        del self._output[: self._flushed]
        self._flushed = 0
        return taken

    def _send(self, kind: int, data: bytes) -> None:
        self._output += struct.pack(">ii", len(data) + 4, kind) + data
        self.flush()

    def end(self) -> None:
        """The connection is gone."""
        self.closing = True
        if self._channel is not None:
            self._broker.leave(self._channel, self)
            self._channel = None


_Run = Callable[[Session, list[bytes]], bytes | None]

_COMMANDS: dict[bytes, _Run] = {
    b"IDENTIFY": Session._identify,
    b"AUTH": Session._auth,
    b"SUB": Session._sub,
    b"RDY": Session._rdy,
    b"FIN": Session._fin,
    b"REQ": Session._req,
    b"TOUCH": Session._touch,
    b"CLS": Session._cls,
    b"NOP": Session._nop,
    b"PUB": Session._pub,
    b"MPUB": Session._mpub,
    b"DPUB": Session._dpub,
}


def _asked(said: dict[str, Any], key: str, least: int, most: int, *, off: bool = True) -> int:
    """What a client asks for; 0 is the default, and -1, where it may, turns it off."""
    value = said.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused("E_BAD_BODY", f"IDENTIFY {key} takes a number")
    if value == 0 or (off and value == -1) or least <= value <= most:
        return value
    raise Refused("E_BAD_BODY", f"IDENTIFY {key} {value} is not between {least} and {most}")


def _messages(body: bytes, max_msg_size: int) -> list[bytes]:
    """The messages in the body of an MPUB."""
    if len(body) < 4:
        raise Refused("E_BAD_BODY", "MPUB takes a count of messages")
    (count,) = _SIZE.unpack_from(body, 0)
    if not 0 < count <= (len(body) - 4) // 5:
        raise Refused("E_BAD_BODY", f"MPUB can't hold {count} messages")
    messages = []
    at = 4
    for number in range(count):
        if at + 4 > len(body):
            raise Refused("E_BAD_MESSAGE", f"MPUB ends before message {number}")
        (size,) = _SIZE.unpack_from(body, at)
        if not 0 < size <= max_msg_size:
            raise Refused("E_BAD_MESSAGE", f"MPUB message {number} has {size} bytes")
        at += 4 + size
        if at > len(body):
            raise Refused("E_BAD_MESSAGE", f"MPUB ends in message {number}")
        messages.append(body[at - size : at])
    return messages


def _name(raw: bytes, code: str, command: str) -> str:
    if len(raw) > 64 or not _NAME.fullmatch(raw):
        raise Refused(code, f"{command} {_shown(raw)} is no name")
    return raw.decode()


def _number(raw: bytes, command: str) -> int:
    if not re.fullmatch(rb"[0-9]{1,18}", raw):
        raise Refused("E_INVALID", f"{command} {_shown(raw)} is no number")
    return int(raw)


def _of(command: str, message_id: bytes, error: NotInFlight) -> str:
    return f"{command} {_shown(message_id)} failed: {error}"


def _shown(raw: bytes) -> str:
    return raw[:64].decode("ascii", "backslashreplace")
