"""The stand-in for nsqd says what nsqd says, byte for byte where the protocol fixes it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest

from tools.servers.nsqd_stand_in.broker import Broker
from tools.servers.nsqd_stand_in.session import Options, Session

IDS = "FIN", "REQ", "TOUCH"
OK = (0, b"OK")


def body(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


def mpub(*messages: bytes, count: int | None = None) -> bytes:
    inner = struct.pack(">i", len(messages) if count is None else count)
    return b"MPUB t\n" + body(inner + b"".join(body(message) for message in messages))


def identify(**said: object) -> bytes:
    return b"IDENTIFY\n" + body(json.dumps(said).encode())


def frames_of(raw: bytes) -> list[tuple[int, bytes]]:
    frames = []
    while raw:
        size, kind = struct.unpack_from(">ii", raw)
        assert len(raw) >= 4 + size, "a frame is cut off"
        frames.append((kind, raw[8 : 4 + size]))
        raw = raw[4 + size :]
    return frames


class World:
    """A broker, and a clock that a test turns."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - what it takes
        self.broker = Broker()
        self.options = Options(**options)
        self.now = 1000.0

    def client(self, said: bytes = b"") -> Client:
        client = Client(self)
        assert client.say(b"  V2") == []
        if said:
            client.say(said)
        return client

    def consumer(self, ready: int = 100, *, channel: bytes = b"c", **said: object) -> Client:
        client = self.client(identify(output_buffer_size=-1, **said))
        assert client.say(b"SUB t %s\n" % channel) == [OK]
        assert client.say(b"RDY %d\n" % ready) == []
        return client

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
        self.broker.tick(self.now)

    def channel(self, name: str = "c") -> dict[str, Any]:
        for channel in self.broker.stats()["topics"][0]["channels"]:
            if channel["channel_name"] == name:
                return dict(channel)
        raise AssertionError(name)


class Client:
    def __init__(self, world: World) -> None:
        self.session = Session(
            world.broker,
            world.options,
            peer="127.0.0.1:1",
            clock=lambda: world.now,
            wake=lambda: None,
        )

    def say(self, raw: bytes) -> list[tuple[int, bytes]]:
        self.session.feed(raw)
        return self.hear()

    def hear(self) -> list[tuple[int, bytes]]:
        return frames_of(self.session.take())

    def messages(self) -> list[tuple[bytes, int, bytes]]:
        """Id, attempts and body of what was delivered."""
        heard = []
        for kind, data in self.hear():
            assert kind == 2, data
            _, attempts, message_id = struct.unpack_from(">qH16s", data)
            heard.append((message_id, attempts, data[26:]))
        return heard

    @property
    def open(self) -> bool:
        return not self.session.closing


# ---------------------------------------------------------------------------- publishing


def test_a_message_frame_is_laid_out_as_the_protocol_says() -> None:
    world = World()
    consumer = world.consumer()
    assert world.client().say(b"PUB t\n" + body(b"hello")) == [OK]
    raw = consumer.session.take()
    size, kind, at_ns, attempts, message_id = struct.unpack_from(">iiqH16s", raw)
    assert (size, kind, attempts) == (len(raw) - 4, 2, 1)
    assert at_ns > 1_700_000_000 * 10**9
    assert int(message_id, 16) > 0
    assert raw[34:] == b"hello"


def test_mpub_publishes_all_of_its_messages() -> None:
    world = World()
    consumer = world.consumer()
    assert world.client().say(mpub(b"one", b"two", b"\n\0three")) == [OK]
    assert [text for _, _, text in consumer.messages()] == [b"one", b"two", b"\n\0three"]


def test_dpub_delivers_after_its_delay() -> None:
    world = World()
    consumer = world.consumer()
    assert world.client().say(b"DPUB t 1500\n" + body(b"later")) == [OK]
    world.pass_s(1.4)
    assert consumer.messages() == []
    world.pass_s(0.2)
    assert [text for _, _, text in consumer.messages()] == [b"later"]


