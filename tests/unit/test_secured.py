"""TLS to receivers: a call does a bounded amount of work, whatever the peer sends."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import ssl
import struct
import termios
import threading
import time

import pytest
import trustme

from taskd.delivery.transport.secured import Secured

TICKETS = 2000
BEYOND_A_CALL = 40_000


def come(sock: socket.socket) -> int:
    """Bytes that have come and were not read."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0\0\0\0"))[0])


def test_tickets_without_end_are_read_a_few_at_a_time() -> None:
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("app.test").configure_cert(theirs)
    theirs.num_tickets = TICKETS
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(ours)
    near, far = socket.socketpair()

    def serve() -> None:
        with contextlib.suppress(OSError), theirs.wrap_socket(far, server_side=True) as peer:
            peer.sendall(b"answer")

    thread = threading.Thread(target=serve)
    thread.start()
    near.setblocking(False)
    secured = Secured(near, ours, "app.test")
    deadline = time.monotonic() + 30
    try:
        while True:
            assert time.monotonic() < deadline
            try:
                secured.do_handshake()
                break
            except ssl.SSLWantReadError:
                select.select([near], [], [], 5)
        while come(near) < BEYOND_A_CALL:
            assert time.monotonic() < deadline
            select.select([], [], [], 0.01)
        with pytest.raises(ssl.SSLWantReadError):
            secured.recv(100)
        assert come(near) > BEYOND_A_CALL // 2
        data = b""
        while not data:
            assert time.monotonic() < deadline
            try:
                data = secured.recv(100)
            except ssl.SSLWantReadError:
                select.select([near], [], [], 5)
        assert data == b"answer"
    finally:
        secured.close()
        thread.join()
