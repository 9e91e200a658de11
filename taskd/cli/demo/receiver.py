"""The demo's receiver: an application that is called back.

It checks every callback's signature, with code that shares nothing with the daemon's.
The task's content names its story and says how to answer.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import select
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from taskd.clock import Clock

WINDOW_S = 300
_HOLD_S = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One callback, as the receiver saw it."""

    story: str
    attempt: int
    at_ms: int
    problem: str | None
    """What is wrong with its signature, or None."""


def signature_problem(
    headers: Mapping[str, str], body: bytes, app_key: str, secret_key: str, now_ms: int
) -> str | None:
    """What is wrong with a callback's five signing headers, or None. app_key may have
    either spelling; if both are there, both have to be right."""
    keys = {headers[name] for name in ("app_key", "app-key") if name in headers}
    if keys != {app_key}:
        return "the app_key is another's" if keys else "a signing header is missing"
    values = [headers.get(name) for name in ("timestamps", "nonce", "payload", "signature")]
    if any(value is None for value in values):
        return "a signing header is missing"
    timestamps, nonce, payload, signature = map(str, values)
    if not timestamps.isdigit() or abs(int(timestamps) - now_ms // 1000) > WINDOW_S:
        return "the timestamp is not of now"
    if payload != hashlib.sha256(body).hexdigest():
        return "the payload is not the body's digest"
    message = (timestamps + nonce + payload).encode()
    digest = hmac.new(secret_key.encode(), message, hashlib.sha256).hexdigest()
    expected = base64.b64encode(digest.encode()).decode()
    return None if hmac.compare_digest(expected, signature) else "the signature is wrong"


class Receiver:
    """Answers callbacks and remembers them.

    Attributes:
        app_key, secret_key: the keys that callbacks must be signed with; set once known.
        url: where it listens.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self.url = url
        self.app_key = self.secret_key = ""
        self.clock = clock
        self._calls: list[Call] = []
        self._changed = threading.Condition()
        self._released: set[str] = set()

    def calls(self, story: str) -> list[Call]:
        """The callbacks of a story so far."""
        with self._changed:
            return [call for call in self._calls if call.story == story]

    def wait_for_call(self, story: str, timeout_s: float) -> Call | None:
        """The first callback of a story; None if none comes in time."""
        with self._changed:
            self._changed.wait_for(lambda: any(c.story == story for c in self._calls), timeout_s)
            return next((call for call in self._calls if call.story == story), None)

    def release(self, story: str) -> None:
        """Let a story's held callbacks be answered."""
        with self._changed:
            self._released.add(story)

    def record(self, call: Call) -> None:
        """Remember a callback."""
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()

    def released(self, story: str) -> bool:
        """Whether `release` was called for the story."""
        with self._changed:
            return story in self._released


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: Receiver

    def do_POST(self) -> None:
        now_ms = self.receiver.clock.now_ms()
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        keys = self.receiver.app_key, self.receiver.secret_key
        problem = signature_problem(headers, body, *keys, now_ms)
        content = _content_of(body)
        story = str(content.get("story"))
        attempt = int(headers.get("taskd-attempt", "0"))
        self.receiver.record(Call(story=story, attempt=attempt, at_ms=now_ms, problem=problem))
        if problem is not None:
            self._answer(401, problem)
        elif attempt <= int(content.get("fail", 0)):
            self._answer(500, "not yet")
        elif content.get("hold") and not self._held(story):
            self.close_connection = True  # the daemon has closed it: nobody to answer
        else:
            self._answer(200, "success")

    def _held(self, story: str) -> bool:
        """Wait for the release; False if the daemon closes the connection before, or after
        `_HOLD_S`."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        deadline = self.receiver.clock.now_ms() + _HOLD_S * 1000
        while self.receiver.clock.now_ms() < deadline:
            if self.receiver.released(story):
                return True
            if poll.poll(10):
                return False
        return False

    def _answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server names it
        """Log nothing: the stories tell what happens."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Closing does not wait for handlers that still hold a callback.
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing: connections break in some stories, and a story fails by itself if
        a callback is missing."""


def _content_of(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)["data"]
    except (ValueError, KeyError, TypeError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def running_receiver(clock: Clock) -> Iterator[Receiver]:
    """Run a receiver on a free port of 127.0.0.1, until the block ends."""
    handler: Any = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}/callback", clock)
    handler.receiver = receiver
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="receiver", daemon=True
    )
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
