"""A receiver that is not the bottleneck: one epoll loop, in a process of its own.

It answers ``success`` to every complete POST, and notes when each arrived. The
ledger is asked for over the same port with ``GET /ledger``, which also empties it.
Run as ``python -m tools.bench.receiver``; prints its port.
"""

from __future__ import annotations

import json
import selectors
import socket
import time

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsuccess"
_LENGTH = b"content-length:"
_TASK_ID = b"taskd-task-id:"


class Connection:
    """One client's socket and what has come of its next request."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""


class Receiver:
    """The loop and its ledger: ``[task_id, arrival in Unix ms]`` a delivery."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.ledger: list[tuple[int, float]] = []

    def serve(self) -> None:
        """Run until killed."""
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)

    def _accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except BlockingIOError:
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.selector.register(sock, selectors.EVENT_READ, Connection(sock))

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.selector.unregister(connection.sock)
            connection.sock.close()
            return
        connection.buffer += data
        while True:
            head, found, rest = connection.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            if head.startswith(b"GET /ledger"):
                self._tell(connection)
                connection.buffer = rest
                continue
            lower = head.lower()
            length = _number(lower, _LENGTH)
            if len(rest) < length:
                return
            self.ledger.append((_number(lower, _TASK_ID), time.time() * 1000))
            connection.buffer = rest[length:]
            connection.sock.sendall(_ANSWER)

    def _tell(self, connection: Connection) -> None:
        body = json.dumps(self.ledger).encode()
        self.ledger.clear()
        connection.sock.setblocking(True)
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def _number(head: bytes, name: bytes) -> int:
    start = head.index(name) + len(name)
    end = head.find(b"\r\n", start)
    return int(head[start:] if end < 0 else head[start:end])


if __name__ == "__main__":
    receiver = Receiver()
    print(receiver.listener.getsockname()[1], flush=True)
    receiver.serve()
