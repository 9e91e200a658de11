"""Asking nsqlookupd which nsqd there are: a small HTTP exchange on Trio."""

from __future__ import annotations

from urllib.parse import quote

import trio

from taskd.errors import InvalidInput, QueueUnavailable
from taskd.queues.nsq.connection import reason_of
from taskd.queues.nsq.target import Address, make_address
from taskd.runtime.json_depth import load_json

MAX_ANSWER = 4 * 1024 * 1024
"""Bytes of the longest answer that is read."""

MAX_FOUND = 64
"""No more nsqd than this are used of those found."""

ENOUGH = 4
"""If fewer nsqd than this have the topic, some without it are used too: those with the
lowest addresses, so that all nodes choose the same."""

_ASK_S = 3.0
_OK = 200
_NOT_FOUND = 404


async def find_nsqds(lookupd: Address, topic: str, *, within_s: float = _ASK_S) -> list[Address]:
    """The nsqd that have a topic; if they are fewer than `ENOUGH`, some others, too.

    Raises:
        QueueUnavailable: nsqlookupd can't be asked; says why.
    """
    try:
        with trio.fail_after(within_s):
            answer = await _ask(lookupd, f"/lookup?topic={quote(topic, safe='')}")
            found = [_address(producer) for producer in answer]
            if len(found) < ENOUGH:
                # The first publish to one of these makes the topic there. An nsqd whose
                # topic has a tombstone was taken out of service: it is left out.
                nodes = await _nodes(lookupd, required=not found)
                others = {_address(node) for node in nodes if not _tombstoned(node, topic)}
                found += sorted(others.difference(found))[: ENOUGH - len(found)]
            return sorted(set(found))[:MAX_FOUND]
    except trio.TooSlowError as error:
        raise QueueUnavailable(f"it did not answer within {within_s:g} s") from error
    except OSError as error:
        raise QueueUnavailable(f"it can't be reached: {reason_of(error)}") from error
    except trio.BrokenResourceError as error:
        raise QueueUnavailable("the connection broke") from error


async def _nodes(lookupd: Address, *, required: bool) -> list[object]:
    try:
        return await _ask(lookupd, "/nodes")
    except QueueUnavailable:
        if required:
            raise
        return []  # the nsqd that have the topic are enough


async def _ask(lookupd: Address, path: str) -> list[object]:
    status, body = await _get(lookupd, path)
    if status == _NOT_FOUND:
        return []
    if status != _OK:
        raise QueueUnavailable(f"it answered with HTTP status {status}")
    try:
        answer = load_json(body)
    except ValueError as error:
        raise QueueUnavailable("its answer is no JSON") from error
    return _producers(answer)


def _producers(answer: object) -> list[object]:
    """The producers that an answer lists. nsqlookupd before 1.0 put answers into an
    envelope, those with status 404 too."""
    if isinstance(answer, dict) and "producers" not in answer and "status_code" in answer:
        answer = answer.get("data") or {}
    producers = answer.get("producers", []) if isinstance(answer, dict) else None
    if not isinstance(producers, list):
        raise QueueUnavailable("its answer lists no producers")
    return producers


def _tombstoned(node: object, topic: str) -> bool:
    if not isinstance(node, dict):
        return False
    topics, tombstones = node.get("topics"), node.get("tombstones")
    if not isinstance(topics, list) or not isinstance(tombstones, list):
        return False
    return any(
        name == topic and hidden is True for name, hidden in zip(topics, tombstones, strict=False)
    )


def _address(producer: object) -> Address:
    if isinstance(producer, dict):
        host, port = producer.get("broadcast_address"), producer.get("tcp_port")
        if isinstance(host, str) and isinstance(port, int):
            try:
                return make_address(host, port)
            except InvalidInput as error:
                raise QueueUnavailable(f"a producer in its answer {error.problem}") from error
    raise QueueUnavailable("a producer in its answer has no broadcast_address and tcp_port")


async def _get(lookupd: Address, path: str) -> tuple[int, bytes]:
    """GET by HTTP/1.0: so the answer is not chunked, and ends with the connection."""
    request = (
        f"GET {path} HTTP/1.0\r\nHost: {lookupd}\r\n"
        "Accept: application/vnd.nsq; version=1.0\r\nConnection: close\r\n\r\n"
    )
    answer = bytearray()
    stream = await trio.open_tcp_stream(lookupd.host, lookupd.port)
    try:
        await stream.send_all(request.encode("ascii"))
        async for data in stream:
            answer += data
            if len(answer) > MAX_ANSWER:
                raise QueueUnavailable(f"its answer is over {MAX_ANSWER} bytes")
    finally:
        await trio.aclose_forcefully(stream)
    return _take_apart(bytes(answer))


def _take_apart(answer: bytes) -> tuple[int, bytes]:
    head, end, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    words = lines[0].split(b" ", 2)
    if not end or not words[0].startswith(b"HTTP/1.") or len(words) < 2:  # noqa: PLR2004 - status
        raise QueueUnavailable("it does not speak HTTP: is it an nsqlookupd?")
    if not (words[1].isdigit() and len(words[1]) == len(b"200")):
        raise QueueUnavailable("it does not speak HTTP: is it an nsqlookupd?")
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip() != b"%d" % len(body):
            raise QueueUnavailable("its answer was cut off")
    return int(words[1]), body
