"""A stand-in for nsqlookupd 1.3: which nsqd there are, and which topics they have.

nsqd register by its TCP protocol (IDENTIFY, REGISTER, UNREGISTER, PING), the stand-in's
and a real one alike; clients ask by HTTP. It forgets as the real one does: what an nsqd
registered goes with its connection; one that has not pinged for a while is not told of;
a tombstone hides one from those who look up a topic, for a while; a topic may be deleted.

As a process: ``python -m tools.servers.nsqd_stand_in.nsqlookupd --tcp-port 0 --http-port 0``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import trio

from tools.servers.nsqd_stand_in.broker import VERSION
from tools.servers.nsqd_stand_in.http import Answer, Request, Routes, answer

HOST = "127.0.0.1"
_SIZE = struct.Struct(">i")
_MAX_LINE = 4096


@dataclass(eq=False)
class Producer:
    """An nsqd that has registered."""

    info: dict[str, Any]
    updated: float
    topics: dict[str, set[str]] = field(default_factory=dict)
    """The channels of each of its topics."""
    tombstones: dict[str, float] = field(default_factory=dict)
    """When it was hidden from those who look up a topic."""

    @property
    def node(self) -> str:
        """As a tombstone names it."""
        return f"{self.info['broadcast_address']}:{self.info['http_port']}"

    def describe(self) -> dict[str, Any]:
        names = ("hostname", "broadcast_address", "tcp_port", "http_port", "version")
        return {"remote_address": HOST, **{name: self.info.get(name, "") for name in names}}


class Registry:
    """What nsqlookupd knows. Times are seconds of one monotonic clock."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        inactive_producer_timeout_s: float = 300.0,
        tombstone_lifetime_s: float = 45.0,
    ) -> None:
        self._clock = clock
        self._inactive_s = inactive_producer_timeout_s
        self._tombstone_s = tombstone_lifetime_s
        self._producers: list[Producer] = []
        self._topics: set[str] = set()

    def add(self, info: dict[str, Any]) -> Producer:
        producer = Producer(info, self._clock())
        self._producers.append(producer)
        return producer

    def remove(self, producer: Producer) -> None:
        self._producers.remove(producer)

    def register(self, producer: Producer, topic: str, channel: str) -> None:
        self._topics.add(topic)
        channels = producer.topics.setdefault(topic, set())
        if channel:
            channels.add(channel)

    def unregister(self, producer: Producer, topic: str, channel: str) -> None:
        if channel:
            producer.topics.get(topic, set()).discard(channel)
        else:
            producer.topics.pop(topic, None)

    def ping(self, producer: Producer) -> None:
        producer.updated = self._clock()

    def _active(self) -> list[Producer]:
        now = self._clock()
        return [each for each in self._producers if now - each.updated <= self._inactive_s]

    def _hidden(self, producer: Producer, topic: str) -> bool:
        since = producer.tombstones.get(topic)
        return since is not None and self._clock() - since < self._tombstone_s

    def routes(self) -> Routes:
        """What it answers by HTTP."""
        return {
            ("GET", "/ping"): lambda _: (200, "OK"),
            ("GET", "/info"): lambda _: (200, {"version": VERSION}),
            ("GET", "/topics"): lambda _: (200, {"topics": sorted(self._topics)}),
            ("GET", "/nodes"): lambda _: (200, {"producers": self._nodes()}),
            ("GET", "/lookup"): self._lookup,
            ("POST", "/topic/delete"): self._delete_topic,
            ("POST", "/topic/tombstone"): self._tombstone,
        }

    def _nodes(self) -> list[dict[str, Any]]:
        # Those with tombstones, too; each says which topics they are of.
        return [
            {
                **each.describe(),
                "tombstones": [self._hidden(each, topic) for topic in each.topics],
                "topics": list(each.topics),
            }
            for each in self._active()
        ]

    def _lookup(self, request: Request) -> Answer:
        topic = request.query.get("topic", [""])[0]
        if not topic:
            return 400, {"message": "MISSING_ARG_TOPIC"}
        if topic not in self._topics:
            return 404, {"message": "TOPIC_NOT_FOUND"}
        having = [
            each
            for each in self._active()
            if topic in each.topics and not self._hidden(each, topic)
        ]
        channels = {name for each in having for name in each.topics[topic]}
        producers = [each.describe() for each in having]
        return 200, {"channels": sorted(channels), "producers": producers}

    def _delete_topic(self, request: Request) -> Answer:
        topic = request.query.get("topic", [""])[0]
        self._topics.discard(topic)
        for each in self._producers:
            each.topics.pop(topic, None)
        return 200, ""

    def _tombstone(self, request: Request) -> Answer:
        topic, node = (request.query.get(name, [""])[0] for name in ("topic", "node"))
        for each in self._producers:
            if each.node == node and topic in each.topics:
                each.tombstones[topic] = self._clock()
        return 200, ""


