"""A receiver with the standard library's own TLS, which tells its peer by an alert why it
refuses a handshake (Trio's does not)."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

from tests.support.scripted import SUCCESS

_SUCCESS = SUCCESS.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
"""It says so, since it closes: who took the connection for a kept one might send the next
request in the moment before it is closed."""


@contextlib.contextmanager
def tls_server(
    context: ssl.SSLContext, asked: Callable[[ssl.SSLSocket], None] = lambda _: None
) -> Iterator[int]:
    """The port on which one connection at a time is served: a handshake, a request, an
    answer. ``asked`` is called in between."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    plain, _ = listener.accept()
                    plain.settimeout(20)
                    with plain, context.wrap_socket(plain, server_side=True) as secured:
                        _read_request(secured)
                        asked(secured)
                        secured.sendall(_SUCCESS)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            thread.join()


def _read_request(secured: ssl.SSLSocket) -> None:
    """Read it whole: who closes a connection with something unread resets it, and the
    answer may be lost with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(secured)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
    while len(body) < (int(length[1]) if length else 0):
        body += _some(secured)


def _some(secured: ssl.SSLSocket) -> bytes:
    data = secured.recv(65536)
    if not data:
        raise ConnectionError("the peer ended in the middle of a request")
    return data
