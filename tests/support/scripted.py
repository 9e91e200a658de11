"""A receiver in which a test scripts, byte for byte, what is answered."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

SUCCESS = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsuccess"


@dataclass(frozen=True)
class Request:
    """What a receiver got."""

    line: str
    headers: dict[str, str]
    """By their names as they were sent."""
    body: bytes = field(repr=False)


class Peer:
    """One accepted connection."""

    def __init__(self, stream: trio.abc.Stream, sock: trio.SocketStream) -> None:
        self.stream = stream
        self._tcp = sock
        self.buffer = bytearray()
        """What was read and not taken."""

    async def read_head(self) -> Request:
        """Read a request's head, and leave its body where it is."""
        while b"\r\n\r\n" not in self.buffer:
            await self.more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        line, *lines = head.decode("ascii").split("\r\n")
        headers = dict(text.split(": ", 1) for text in lines)
        assert len(headers) == len(lines), "a header was sent twice"
        return Request(line, headers, b"")

    async def read_request(self) -> Request:
        """Read a whole request."""
        request = await self.read_head()
        length = int(request.headers["Content-Length"])
        while len(self.buffer) < length:
            await self.more()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return Request(request.line, request.headers, bytes(body))

    async def answer(self, data: bytes = SUCCESS) -> Request:
        """Read a request and answer it with these bytes."""
        request = await self.read_request()
        await self.stream.send_all(data)
        return request

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def wait_closed(self) -> None:
        """Return once the client has closed; fail if it sends any more."""
        try:
            data = await self.stream.receive_some()
        except trio.BrokenResourceError:
            return
        assert not data, f"the client sent {data!r}"

    def reset(self) -> None:
        """Close with a TCP reset."""
        self._tcp.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._tcp.socket.close()

    async def more(self) -> None:
        """Read on, into the buffer."""
        data = bytes(await self.stream.receive_some())
        if not data:
            raise trio.BrokenResourceError("the client closed")
        self.buffer += data


Script = Callable[[Peer], Awaitable[None]]


class Receiver:
    """A listening receiver."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port = port
        self.scheme = scheme
        self.connections = 0
        """Accepted so far."""

    def url(self, path: str = "/cb", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"


@asynccontextmanager
async def scripted(
    script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Receiver]:
    """Listen on port 0 and run the script for each connection, which is closed
    when the script returns. An error of the script fails the test, unless it is
    that the client has closed."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=host)
        port = listeners[0].socket.getsockname()[1]
        receiver = Receiver(port, "http" if tls is None else "https")

        async def handle(tcp: trio.SocketStream) -> None:
            receiver.connections += 1
            stream: trio.abc.Stream = tcp
            if tls is not None:
                stream = trio.SSLStream(tcp, tls, server_side=True, https_compatible=True)
            peer = Peer(stream, tcp)
            try:
                await script(peer)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                await trio.aclose_forcefully(tcp)

        nursery.start_soon(trio.serve_listeners, handle, listeners)
        try:
            yield receiver
        except Exception as error:  # noqa: BLE001 - raised below, out of the nursery's group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
