#!/usr/bin/env python3
"""A receiver of taskd's callbacks, with the standard library alone.

    TASKD_APP_KEY=... TASKD_SECRET_KEY=... python3 examples/receiver.py [PORT]

Listens on 127.0.0.1 (any free port without PORT) and prints its address. `Receiver`
knows nothing of servers: receiver_wsgi.py, receiver_asgi.py, receiver_flask.py and
receiver_django.py use it as it is.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WINDOW_S = 300
MAX_BODY = 2 * 1024 * 1024
SIGNED = ("app_key", "nonce", "timestamps", "signature", "payload")


class Refused(Exception):
    """The request does not come from taskd, or came before."""


class Verifier:
    """Checks the signing headers, and that each nonce comes once."""

    def __init__(self, app_key: str, secret_key: str) -> None:
        self._app_key = app_key
        self._secret_key = secret_key
        self._lock = threading.Lock()
        self._seen: dict[str, float] = {}

    def check(self, headers: Mapping[str, str], body: bytes, now: float) -> None:
        """Return if the request is taskd's and new, raise `Refused` otherwise.

        Args:
            headers: as `by_name` makes them.
            body: the bytes as they came.
            now: seconds of Unix time.
        """
        app_key, nonce, timestamps, signature, payload = (
            signed_header(headers, name) for name in SIGNED
        )
        if not re.fullmatch("[0-9]{10}", timestamps):
            raise Refused("timestamps is no Unix time")
        if abs(now - int(timestamps)) > WINDOW_S:
            raise Refused("timestamps is outside the window: a late replay, or a wrong clock")
        message = f"{timestamps}{nonce}{payload}".encode()
        digest = hmac.new(self._secret_key.encode(), message, hashlib.sha256).hexdigest()
        expected = base64.b64encode(digest.encode())
        # Both are compared, in constant time, so that the time tells nothing.
        right_key = hmac.compare_digest(app_key.encode(), self._app_key.encode())
        right_signature = hmac.compare_digest(signature.encode(), expected)
        if not (right_key and right_signature):
            raise Refused("unknown app_key or bad signature")
        if not hmac.compare_digest(payload.encode(), hashlib.sha256(body).hexdigest().encode()):
            raise Refused("the body is not the one that was signed")
        with self._lock:
            self._seen = {old: end for old, end in self._seen.items() if end > now}
            if nonce in self._seen:
                raise Refused("the nonce came before: a replay")
            # Past that time the timestamp gives a replay away.
            self._seen[nonce] = now + 2 * WINDOW_S


def by_name(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by their names, in lower case and with underscores for hyphens.

    taskd sends `app_key` as `app-key` as well, since many servers and proxies drop names
    with underscores. To others (WSGI and CGI name both HTTP_APP_KEY) the two are one
    name; what comes twice is joined by commas, here as there.
    """
    joined: dict[str, str] = {}
    for key, value in headers:
        name = key.lower().replace("-", "_")
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def signed_header(headers: Mapping[str, str], name: str) -> str:
    """The one value of a header, which may have come more than once."""
    values = {value.strip() for value in headers.get(name, "").split(",")}
    if len(values) != 1:
        raise Refused(f"{name} comes twice, with different values")
    value = values.pop()
    if not value:
        raise Refused(f"{name} is missing")
    return value


class Ledger:
    """Which tasks are done, since taskd delivers at least once.

    A real receiver keeps this in its database, in the same transaction as the
    work itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: set[str] = set()

    def work(self, task_id: str, attempt: str, data: object) -> None:
        """Do the task's work, unless an earlier attempt did it already."""
        with self._lock:
            if task_id in self._done:
                print(f"task {task_id} attempt {attempt}: a repeat, done before", flush=True)
                return
            print(f"task {task_id} attempt {attempt}: {json.dumps(data)}", flush=True)
            self._done.add(task_id)


class Receiver:
    """What to answer to a callback, whichever server takes it."""

    def __init__(self, app_key: str, secret_key: str) -> None:
        self._verifier = Verifier(app_key, secret_key)
        self._ledger = Ledger()

    @classmethod
    def from_environment(cls) -> Receiver:
        """With the keys in TASKD_APP_KEY and TASKD_SECRET_KEY."""
        try:
            return cls(os.environ["TASKD_APP_KEY"], os.environ["TASKD_SECRET_KEY"])
        except KeyError as missing:
            sys.exit(f"set {missing.args[0]} in the environment")

    def answer(self, headers: Iterable[tuple[str, str]], body: bytes) -> tuple[int, str]:
        """Verify, work, and return the status and text to answer, once the work is done.

        Args:
            headers: names and values, as `request.headers.items()` of most frameworks.
            body: the bytes as they came.
        """
        named = by_name(headers)
        try:
            self._verifier.check(named, body, time.time())
            data = json.loads(body)["data"]
        except Refused as refusal:
            print(f"refused: {refusal}", flush=True)
            return 401, str(refusal)
        except (ValueError, KeyError, TypeError):
            return 400, "the body is no callback"
        self._ledger.work(named.get("taskd_task_id", ""), named.get("taskd_attempt", ""), data)
        return 200, "success"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    receiver: Receiver

    def do_POST(self) -> None:
        """Read a request that is not too long, and answer it."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True
            self.answer(413, "Content-Length is missing or too big")
            return
        body = self.rfile.read(int(length))
        self.answer(*self.receiver.answer(self.headers.items(), body))

    def answer(self, status: int, text: str) -> None:
        """Send a whole response."""
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Say nothing per request: `Ledger` does."""


def main() -> None:
    """Serve until interrupted."""
    Handler.receiver = Receiver.from_environment()
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        print(f"listening on http://127.0.0.1:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
