"""The HTTP side of the nsqd stand-in: what nsqlookupd answers, nsqd's statistics, and
the switches of its faults. One request a connection."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio

from tools.servers.nsqd_stand_in.broker import VERSION, Broker, Channel, Topic

_MAX_HEAD = 16 * 1024
_TIMEOUT_S = 10.0

Answer = tuple[int, str | dict[str, Any]]
"""A status, and a text or JSON."""


@dataclass(frozen=True)
class Request:
    """What a client asks."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes


Routes = dict[tuple[str, str], Callable[[Request], Answer]]
"""What answers, by method and path."""


@dataclass(frozen=True)
class Producer:
    """How a lookup tells clients to reach an nsqd."""

    host: str
    tcp_port: int
    http_port: int

    def describe(self) -> dict[str, Any]:
        return {
            "remote_address": f"{self.host}:{self.tcp_port}",
            "hostname": "stand-in",
            "broadcast_address": self.host,
            "tcp_port": self.tcp_port,
            "http_port": self.http_port,
            "version": VERSION,
        }


def lookup_routes(producers: Callable[[], list[tuple[Producer, Broker]]]) -> Routes:
    """What nsqlookupd answers of these."""

    def topics(_: Request) -> Answer:
        names = {name for _, broker in producers() for name in broker.topics}
        return 200, {"topics": sorted(names)}

    def nodes(_: Request) -> Answer:
        return 200, {
            "producers": [
                {
                    **producer.describe(),
                    "tombstones": [False] * len(broker.topics),
                    "topics": list(broker.topics),
                }
                for producer, broker in producers()
            ]
        }

    def lookup(request: Request) -> Answer:
        return _lookup(request.query.get("topic", [""])[0], producers())

    return {
        ("GET", "/ping"): _ping,
        ("GET", "/info"): _info,
        ("GET", "/topics"): topics,
        ("GET", "/nodes"): nodes,
        ("GET", "/lookup"): lookup,
    }


def _ping(_: Request) -> Answer:
    return 200, "OK"


def _info(_: Request) -> Answer:
    return 200, {"version": VERSION}


def _lookup(topic: str, producers: list[tuple[Producer, Broker]]) -> Answer:
    if not topic:
        return 400, {"message": "MISSING_ARG_TOPIC"}
    having = [(producer, broker) for producer, broker in producers if topic in broker.topics]
    if not having:
        return 404, {"message": "TOPIC_NOT_FOUND"}
    channels = {name for _, broker in having for name in broker.topics[topic].channels}
    return 200, {
        "channels": sorted(channels),
        "producers": [producer.describe() for producer, _ in having],
    }


def _topic_routes(broker: Broker, clock: Callable[[], float]) -> Routes:
    """What an operator does to topics and channels, by nsqadmin's buttons or by hand."""

    def on_topic(change: Callable[[Topic], None]) -> Callable[[Request], Answer]:
        def respond(request: Request) -> Answer:
            name = request.query.get("topic", [""])[0]
            if not name:
                return 400, {"message": "MISSING_ARG_TOPIC"}
            topic = broker.topics.get(name)
            if topic is None:
                return 404, {"message": "TOPIC_NOT_FOUND"}
            change(topic)
            broker.changed()
            return 200, ""

        return respond

    def on_channel(change: Callable[[Topic, Channel], None]) -> Callable[[Request], Answer]:
        def respond(request: Request) -> Answer:
            topic_name, name = (request.query.get(each, [""])[0] for each in ("topic", "channel"))
            topic = broker.topics.get(topic_name)
            if topic is None:
                return 404, {"message": "TOPIC_NOT_FOUND"}
            channel = topic.channels.get(name)
            if channel is None:
                return 404, {"message": "CHANNEL_NOT_FOUND"}
            change(topic, channel)
            broker.changed()
            return 200, ""

        return respond

    def create_topic(request: Request) -> Answer:
        broker.topic(request.query["topic"][0])
        return 200, ""

    def create_channel(request: Request) -> Answer:
        broker.channel(request.query["topic"][0], request.query["channel"][0], clock())
        return 200, ""

    def empty(topic: Topic) -> None:
        topic.waiting.clear()

    return {
        ("POST", "/topic/create"): create_topic,
        ("POST", "/topic/delete"): on_topic(lambda t: broker.delete_topic(t.name)),
        ("POST", "/topic/empty"): on_topic(empty),
        ("POST", "/topic/pause"): on_topic(lambda t: t.pause(True, clock())),
        ("POST", "/topic/unpause"): on_topic(lambda t: t.pause(False, clock())),
        ("POST", "/channel/create"): create_channel,
        ("POST", "/channel/delete"): on_channel(lambda t, c: broker.delete_channel(t.name, c.name)),
        ("POST", "/channel/empty"): on_channel(lambda _, c: c.empty()),
        ("POST", "/channel/pause"): on_channel(lambda _, c: c.pause(True, clock())),
        ("POST", "/channel/unpause"): on_channel(lambda _, c: c.pause(False, clock())),
    }


def daemon_routes(
    broker: Broker,
    inject: Callable[[bytes], int],
    cut: Callable[[], int],
    clock: Callable[[], float],
) -> Routes:
    """What nsqd answers, and what only the stand-in does: ``/faults``, ``/inject``,
    ``/cut``."""

    def ping(_: Request) -> Answer:
        return (200 if broker.health == "OK" else 500), broker.health

    def stats(request: Request) -> Answer:
        if request.query.get("format") == ["json"]:
            return 200, broker.stats()
        return 400, {"message": "the stand-in has no other format than json"}

    def faults(request: Request) -> Answer:
        try:
            broker.change_faults(json.loads(request.body))
        except ValueError as error:
            return 400, {"message": str(error)}
        return 200, "OK"

    return {
        **_topic_routes(broker, clock),
        ("GET", "/ping"): ping,
        ("GET", "/info"): _info,
        ("GET", "/stats"): stats,
        ("POST", "/faults"): faults,
        ("POST", "/inject"): lambda request: (200, {"connections": inject(request.body)}),
        ("POST", "/cut"): lambda _: (200, {"connections": cut()}),
    }


async def answer(stream: trio.abc.Stream, routes: Routes) -> None:
    """Answer the request that a connection brings, and close it."""
    async with stream:
        with trio.move_on_after(_TIMEOUT_S):
            try:
                request = await _read(stream)
                if request is not None:
                    await stream.send_all(_response(_route(request, routes)))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the client went away, which is its affair


async def _read(stream: trio.abc.Stream) -> Request | None:
    """The request; None if the connection ends before it does."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more or len(data) > _MAX_HEAD:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    method, _, rest = head.split(b"\r\n")[0].decode("latin-1").partition(" ")
    url = urlsplit(rest.partition(" ")[0])
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value) if value.strip().isdigit() else 0
    while len(body) < length:
        more = await stream.receive_some()
        if not more:
            return None
        body += more
    return Request(method, url.path, parse_qs(url.query), bytes(body[:length]))


def _route(request: Request, routes: Routes) -> Answer:
    route = routes.get((request.method, request.path))
    return (404, {"message": "NOT_FOUND"}) if route is None else route(request)


def _response(answer: Answer) -> bytes:
    status, content = answer
    reason = {200: "OK", 400: "Bad Request", 404: "Not Found", 500: "Internal Server Error"}[status]
    if isinstance(content, str):
        kind, body = "text/plain; charset=utf-8", content.encode()
    else:
        kind, body = "application/json; charset=utf-8", json.dumps(content).encode()
    return (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\n"
        "X-Nsq-Content-Type: nsq; version=1.0\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body
