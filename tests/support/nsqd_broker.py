"""Topics, channels and messages of the nsqd stand-in, in memory. No I/O, and no clock:
times are seconds of one monotonic clock, and are passed in."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

MAX_TOUCHED_S = 900.0
"""How long a message may be in flight, however often it is touched."""


class Consumer(Protocol):
    """A connection that has subscribed to a channel."""

    @property
    def wants(self) -> bool:
        """Whether it may be given one more message."""
        ...

    def deliver(self, message: Message, channel: Channel, now: float) -> None:
        """Give it a message, which is in flight with it from now on."""
        ...

    def lost(self) -> None:
        """A message that it held is in flight no more: it took too long."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the statistics say of it."""
        ...


@dataclass(slots=True)
class Faults:
    """What the stand-in does wrong, for tests. Chances are from 0 to 1."""

    drop: float = 0.0
    """Chance that a message is forgotten instead of delivered."""
    double: float = 0.0
    """Chance that a message is published twice, as two messages."""
    shuffle: bool = False
    """Deliver what waits in a random order."""
    delay_ms: int = 0
    """Defer each message by a random time up to this."""
    hang: bool = False
    """Accept connections, and neither read nor write. Also of the lookup."""
    split: bool = False
    """Send in pieces of a few bytes."""
    refuse_publish: bool = False
    """Answer every PUB and MPUB with E_PUB_FAILED or E_MPUB_FAILED."""
    seed: int = 0
    """Of the chances and orders."""

    def change(self, changes: dict[str, Any]) -> None:
        """Set some by name.

        Raises:
            ValueError: there is no fault of that name.
        """
        names = {item.name for item in fields(self)}
        for name, value in changes.items():
            if name not in names:
                raise ValueError(f"no fault is called {name}")
            setattr(self, name, value)


@dataclass(slots=True, eq=False)
class Message:
    """What was published, once for each channel."""

    id: bytes
    body: bytes
    timestamp_ns: int
    attempts: int = 0


@dataclass(slots=True, eq=False)
class InFlight:
    """A message that a consumer holds."""

    message: Message
    consumer: Consumer
    until: float
    """When it times out."""
    at_most: float
    """What no TOUCH extends it past."""


class NotInFlight(Exception):
    """The message is not held by the consumer that speaks of it."""


@dataclass(eq=False)
class Channel:
    """One copy of a topic's messages, shared by those who subscribed to it."""

    name: str
    broker: Broker
    ready: deque[Message] = field(default_factory=deque)
    in_flight: dict[bytes, InFlight] = field(default_factory=dict)
    deferred: list[tuple[float, int, Message]] = field(default_factory=list)
    consumers: deque[Consumer] = field(default_factory=deque)
    message_count: int = 0
    requeue_count: int = 0
    timeout_count: int = 0

    def put(self, message: Message, now: float, delay_s: float = 0.0) -> None:
        """Take a new message."""
        self.message_count += 1
        faults = self.broker.faults
        if faults.delay_ms:
            delay_s += self.broker.random.uniform(0, faults.delay_ms / 1000)
        self._wait(message, now, delay_s)
        if faults.double and self.broker.random.random() < faults.double:
            self.message_count += 1
            twin = Message(self.broker.new_id(), message.body, message.timestamp_ns)
            self._wait(twin, now, delay_s)

    def _wait(self, message: Message, now: float, delay_s: float) -> None:
        if delay_s > 0:
            self.broker.numbered += 1
            heapq.heappush(self.deferred, (now + delay_s, self.broker.numbered, message))
        else:
            self.ready.append(message)

    def pump(self, now: float) -> None:
        """Deliver what waits to those who want it, in turns."""
        ready, consumers, broker = self.ready, self.consumers, self.broker
        refused = 0
        while ready and refused < len(consumers):
            consumer = consumers[0]
            consumers.rotate(-1)
            if not consumer.wants:
                refused += 1
                continue
            refused = 0
            if broker.faults.shuffle:
                chosen = broker.random.randrange(len(ready))
                ready[0], ready[chosen] = ready[chosen], ready[0]
            message = ready.popleft()
            if broker.faults.drop and broker.random.random() < broker.faults.drop:
                continue
            message.attempts = min(message.attempts + 1, 0xFFFF)
            consumer.deliver(message, self, now)

    def start(self, message: Message, consumer: Consumer, now: float, timeout_s: float) -> None:
        """A consumer holds the message from now on."""
        self.in_flight[message.id] = InFlight(
            message, consumer, now + timeout_s, now + MAX_TOUCHED_S
        )

    def _held(self, message_id: bytes, consumer: Consumer) -> InFlight:
        held = self.in_flight.get(message_id)
        if held is None:
            raise NotInFlight("it is not in flight")
        if held.consumer is not consumer:
            raise NotInFlight("another client holds it")
        return held

    def finish(self, message_id: bytes, consumer: Consumer) -> None:
        """It was worked on; raises `NotInFlight`."""
        self._held(message_id, consumer)
        del self.in_flight[message_id]

    def requeue(self, message_id: bytes, consumer: Consumer, now: float, delay_s: float) -> None:
        """It is to be delivered again; raises `NotInFlight`."""
        held = self._held(message_id, consumer)
        del self.in_flight[message_id]
        self.requeue_count += 1
        self._wait(held.message, now, delay_s)

    def touch(self, message_id: bytes, consumer: Consumer, now: float, timeout_s: float) -> None:
        """It takes longer; raises `NotInFlight`."""
        held = self._held(message_id, consumer)
        held.until = min(now + timeout_s, held.at_most)

    def tick(self, now: float) -> None:
        """Bring back what timed out, and what was deferred until now."""
        late = [held for held in self.in_flight.values() if held.until <= now]
        for held in late:
            del self.in_flight[held.message.id]
            self.timeout_count += 1
            self.ready.append(held.message)
            held.consumer.lost()
        while self.deferred and self.deferred[0][0] <= now:
            self.ready.append(heapq.heappop(self.deferred)[2])
        self.pump(now)