def test_messages_wait_in_the_topic_for_its_first_channel() -> None:
    world = World()
    world.client().say(b"PUB t\n" + body(b"early") + b"DPUB t 1000\n" + body(b"deferred"))
    world.now += 0.6
    consumer = world.consumer(0)
    consumer.session.feed(b"RDY 100\n")
    assert [text for _, _, text in consumer.messages()] == [b"early"]
    world.pass_s(0.5)
    assert [text for _, _, text in consumer.messages()] == [b"deferred"]


def test_each_channel_gets_its_own_copy() -> None:
    world = World()
    one, two = world.consumer(channel=b"one"), world.consumer(channel=b"two")
    world.client().say(b"PUB t\n" + body(b"m"))
    ((message_id, _, _),) = one.messages()
    assert [text for _, _, text in two.messages()] == [b"m"]
    assert one.say(b"FIN " + message_id + b"\n") == []
    assert world.channel("one")["in_flight_count"] == 0
    assert world.channel("two")["in_flight_count"] == 1


# ---------------------------------------------------------------------------- consuming


def test_no_more_is_in_flight_than_rdy_allows() -> None:
    world = World()
    consumer = world.consumer(ready=2)
    world.client().say(mpub(b"1", b"2", b"3", b"4"))
    held = consumer.messages()
    assert [text for _, _, text in held] == [b"1", b"2"]
    consumer.session.feed(b"FIN " + held[0][0] + b"\n")
    assert [text for _, _, text in consumer.messages()] == [b"3"]
    consumer.session.feed(b"RDY 0\n" + b"FIN " + held[1][0] + b"\n")
    assert consumer.messages() == []
    consumer.session.feed(b"RDY 2\n")
    assert [text for _, _, text in consumer.messages()] == [b"4"]


def test_connections_of_a_channel_take_turns() -> None:
    world = World()
    consumers = [world.consumer() for _ in range(3)]
    world.client().say(mpub(*(b"%d" % number for number in range(30))))
    shares = [consumer.messages() for consumer in consumers]
    assert [len(share) for share in shares] == [10, 10, 10]
    assert len({message_id for share in shares for message_id, _, _ in share}) == 30


def test_req_delivers_again_after_its_delay_with_one_attempt_more() -> None:
    world = World()
    consumer = world.consumer()
    world.client().say(b"PUB t\n" + body(b"m"))
    ((message_id, attempts, _),) = consumer.messages()
    assert attempts == 1
    assert consumer.say(b"REQ %s 0\n" % message_id) != []  # at once, in the same breath
    assert consumer.say(b"REQ %s 2000\n" % message_id) == []
    assert world.channel()["deferred_count"] == 1
    world.pass_s(1.9)
    assert consumer.messages() == []
    world.pass_s(0.2)
    assert consumer.messages() == [(message_id, 3, b"m")]
    assert world.channel()["requeue_count"] == 2


def test_a_delay_of_req_past_the_most_is_made_the_most() -> None:
    world = World()
    consumer = world.consumer()
    world.client().say(b"PUB t\n" + body(b"m"))
    ((message_id, _, _),) = consumer.messages()
    assert consumer.say(b"REQ %s 99999999999\n" % message_id) == []
    assert consumer.open
    world.pass_s(3601)
    assert [attempts for _, attempts, _ in consumer.messages()] == [2]


def test_a_message_that_is_not_finished_in_time_comes_again() -> None:
    world = World()
    consumer = world.consumer(msg_timeout=1000)
    world.client().say(b"PUB t\n" + body(b"m"))
    ((message_id, _, _),) = consumer.messages()
    world.pass_s(0.9)
    assert consumer.messages() == []
    world.pass_s(0.2)
    assert consumer.messages() == [(message_id, 2, b"m")]
    assert world.channel()["timeout_count"] == 1
    assert world.channel()["clients"][0]["in_flight_count"] == 1


