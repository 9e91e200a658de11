"""What is said, and how, to who connects where no more files can be opened."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator

import pytest

from taskd.api.http.file_shortage import (
    ASK_S,
    LINGER_S,
    MOST_S,
    SHORTAGE_S,
    Shortage,
    Spare,
    Tally,
    TurnedAway,
)
from tests.support.files import no_file_left

_POST = b"POST /task/create HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\nContent-Length: 9\r\n\r\n"


class Visit:
    """A client and what it is told; time goes by as it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.client, accepted = socket.socketpair()
        self.client.settimeout(5)
        self.guest = TurnedAway(accepted, self.now)

    def over(self, after_s: float = 0.0) -> bool:
        self.now += after_s
        return self.guest.look(self.now)

    def heard(self) -> bytes:
        """What the client is told, once that has ended."""
        data = b""
        while more := self.client.recv(1000):
            data += more
        return data


@pytest.fixture
def visit() -> Iterator[Visit]:
    one = Visit()
    with one.client, one.guest.sock:
        yield one


def test_who_has_asked_is_answered_at_once(visit: Visit) -> None:
    visit.client.sendall(_POST + b"x" * 9)
    assert not visit.over()
    head, _, body = visit.heard().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 \r\n")
    for header in (b"retry-after: 1", b"connection: close", b"x-request-id: mine"):
        assert header in head.split(b"\r\n")
    assert f"content-length: {len(body)}".encode() in head
    content = json.loads(body)
    assert (content["code"], content["data"]) == (503, [])
    assert visit.guest.look_at < visit.now + LINGER_S, "there is nothing more to wait for"
    visit.client.close()
    assert visit.over()


def test_a_head_is_asked_for_without_a_body(visit: Visit) -> None:
    visit.client.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    visit.over()
    heard = visit.heard()
    assert heard.endswith(b"\r\n\r\n")
    assert b"content-length: " in heard


@pytest.mark.parametrize("said", [_POST, b"POST", b"\x16\x03\x01junk\r\n\r\n", _POST + b"x" * 20])
def test_what_is_no_whole_request_is_answered_as_well(visit: Visit, said: bytes) -> None:
    visit.client.sendall(said)
    visit.over()
    assert visit.heard().startswith(b"HTTP/1.1 503 ")
    assert visit.over(after_s=LINGER_S)


def test_who_says_nothing_is_told_after_a_while_and_left_after_another(visit: Visit) -> None:
    assert not visit.over()
    assert not visit.over(after_s=ASK_S / 2)
    visit.client.settimeout(0)
    with pytest.raises(BlockingIOError):
        visit.client.recv(1)
    assert not visit.over(after_s=ASK_S / 2)
    visit.client.settimeout(5)
    assert visit.heard().startswith(b"HTTP/1.1 503 ")
    assert visit.over(after_s=LINGER_S)


def test_what_still_comes_is_read_away_but_not_for_ever(visit: Visit) -> None:
    visit.client.sendall(_POST)
    for _ in range(int(MOST_S / LINGER_S * 2) - 1):
        assert not visit.over(after_s=LINGER_S / 2)
        visit.client.sendall(b"x")
    assert visit.over(after_s=LINGER_S)


def test_who_has_left_is_let_go(visit: Visit) -> None:
    visit.client.close()
    assert visit.over()


def test_who_is_closed_early_was_told(visit: Visit) -> None:
    visit.client.sendall(_POST)
    visit.guest.close()
    assert visit.heard().startswith(b"HTTP/1.1 503 ")


def test_a_shortage_lasts_once_nothing_could_be_accepted_for_some_time() -> None:
    shortage = Shortage()
    assert not shortage.lasts(100)
    assert not shortage.lasts(100 + SHORTAGE_S / 2)
    assert shortage.lasts(100.01 + SHORTAGE_S)
    assert shortage.lasts(100.6 + SHORTAGE_S)
    shortage.end()
    assert not shortage.lasts(100.7 + SHORTAGE_S)
    assert not shortage.lasts(200), "another one"


def test_a_spare_is_given_and_kept_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        spare = Spare(Tally(logging.getLogger("taskd.test")))
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        with no_file_left():
            with pytest.raises(OSError, match="Too many open files"):
                listener.accept()
            for client in clients[:2]:
                client.sendall(_POST)
                assert spare.accept(listener, 100.0) is spare.guest is not None
                assert spare.accept(listener, 100.0) is None, "it is in use"
                spare.give_back()
                client.settimeout(5)
                assert client.recv(1000).startswith(b"HTTP/1.1 503 ")
            spare.turn_away_all(listener, 10)
            clients[2].settimeout(5)
            assert clients[2].recv(1000).startswith(b"HTTP/1.1 503 ")
            with pytest.raises(BlockingIOError):
                spare.accept(listener, 100.0)
            assert spare.keep()
            spare.close()
        for client in clients:
            client.close()


def test_the_log_tells_how_many_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    tally = Tally(logging.getLogger("taskd.test"))
    for second in range(12):
        tally.count()
        tally.tell(100.0 + second)
    assert len(caplog.records) == 2
