"""What becomes of those who connect while a listener closes."""

from __future__ import annotations

import socket
import threading
from collections import Counter

import trio

from taskd.api.listening import go_deaf, queued

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


def test_nobody_is_reset_who_connects_while_a_listener_closes() -> None:
    told: list[str] = []

    async def main() -> None:
        for _ in range(_ROUNDS):
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            threads = [
                threading.Thread(target=_connect, args=(port, told)) for _ in range(_CLIENTS)
            ]
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

    trio.run(main)
    ends = Counter(told)
    assert ends.total() == _ROUNDS * _CLIENTS
    # Unanswered and asked again by TCP, or refused.
    assert set(ends) <= {"TimeoutError", "ConnectionRefusedError"}, ends