def test_touch_gives_a_message_more_time_but_not_for_ever() -> None:
    world = World()
    consumer = world.consumer(msg_timeout=60_000)
    world.client().say(b"PUB t\n" + body(b"m"))
    ((message_id, _, _),) = consumer.messages()
    for _ in range(17):  # 15 minutes are the most
        world.pass_s(50)
        assert consumer.say(b"TOUCH %s\n" % message_id) == []
    world.pass_s(49)
    assert consumer.messages() == []
    world.pass_s(2)
    assert consumer.messages() == [(message_id, 2, b"m")]


def test_what_a_client_held_waits_for_its_timeout_when_the_client_goes() -> None:
    world = World()
    gone, other = world.consumer(msg_timeout=5000), world.consumer(0, msg_timeout=5000)
    world.client().say(b"PUB t\n" + body(b"m"))
    assert len(gone.messages()) == 1
    gone.session.end()
    assert other.say(b"RDY 1\n") == []
    world.pass_s(5.1)
    assert [attempts for _, attempts, _ in other.messages()] == [2]


def test_cls_is_answered_and_ends_deliveries_but_what_is_held_can_be_settled() -> None:
    world = World()
    consumer = world.consumer()
    world.client().say(mpub(b"1", b"2"))
    held = consumer.messages()
    assert consumer.say(b"CLS\n") == [(0, b"CLOSE_WAIT")]
    world.client().say(b"PUB t\n" + body(b"3"))
    assert consumer.say(b"RDY 10\nFIN %s\nREQ %s 0\n" % (held[0][0], held[1][0])) == []
    assert consumer.open
    assert world.channel()["depth"] == 2


def test_an_ephemeral_channel_goes_with_its_last_client() -> None:
    world = World()
    lasting, fleeting = world.consumer(), world.consumer(channel=b"x#ephemeral")
    fleeting.session.end()
    lasting.session.end()
    assert [each["channel_name"] for each in world.broker.stats()["topics"][0]["channels"]] == ["c"]


# ------------------------------------------------------------------- features, buffering


def test_identify_answers_with_what_was_agreed_on() -> None:
    client = World().client()
    ((kind, data),) = client.say(
        identify(
            feature_negotiation=True,
            msg_timeout=5000,
            output_buffer_size=-1,
            output_buffer_timeout=50,
            tls_v1=True,
            deflate=True,
            snappy=True,
            sample_rate=10,
            heartbeat_interval=2000,
        )
    )
    assert kind == 0
    assert json.loads(data) == {
        "max_rdy_count": 2500,
        "version": "1.3.0",
        "max_msg_timeout": 900_000,
        "msg_timeout": 5000,
        "tls_v1": False,
        "deflate": False,
        "deflate_level": 0,
        "max_deflate_level": 6,
        "snappy": False,
        "sample_rate": 10,
        "auth_required": False,
        "output_buffer_size": 1,
        "output_buffer_timeout": 50,
    }
    assert client.session.heartbeat_s == 2


def test_identify_without_feature_negotiation_answers_ok() -> None:
    assert World().client().say(identify(client_id="me")) == [OK]


def test_a_lone_message_waits_for_a_flush_unless_the_buffer_is_off() -> None:
    world = World()
    buffered = world.client(identify(output_buffer_size=16384))
    assert buffered.say(b"SUB t c\n") == [OK]
    buffered.say(b"RDY 100\n")
    direct = world.consumer(channel=b"direct")
    world.client().say(b"PUB t\n" + body(b"m"))
    assert len(direct.messages()) == 1
    assert buffered.messages() == []
    buffered.session.flush()
    assert len(buffered.messages()) == 1


def test_a_buffer_that_is_full_or_can_take_no_more_leaves_at_once() -> None:
    world = World()
    buffered = world.client(identify(output_buffer_size=64))
    buffered.say(b"SUB t c\n")
    buffered.say(b"RDY 3\n")
    publisher = world.client()
    publisher.say(b"PUB t\n" + body(b"x" * 10))
    assert buffered.messages() == []
    publisher.say(b"PUB t\n" + body(b"x" * 30))
    assert len(buffered.messages()) == 2  # the size
    publisher.say(b"PUB t\n" + body(b"x"))
    assert len(buffered.messages()) == 1  # RDY


