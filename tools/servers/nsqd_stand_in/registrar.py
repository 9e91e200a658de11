"""How the nsqd stand-in registers with an nsqlookupd, the stand-in's or a real one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import trio

from tools.servers.nsqd_stand_in.broker import Broker

_SIZE = struct.Struct(">i")
_RETRY_S = 0.1

Registration = tuple[str, str]
"""A topic, and a channel of it or nothing."""


class Registrar:
    """Keeps an nsqlookupd told of the topics and channels of a broker.

    Args:
        host, port: the nsqlookupd's, of its TCP.
        broker: whose topics and channels.
        info: how this nsqd is reached.
        ping_s: how often it gives a sign of life; nsqd's is 15.
    """

    def __init__(
        self,
        host: str,
        port: int,
        broker: Broker,
        info: Callable[[], dict[str, Any]],
        ping_s: float,
    ) -> None:
        self._host = host
        self._port = port
        self._broker = broker
        self._info = info
        self._ping_s = ping_s
        self._changed = trio.Event()

    def notify(self) -> None:
        """There is another topic or channel, or one less."""
        self._changed.set()

    async def run(self) -> None:
        """Stay registered until cancelled."""
        while True:
            try:
                async with await trio.open_tcp_stream(self._host, self._port) as stream:
                    await self._stay(stream)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
                await trio.sleep(_RETRY_S)

    async def _stay(self, stream: trio.SocketStream) -> None:
        body = json.dumps(self._info()).encode()
        await stream.send_all(b"  V1")
        await _ask(stream, b"IDENTIFY\n" + _SIZE.pack(len(body)) + body)
        told: set[Registration] = set()
        while True:
            self._changed = trio.Event()
            there = self._there()
            for word, some in (("REGISTER", there - told), ("UNREGISTER", told - there)):
                # A channel before its topic goes, and a topic before its channel comes.
                for registration in sorted(some, reverse=word == "UNREGISTER"):
                    line = " ".join((word, *registration)).rstrip()
                    await _ask(stream, line.encode() + b"\n")
            told = there
            with trio.move_on_after(self._ping_s) as pause:
                await self._changed.wait()
            if pause.cancelled_caught:
                await _ask(stream, b"PING\n")

    def _there(self) -> set[Registration]:
        topics = self._broker.topics.values()
        channels = {(topic.name, name) for topic in topics for name in topic.channels}
        return channels | {(topic.name, "") for topic in topics}


async def _ask(stream: trio.SocketStream, command: bytes) -> bytes:
    await stream.send_all(command)
    data = bytearray()
    while len(data) < _SIZE.size or len(data) < _SIZE.size + _SIZE.unpack_from(data)[0]:
        more = await stream.receive_some()
        if not more:
            raise EOFError
        data += more
    return bytes(data[_SIZE.size :])
