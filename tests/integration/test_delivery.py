"""One attempt, from the task to its result, against a scripted receiver."""

from __future__ import annotations

import base64
import dataclasses
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import standardwebhooks
import trio
import trio.testing

from taskd import __version__
from taskd.clock import SystemClock
from taskd.config import DeliveryConfig
from taskd.delivery.attempt import AttemptResult, Delivery, HeaderStyle
from taskd.delivery.egress import Egress
from taskd.delivery.progress import Progress
from taskd.delivery.resolver import Resolver
from taskd.delivery.transport import Transport
from taskd.domain import signing
from taskd.domain.model import App, Lease, LeasedTask, Outcome, Phase, SuccessRule, TaskState
from tests.support.attempts import attempted
from tests.support.blackhole import blackhole
from tests.support.node import Node
from tests.support.scripted import SUCCESS, Peer, Request, Script, scripted

pytestmark = pytest.mark.deadline(20)

SECRET = "0123456789abcdef0123456789abcdef"
CONTENT = '{"order": 1001,\n "名": "帅", "big": 1e400}'.encode()


def leased(
    url: str,
    *,
    content: bytes = CONTENT,
    timeout_ms: int = 5000,
    success: SuccessRule = SuccessRule.BODY,
) -> LeasedTask:
    return LeasedTask(
        lease=Lease(task_id=42, token=1, node="n", expires_at=0),
        app=App(
            id=1,
            app_key="abcdefghij012345",
            secret_key=SECRET,
            name="n",
            link_url=url,
            step=5,
            retry_total=3,
            remark="",
            created_at=0,
            success=success,
        ),
        task_no="订单 1",
        name="close order",
        content=content,
        timeout_ms=timeout_ms,
        due_at=0,
        leased_at=0,
        attempt=2,
        failures=1,
        sent_before=True,
        step=5,
        retry_total=3,
    )


@asynccontextmanager
async def delivery(
    *,
    egress: Egress | None = None,
    resolver: Resolver | None = None,
    header_style: HeaderStyle = "both",
) -> AsyncIterator[Delivery]:
    transport = Transport(egress=egress or Egress(), resolver=resolver)
    yield Delivery(transport, SystemClock(), header_style=header_style)
    await transport.aclose()


async def deliver(
    script: Script,
    *,
    egress: Egress | None = None,
    header_style: HeaderStyle = "both",
    content: bytes = CONTENT,
    timeout_ms: int = 5000,
    success: SuccessRule = SuccessRule.BODY,
) -> tuple[AttemptResult, Progress]:
    """Make one attempt at a scripted receiver."""
    progress = Progress()
    async with scripted(script) as receiver:
        url = receiver.url("/cb?token=hunter2")
        task = leased(url, content=content, timeout_ms=timeout_ms, success=success)
        async with delivery(egress=egress, header_style=header_style) as attempts:
            result = await attempted(attempts, task, progress)
    assert progress.phase is None  # the attempt has ended
    assert "hunter2" not in repr(result)
    return result, progress


