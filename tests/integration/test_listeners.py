"""What becomes of those who connect while a listener closes."""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter

import trio

from taskd.api.http.file_shortage import Spare, Tally
from taskd.api.http.listeners import accept, go_deaf, queued
from tests.support.files import no_file_left

_CLIENTS = 4
_ROUNDS = 30


def _connect(port: int, told: list[str]) -> None:
    """Connect again and again until that fails, and tell how it did."""
    while True:
        with socket.socket() as client:
            client.settimeout(0.2)
            try:
                client.connect(("127.0.0.1", port))
                client.recv(1)
            except OSError as error:
                told.append(type(error).__name__)
                return


async def test_nobody_is_reset_who_connects_while_a_listener_closes() -> None:
    told: list[str] = []

    for _ in range(_ROUNDS):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        threads = [threading.Thread(target=_connect, args=(port, told)) for _ in range(_CLIENTS)]
        for thread in threads:
            thread.start()
        for _ in range(30):
            with trio.move_on_after(0.01):
                await (await listener.accept()).aclose()
        go_deaf(listener.socket)
        for sock in queued(listener):
            sock.close()
        listener.socket.close()
        for thread in threads:
            await trio.to_thread.run_sync(thread.join)
    ends = Counter(told)
    assert ends.total() == _ROUNDS * _CLIENTS
    # Unanswered and asked again by TCP, or refused.
    assert set(ends) <= {"TimeoutError", "ConnectionRefusedError"}, ends


def _open(port: int, number: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(number)]


async def test_where_strangers_make_room_nobody_is_turned_away() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    clients = _open(listener.socket.getsockname()[1], 5)
    spare = Spare(Tally(logging.getLogger("taskd.test")))
    strangers = [socket.socket() for _ in clients]
    taken: list[socket.socket] = []

    def make_room() -> None:
        if strangers:
            strangers.pop().close()

    with no_file_left():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: accept(listener, taken.append, make_room, 10, spare=spare))
            with trio.fail_after(20):
                while len(taken) < len(clients):
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    spare.close()
    for one in (*clients, *taken, *strangers):
        one.close()
    listener.socket.close()


async def test_where_nobody_makes_room_all_are_told_so_and_those_after_them_are_taken() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    clients = _open(port, 5)
    spare = Spare(Tally(logging.getLogger("taskd.test")))
    taken: list[socket.socket] = []
    async with trio.open_nursery() as nursery:
        with no_file_left():
            nursery.start_soon(
                lambda: accept(listener, taken.append, lambda: None, 10, spare=spare)
            )
            for client in clients:
                client.settimeout(20)
                answer = await trio.to_thread.run_sync(client.recv, 1000)
                assert answer.startswith(b"HTTP/1.1 503 ")
        clients += _open(port, 1)
        with trio.fail_after(20):
            while not taken:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    spare.close()
    for one in (*clients, *taken):
        one.close()
    listener.socket.close()
