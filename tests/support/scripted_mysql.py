"""The beginning of a conversation with a MySQL server, as a test scripts it."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

SALT = bytes(range(1, 21))

SSL = 1 << 11
_CAPABILITIES = 1 | 1 << 2 | 1 << 3 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 19 | 1 << 21

OK = b"\x00\x00\x00\x02\x00\x00\x00"

Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The client of a scripted server, packet by packet."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = b""
        self._number = 0

    async def send(self, payload: bytes) -> None:
        await self.stream.send_all(self.packet(payload))

    def packet(self, payload: bytes) -> bytes:
        header = struct.pack("<I", len(payload))[:3] + bytes([self._number])
        self._number = (self._number + 1) % 256
        return header + payload

    async def receive(self) -> bytes:
        """The next packet's payload; empty at the end."""
        header = await self._exactly(4)
        if not header:
            return b""
        self._number = (header[3] + 1) % 256
        return await self._exactly(int.from_bytes(header[:3], "little"))

    async def greet(self, *, plugin: str, tls: bool = False) -> None:
        await self.send(greeting(plugin=plugin, tls=tls))

    async def relay(self, plugin: str) -> bytes:
        """Ask for another way to authenticate; what the client answers."""
        await self.send(b"\xfe" + plugin.encode() + b"\0" + SALT + b"\0")
        return await self.receive()

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = await self.stream.receive_some(size - len(data))
            if not part:
                return b""
            data += part
        self.received += data
        return data


def greeting(*, plugin: str, tls: bool) -> bytes:
    capabilities = _CAPABILITIES | (SSL if tls else 0)
    return (
        b"\x0a8.4.0\0"
        + struct.pack("<I", 7)
        + SALT[:8]
        + b"\0"
        + struct.pack("<HBHHB", capabilities & 0xFFFF, 45, 2, capabilities >> 16, 21)
        + bytes(10)
        + SALT[8:]
        + b"\0"
        + plugin.encode()
        + b"\0"
    )


@asynccontextmanager
async def scripted_mysql(script: Script) -> AsyncIterator[int]:
    """A server on a free port that plays the script with whoever connects; its port.
    It has played it to the end when the context is left."""
    ended = trio.Event()
    failures: list[Exception] = []

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await script(Peer(stream))
        except Exception as error:  # noqa: BLE001 - raised below: here the end would hide it
            failures.append(error)
        finally:
            await trio.aclose_forcefully(stream)
            ended.set()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        await ended.wait()
        nursery.cancel_scope.cancel()
    for error in failures:
        raise error
