"""nsqd over real sockets, as its clients meet it: the stand-in, and the real one where
it is here."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
import trio

from tests.support.daemon import wait_until
from tests.support.services import Nsqd, StandInNsqd
from tools.servers.nsqd_stand_in.nsqd import StandIn
from tools.servers.nsqd_stand_in.session import Options

OK = (0, b"OK")
Make = Callable[..., StandInNsqd]


def body(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


class Client:
    """A client that writes raw bytes and reads frames."""

    def __init__(self, address: str, **said: object) -> None:
        host, port = address.split(":")
        self.socket: socket.socket = socket.create_connection((host, int(port)), timeout=10)
        self.say(b"  V2")
        if said:
            self.say(b"IDENTIFY\n" + body(json.dumps(said).encode()))

    def say(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def hear(self) -> tuple[int, bytes]:
        size, kind = struct.unpack(">ii", self._read(8))
        return kind, self._read(size - 4)

    def message(self) -> tuple[bytes, int, bytes]:
        kind, data = self.hear()
        assert kind == 2, data
        _, attempts, message_id = struct.unpack_from(">qH16s", data)
        return message_id, attempts, data[26:]

    def ended(self) -> bool:
        """Whether the other end has closed it; waits for that."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more, "the connection has ended"
            data += more
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.socket.close()


@contextmanager
def consumer(nsqd: Nsqd, ready: int = 100, **said: object) -> Iterator[Client]:
    with Client(nsqd.address, **{"output_buffer_size": -1, **said}) as client:
        assert client.hear() == OK
        client.say(b"SUB t c\n")
        assert client.hear() == OK
        client.say(b"RDY %d\n" % ready)
        yield client


def publish(nsqd: Nsqd, text: bytes) -> None:
    with Client(nsqd.address) as client:
        client.say(b"PUB t\n" + body(text))
        assert client.hear() == OK


