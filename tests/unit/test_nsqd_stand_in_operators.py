"""What an operator can do to the nsqd stand-in, and what its lookup forgets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tools.servers.nsqd_stand_in.broker import Broker, Channel, DiskFull, Message
from tools.servers.nsqd_stand_in.http import Request
from tools.servers.nsqd_stand_in.nsqlookupd import Registry


@dataclass(eq=False)
class Taker:
    """Takes all there is."""

    got: list[bytes] = field(default_factory=list)
    in_flight: int = 0
    closed: bool = False
    wants: bool = True

    def deliver(self, message: Message, channel: Channel, now: float) -> None:
        self.got.append(message.body)
        self.in_flight += 1
        channel.start(message, self, now, 60)

    def lost(self) -> None:
        self.in_flight -= 1

    def close(self) -> None:
        self.closed = True

    def describe(self) -> dict[str, Any]:
        return {}


def consumed(broker: Broker) -> tuple[Taker, Channel]:
    taker = Taker()
    return taker, broker.subscribe("t", "c", taker, 0)


def publish(broker: Broker, *bodies: bytes) -> None:
    broker.topic("t").publish(bodies, 0, 0, 0)


def test_a_paused_channel_takes_and_does_not_bring() -> None:
    broker = Broker()
    taker, channel = consumed(broker)
    channel.pause(True, 0)
    publish(broker, b"1", b"2")
    assert taker.got == []
    assert len(channel.ready) == 2
    channel.pause(False, 0)
    assert taker.got == [b"1", b"2"]


def test_a_paused_topic_keeps_what_is_published_from_its_channels() -> None:
    broker = Broker()
    taker, channel = consumed(broker)
    topic = broker.topic("t")
    topic.pause(True, 0)
    publish(broker, b"1")
    assert (len(topic.waiting), len(channel.ready), taker.got) == (1, 0, [])
    topic.pause(False, 0)
    assert taker.got == [b"1"]


def test_an_emptied_channel_forgets_what_is_in_flight_too() -> None:
    broker = Broker()
    taker, channel = consumed(broker)
    publish(broker, b"1")
    taker.wants = False
    publish(broker, b"2")
    channel.empty()
    assert (taker.in_flight, len(channel.ready), len(channel.in_flight)) == (0, 0, 0)


def test_what_is_deleted_ends_its_consumers() -> None:
    broker = Broker()
    taker, _ = consumed(broker)
    broker.delete_channel("t", "c")
    assert taker.closed
    other, _ = consumed(broker)
    broker.delete_topic("t")
    assert other.closed
    assert not broker.topics


def test_what_outlives_a_kill_is_which_topics_and_channels_there_are_and_are_paused() -> None:
    broker = Broker()
    _, channel = consumed(broker)
    broker.channel("t", "gone#ephemeral", 0)
    broker.topic("gone#ephemeral")
    publish(broker, b"1")
    channel.pause(True, 0)
    later = Broker()
    later.restore(broker.metadata())
    assert list(later.topics) == ["t"]
    assert list(later.topics["t"].channels) == ["c"]
    assert later.topics["t"].channels["c"].paused
    assert not later.topics["t"].channels["c"].ready


def test_a_full_disk_refuses_what_has_no_place_in_memory() -> None:
    broker = Broker(mem_queue_size=2)
    broker.topic("t")
    broker.change_faults({"disk_full": True})
    publish(broker, b"1", b"2")
    with pytest.raises(DiskFull):
        publish(broker, b"3")
    assert broker.health.startswith("NOK")
    broker.change_faults({"disk_full": False})
    publish(broker, b"3")


def test_the_lookup_forgets_the_inactive_and_hides_what_has_a_tombstone() -> None:
    now = [0.0]
    registry = Registry(lambda: now[0], inactive_producer_timeout_s=300, tombstone_lifetime_s=45)

    def named(path: str, **names: str) -> list[int]:
        query = {name: [value] for name, value in names.items()}
        status, answer = registry.routes()["GET", path](Request("GET", path, query, b""))
        assert isinstance(answer, dict)
        assert status == 200
        return [each["tcp_port"] for each in answer["producers"]]

    producers = [
        registry.add({"broadcast_address": "h", "tcp_port": port, "http_port": port + 1})
        for port in (1, 3)
    ]
    for each in producers:
        registry.register(each, "t", "c")
    hide = Request("POST", "", {"topic": ["t"], "node": ["h:2"]}, b"")
    registry.routes()["POST", "/topic/tombstone"](hide)
    assert named("/lookup", topic="t") == [3]
    assert named("/nodes") == [1, 3]
    now[0] = 46.0
    assert named("/lookup", topic="t") == [1, 3]
    now[0] = 200.0
    registry.ping(producers[0])
    now[0] = 310.0
    assert named("/lookup", topic="t") == [1]
    registry.remove(producers[0])
    assert named("/nodes") == []
