"""Who keeps a connection where there are too many."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from taskd.api.http import admission
from taskd.api.server import STRANGERS
from tests.support.api import (
    HEALTH,
    TASK,
    Api,
    SlowStore,
    Wire,
    config_of,
    detail_request,
    encode,
    request_bytes,
    running_api,
    until,
)

_JSON = {"Content-Type": "application/json"}
_HALVES = {
    "nothing": b"",
    "half a line": b"POST /task/cr",
    "half a head": b"POST /task/create HTTP/1.1\r\nHost: x\r\n",
    "half a body": b"POST /task/create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    "half of a page's body": b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
    "half a chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\na",
    "a question": b"POST /task/create HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
    b"Expect: 100-continue\r\n\r\n",
}


def create(api: Api, task_no: str, **overrides: str) -> bytes:
    body = encode(TASK | {"taskNo": task_no})
    return request_bytes("POST", "/task/create", _JSON | api.signed(body, **overrides), body)


async def connected(api: Api, stack: AsyncExitStack, data: bytes, number: int = 1) -> list[Wire]:
    """Connections that have sent something."""
    wires = []
    for _ in range(number):
        wire = await api.connect()
        await stack.enter_async_context(wire.stream)
        await wire.send(data)
        wires.append(wire)
    return wires


def room_of(most: int) -> int:
    return most * (1 + STRANGERS)


@pytest.mark.parametrize("half", _HALVES)
async def test_what_strangers_have_half_sent_keeps_nobody_out(half: str) -> None:
    most = 4

    with trio.fail_after(30):
        async with running_api(max_connections=most) as api, AsyncExitStack() as stack:
            (kept,) = await connected(api, stack, create(api, "kept"))
            assert (await kept.reply()).code == 0
            for number in range(3):
                await connected(api, stack, _HALVES[half], room_of(most))
                await trio.testing.wait_all_tasks_blocked()
                (wire,) = await connected(api, stack, create(api, f"new-{number}"))
                assert (await wire.reply()).code == 0
                (wire,) = await connected(api, stack, HEALTH)
                assert (await wire.reply()).status == 200
            # Who has signed once keeps its connection.
            await kept.send(create(api, "once more"))
            assert (await kept.reply()).code == 0
            assert api.server._places.given_up > room_of(most)


async def test_a_signers_body_is_waited_for_whatever_strangers_do() -> None:
    with trio.fail_after(30):
        async with running_api(max_connections=2) as api, AsyncExitStack() as stack:
            whole = create(api, "slow")
            (slow,) = await connected(api, stack, whole[:-5])
            await until(lambda: bool(api.server._places._signers))
            await connected(api, stack, _HALVES["half a body"], 3 * room_of(2))
            await slow.send(whole[-5:])
            assert (await slow.reply()).code == 0


async def test_a_head_that_somebody_has_captured_counts_once() -> None:
    with trio.fail_after(30):
        async with running_api(max_connections=2) as api, AsyncExitStack() as stack:
            whole = create(api, "slow")
            captured = whole[:-5]
            first, *others = await connected(api, stack, captured, 3)
            await until(lambda: len(api.server._connections) == 3)
            await trio.testing.wait_all_tasks_blocked()
            assert len(api.server._places._signers) == 1
            await connected(api, stack, _HALVES["nothing"], room_of(2))
            for other in others:
                assert (await other.reply()).status == 503
            await first.send(whole[-5:])
            assert (await first.reply()).code == 0


async def test_a_signer_whose_next_request_is_not_signed_is_a_stranger_again() -> None:
    with trio.fail_after(30):
        async with running_api(max_connections=2) as api, AsyncExitStack() as stack:
            (wire,) = await connected(api, stack, create(api, "a"))
            assert (await wire.reply()).code == 0
            assert len(api.server._places._signers) == 1
            await wire.send(_HALVES["half a body"])
            await until(lambda: not api.server._places._signers)
            await connected(api, stack, _HALVES["nothing"], room_of(2))
            reply = await wire.reply()
            assert (reply.status, reply.headers["connection"]) == (503, "close")
            assert "closed for others" in reply.msg
            await wire.closed()


async def test_a_nonce_that_comes_twice_makes_a_stranger() -> None:
    with trio.fail_after(30):
        async with running_api(max_connections=2) as api, AsyncExitStack() as stack:
            whole = create(api, "a")
            (wire,) = await connected(api, stack, whole)
            assert (await wire.reply()).code == 0
            await wire.send(whole)
            assert (await wire.reply()).status == 401
            assert not api.server._places._signers


async def test_where_all_signers_are_at_work_one_more_is_refused_and_health_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = SlowStore()

    with trio.fail_after(30):
        async with (
            running_api(store=store, max_connections=1) as api,
            AsyncExitStack() as stack,
        ):
            (busy,) = await connected(api, stack, detail_request(api))
            await store.entered.wait()
            assert api.server.full
            for _ in range(3):
                (other,) = await connected(api, stack, detail_request(api))
                reply = await other.reply()
                assert (reply.status, reply.headers["retry-after"]) == (503, "1")
                assert reply.msg.startswith("too many requests are in hand")
                await other.closed()
                (health,) = await connected(api, stack, HEALTH)
                assert (await health.reply()).status == 200
            store.may_go_on.set()
            assert (await busy.reply()).status == 200
            assert not api.server._places._signers or api.server.full
            (other,) = await connected(api, stack, detail_request(api))
            assert (await other.reply()).status == 200
            await until(lambda: "too many connections" in caplog.text)


async def test_one_address_keeps_few_who_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "GRACE_S", 0.0)

    with trio.fail_after(30):
        async with running_api(max_connections=10) as api, AsyncExitStack() as stack:
            most = api.server._places.per_address
            (signer,) = await connected(api, stack, create(api, "a"))
            assert (await signer.reply()).code == 0
            await connected(api, stack, _HALVES["half a head"], 2 * most)
            await until(lambda: len(api.server._connections) == most + 1)
            await signer.send(create(api, "b"))
            assert (await signer.reply()).code == 0


async def test_a_trusted_proxy_keeps_all_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "GRACE_S", 0.0)
    config = config_of(trusted_proxies=("127.0.0.0/8",))

    with trio.fail_after(30):
        async with running_api(config, max_connections=10) as api, AsyncExitStack() as stack:
            most = api.server._places.per_address
            await connected(api, stack, _HALVES["half a head"], 2 * most)
            await until(lambda: len(api.server._connections) == 2 * most)
            for _ in range(3):
                api.server._places.sweep()
            await trio.testing.wait_all_tasks_blocked()
            assert len(api.server._connections) == 2 * most
