"""The demo's application: a real HTTP server that checks every signature itself.

What it does with a delivery is asked for by the task's number: ``fails-…`` is
refused twice, ``hangs-…`` is answered late, everything else at once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from taskd.clock import Clock

_FAILURES = 2
_HANG_S = 3.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One delivery as it arrived; ``at_ms`` in Unix milliseconds."""

    task_no: str
    attempt: int
    at_ms: int
    signed: bool


class Receiver:
    """Serves on a free port of 127.0.0.1 while it is entered."""

    def __init__(self, clock: Clock) -> None:
        self.secret_key = ""
        self.closing = threading.Event()
        self._clock = clock
        self._arrivals: list[Arrival] = []
        self._changed = threading.Condition()
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def url(self) -> str:
        """Where it takes deliveries."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/callback"

    def arrivals(self, task_no: str) -> list[Arrival]:
        """What has arrived of a task."""
        with self._changed:
            return [arrival for arrival in self._arrivals if arrival.task_no == task_no]

    def wait_for(self, task_no: str, count: int, within_s: float) -> list[Arrival]:
        """What has arrived of a task once it is so many, or the time is up."""
        with self._changed:
            self._changed.wait_for(
                lambda: sum(arrival.task_no == task_no for arrival in self._arrivals) >= count,
                within_s,
            )
        return self.arrivals(task_no)

    def unsigned(self) -> int:
        """How many deliveries had a signature that does not hold."""
        with self._changed:
            return sum(not arrival.signed for arrival in self._arrivals)

    def took(self, headers: dict[str, str], body: bytes) -> Arrival:
        """Note a delivery."""
        arrival = Arrival(
            task_no=headers["taskd-task-no"],
            attempt=int(headers["taskd-attempt"]),
            at_ms=self._clock.now_ms(),
            signed=_signature_holds(self.secret_key, headers, body),
        )
        with self._changed:
            self._arrivals.append(arrival)
            self._changed.notify_all()
        return arrival

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _signature_holds(secret_key: str, headers: dict[str, str], body: bytes) -> bool:
    """The check of an application, written out as the protocol has it."""
    payload = hashlib.sha256(body).hexdigest()
    message = headers["timestamps"] + headers["nonce"] + payload
    digest = hmac.new(secret_key.encode(), message.encode(), hashlib.sha256).hexdigest()
    expected = base64.b64encode(digest.encode()).decode()
    return hmac.compare_digest(expected, headers["signature"]) and headers["payload"] == payload


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A delivery that was cancelled or timed out leaves a broken pipe."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        receiver = self.server.receiver
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        arrival = receiver.took(headers, body)
        status, answer = 200, b"success"
        if not arrival.signed:
            status, answer = 401, b"bad signature"
        elif arrival.task_no.startswith("hangs-"):
            receiver.closing.wait(_HANG_S)
        elif arrival.task_no.startswith("fails-") and arrival.attempt <= _FAILURES:
            status, answer = 500, b"not yet"
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """What arrives is told by the stories."""
