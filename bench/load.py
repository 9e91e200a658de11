"""Load generation: signed creates over keep-alive connections, from one epoll loop.

Requests are signed and laid out before the clock starts, so that the generator
takes as little as it can of the machine that it shares with the daemon.
"""

from __future__ import annotations

import json
import secrets
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from taskd import signing

CONTENT = json.dumps({"order": 1001, "customer": "c" * 40, "note": "n" * 110})
"""About 200 bytes of JSON text, as the content of every task."""


@dataclass(frozen=True)
class Keys:
    """What an application signs with."""

    app_key: str
    secret_key: str


@dataclass(frozen=True)
class Created:
    """One answered create, or batch of them."""

    task_id: int
    """Of a batch, its first task's."""
    sent_ms: float
    """Unix ms when the request was handed to the socket."""
    took_ms: float


def create_request(url: str, keys: Keys, *, runtime_ms: int | None = None) -> bytes:
    """A complete signed POST /task/create."""
    return _request(url, keys, "/task/create", _task(runtime_ms))


def batch_request(url: str, keys: Keys, count: int, *, runtime_ms: int | None = None) -> bytes:
    """A complete signed POST /task/batch of so many tasks."""
    return _request(url, keys, "/task/batch", {"tasks": [_task(runtime_ms) for _ in range(count)]})


def _task(runtime_ms: int | None) -> dict[str, object]:
    task: dict[str, object] = {
        "taskNo": secrets.token_hex(12),
        "name": "bench",
        "content": CONTENT,
        "timeout": 10_000,
    }
    if runtime_ms is not None:
        task["runtime"] = runtime_ms / 1000
    return task


def _request(url: str, keys: Keys, path: str, values: dict[str, object]) -> bytes:
    body = json.dumps(values).encode()
    headers = signing.sign_headers(
        keys.app_key,
        keys.secret_key,
        body,
        now_ms=time.time_ns() // 1_000_000,
        nonce=secrets.token_hex(12),
    )
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class _Client:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.sock = socket.create_connection((parts.hostname, parts.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.sent_ms = 0.0

    def send(self, request: bytes) -> None:
        self.buffer = b""
        self.sent_ms = time.time() * 1000
        self.sock.sendall(request)

    def received(self) -> Created | None:
        """The answer, once it is complete."""
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("the daemon closed the connection")
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        lower = head.lower()
        start = lower.index(b"content-length:") + 15
        if len(body) < int(lower[start:].split(b"\r\n", 1)[0]):
            return None
        answer = json.loads(body)
        if answer["code"] != 0:
            raise RuntimeError(f"a create was refused: {answer}")
        results = answer["data"].get("results", [answer["data"]])
        if any("coroutine_id" not in result for result in results):
            raise RuntimeError(f"a task of a batch was refused: {answer}")
        return Created(results[0]["coroutine_id"], self.sent_ms, time.time() * 1000 - self.sent_ms)


def submit(url: str, requests: Sequence[bytes], *, connections: int) -> tuple[float, list[Created]]:
    """Send all requests, one at a time per connection. Seconds taken, answers."""
    selector = selectors.DefaultSelector()
    clients = [_Client(url) for _ in range(connections)]
    waiting = iter(requests)
    created: list[Created] = []
    began = time.perf_counter()
    for client in clients:
        request = next(waiting, None)
        if request is not None:
            client.send(request)
            selector.register(client.sock, selectors.EVENT_READ, client)
    while len(created) < len(requests):
        for key, _ in selector.select():
            answer = key.data.received()
            if answer is None:
                continue
            created.append(answer)
            request = next(waiting, None)
            if request is None:
                selector.unregister(key.data.sock)
            else:
                key.data.send(request)
    took = time.perf_counter() - began
    for client in clients:
        client.sock.close()
    return took, created


def submit_paced(url: str, requests: Sequence[bytes], *, per_second: float) -> list[Created]:
    """Send the requests one at a time at an even rate, each on the first free of a
    few connections."""
    client = _Client(url)
    created = []
    began = time.perf_counter()
    for index, request in enumerate(requests):
        left = began + index / per_second - time.perf_counter()
        if left > 0:
            time.sleep(left)
        client.send(request)
        while (answer := client.received()) is None:
            pass
        created.append(answer)
    client.sock.close()
    return created