# ---------------------------------------------------------------------------- errors

HELD = b"%016x" % 999


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"WHAT\n", b"E_INVALID"),
        (b"\n", b"E_INVALID"),
        (b"sub t c\n", b"E_INVALID"),
        (b"SUB t\n", b"E_INVALID"),
        (b"SUB b@d c\n", b"E_BAD_TOPIC"),
        (b"SUB %s c\n" % (b"x" * 65), b"E_BAD_TOPIC"),
        (b"SUB t b@d\n", b"E_BAD_CHANNEL"),
        (b"RDY 1\n", b"E_INVALID"),
        (b"FIN " + HELD + b"\n", b"E_INVALID"),
        (b"REQ " + HELD + b" 0\n", b"E_INVALID"),
        (b"TOUCH " + HELD + b"\n", b"E_INVALID"),
        (b"CLS\n", b"E_INVALID"),
        (b"SUB t c\nSUB t c\n", b"E_INVALID"),
        (b"SUB t c\nRDY 2501\n", b"E_INVALID"),
        (b"SUB t c\nRDY -1\n", b"E_INVALID"),
        (b"SUB t c\nRDY many\n", b"E_INVALID"),
        (b"SUB t c\nFIN\n", b"E_INVALID"),
        (b"SUB t c\nFIN short\n", b"E_INVALID"),
        (b"SUB t c\nREQ " + HELD + b"\n", b"E_INVALID"),
        (b"SUB t c\nREQ " + HELD + b" soon\n", b"E_INVALID"),
        (b"SUB t c\nCLS\nCLS\n", b"E_INVALID"),
        (b"SUB t c\n" + identify(), b"E_INVALID"),
        (identify() + identify(), b"E_INVALID"),
        (identify(heartbeat_interval=-1) + b"SUB t c\n", b"E_INVALID"),
        (b"IDENTIFY\n" + body(b"{"), b"E_BAD_BODY"),
        (b"IDENTIFY\n" + body(b"[]"), b"E_BAD_BODY"),
        (b"IDENTIFY\n" + body(b""), b"E_BAD_BODY"),
        (identify(heartbeat_interval=5), b"E_BAD_BODY"),
        (identify(heartbeat_interval=60_001), b"E_BAD_BODY"),
        (identify(msg_timeout=-1), b"E_BAD_BODY"),
        (identify(msg_timeout=900_001), b"E_BAD_BODY"),
        (identify(output_buffer_size=65_537), b"E_BAD_BODY"),
        (identify(output_buffer_timeout="soon"), b"E_BAD_BODY"),
        (identify(sample_rate=100), b"E_BAD_BODY"),
        (b"AUTH\n" + body(b"secret"), b"E_AUTH_DISABLED"),
        (b"AUTH now\n", b"E_INVALID"),
        (b"PUB\n", b"E_INVALID"),
        (b"PUB b@d\n" + body(b"m"), b"E_BAD_TOPIC"),
        (b"PUB t\n" + body(b""), b"E_BAD_MESSAGE"),
        (b"PUB t\n" + struct.pack(">i", -1), b"E_BAD_MESSAGE"),
        (b"PUB t\n" + struct.pack(">i", 1024 * 1024 + 1), b"E_BAD_MESSAGE"),
        (b"DPUB t\n", b"E_INVALID"),
        (b"DPUB b@d 1\n", b"E_BAD_TOPIC"),
        (b"DPUB t soon\n", b"E_INVALID"),
        (b"DPUB t 3600001\n" + body(b"m"), b"E_INVALID"),
        (b"DPUB t 1\n" + body(b""), b"E_BAD_MESSAGE"),
        (b"MPUB\n", b"E_INVALID"),
        (b"MPUB b@d\n" + body(b"m"), b"E_BAD_TOPIC"),
        (b"MPUB t\n" + body(b""), b"E_BAD_BODY"),
        (b"MPUB t\n" + struct.pack(">i", 5 * 1024 * 1024 + 1), b"E_BAD_BODY"),
        (b"MPUB t\n" + body(b"abc"), b"E_BAD_BODY"),
        (mpub(count=0), b"E_BAD_BODY"),
        (mpub(b"one", count=2), b"E_BAD_BODY"),
        (mpub(b"one", b""), b"E_BAD_MESSAGE"),
        (b"MPUB t\n" + body(struct.pack(">ii", 1, 9) + b"short"), b"E_BAD_MESSAGE"),
    ],
)
def test_an_error_that_closes(said: bytes, code: bytes) -> None:
    world = World()
    client = world.client()
    kind, data = client.say(said)[-1]
    assert kind == 1
    assert data.split(b" ")[0] == code
    assert len(data.split(b" ")) > 1, "an error says more than its code"
    assert not client.open
    assert client.say(b"PUB t\n" + body(b"after")) == []
    assert all(topic["message_count"] == 0 for topic in world.broker.stats()["topics"])


