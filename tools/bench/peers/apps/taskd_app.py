"""taskd's submitter: signed requests over kept connections, laid out and signed within
the time that is measured, as the Python peers' messages are.

One at a time and in batches it blocks on one socket; 16 in flight are 16 connections
under one selector, which is to threads what a peer's asyncio client is.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import selectors
import socket
import time
from typing import Any

_HOST, _, _PORT = os.environ["PEERS_BROKER"].removeprefix("http://").partition(":")
_KEY = os.environ["PEERS_APP_KEY"]
_SECRET = os.environ["PEERS_SECRET"].encode()
_HEAD = (
    "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    "Content-Length: {length}\r\napp_key: {key}\r\nnonce: {nonce}\r\n"
    "timestamps: {timestamps}\r\npayload: {payload}\r\nsignature: {signature}\r\n\r\n"
)


class RefusedError(Exception):
    """The daemon answered with another code than 0."""


def _task(number: int, content: str, due: float | None) -> dict[str, Any]:
    task = {"taskNo": str(number), "name": "peers", "content": content, "timeout": 10_000}
    return task if due is None else {**task, "runtime": round(due, 3)}


def _request(path: str, value: dict[str, Any]) -> bytes:
    body = json.dumps(value).encode()
    timestamps, nonce = str(int(time.time())), secrets.token_hex(12)
    payload = hashlib.sha256(body).hexdigest()
    digest = hmac.digest(_SECRET, (timestamps + nonce + payload).encode(), "sha256")
    head = _HEAD.format(
        path=path,
        host=f"{_HOST}:{_PORT}",
        length=len(body),
        key=_KEY,
        nonce=nonce,
        timestamps=timestamps,
        payload=payload,
        signature=base64.b64encode(digest.hex().encode()).decode(),
    )
    return head.encode() + body


class _Connection:
    """One socket, and what has come of its next answer."""

    def __init__(self) -> None:
        self.sock = socket.create_connection((_HOST, int(_PORT)), timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.number = 0

    def send(self, request: bytes) -> None:
        """Hand a request to the socket."""
        self.buffer = b""
        self.sock.sendall(request)

    def receive(self) -> dict[str, Any] | None:
        """Read once; the answer's object where it is complete."""
        data = self.sock.recv(262_144)
        if not data:
            raise ConnectionError("the daemon closed the connection")
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) < int(length):
            return None
        answer: dict[str, Any] = json.loads(body)
        return answer

    def exchange(self, request: bytes) -> dict[str, Any]:
        """Send a request, wait for its answer."""
        self.send(request)
        while (answer := self.receive()) is None:
            pass
        if answer["code"] != 0:
            raise RefusedError(str(answer)[:200])
        return answer


class Submitter:
    """``POST /task/create`` and ``POST /task/batch``."""

    asynchronous = False

    def __init__(self) -> None:
        self.connection: _Connection | None = None

    def _exchange(self, request: bytes) -> dict[str, Any]:
        if self.connection is None:
            self.connection = _Connection()
        try:
            return self.connection.exchange(request)
        except OSError:
            self.connection = None
            raise

    def one(self, number: int, content: str, due: float | None) -> None:
        """Create one task."""
        self._exchange(_request("/task/create", _task(number, content, due)))

    def batch(self, numbers: list[int], content: str) -> list[int]:
        """Create many; returns those that were taken."""
        tasks = [_task(number, content, None) for number in numbers]
        answer = self._exchange(_request("/task/batch", {"tasks": tasks, "atomic": False}))
        results = zip(numbers, answer["data"]["results"], strict=True)
        taken = [number for number, result in results if "taskId" in result]
        if len(taken) < len(numbers):
            raise RefusedError(f"{len(numbers) - len(taken)} of a batch were refused")
        return taken

    def flight(self, run: Any, in_flight: int) -> None:  # noqa: ANN401 - submitter.py's Run
        """Keep so many creates under way until the numbers or the time are used up."""
        numbers = run.while_time(run.numbers)
        with selectors.DefaultSelector() as selector:
            for _ in range(in_flight):
                self._begin(selector, numbers, run)
            while selector.get_map():
                for key, _ in selector.select():
                    self._go_on(selector, key.data, numbers, run)

    def _begin(self, selector: selectors.BaseSelector, numbers: Any, run: Any) -> None:  # noqa: ANN401 - as above
        """Open one more connection; while the daemon is away, try again and again."""
        for number in numbers:
            try:
                connection = _Connection()
                connection.number = number
                connection.send(_request("/task/create", _task(number, run.content, None)))
            except OSError as error:
                run.failed(error)
                time.sleep(0.05)
            else:
                selector.register(connection.sock, selectors.EVENT_READ, connection)
                return

    def _go_on(
        self,
        selector: selectors.BaseSelector,
        connection: _Connection,
        numbers: Any,  # noqa: ANN401 - an iterator of numbers
        run: Any,  # noqa: ANN401 - as above
    ) -> None:
        """Take an answer in, and send the connection's next request."""
        try:
            answer = connection.receive()
            if answer is None:
                return
            if answer["code"] != 0:
                run.failed(RefusedError(str(answer)))
            else:
                run.acknowledged.append(connection.number)
            number = next(numbers, None)
            if number is not None:
                connection.number = number
                connection.send(_request("/task/create", _task(number, run.content, None)))
                return
            selector.unregister(connection.sock)
            connection.sock.close()
        except OSError as error:
            run.failed(error)
            selector.unregister(connection.sock)
            connection.sock.close()
            time.sleep(0.05)
            self._begin(selector, numbers, run)
