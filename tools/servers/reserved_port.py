"""Ports for programs that are started later."""

from __future__ import annotations

import socket


class ReservedPort:
    """A port that nobody else is given, for a program that is started later.

    The socket here is bound but does not listen, so a program that sets
    SO_REUSEADDR, as every server does, can bind the same port beside it.
    """

    def __enter__(self) -> int:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        port: int = self._socket.getsockname()[1]
        return port

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()