@pytest.mark.parametrize("command", IDS)
def test_an_error_that_does_not_close(command: str) -> None:
    world = World()
    consumer, thief = world.consumer(), world.consumer(0)
    world.client().say(b"PUB t\n" + body(b"m"))
    ((held, _, _),) = consumer.messages()
    tail = b" 0\n" if command == "REQ" else b"\n"
    for message_id, client in ((HELD, consumer), (held, thief)):
        ((kind, data),) = client.say(command.encode() + b" " + message_id + tail)
        assert kind == 1
        assert data.startswith(b"E_%s_FAILED %s " % (command.encode(), command.encode()))
        assert client.open
    assert consumer.say(b"FIN %s\n" % held) == []


def test_another_protocol_is_refused() -> None:
    client = Client(World())
    assert client.say(b"GET / HTTP/1.1\r\n") == [(1, b"E_BAD_PROTOCOL")]
    assert not client.open


def test_a_line_without_an_end_is_cut_off() -> None:
    client = World().client()
    assert client.say(b"x" * 20_000) == []
    assert not client.open


@pytest.mark.parametrize("command", ["PUB", "MPUB", "DPUB"])
def test_a_publish_that_fails_closes(command: str) -> None:
    world = World()
    world.broker.faults.refuse_publish = True
    said = {"PUB": b"PUB t\n" + body(b"m"), "MPUB": mpub(b"m"), "DPUB": b"DPUB t 1\n" + body(b"m")}
    client = world.client()
    ((kind, data),) = client.say(said[command])
    assert kind == 1
    assert data.startswith(f"E_{command}_FAILED ".encode())
    assert not client.open


# ---------------------------------------------------------------------------- auth, TLS


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"PUB t\n" + body(b"m"), b"E_AUTH_FIRST"),
        (b"SUB t c\n", b"E_AUTH_FIRST"),
        (b"AUTH\n" + body(b"guess"), b"E_AUTH_FAILED"),
        (b"AUTH\n" + body(b"secret") + b"SUB other c\n", b"E_UNAUTHORIZED"),
        (b"AUTH\n" + body(b"secret") + b"PUB other\n" + body(b"m"), b"E_UNAUTHORIZED"),
        (b"AUTH\n" + body(b"secret") + b"AUTH\n" + body(b"secret"), b"E_INVALID"),
    ],
)
def test_who_has_no_right_is_refused(said: bytes, code: bytes) -> None:
    client = World(auth_secret="secret", auth_topics="t").client()
    kind, data = client.say(said)[-1]
    assert (kind, data.split(b" ")[0]) == (1, code)
    assert not client.open


def test_who_has_the_right_is_told_so_and_may() -> None:
    world = World(auth_secret="secret", auth_topics="t")
    client = world.client()
    ((_, agreed),) = client.say(identify(feature_negotiation=True))
    assert json.loads(agreed)["auth_required"] is True
    ((kind, data),) = client.say(b"AUTH\n" + body(b"secret"))
    assert kind == 0
    assert json.loads(data)["permission_count"] == 1
    assert client.say(b"PUB t\n" + body(b"m")) == [OK]


