"""Topics, channels and messages of the nsqd stand-in, in memory. No I/O, and no clock:
times are seconds of one monotonic clock, and are passed in."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
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
        """A message that it held is in flight no more: it took too long, or the channel
        was emptied."""
        ...

    def close(self) -> None:
        """Its channel is deleted: its connection ends."""
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
    disk_full: bool = False
    """Nothing can be written: what has no place in a topic's memory any more is refused
    as above, what has none in a channel's is lost, and the health is told as bad."""
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


class DiskFull(Exception):
    """A message has no place in memory, and none on disk."""


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
    paused: bool = False
    """It takes messages, and delivers none."""

    @property
    def ephemeral(self) -> bool:
        return self.name.endswith("#ephemeral")

    def empty(self) -> None:
        """Forget all messages, those in flight too."""
        self.ready.clear()
        self.deferred.clear()
        in_flight, self.in_flight = self.in_flight, {}
        for held in in_flight.values():
            held.consumer.lost()

    def pause(self, paused: bool, now: float) -> None:
        self.paused = paused
        self.pump(now)

    def delete(self) -> None:
        """Forget all messages, and end the connections of those who consume."""
        self.empty()
        for consumer in list(self.consumers):
            consumer.close()

    def put(self, message: Message, now: float, delay_s: float = 0.0) -> None:
        """Take a new message."""
        faults = self.broker.faults
        if faults.disk_full and len(self.ready) >= max(self.broker.mem_queue_size, 1):
            return  # nsqd logs it, and nobody else is told
        self.message_count += 1
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
        if self.paused:
            return
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
    paused: bool = False
    """It takes messages, and hands none to its channels."""

    @property
    def ephemeral(self) -> bool:
        return self.name.endswith("#ephemeral")

    def publish(self, bodies: Iterable[bytes], now: float, wall_ns: int, delay_s: float) -> None:
        """A new message for each body; each channel gets its own copy.

        Raises:
            DiskFull: one has no place; those before it are published.
        """
        try:
            for body in bodies:
                self._check_room()
                self.message_count += 1
                message_id = self.broker.new_id()
                if self.paused or not self.channels:
                    self.waiting.append((Message(message_id, body, wall_ns), now + delay_s))
                    continue
                for channel in self.channels.values():
                    channel.put(Message(message_id, body, wall_ns), now, delay_s)
        finally:
            for channel in self.channels.values():
                channel.pump(now)

    def _check_room(self) -> None:
        size = self.broker.mem_queue_size
        if self.broker.faults.disk_full and (size == 0 or len(self.waiting) >= size):
            raise DiskFull("no space left on device")

    def distribute(self, now: float) -> None:
        """Hand what waits here to the channels, unless there are none or it is paused."""
        if self.paused or not self.channels:
            return
        waiting, self.waiting = self.waiting, []
        for message, due in waiting:
            for channel in self.channels.values():
                copy = Message(message.id, message.body, message.timestamp_ns)
                channel.put(copy, now, max(0.0, due - now))
        for channel in self.channels.values():
            channel.pump(now)

    def pause(self, paused: bool, now: float) -> None:
        self.paused = paused
        self.distribute(now)

    def delete(self) -> None:
        self.waiting.clear()
        for channel in list(self.channels.values()):
            channel.delete()


class Broker:
    """All topics. Messages do not outlive the process; which topics and channels there
    are, and which of them are paused, does, where ``changed`` keeps it.

    Args:
        mem_queue_size: messages of a topic or channel that need no disk.
        changed: called when there is another topic or channel, or one less, or one is
            paused or goes on.
    """

    def __init__(
        self, *, mem_queue_size: int = 10_000, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.topics: dict[str, Topic] = {}
        self.mem_queue_size = mem_queue_size
        self.changed = changed
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
            self.changed()
        return topic

    def channel(self, topic_name: str, name: str, now: float) -> Channel:
        """The channel, made if it was not there; the first gets what waits."""
        topic = self.topic(topic_name)
        channel = topic.channels.get(name)
        if channel is None:
            channel = topic.channels[name] = Channel(name, self)
            topic.distribute(now)
            self.changed()
        return channel

    def delete_topic(self, name: str) -> None:
        """Its messages go, and the connections of its consumers end."""
        self.topics.pop(name).delete()
        self.changed()

    def delete_channel(self, topic_name: str, name: str) -> None:
        """The same of a channel."""
        self.topics[topic_name].channels.pop(name).delete()
        self.changed()

    def metadata(self) -> dict[str, Any]:
        """What outlives the process, as nsqd writes it; nothing that is ephemeral."""
        return {
            "version": VERSION,
            "topics": [
                {
                    "name": topic.name,
                    "paused": topic.paused,
                    "channels": [
                        {"name": channel.name, "paused": channel.paused}
                        for channel in topic.channels.values()
                        if not channel.ephemeral
                    ],
                }
                for topic in self.topics.values()
                if not topic.ephemeral
            ],
        }

    def restore(self, metadata: dict[str, Any]) -> None:
        """Make what was there before."""
        for kept in metadata["topics"]:
            topic = self.topic(kept["name"])
            topic.paused = kept["paused"]
            for each in kept["channels"]:
                self.channel(topic.name, each["name"], 0.0).paused = each["paused"]

    def subscribe(self, topic_name: str, name: str, consumer: Consumer, now: float) -> Channel:
        """Let it consume from a channel, made if it was not there."""
        channel = self.channel(topic_name, name, now)
        channel.consumers.append(consumer)
        return channel

    def leave(self, channel: Channel, consumer: Consumer) -> None:
        """A consumer went away. What it held stays in flight until it times out."""
        channel.consumers.remove(consumer)
        if channel.consumers or not channel.ephemeral:
            return
        for topic in list(self.topics.values()):
            if topic.channels.get(channel.name) is channel:
                del topic.channels[channel.name]
                if not topic.channels and topic.ephemeral:
                    del self.topics[topic.name]
                self.changed()

    def tick(self, now: float) -> None:
        """To be called a few times a second."""
        for topic in self.topics.values():
            for channel in topic.channels.values():
                if channel.in_flight or channel.deferred:
                    channel.tick(now)

    @property
    def health(self) -> str:
        """As ``/ping`` tells it."""
        return "NOK - no space left on device" if self.faults.disk_full else "OK"

    def stats(self) -> dict[str, Any]:
        """As nsqd's ``/stats?format=json`` says it, as far as it goes."""
        return {
            "version": VERSION,
            "health": self.health,
            "topics": [
                {
                    "topic_name": topic.name,
                    "depth": len(topic.waiting),
                    "message_count": topic.message_count,
                    "paused": topic.paused,
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
        "paused": channel.paused,
        "clients": [consumer.describe() for consumer in channel.consumers],
    }
