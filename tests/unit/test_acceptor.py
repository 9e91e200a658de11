"""Who gets the connections that a supervisor accepts."""

from __future__ import annotations

import errno
import math
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from taskd.config import ServerConfig
from taskd.daemon.supervisor.acceptor import Acceptor
from taskd.daemon.supervisor.worker_process import ASK_AGAIN_S, NO_ROOM_S, WorkerProcess
from taskd.link import Handover, hand_over
from tests.support.daemon import wait_until


class Limiter:
    """An acceptor with workers that take connections when they are told to."""

    def __init__(self, stack: ExitStack, *, workers: int) -> None:
        self.stack = stack
        self.acceptor = Acceptor(ServerConfig(port=0))
        stack.callback(self.acceptor.close)
        self.workers: list[WorkerProcess] = []
        self.takers: list[Handover] = []
        for seat in range(workers):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.settimeout(0)
            worker = WorkerProcess(
                seat=seat,
                node=f"node-{seat}",
                pid=0,
                control=socket.socket(),
                connections=ours,
                started_at=0.0,
                heard_at=0.0,
            )
            stack.callback(worker.close)
            self.workers.append(worker)
            self.takers.append(Handover(theirs))
            stack.callback(theirs.close)

    def connect(self, workers: list[WorkerProcess]) -> socket.socket:
        """A client whose connection was accepted, for these workers."""
        (listener,) = self.acceptor.listeners
        client = self.stack.enter_context(socket.create_connection(listener.getsockname()))
        client.settimeout(5)
        before = self.held

        def admitted() -> bool:
            self.acceptor.admit(listener)
            self.acceptor.place(workers)
            return self.held > before

        wait_until(admitted)
        return client

    @property
    def held(self) -> int:
        return len(self.acceptor._accepted) + sum(len(worker.handed) for worker in self.workers)

    def take(self, seat: int) -> list[socket.socket]:
        taken = [self.stack.enter_context(one) for one in self.takers[seat].waiting()]
        self.workers[seat].note_taken()
        return taken


@pytest.fixture
def room() -> Iterator[Limiter]:
    with ExitStack() as stack:
        yield Limiter(stack, workers=2)


def talks(client: socket.socket, server: socket.socket) -> bool:
    client.sendall(b"hello")
    server.settimeout(5)
    return server.recv(5) == b"hello"


def test_each_goes_to_the_worker_that_has_the_fewest(room: Limiter) -> None:
    room.workers[0].open = 2
    for _ in range(4):
        room.connect(room.workers)
    assert [len(worker.handed) for worker in room.workers] == [1, 3]
    assert len(room.take(1)) == 3
    assert [worker.connected for worker in room.workers] == [3, 3]


def test_what_a_dead_worker_had_not_taken_goes_whole_to_another(room: Limiter) -> None:
    first, second = room.workers
    clients = [room.connect([first]) for _ in range(3)]
    clients[2].sendall(b"sent before")
    (taken, *_) = room.take(0)[:1]  # it takes all and then dies: nothing is to be had
    assert not first.handed
    late = room.connect([first])
    late.sendall(b"sent")
    first.connections.close()
    room.acceptor.take_back(first)
    room.acceptor.place([])  # nobody is there yet
    assert room.held == 1
    room.acceptor.place([second])
    (server,) = room.take(1)
    server.settimeout(5)
    assert server.recv(4) == b"sent"
    assert talks(late, server)
    assert talks(clients[0], taken)


def test_one_that_takes_none_is_passed_over(room: Limiter) -> None:
    first, second = room.workers
    first.connections.close()  # it stops
    client = room.connect([first, second])
    (server,) = room.take(1)
    assert talks(client, server)


def test_where_none_takes_it_a_connection_waits_and_no_more_is_accepted(room: Limiter) -> None:
    first, second = room.workers
    first.connections.close()
    full = 0
    filler = room.stack.enter_context(socket.socket())
    while hand_over(second.connections, filler):
        full += 1
    client = room.connect([first, second])
    client.sendall(b"hello")
    assert room.held == 1
    with selectors.DefaultSelector() as selector:
        room.acceptor.open(selector, [second])
        assert not selector.get_map()
        assert len(room.take(1)) == full
        room.acceptor.place([second])
        (server,) = room.take(1)
        server.settimeout(5)
        assert server.recv(5) == b"hello"
        room.acceptor.open(selector, [second])
        assert selector.get_map()
        room.acceptor.open(selector, [])
        assert not selector.get_map()


def test_a_system_that_can_accept_no_more_is_left_alone_for_a_while(
    room: Limiter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        def accept(self) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

    with selectors.DefaultSelector() as selector:
        room.acceptor.open(selector, room.workers)
        room.acceptor.admit(Full())  # type: ignore[arg-type]
        assert "can't accept" in caplog.text
        room.acceptor.open(selector, room.workers)
        assert not selector.get_map()
        monkeypatch.setattr("taskd.daemon.supervisor.acceptor.time.monotonic", lambda: math.inf)
        room.acceptor.open(selector, room.workers)
        assert selector.get_map()


def refuse(room: Limiter, seat: int) -> None:
    """A worker says of all that it was handed that it has no room."""
    channel = room.takers[seat]._channel
    for _ in list(room.workers[seat].handed):
        assert channel.recv(1) == b"c"
        channel.send(b"n")
    room.workers[seat].note_taken()


def test_a_connection_is_turned_away_once_no_worker_has_had_room_for_long(
    room: Limiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = room.connect(room.workers)
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    now = time.monotonic()
    monkeypatch.setattr(
        "taskd.daemon.supervisor.acceptor.time.monotonic", lambda: now
    )  # the one of all
    with selectors.DefaultSelector() as selector:

        def turned_away() -> bool:
            for seat in (0, 1):
                room.acceptor.place(room.workers)
                refuse(room, seat)
            room.acceptor.place(room.workers)
            room.acceptor.see_off(selector)
            return not room.held

        assert not turned_away(), "it may pass"
        assert room.acceptor.look_at(room.workers) == now + ASK_AGAIN_S
        now += NO_ROOM_S * 0.9
        assert not turned_away(), "and it may pass still"
        now += NO_ROOM_S * 0.2
        room.workers[1].no_room_since = None  # it had room meanwhile
        assert not turned_away()
        now += NO_ROOM_S * 1.05
        assert turned_away()
        assert client.recv(1000).startswith(b"HTTP/1.1 503 ")
        assert now < room.acceptor.look_at(room.workers) < now + NO_ROOM_S
        client.close()
        for _ in selector.select(5):
            room.acceptor.see_off(selector)
        assert not selector.get_map()
        assert room.acceptor.look_at(room.workers) == math.inf