def test_where_tls_is_required_nothing_goes_without() -> None:
    client = World(tls=True, tls_required=True).client()
    ((_, agreed),) = client.say(identify(feature_negotiation=True))
    assert json.loads(agreed)["tls_v1"] is False  # it was not asked for
    ((kind, data),) = client.say(b"SUB t c\n")
    assert (kind, data.split(b" ")[0]) == (1, b"E_INVALID")


def test_after_agreeing_to_tls_nothing_is_read_before_the_handshake() -> None:
    client = World(tls=True).client()
    ((_, agreed),) = client.say(identify(feature_negotiation=True, tls_v1=True) + b"SUB t c\n")
    assert json.loads(agreed)["tls_v1"] is True
    assert client.session.upgrading
    client.session.secured()
    assert client.hear() == [OK]


# ---------------------------------------------------------------------------- splits


def test_commands_mean_the_same_wherever_they_are_split() -> None:
    talk = (
        b"  V2"
        + identify(output_buffer_size=-1)
        + b"SUB t c\r\nRDY 5\nNOP\n"
        + mpub(b"one", b"t\nwo")
        + b"PUB t\n"
        + body(b"  V2")
        + b"FIN 0000000000000001\nREQ 0000000000000002 0\nTOUCH 0000000000000003\n"
        + b"FIN nothing\n"
    )

    def heard(*pieces: bytes) -> list[tuple[int, bytes]]:
        client = Client(World())
        for piece in pieces:
            client.session.feed(piece)
        # Without the time stamps, which are the machine's.
        return [
            (kind, data[8:] if kind == 2 else data)
            for kind, data in frames_of(client.session.take())
        ]

    whole = heard(talk)
    assert [kind for kind, _ in whole] == [0, 0, 2, 2, 0, 2, 0, 2, 1]
    assert heard(*(talk[at : at + 1] for at in range(len(talk)))) == whole
    for at in range(len(talk)):
        assert heard(talk[:at], talk[at:]) == whole, at


# ---------------------------------------------------------------------------- faults


def faulty(**faults: object) -> tuple[World, Client, Callable[[int], None]]:
    world = World()
    world.broker.change_faults(faults)
    consumer = world.consumer(2500)

    def publish(count: int) -> None:
        world.client().say(mpub(*(b"%d" % number for number in range(count))))

    return world, consumer, publish


def test_messages_are_dropped_by_chance() -> None:
    _, consumer, publish = faulty(drop=0.5, seed=1)
    publish(1000)
    assert 400 < len(consumer.messages()) < 600


def test_messages_are_doubled_by_chance_under_ids_of_their_own() -> None:
    _, consumer, publish = faulty(double=0.5, seed=1)
    publish(1000)
    heard = consumer.messages()
    assert 1400 < len(heard) < 1600
    assert len({message_id for message_id, _, _ in heard}) == len(heard)
    assert {text for _, _, text in heard} == {b"%d" % number for number in range(1000)}


def test_messages_are_shuffled_the_same_way_for_the_same_seed() -> None:
    orders = []
    for _ in range(2):
        _, consumer, publish = faulty(shuffle=True, seed=7)
        consumer.say(b"RDY 0\n")
        publish(100)
        consumer.session.feed(b"RDY 2500\n")
        orders.append([int(text) for _, _, text in consumer.messages()])
    assert sorted(orders[0]) == list(range(100)) != orders[0]
    assert orders[0] == orders[1]


def test_messages_are_delayed() -> None:
    world, consumer, publish = faulty(delay_ms=1000, seed=1)
    publish(100)
    assert consumer.messages() == []
    world.pass_s(0.5)
    assert 20 < len(consumer.messages()) < 80
    world.pass_s(0.6)
    assert world.channel()["deferred_count"] == 0


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="no fault is called explode"):
        Broker().change_faults({"explode": True})