def answering(data: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.answer(data)
        await peer.wait_closed()

    return script


def taking(requests: list[Request]) -> Script:
    async def script(peer: Peer) -> None:
        requests.append(await peer.read_request())
        await peer.send(SUCCESS)

    return script


async def test_the_callback_is_as_the_protocol_says() -> None:
    requests: list[Request] = []
    result, progress = await deliver(taking(requests))
    assert result == AttemptResult(outcome=Outcome.SUCCEEDED, http_status=200, response="success")
    assert progress.sent
    assert set(progress.timings_ms) == set(Phase) - {Phase.TLS}
    (request,) = requests
    assert request.line == "POST /cb?token=hunter2 HTTP/1.1"
    assert request.body == b'{"data":' + CONTENT + b"}"
    headers = request.headers
    assert set(headers) == {
        *("Host", "User-Agent", "Accept", "Accept-Encoding", "Content-Type", "Content-Length"),
        *("app_key", "app-key", "nonce", "timestamps", "signature", "payload"),
        *("Taskd-Task-Id", "Taskd-Task-No", "Taskd-Attempt"),
        *("webhook-id", "webhook-timestamp", "webhook-signature"),
    }
    assert headers["User-Agent"] == f"taskd/{__version__}"
    assert headers["Accept-Encoding"] == "identity"
    assert headers["Content-Type"] == "application/json"
    assert headers["Taskd-Task-Id"] == "42"
    assert headers["Taskd-Task-No"] == "%E8%AE%A2%E5%8D%95%201"
    assert headers["Taskd-Attempt"] == "2"
    assert headers["webhook-id"] == "task_42"


async def test_the_receiver_can_check_both_signatures() -> None:
    requests: list[Request] = []
    await deliver(taking(requests), content=b'{"order":1001}')
    (request,) = requests
    headers = request.headers
    assert headers["payload"] == signing.payload_digest(request.body)
    assert signing.verify(
        SECRET, headers["timestamps"], headers["nonce"], headers["payload"], headers["signature"]
    )
    verifier = standardwebhooks.Webhook("whsec_" + base64.b64encode(SECRET.encode()).decode())
    assert verifier.verify(request.body, headers) == json.loads(request.body)


@pytest.mark.parametrize(
    ("header_style", "spellings"),
    [
        ("both", {"app_key", "app-key"}),
        ("underscore", {"app_key"}),
        ("hyphen", {"app-key"}),
    ],
)
async def test_the_header_style_says_how_app_key_is_spelt(
    header_style: HeaderStyle, spellings: set[str]
) -> None:
    requests: list[Request] = []
    await deliver(taking(requests), header_style=header_style)
    headers = requests[0].headers
    sent = {name: value for name, value in headers.items() if "app" in name}
    assert sent == dict.fromkeys(spellings, "abcdefghij012345")
    # No other name has an underscore, so no other may be lost for it.
    assert {name for name in headers if "_" in name} == spellings & {"app_key"}


def test_both_is_what_is_sent_unless_told_otherwise() -> None:
    assert DeliveryConfig().header_style == "both"


async def test_a_redirect_is_rejected_and_not_followed() -> None:
    asked: list[bytes] = []

    async def other(peer: Peer) -> None:
        asked.append(b"asked")

    async with scripted(other) as elsewhere:
        location = elsewhere.url().encode()
        head = b"HTTP/1.1 307 X\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"
        async with scripted(answering(head)) as receiver, delivery() as attempts:
            result = await attempted(attempts, leased(receiver.url()), Progress())
    assert result.outcome is Outcome.REJECTED
    assert result.http_status == 307
    assert result.error is not None
    assert f"redirects are not followed, and this one leads to '{elsewhere.url()}'" in result.error
    assert not asked


async def test_gone_is_told_by_its_status() -> None:
    result, _ = await deliver(answering(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"))
    assert (result.outcome, result.http_status) == (Outcome.REJECTED, 410)


async def test_retry_after_is_handed_on() -> None:
    data = b"HTTP/1.1 503 Busy\r\nRetry-After: 120\r\nContent-Length: 4\r\n\r\nbusy"
    result, _ = await deliver(answering(data))
    assert result.retry_after_s == 120
    assert result.response == "busy"


async def test_a_denied_address_is_a_failed_attempt_that_says_so() -> None:
    result, progress = await deliver(answering(SUCCESS), egress=Egress(strict=True))
    assert result.outcome is Outcome.DENIED
    assert result.error is not None
    assert result.error.startswith("127.0.0.1 is denied: loopback")
    assert not progress.sent


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "closed the connection without an answer"),
        (b"garbage\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nRetry-After: 7\r\n", "in the middle of the answer"),
    ],
)
async def test_without_a_readable_answer_the_outcome_is_unreachable(
    data: bytes, problem: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(data)

    result, progress = await deliver(script)
    assert result.outcome is Outcome.UNREACHABLE
    assert result.http_status is None
    assert result.error is not None
    assert problem in result.error
    assert progress.sent


LONG = b"x" * 70_000
ODD_BODIES = {
    "too long": (b"Content-Length: 70000\r\n\r\n" + LONG, "over the limit of 65536 bytes"),
    "too long, no length": (b"\r\n" + LONG, "over the limit of 65536 bytes"),
    "too long, chunked": (
        b"Transfer-Encoding: chunked\r\n\r\n11170\r\n" + LONG + b"\r\n0\r\n\r\n",
        "over the limit of 65536 bytes",
    ),
    "gzip": (b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nxx\x1f\x8b\x08", "as 'gzip'"),
    "odd encoding": (b"Content-Encoding: x\x01\xe9\r\nContent-Length: 2\r\n\r\nxx", "not valid"),
    "odd transfer": (b"Transfer-Encoding: zip\r\n\r\nxx", "encoded as 'zip'"),
    "broken chunk": (b"Transfer-Encoding: chunked\r\n\r\n2\r\nxxxx", "its body is not valid HTTP"),
    "cut chunk": (b"Transfer-Encoding: chunked\r\n\r\n9\r\nxx", "closed after 2 bytes of its"),
    "cut": (b"Content-Length: 9\r\n\r\nxx", "closed after 2 of 9 bytes of its body"),
    "two lengths": (b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nxx", "its head is not valid"),
    "no number": (b"Content-Length: two\r\n\r\nxx", "its head is not valid HTTP"),
    "both": (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nxx", "its head is not"),
    "no colon": (b"nonsense\r\n\r\nxx", "its head is not valid HTTP"),
}


@pytest.mark.parametrize("kind", ODD_BODIES)
@pytest.mark.parametrize("status", [200, 302, 404, 410, 429, 503])
async def test_a_status_keeps_its_meaning_whatever_its_body_is_like(status: int, kind: str) -> None:
    rest, problem = ODD_BODIES[kind]

    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 %d X\r\nRetry-After: 120\r\n" % status + rest)

    result, _ = await deliver(script)
    assert (result.outcome, result.http_status) == (Outcome.REJECTED, status)
    assert result.retry_after_s == 120
    assert result.response is not None
    assert result.response.startswith("xx")
    assert len(result.response) <= 4096
    assert result.error is not None
    assert f"status {status}" in result.error
    assert problem in result.error


@pytest.mark.parametrize("kind", ["too long", "gzip", "cut", "two lengths"])
@pytest.mark.parametrize(
    ("status", "state"),
    [(410, TaskState.FAILED), (429, TaskState.RETRYING), (503, TaskState.RETRYING)],
)
async def test_the_retry_rule_heeds_a_status_whatever_its_body_is_like(
    status: int, state: TaskState, kind: str
) -> None:
    head = b"HTTP/1.1 %d X\r\nRetry-After: 1200\r\n" % status

    async def script(peer: Peer) -> None:
        await peer.answer(head + ODD_BODIES[kind][0])

    transport = Transport(egress=Egress())
    node = Node(real_delivery=Delivery(transport, SystemClock()))
    async with scripted(script) as receiver, node.running():
        app = await node.app(receiver.url(), step=1)
        task_id = await node.submit(app)
        while not (task := await node.detail(app, task_id)).attempts:
            await trio.sleep(0.005)
        assert task.state is state
        assert task.attempts[0].http_status == status
        if task.due_at is not None:
            assert task.due_at - task.attempts[0].ended_at > 1_199_000
    await transport.aclose()


async def test_a_redirects_query_is_kept_with_the_attempt_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    location = b"https://app.test/cb?token=hunter2&a=b"
    head = b"HTTP/1.1 301 X\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"

    transport = Transport(egress=Egress())
    node = Node(real_delivery=Delivery(transport, SystemClock()))
    with caplog.at_level("INFO", logger="taskd"):
        async with scripted(answering(head)) as receiver, node.running():
            app = await node.app(receiver.url("/cb?token=hunter2"), retry_total=0)
            task = await node.ended(app, await node.submit(app))
        error = task.attempts[0].error
        assert error is not None
        assert f"leads to '{location.decode()}'" in error
        await transport.aclose()
    told = [vars(record) for record in caplog.records if record.name == "taskd.attempt"]
    assert "leads to 'https://app.test/cb?…'" in str(told)
    assert "hunter2" not in str(told)


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"x-success", b"identity, gzip"])
async def test_success_is_success_whatever_its_content_encoding(encoding: bytes) -> None:
    data = (
        b"HTTP/1.1 200 X\r\nContent-Encoding: " + encoding + b"\r\nContent-Length: 7\r\n\r\nsuccess"
    )
    result, _ = await deliver(answering(data))
    assert result.outcome is Outcome.SUCCEEDED
    assert result.error is None


@pytest.mark.parametrize("body", [b"", b'{"ok":true}', LONG, b"\x1f\x8b\x08"])
@pytest.mark.parametrize("end", ["whole", "cut", "endless"])
async def test_where_the_status_counts_a_2xx_succeeds_however_its_body_goes_on(
    end: str, body: bytes
) -> None:
    length = len(body) + (0 if end == "whole" else 9)
    head = b"HTTP/1.1 202 X\r\nContent-Encoding: x\r\nContent-Length: %d\r\n\r\n" % length

    async def script(peer: Peer) -> None:
        await peer.answer(head + body)
        if end == "endless":
            await trio.sleep_forever()

    result, _ = await deliver(script, timeout_ms=500, success=SuccessRule.STATUS)
    assert (result.outcome, result.http_status) == (Outcome.SUCCEEDED, 202)
    assert (result.error, result.retry_after_s) == (None, None)
    assert result.response == body[:4096].decode("utf-8", "replace")


async def test_where_the_status_counts_an_early_2xx_does_not_stop_the_request() -> None:
    got: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        while len(peer.buffer) < len(content):
            await peer.more()
        got.append(len(peer.buffer))
        await peer.send(b"ok")

    content = b"1" * 20_000_000
    result, _ = await deliver(
        script, content=content, success=SuccessRule.STATUS, timeout_ms=20_000
    )
    assert result.outcome is Outcome.SUCCEEDED
    assert got == [len(content) + len(b'{"data":}')]


@pytest.mark.parametrize("status", [302, 410, 500])
async def test_where_the_status_counts_any_other_is_rejected(status: int) -> None:
    data = b"HTTP/1.1 %d X\r\nContent-Length: 7\r\n\r\nsuccess" % status
    result, _ = await deliver(answering(data), success=SuccessRule.STATUS)
    assert (result.outcome, result.http_status) == (Outcome.REJECTED, status)


async def test_a_link_url_that_can_no_longer_be_read_is_a_failed_attempt() -> None:
    async with delivery() as attempts:
        result = await attempted(attempts, leased("http://127.1/"), Progress())
    assert result.outcome is Outcome.UNREACHABLE
    assert result.error is not None
    assert result.error.startswith("linkUrl: ")


async def test_a_secret_key_and_the_content_show_in_no_result() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(b"nonsense")

    result, _ = await deliver(script)
    shown = str(dataclasses.asdict(result))
    assert SECRET not in shown
    assert "1001" not in shown


# Every phase runs into the deadline, and says so.


async def never_reads(peer: Peer) -> None:
    await peer.read_head()
    await trio.sleep_forever()


async def never_answers(peer: Peer) -> None:
    await peer.read_request()
    await trio.sleep_forever()


async def trickles_a_head(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await peer.send(b"A: b\r\n")
        await trio.sleep(0.005)


async def never_ends_its_body(peer: Peer) -> None:
    await peer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsucc")
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("script", "content", "doing", "last", "status"),
    [
        (never_reads, b"1" * 20_000_000, "while sending the request", Phase.SENDING, None),
        (never_answers, b"1", "while awaiting the response", Phase.AWAITING_RESPONSE, None),
        (trickles_a_head, b"1", "while reading the response", Phase.READING, None),
        (never_ends_its_body, b"1", "while reading the response", Phase.READING, 200),
    ],
)
async def test_the_deadline_bounds_the_exchange(
    script: Script, content: bytes, doing: str, last: Phase, status: int | None
) -> None:
    timeout_ms = 400 if len(content) < 100 else 2000  # a long one is first signed
    result, progress = await deliver(script, content=content, timeout_ms=timeout_ms)
    assert result.outcome is Outcome.TIMED_OUT
    assert result.http_status == status
    assert result.response == (None if status is None else "succ")
    assert result.error is not None
    told = f"attempt 2 ran out of its {timeout_ms} ms {doing} (http://127.0.0.1:"
    assert result.error.startswith(told)
    assert progress.timings_ms[last] > 50
    assert progress.sent


@pytest.mark.parametrize("status", [302, 410, 429, 503])
@pytest.mark.parametrize("framing", [b"", b"Content-Length: 7\r\n", b"Content-Length: 70000\r\n"])
async def test_a_status_outlives_the_deadline(framing: bytes, status: int) -> None:
    head = b"HTTP/1.1 %d X\r\nRetry-After: 120\r\n" % status + framing + b"\r\n"

    async def script(peer: Peer) -> None:
        await peer.answer(head + b"busy")
        await trio.sleep_forever()

    result, progress = await deliver(script, timeout_ms=400)
    assert (result.outcome, result.http_status) == (Outcome.REJECTED, status)
    assert (result.retry_after_s, result.response) == (120, "busy")
    assert result.error is not None
    assert result.error.startswith(f"the application answered with status {status}; ")
    assert progress.timings_ms[Phase.READING] > 50


async def test_a_long_content_is_not_copied_while_it_is_sent() -> None:
    content = b"1" * 20_000_000
    tracemalloc.start()
    try:
        await deliver(never_reads, content=content, timeout_ms=150)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(content) / 4


async def timed_out(task: LeasedTask, doing: str, resolver: Resolver | None = None) -> Progress:
    progress = Progress()
    began = trio.current_time()
    async with delivery(resolver=resolver) as attempts:
        result = await attempted(attempts, task, progress)
    assert result.outcome is Outcome.TIMED_OUT
    assert result.error is not None
    assert doing in result.error
    assert not progress.sent
    assert 0.1 <= trio.current_time() - began < 5
    return progress


async def test_the_deadline_bounds_connecting() -> None:
    with blackhole() as port:
        url = f"http://127.0.0.1:{port}/"
        progress = await timed_out(leased(url, timeout_ms=100), "while connecting")
        assert progress.address == f"127.0.0.1:{port}"


async def test_the_deadline_bounds_the_tls_handshake() -> None:
    async def script(peer: Peer) -> None:
        await trio.sleep_forever()

    async with scripted(script) as receiver:
        url = f"https://127.0.0.1:{receiver.port}/"
        await timed_out(leased(url, timeout_ms=100), "during the TLS handshake")


async def test_the_deadline_bounds_resolving_and_the_loop_goes_on_meanwhile() -> None:
    let_go = threading.Event()
    ticks = [0]

    def hang(_: str) -> Sequence[str]:
        let_go.wait(20)
        return ["127.0.0.1"]

    async def tick() -> None:
        while True:
            ticks[0] += 1
            await trio.sleep(0.005)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        task = leased("http://app.test/", timeout_ms=100)
        await timed_out(task, "while resolving the name", Resolver(hang))
        nursery.cancel_scope.cancel()
    assert ticks[0] >= 5
    let_go.set()


# A cancellation from outside is nobody's result.


async def interrupted(
    attempt: Callable[[Progress], Awaitable[AttemptResult]], phase: Phase
) -> Progress:
    progress = Progress()
    results: list[AttemptResult] = []

    async def work() -> None:
        results.append(await attempt(progress))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        while progress.phase is not phase:
            await trio.testing.wait_all_tasks_blocked(0.005)
        nursery.cancel_scope.cancel()
    assert not results
    return progress


@pytest.mark.parametrize(
    ("script", "content", "phase"),
    [
        (never_reads, b"1" * 20_000_000, Phase.SENDING),
        (never_answers, b"1", Phase.AWAITING_RESPONSE),
        (never_ends_its_body, b"1", Phase.READING),
    ],
)
async def test_a_cancellation_passes_through_and_leaves_the_phase(
    script: Script, content: bytes, phase: Phase
) -> None:
    async with scripted(script) as receiver, delivery() as attempts:
        task = leased(receiver.url(), content=content)
        progress = await interrupted(lambda progress: attempts.attempt(task, progress), phase)
        assert progress.phase is phase
        assert progress.sent


async def test_a_cancellation_while_resolving_passes_through() -> None:
    let_go = threading.Event()

    def hang(_: str) -> Sequence[str]:
        let_go.wait(20)
        return ["127.0.0.1"]

    task = leased("http://app.test/")
    async with delivery(resolver=Resolver(hang)) as attempts:
        progress = await interrupted(
            lambda progress: attempts.attempt(task, progress), Phase.RESOLVING
        )
    assert not progress.sent
    let_go.set()
