"""A real application that taskd delivers to, with a ledger of what arrived.

It runs in threads of the test process. What it answers is scripted per request;
its ledger survives the daemon, since it is not in it.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from taskd.domain import signing


@dataclass(frozen=True)
class Delivery:
    """One request as it arrived."""

    task_id: int
    task_no: str
    attempt: int
    arrived_at: float
    """`time.time()` when the whole request had been read."""
    headers: dict[str, str]
    body: bytes

    def signature_holds(self, secret_key: str) -> bool:
        """Whether the five headers sign this body with the key."""
        get = {name.replace("-", "_"): value for name, value in self.headers.items()}
        return get["payload"] == signing.payload_digest(self.body) and signing.verify(
            secret_key, get["timestamps"], get["nonce"], get["payload"], get["signature"]
        )


@dataclass(frozen=True)
class Answer:
    """What to answer, and after how long."""

    status: int = 200
    body: bytes = b"success"
    after_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    """The answer waits for this, too."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A daemon that was killed, or has cancelled, leaves broken pipes."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        delivery = Delivery(
            task_id=int(self.headers["Taskd-Task-Id"]),
            task_no=self.headers["Taskd-Task-No"],
            attempt=int(self.headers["Taskd-Attempt"]),
            arrived_at=time.time(),  # noqa: TID251 - the receiver's own clock
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body,
        )
        answer = self.server.receiver.took(delivery)
        if answer.hold is not None:
            answer.hold.wait(60)
        if answer.after_s:
            time.sleep(answer.after_s)  # noqa: TID251 - a slow application
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """The ledger is the log."""


class Receiver:
    """Serves on a free port of 127.0.0.1 while it is entered."""

    def __init__(
        self,
        answer: Callable[[Delivery], Answer] = lambda _: Answer(),
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answer = answer
        self._ledger: list[Delivery] = []
        self._changed = threading.Condition()
        self._server = _Server(self)
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            # The handshake is made by the connection's own thread, as it reads.
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}/callback"

    def took(self, delivery: Delivery) -> Answer:
        with self._changed:
            self._ledger.append(delivery)
            self._changed.notify_all()
        return self.answer(delivery)

    def ledger(self) -> list[Delivery]:
        with self._changed:
            return list(self._ledger)

    def wait_for(
        self, condition: Callable[[list[Delivery]], bool], *, within_s: float = 10.0
    ) -> list[Delivery]:
        """The ledger once it is as wished."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self._ledger), within_s), (
                f"the ledger did not become as wished within {within_s} s: "
                f"{[(d.task_id, d.attempt) for d in self._ledger][-20:]}"
            )
            return list(self._ledger)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
