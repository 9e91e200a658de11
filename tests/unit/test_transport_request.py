"""A request leaves whole and in order, whatever the socket takes at a time."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Sequence
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from taskd.delivery.transport.request import JOINED, Request
from taskd.delivery.transport.secured import Secured

LONG = bytes(range(256)) * (JOINED // 128)


class Sink:
    """A socket that takes so many bytes at a call, 0 for none of them."""

    def __init__(self, takes: Sequence[int]) -> None:
        self.takes = list(takes)
        self.got = b""
        self.calls = 0

    def send(self, data: memoryview) -> int:
        return self.sendmsg([data])

    def sendmsg(self, parts: Sequence[memoryview]) -> int:
        self.calls += 1
        take = self.takes.pop(0) if self.takes else 1_000_000
        if take == 0:
            raise BlockingIOError
        data = b"".join(parts)[:take]
        self.got += data
        return len(data)


def send_all(request: Request, sock: socket.socket | Secured) -> int:
    sent = 0
    while sent < len(request):
        try:
            sent += request.send(sock)
        except (BlockingIOError, ssl.SSLWantWriteError):
            continue
    return sent


@given(
    head=st.binary(min_size=1, max_size=40),
    body=st.lists(st.sampled_from([b"", b"x", b'{"data":', LONG]), max_size=4),
    takes=st.lists(st.integers(0, 2 * JOINED), max_size=20),
)
def test_all_parts_leave_in_their_order(head: bytes, body: list[bytes], takes: list[int]) -> None:
    sink = Sink(takes)
    request = Request(head, *body)
    assert send_all(request, cast("socket.socket", sink)) == len(request)
    assert sink.got == head + b"".join(body)


def test_a_short_request_leaves_in_one_piece() -> None:
    sink = Sink([])
    send_all(Request(b"head", b"{", b"body", b"}"), cast("socket.socket", sink))
    assert (sink.calls, sink.got) == (1, b"head{body}")


class Picky(Secured):
    """Wants to be asked for everything twice."""

    def __init__(self) -> None:
        self.offered: list[bytes] = []

    def send(self, data: bytes | memoryview) -> int:
        self.offered.append(bytes(data))
        if len(self.offered) % 2:
            raise ssl.SSLWantWriteError
        return len(data[:JOINED])


def test_over_tls_what_could_not_be_sent_is_offered_again_as_it_was() -> None:
    """A retry with other bytes, or fewer, would corrupt what is sent."""
    sock, content = Picky(), random.Random(1).randbytes(200_000)
    request = Request(b"head", content, b"}")
    assert send_all(request, sock) == len(request)
    assert sock.offered[::2] == sock.offered[1::2]
    left = b"".join(offered[:JOINED] for offered in sock.offered[::2])
    assert left == b"head" + content + b"}"