@dataclass(eq=False)
class Topic:
    """Messages by one name. They wait here until there is a channel."""

    name: str
    broker: Broker
    channels: dict[str, Channel] = field(default_factory=dict)
    waiting: list[tuple[Message, float]] = field(default_factory=list)
    message_count: int = 0

    def publish(self, bodies: Iterable[bytes], now: float, wall_ns: int, delay_s: float) -> None:
        """A new message for each body; each channel gets its own copy."""
        for body in bodies:
            self.message_count += 1
            message_id = self.broker.new_id()
            if not self.channels:
                self.waiting.append((Message(message_id, body, wall_ns), now + delay_s))
            for channel in self.channels.values():
                channel.put(Message(message_id, body, wall_ns), now, delay_s)
        for channel in self.channels.values():
            channel.pump(now)


class Broker:
    """All topics. Nothing outlives the process."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.faults = Faults()
        self.random = random.Random(0)
        self.numbered = 0
        self._last_id = 0

    def change_faults(self, changes: dict[str, Any]) -> None:
        """Set some faults by name; a seed begins its series anew."""
        self.faults.change(changes)
        if "seed" in changes:
            self.random.seed(self.faults.seed)

    def new_id(self) -> bytes:
        self._last_id += 1
        return b"%016x" % self._last_id

    def topic(self, name: str) -> Topic:
        """The topic, made if it was not there."""
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(name, self)
        return topic

    def subscribe(self, topic_name: str, name: str, consumer: Consumer, now: float) -> Channel:
        """The channel, made if it was not there; the first gets what waits."""
        topic = self.topic(topic_name)
        channel = topic.channels.get(name)
        if channel is None:
            channel = topic.channels[name] = Channel(name, self)
            waiting, topic.waiting = topic.waiting, []
            for message, due in waiting:
                channel.put(message, now, max(0.0, due - now))
        channel.consumers.append(consumer)
        return channel

    def leave(self, channel: Channel, consumer: Consumer) -> None:
        """A consumer went away. What it held stays in flight until it times out."""
        channel.consumers.remove(consumer)
        if channel.consumers or not channel.name.endswith("#ephemeral"):
            return
        for topic in list(self.topics.values()):
            if topic.channels.get(channel.name) is channel:
                del topic.channels[channel.name]
                if not topic.channels and topic.name.endswith("#ephemeral"):
                    del self.topics[topic.name]

    def tick(self, now: float) -> None:
        """To be called a few times a second."""
        for topic in self.topics.values():
            for channel in topic.channels.values():
                if channel.in_flight or channel.deferred:
                    channel.tick(now)

    def stats(self) -> dict[str, Any]:
        """As nsqd's ``/stats?format=json`` says it, as far as it goes."""
        return {
            "version": VERSION,
            "health": "OK",
            "topics": [
                {
                    "topic_name": topic.name,
                    "depth": len(topic.waiting),
                    "message_count": topic.message_count,
                    "channels": [_channel_stats(channel) for channel in topic.channels.values()],
                }
                for topic in self.topics.values()
            ],
        }


VERSION = "1.3.0"
"""What the stand-in says that it is: clients may look at it."""


def _channel_stats(channel: Channel) -> dict[str, Any]:
    return {
        "channel_name": channel.name,
        "depth": len(channel.ready),
        "in_flight_count": len(channel.in_flight),
        "deferred_count": len(channel.deferred),
        "message_count": channel.message_count,
        "requeue_count": channel.requeue_count,
        "timeout_count": channel.timeout_count,
        "client_count": len(channel.consumers),
        "clients": [consumer.describe() for consumer in channel.consumers],
    }
