"""A stand-in for the daemon's API: a real HTTP server that answers what it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    """The client's port: the same for requests on one connection."""


@dataclass
class Script:
    """What the server answers, and what it was asked."""

    status: int = 200
    body: bytes = b'{"code": 0, "msg": "ok!", "data": {}}'
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    hang_up_after_answer: bool = False

    def envelope(self, code: int, msg: str, data: object, status: int | None = None) -> None:
        self.status = status or (200 if code < 100 else code)
        self.body = json.dumps({"code": code, "msg": msg, "data": data}).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def _serve(self) -> None:
        script = self.script
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        port = self.client_address[1]
        headers = {name.lower(): value for name, value in self.headers.items()}
        script.seen.append(Seen(self.command, self.path, headers, body, port))
        self.send_response_only(script.status)
        for name, value in script.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(script.body)))
        self.end_headers()
        self.wfile.write(script.body)
        # Without "Connection: close": the client can see it by the end alone.
        self.close_connection = script.hang_up_after_answer

    do_GET = do_POST = _serve  # noqa: N815 - as http.server looks for them

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server names it
        """The script's ``seen`` is the log."""


@contextmanager
def answering(script: Script) -> Iterator[str]:
    """Serve the script on a free port of this machine; yields the URL."""
    handler = type("Handler", (_Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
