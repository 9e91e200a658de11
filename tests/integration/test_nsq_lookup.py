"""Asking nsqlookupd, against a scripted HTTP server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from taskd.errors import QueueUnavailable
from taskd.queues.nsq import lookup
from taskd.queues.nsq.lookup import find_nsqds
from taskd.queues.nsq.target import Address

pytestmark = pytest.mark.deadline(30)

A, B = Address("10.0.0.1", 4150), Address("fe80::1", 4150)


def producer(address: Address) -> dict[str, object]:
    return {"broadcast_address": address.host, "tcp_port": address.port, "http_port": 4151}


def answer(value: object, status: str = "200 OK") -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


NOT_FOUND = answer({"message": "TOPIC_NOT_FOUND"}, "404 Not Found")


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[Address, list[str]]]:
    """A server that gives one answer to each connection; and the lines it was asked."""
    left = list(answers)
    asked: list[str] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some()
            asked.append(head.split(b"\r\n")[0].decode())
            if not left:
                await trio.sleep_forever()
            try:
                await stream.send_all(left.pop(0))
            except trio.BrokenResourceError:
                return  # it has heard enough

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield Address("127.0.0.1", listener.socket.getsockname()[1]), asked
        nursery.cancel_scope.cancel()


async def found(*answers: bytes, topic: str = "taskd") -> tuple[list[Address], list[str]]:
    result: list[Address] = []
    problems: list[QueueUnavailable] = []
    async with answering(*answers) as (address, asked):
        try:
            result.extend(await find_nsqds(address, topic, within_s=1))
        except QueueUnavailable as error:
            # Out of the nursery it would come in a group.
            problems.append(error)
        lines = list(asked)
    if problems:
        raise problems[0]
    return result, lines


async def test_those_that_have_the_topic() -> None:
    many = [Address(f"10.0.0.{n}", 4150) for n in range(1, 5)]
    body = {"channels": ["taskd"], "producers": [producer(one) for one in (*many[::-1], many[0])]}
    assert await found(answer(body), topic="a#ephemeral") == (
        many,
        ["GET /lookup?topic=a%23ephemeral HTTP/1.0"],
    )


async def test_where_few_have_the_topic_others_are_taken_too() -> None:
    """So one that was added later gets its share."""
    many = [Address(f"10.0.0.{n}", 4150) for n in range(1, 9)]
    nodes = [producer(one) for one in reversed(many)]
    having = answer({"producers": [producer(many[6])]})
    assert await found(having, answer({"producers": nodes})) == (
        [*many[:3], many[6]],
        ["GET /lookup?topic=taskd HTTP/1.0", "GET /nodes HTTP/1.0"],
    )


async def test_one_that_is_put_out_of_service_is_left_alone() -> None:
    going = {**producer(A), "topics": ["other", "taskd"], "tombstones": [False, True]}
    staying = {**producer(B), "topics": ["other", "taskd"], "tombstones": [True, False]}
    nodes = answer({"producers": [going, staying]})
    assert (await found(answer({"producers": []}), nodes))[0] == [B]


async def test_those_that_have_the_topic_will_do_where_the_others_are_not_told() -> None:
    having = answer({"producers": [producer(A)]})
    assert (await found(having, answer({}, "500 Oops")))[0] == [A]


async def test_the_answer_of_an_old_one() -> None:
    body = {"status_code": 200, "data": {"producers": [producer(A)]}}
    assert (await found(answer(body), answer(body)))[0] == [A]


@pytest.mark.parametrize(
    "nobody", [NOT_FOUND, answer({"channels": [], "producers": []})], ids=["404", "empty"]
)
async def test_where_nobody_has_the_topic_a_few_are_taken_and_by_all_nodes_the_same(
    nobody: bytes,
) -> None:
    many = [Address(f"10.0.0.{n}", 4150) for n in range(1, 9)]
    body = {"producers": [producer(one) for one in reversed(many)]}
    assert await found(nobody, answer(body)) == (
        many[:4],
        ["GET /lookup?topic=taskd HTTP/1.0", "GET /nodes HTTP/1.0"],
    )


async def test_where_there_is_no_nsqd_at_all() -> None:
    assert (await found(NOT_FOUND, answer({"producers": []})))[0] == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "HTTP"),
        (b"220 mail.example ESMTP\r\n", "HTTP"),
        (b"HTTP/1.1 2000 OK\r\n\r\n{}", "HTTP"),
        (b"HTTP/1.1\r\n\r\n{}", "HTTP"),
        (answer({}, "500 Oops"), "status 500"),
        (answer(b"<html>"), "no JSON"),
        (answer([1]), "no producers"),
        (answer({"producers": 1}), "no producers"),
        (answer({"producers": [1]}), "no broadcast_address"),
        (answer({"producers": [{"broadcast_address": "a"}]}), "no broadcast_address"),
        (answer({"producers": [{"broadcast_address": "a b", "tcp_port": 1}]}), "host"),
        (answer({"producers": [{"broadcast_address": "a", "tcp_port": 0}]}), "port"),
        (answer({"producers": []})[:-3], "cut off"),
    ],
)
async def test_an_answer_that_can_not_be_used_says_why(bad: bytes, reason: str) -> None:
    with pytest.raises(QueueUnavailable, match=reason):
        await found(bad)


async def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "MAX_ANSWER", 10_000)
    with pytest.raises(QueueUnavailable, match="over 10000"):
        await found(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000)


async def test_one_that_does_not_answer() -> None:
    with pytest.raises(QueueUnavailable, match="within 1 s"):
        await found()


async def test_one_that_is_not_there() -> None:
    async with answering() as (address, _):
        pass
    with pytest.raises(QueueUnavailable, match=r"(?i)reached"):
        await find_nsqds(address, "taskd")