class StandInLookup:
    """A registry that serves both its ports."""

    def __init__(
        self, registry: Registry | None = None, *, tcp_port: int = 0, http_port: int = 0
    ) -> None:
        self.registry = registry or Registry(trio.current_time)
        self.tcp_port = tcp_port
        self.http_port = http_port

    async def serve(self, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. A port of 0 becomes the bound one."""
        respond = partial(answer, routes=self.registry.routes())
        async with trio.open_nursery() as nursery:
            tcp = await trio.open_tcp_listeners(self.tcp_port, host=HOST)
            http = await trio.open_tcp_listeners(self.http_port, host=HOST)
            self.tcp_port = tcp[0].socket.getsockname()[1]
            self.http_port = http[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, self._registered, tcp)
            nursery.start_soon(trio.serve_listeners, respond, http)
            task_status.started(self)
            await trio.sleep_forever()

    async def _registered(self, stream: trio.SocketStream) -> None:
        """Serve an nsqd for as long as its connection lasts."""
        reader = _Reader(stream)
        producer: Producer | None = None
        async with stream:
            try:
                if await reader.exactly(4) != b"  V1":
                    return
                while line := await reader.line():
                    command, *parameters = line.split()
                    if command == "IDENTIFY":
                        (size,) = _SIZE.unpack(await reader.exactly(_SIZE.size))
                        producer = self.registry.add(json.loads(await reader.exactly(size)))
                        told = json.dumps(self._describe()).encode()
                    else:
                        told = self._carry_out(producer, command, parameters)
                    await stream.send_all(_SIZE.pack(len(told)) + told)
            except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
                return
            finally:
                if producer is not None:
                    self.registry.remove(producer)

    def _describe(self) -> dict[str, Any]:
        return {
            "tcp_port": self.tcp_port,
            "http_port": self.http_port,
            "version": VERSION,
            "broadcast_address": HOST,
            "hostname": "stand-in",
        }

    def _carry_out(self, producer: Producer | None, command: str, parameters: list[str]) -> bytes:
        if producer is None:
            return b"OK" if command == "PING" else b"E_INVALID IDENTIFY comes first"
        topic, channel = (*parameters, "", "")[:2]
        if command == "PING":
            self.registry.ping(producer)
        elif command == "REGISTER":
            self.registry.register(producer, topic, channel)
        elif command == "UNREGISTER":
            self.registry.unregister(producer, topic, channel)
        else:
            return b"E_INVALID there is no such command"
        return b"OK"


class _Reader:
    """Lines and sized bodies of a stream; `EOFError` at its end."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def line(self) -> str:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _MAX_LINE:
                raise EOFError
            await self._more()
        raw = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return raw.decode().strip()

    async def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._more()
        raw = bytes(self._buffer[:size])
        del self._buffer[:size]
        return raw

    async def _more(self) -> None:
        data = await self._stream.receive_some()
        if not data:
            raise EOFError
        self._buffer += data


async def _main(arguments: argparse.Namespace) -> None:
    registry = Registry(
        trio.current_time,
        inactive_producer_timeout_s=arguments.inactive_producer_timeout_s,
        tombstone_lifetime_s=arguments.tombstone_lifetime_s,
    )
    lookup = StandInLookup(registry, tcp_port=arguments.tcp_port, http_port=arguments.http_port)
    async with trio.open_nursery() as nursery:
        await nursery.start(lookup.serve)
        sys.stdout.write(f"nsqlookupd stand-in: tcp {lookup.tcp_port}, http {lookup.http_port}\n")
        sys.stdout.flush()


def main(argv: list[str] | None = None) -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="python -m tools.servers.nsqd_stand_in.nsqlookupd")
    parser.add_argument("--tcp-port", type=int, default=0)
    parser.add_argument("--http-port", type=int, default=0)
    parser.add_argument("--inactive-producer-timeout-s", type=float, default=300.0)
    parser.add_argument("--tombstone-lifetime-s", type=float, default=45.0)
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(KeyboardInterrupt):
        trio.run(_main, arguments)


if __name__ == "__main__":
    main()