def get(address: str, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_message_is_delivered_requeued_and_finished(nsqd: Nsqd) -> None:
    with consumer(nsqd) as client:
        publish(nsqd, b"hello")
        message_id, attempts, text = client.message()
        assert (attempts, text) == (1, b"hello")
        client.say(b"REQ %s 100\n" % message_id)
        assert client.message() == (message_id, 2, b"hello")
        client.say(b"FIN %s\n" % message_id)
        wait_until(lambda: nsqd.channel("t", "c")["in_flight_count"] == 0, what="the FIN")
        client.say(b"FIN %s\n" % message_id)
        kind, data = client.hear()
        assert kind == 1
        assert data.startswith(b"E_FIN_FAILED ")
        client.say(b"CLS\n")
        assert client.hear() == (0, b"CLOSE_WAIT")


def test_a_fatal_error_arrives_before_the_end(nsqd: Nsqd) -> None:
    with consumer(nsqd) as client:
        client.say(b"RDY 2501\n")
        kind, data = client.hear()
        assert kind == 1
        assert data.startswith(b"E_INVALID ")
        assert client.ended()


def test_a_silent_client_is_cut_off_after_two_heartbeats(nsqd: Nsqd) -> None:
    with consumer(nsqd, heartbeat_interval=1000) as silent:
        started = time.monotonic()
        heard = 0
        try:
            while True:
                assert silent.hear() == (0, b"_heartbeat_")
                heard += 1
        except (AssertionError, ConnectionResetError):
            pass
        assert 1.9 <= time.monotonic() - started < 4
        assert 1 <= heard <= 2


def test_a_client_that_answers_heartbeats_stays(nsqd: Nsqd) -> None:
    with consumer(nsqd, heartbeat_interval=1000) as client:
        for _ in range(4):
            assert client.hear() == (0, b"_heartbeat_")
            client.say(b"NOP\n")
        publish(nsqd, b"still here")
        assert client.message()[2] == b"still here"


def test_a_message_that_times_out_goes_to_another(nsqd: Nsqd) -> None:
    with consumer(nsqd, 1, msg_timeout=1000) as slow:
        publish(nsqd, b"m")
        message_id, _, _ = slow.message()
        with consumer(nsqd) as other:
            slow.say(b"RDY 0\n")
            assert other.message() == (message_id, 2, b"m")


def test_a_lone_message_waits_for_the_flush_of_a_buffer(nsqd: Nsqd) -> None:
    """What a client that wants wake-ups at once has to turn off."""
    with consumer(nsqd, output_buffer_size=16384, output_buffer_timeout=1000) as buffered:
        lags = []
        for _ in range(3):
            started = time.monotonic()
            publish(nsqd, b"m")
            buffered.message()
            lags.append(time.monotonic() - started)
        assert max(lags) > 0.1
        assert max(lags) < 1.5


def test_the_lookup_knows_topics_once_they_are_there(nsqd: Nsqd) -> None:
    assert get(nsqd.lookupd, "/ping") == (200, b"OK")
    status, data = get(nsqd.lookupd, "/lookup?topic=t")
    assert (status, json.loads(data)) == (404, {"message": "TOPIC_NOT_FOUND"})
    status, data = get(nsqd.lookupd, "/lookup")
    assert (status, json.loads(data)) == (400, {"message": "MISSING_ARG_TOPIC"})
    with consumer(nsqd):
        wait_until(lambda: get(nsqd.lookupd, "/lookup?topic=t")[0] == 200, what="the topic")
        answer = json.loads(get(nsqd.lookupd, "/lookup?topic=t")[1])
        assert answer["channels"] == ["c"]
        (producer,) = answer["producers"]
        assert f"{producer['broadcast_address']}:{producer['tcp_port']}" == nsqd.address
        assert {"hostname", "http_port", "version", "remote_address"} <= producer.keys()
        (node,) = json.loads(get(nsqd.lookupd, "/nodes")[1])["producers"]
        assert node["topics"] == ["t"]
    assert json.loads(get(nsqd.lookupd, "/topics")[1]) == {"topics": ["t"]}
    assert get(nsqd.lookupd, "/nothing")[0] == 404


def test_it_comes_back_on_its_address_after_a_kill(nsqd: Nsqd) -> None:
    address = nsqd.address
    with consumer(nsqd) as client:
        nsqd.kill()
        assert client.ended()
    with pytest.raises(ConnectionRefusedError):
        Client(nsqd.address)
    nsqd.start()
    assert nsqd.address == address
    with consumer(nsqd) as client:
        publish(nsqd, b"new")
        assert client.message()[2] == b"new"


def test_many_messages_arrive_once_each(nsqd: Nsqd) -> None:
    count = 5000
    with consumer(nsqd, 500) as client, Client(nsqd.address) as publisher:
        texts = [b"%d" % number for number in range(count)]
        for at in range(0, count, 100):
            inner = struct.pack(">i", 100) + b"".join(body(text) for text in texts[at : at + 100])
            publisher.say(b"MPUB t\n" + body(inner))
            assert publisher.hear() == OK
        heard = set()
        for _ in range(count):
            message_id, _, text = client.message()
            heard.add(text)
            client.say(b"FIN %s\n" % message_id)
        assert heard == set(texts)


# ------------------------------------------------------------------ only the stand-in


def test_tls_is_agreed_on_and_verified(stand_in_nsqd: Make) -> None:
    nsqd = stand_in_nsqd(tls=True, options=["--tls-required"])
    assert nsqd.certificates is not None
    context = nsqd.certificates.client_context()
    with Client(nsqd.address, feature_negotiation=True, tls_v1=True) as client:
        assert json.loads(client.hear()[1])["tls_v1"] is True
        client.socket = context.wrap_socket(client.socket, server_hostname="127.0.0.1")
        assert client.hear() == OK
        client.say(b"SUB t c\n")
        assert client.hear() == OK
        assert nsqd.channel("t", "c")["clients"][0]["tls"] is True
    with Client(nsqd.address, feature_negotiation=True, tls_v1=True) as client:
        client.hear()
        with pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(client.socket, server_hostname="127.0.0.1")
    with Client(nsqd.address) as client:
        client.say(b"SUB t c\n")
        assert client.hear()[1].startswith(b"E_INVALID ")


def test_the_secret_is_wanted(stand_in_nsqd: Make) -> None:
    nsqd = stand_in_nsqd(options=["--auth-secret", "secret"])
    with Client(nsqd.address) as client:
        client.say(b"AUTH\n" + body(b"secret") + b"SUB t c\n")
        assert json.loads(client.hear()[1])["permission_count"] == 1
        assert client.hear() == OK
    with Client(nsqd.address) as client:
        client.say(b"AUTH\n" + body(b"guess"))
        assert client.hear()[1].startswith(b"E_AUTH_FAILED ")
        assert client.ended()


def test_frames_may_come_in_pieces(stand_in_nsqd: Make) -> None:
    nsqd = stand_in_nsqd()
    nsqd.faults(split=True, seed=3)
    with consumer(nsqd) as client:
        texts = [b"a text that is longer than a piece, %02d" % number for number in range(20)]
        client.say(b"".join(b"PUB t\n" + body(text) for text in texts))
        sizes, data = [], b""
        while data.count(b"a text") < 20 or data.count(b"OK") < 20:
            piece = client.socket.recv(65_536)
            assert piece
            sizes.append(len(piece))
            data += piece
        assert min(sizes) < 8  # not even the head of a frame
        assert [data.count(text) for text in texts] == [1] * 20


def test_it_can_hang_and_come_to(stand_in_nsqd: Make) -> None:
    nsqd = stand_in_nsqd(options=["--min-heartbeat-ms", "50"])
    with consumer(nsqd, heartbeat_interval=50) as client:
        client.hear()
        client.say(b"NOP\n")
        nsqd.faults(hang=True)
        client.socket.settimeout(0.4)  # past the cut, for which it hangs as well
        hung = False
        while not hung:  # a heartbeat may have been under way
            try:
                client.hear()
            except TimeoutError:
                hung = True
        with Client(nsqd.address) as other:
            other.say(b"PUB t\n" + body(b"m"))
            other.socket.settimeout(0.2)
            with pytest.raises(TimeoutError):
                other.hear()
            nsqd.faults(hang=False)
            other.socket.settimeout(10)
            assert other.hear() == OK


def test_it_says_what_it_is_told_to(stand_in_nsqd: Make) -> None:
    nsqd = stand_in_nsqd()
    with consumer(nsqd) as client:
        publish(nsqd, b"m")
        client.message()
        assert nsqd.inject(b"\xff\xff\xff\xffgarbage") >= 1
        assert client.socket.recv(100) == b"\xff\xff\xff\xffgarbage"
        assert nsqd.cut() >= 1
        assert client.ended()


def test_its_options_and_faults_can_be_given_at_the_start(stand_in_nsqd: Make) -> None:
    nsqd = stand_in_nsqd(options=["--faults", '{"drop": 1}', "--max-msg-size", "10"])
    with consumer(nsqd):
        publish(nsqd, b"dropped")
        assert nsqd.channel("t", "c")["in_flight_count"] == 0
        assert nsqd.channel("t", "c")["message_count"] == 1
    with Client(nsqd.address) as client:
        client.say(b"PUB t\n" + body(b"more than ten"))
        assert client.hear()[1].startswith(b"E_BAD_MESSAGE ")


@pytest.mark.deadline(20)
async def test_it_runs_inside_a_test_too_and_tells_of_its_peers() -> None:
    async with trio.open_nursery() as nursery:
        peer: StandIn = await nursery.start(StandIn().serve)
        nsqd: StandIn = await nursery.start(StandIn(Options(), peers=(peer,)).serve)
        for each in (peer, nsqd):
            stream = await trio.open_tcp_stream("127.0.0.1", each.tcp_port)
            await stream.send_all(b"  V2PUB t\n" + body(b"m"))
            assert await stream.receive_some() == struct.pack(">ii", 6, 0) + b"OK"
            await stream.aclose()
        status, data = await trio.to_thread.run_sync(get, nsqd.lookupd, "/lookup?topic=t")
        assert status == 200
        ports = {producer["tcp_port"] for producer in json.loads(data)["producers"]}
        assert ports == {peer.tcp_port, nsqd.tcp_port}
        peer.stop()
        nsqd.stop()
