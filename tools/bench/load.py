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

from taskd.domain import signing

CONTENT = json.dumps({"order": 1001, "customer": "c" * 40, "note": "n" * 110})
"""About 200 bytes of JSON text, as the content of every task."""


@dataclass(frozen=True)
class Keys:
    """What an application signs with."""

    app_key: str
    secret_key: str


@dataclass(frozen=True)
class Created:
    """One answered create."""

    task_id: int
    sent_ms: float
    """Unix ms when the request was handed to the socket."""
    took_ms: float


def create_request(url: str, keys: Keys, *, runtime_ms: int | None = None) -> bytes:
    """A complete signed POST /task/create."""
    return _signed(url, "/task/create", keys, _task(runtime_ms))


def batch_requests(
    url: str, keys: Keys, tasks: int, *, size: int = 100, runtimes_ms: Sequence[int] | None = None
) -> list[bytes]:
    """Complete signed POST /task/batch of so many tasks each, due now or at the times
    given."""
    due = iter(runtimes_ms or [])
    every = [_task(next(due, None)) for _ in range(tasks)]
    return [
        _signed(url, "/task/batch", keys, {"tasks": every[first : first + size], "atomic": False})
        for first in range(0, tasks, size)
    ]


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


def _signed(url: str, path: str, keys: Keys, value: object) -> bytes:
    body = json.dumps(value).encode()
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


@dataclass(frozen=True)
class _Answer:
    body: bytes
    sent_ms: float
    took_ms: float

    def created(self) -> list[Created]:
        """The tasks that were created.

        Raises:
            RuntimeError: one was refused.
        """
        answer = json.loads(self.body)
        if answer["code"] != 0:
            raise RuntimeError(f"a create was refused: {answer}")
        results = answer["data"].get("results", [answer["data"]])
        for result in results:
            if "coroutine_id" not in result:
                raise RuntimeError(f"a create was refused: {result}")
        return [Created(result["coroutine_id"], self.sent_ms, self.took_ms) for result in results]


class _Client:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.sock = socket.create_connection((parts.hostname, parts.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.sent_ms = 0.0
        self.number = 0

    def send(self, request: bytes) -> None:
        self.buffer = b""
        self.sent_ms = time.time() * 1000
        self.sock.sendall(request)

    def received(self) -> _Answer | None:
        """The answer, once it is complete."""
        data = self.sock.recv(262_144)
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
        return _Answer(body, self.sent_ms, time.time() * 1000 - self.sent_ms)


def submit(url: str, requests: Sequence[bytes], *, connections: int) -> tuple[float, list[Created]]:
    """Send all requests, one at a time per connection. Seconds taken, and what was
    created in the requests' order. The answers are read once all are there."""
    selector = selectors.DefaultSelector()
    clients = [_Client(url) for _ in range(connections)]
    waiting = iter(enumerate(requests))
    answers: dict[int, _Answer] = {}

    def send_next(client: _Client) -> bool:
        numbered = next(waiting, None)
        if numbered is None:
            return False
        client.number, request = numbered
        client.send(request)
        return True

    began = time.perf_counter()
    for client in clients:
        if send_next(client):
            selector.register(client.sock, selectors.EVENT_READ, client)
    while len(answers) < len(requests):
        for key, _ in selector.select():
            answer = key.data.received()
            if answer is None:
                continue
            answers[key.data.number] = answer
            if not send_next(key.data):
                selector.unregister(key.data.sock)
    took = time.perf_counter() - began
    for client in clients:
        client.sock.close()
    return took, [one for number in range(len(requests)) for one in answers[number].created()]


def submit_paced(url: str, requests: Sequence[bytes], *, per_second: float) -> list[Created]:
    """Send the requests one at a time at an even rate over one connection."""
    client = _Client(url)
    created: list[Created] = []
    began = time.perf_counter()
    for index, request in enumerate(requests):
        left = began + index / per_second - time.perf_counter()
        if left > 0:
            time.sleep(left)
        client.send(request)
        while (answer := client.received()) is None:
            pass
        created += answer.created()
    client.sock.close()
    return created
