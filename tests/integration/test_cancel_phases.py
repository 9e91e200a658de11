"""Cancelling a delivery over real sockets, in each of its phases."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
import trio.testing

from taskd.clock import SystemClock
from taskd.delivery.attempt import Delivery
from taskd.delivery.egress import Egress
from taskd.delivery.resolver import Resolver
from taskd.delivery.transport import Transport
from taskd.domain.model import App, CancelCertainty, Outcome, Phase, TaskState
from tests.support.blackhole import blackhole
from tests.support.node import Node
from tests.support.scripted import Peer, scripted

Stage = Callable[[], AbstractAsyncContextManager[str]]
"""An application's URL whose delivery stays in one phase."""

_CONTENT = b'"' + b"x" * 30_000_000 + b'"'
"""More than the buffers of a socket hold."""


@asynccontextmanager
async def resolving() -> AsyncIterator[str]:
    yield "http://hangs.test/cb"


@asynccontextmanager
async def connecting() -> AsyncIterator[str]:
    with blackhole() as port:
        yield f"http://127.0.0.1:{port}/cb"


@asynccontextmanager
async def tls() -> AsyncIterator[str]:
    async def silent(peer: Peer) -> None:
        await trio.sleep_forever()

    async with scripted(silent) as receiver:
        yield receiver.url().replace("http:", "https:")


@asynccontextmanager
async def sending() -> AsyncIterator[str]:
    async def reads_the_head_only(peer: Peer) -> None:
        await peer.read_head()
        await trio.sleep_forever()

    async with scripted(reads_the_head_only) as receiver:
        yield receiver.url()


@asynccontextmanager
async def awaiting_response() -> AsyncIterator[str]:
    async def never_answers(peer: Peer) -> None:
        await peer.read_request()
        await peer.wait_closed()

    async with scripted(never_answers) as receiver:
        yield receiver.url()


@asynccontextmanager
async def reading() -> AsyncIterator[str]:
    async def stops_in_the_middle(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsucc")
        await peer.wait_closed()

    async with scripted(stops_in_the_middle) as receiver:
        yield receiver.url()


@pytest.mark.deadline(20)
@pytest.mark.parametrize(
    ("place", "phase", "word"),
    [
        (resolving, Phase.RESOLVING, CancelCertainty.NEVER_SENT),
        (connecting, Phase.CONNECTING, CancelCertainty.NEVER_SENT),
        (tls, Phase.TLS, CancelCertainty.NEVER_SENT),
        (sending, Phase.SENDING, CancelCertainty.ABORTED_BEFORE_RESPONSE),
        (awaiting_response, Phase.AWAITING_RESPONSE, CancelCertainty.ABORTED_BEFORE_RESPONSE),
        (reading, Phase.READING, CancelCertainty.ABORTED_DURING_RESPONSE),
    ],
)
async def test_a_delivery_is_cancelled_in_each_phase(
    place: Stage, phase: Phase, word: CancelCertainty
) -> None:
    released = threading.Event()

    def lookup(host: str) -> tuple[str, ...]:
        released.wait(20)
        return ()

    try:
        transport = Transport(egress=Egress(), resolver=Resolver(lookup))
        node = Node(real_delivery=Delivery(transport, SystemClock()))
        async with place() as url, node.running():
            app = await node.app(url)
            task_id = await node.submit(
                app, content=_CONTENT if phase is Phase.SENDING else b'{"a":1}'
            )
            await _seen_in(node, app, task_id, phase)
            assert await node.cancel(app, task_id) is word
            task = await node.detail(app, task_id)
            assert task.state is TaskState.CANCELLED
            attempt = task.attempts[0]
            assert attempt.outcome is Outcome.CANCELLED
            read = (200, "succ") if phase is Phase.READING else (None, None)
            assert (attempt.http_status, attempt.response) == read
            assert transport.statistics().active == 0
            assert transport.statistics().idle == 0
        await transport.aclose()
    finally:
        released.set()


async def _seen_in(node: Node, app: App, task_id: int, phase: Phase) -> None:
    while True:
        view = await node.service.detail(app, task_id=task_id)
        assert view is not None
        if view.inspection is not None and view.inspection.phase is phase:
            # Once more when nothing moves, since a phase may be passed through.
            await trio.testing.wait_all_tasks_blocked(0.05)
            execution = node.registry.get(task_id)
            assert execution is not None
            if execution.progress.phase is phase:
                return
        await trio.sleep(0.01)
