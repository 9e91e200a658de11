"""A receiver with the standard library's own TLS, which tells its peer by an alert why it
refuses a handshake (Trio's does not)."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

from tests.support.scripted import SUCCESS


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
                        secured.recv(65536)
                        asked(secured)
                        secured.sendall(SUCCESS)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            thread.join()
