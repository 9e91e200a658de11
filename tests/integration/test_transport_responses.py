"""The transport against a receiver that answers byte for byte as the test says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from taskd.delivery.egress import Egress
from taskd.delivery.progress import Progress
from taskd.delivery.transport import Response, Transport, parse_target
from taskd.domain.model import Phase
from taskd.errors import InvalidInput, Unreachable, UnreadableResponse
from tests.support.scripted import SUCCESS, Peer, Script, scripted

pytestmark = pytest.mark.deadline(20)

MiB = 1024 * 1024


async def post(
    transport: Transport, url: str, body: bytes = b"{}", progress: Progress | None = None
) -> Response:
    headers = [("X-Test", "yes")]
    return await transport.post(parse_target(url), headers, body, progress or Progress())


async def exchange(
    script: Script,
    *,
    body: bytes = b"{}",
    check: Callable[[Transport, int], None] | None = None,
    progress: Progress | None = None,
) -> Response:
    """POST once to a scripted receiver; ``check`` gets the transport and the
    number of connections made."""
    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        try:
            answer = await post(transport, receiver.url(), body, progress)
            if check is not None:
                check(transport, receiver.connections)
        finally:
            assert transport.statistics().active == 0
            await transport.aclose()
            assert transport.statistics().idle == 0
    return answer


def answering(data: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.answer(data)
        await peer.wait_closed()

    return script


def closed_for_good(transport: Transport, connections: int) -> None:
    assert transport.statistics().idle == 0
    assert connections == 1


def kept_for_the_next(transport: Transport, connections: int) -> None:
    assert transport.statistics().idle == 1
    assert connections == 1


async def test_the_request_is_sent_as_asked_and_its_connection_used_again() -> None:
    async def script(peer: Peer) -> None:
        for n in range(3):
            request = await peer.read_request()
            assert request.line == "POST /cb?a=%20b HTTP/1.1"
            assert request.headers["Host"] == f"127.0.0.1:{receiver_port[0]}"
            assert request.headers["X-Test"] == "yes"
            assert request.body == b"body %d" % n
            await peer.send(SUCCESS)

    receiver_port: list[int] = []

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        receiver_port.append(receiver.port)
        for n in range(3):
            progress = Progress()
            answer = await post(transport, receiver.url("/cb?a=%20b"), b"body %d" % n, progress)
            assert answer == Response(200, b"success", None)
            assert progress.address == f"127.0.0.1:{receiver.port}"
            assert progress.sent
            assert (Phase.CONNECTING in progress.timings_ms) == (n == 0)
        assert receiver.connections == 1
    statistics = transport.statistics()
    assert (statistics.opened, statistics.reused, statistics.idle) == (1, 2, 1)
    await transport.aclose()


async def test_an_answer_of_single_bytes_is_read() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        for n in range(len(SUCCESS)):
            await peer.send(SUCCESS[n : n + 1])
            await trio.lowlevel.checkpoint()
        await peer.wait_closed()

    assert (await exchange(script)).body == b"success"


async def test_interim_answers_are_passed_over() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    assert (await exchange(answering(interim + SUCCESS))).body == b"success"


async def test_a_chunked_answer_with_trailers_is_read() -> None:
    data = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nsuc\r\n4\r\ncess\r\n0\r\nTrailer: x\r\n\r\n"
    )
    assert (await exchange(answering(data), check=closed_for_good)).body == b"success"


async def test_a_chunked_answer_leaves_the_connection_for_the_next() -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nsuccess\r\n0\r\n\r\n"
    assert (await exchange(answering(data), check=kept_for_the_next)).body == b"success"


async def test_an_answer_in_http_1_0_ends_with_its_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.0 200 OK\r\n\r\nsucc")
        await peer.send(b"ess")

    assert (await exchange(script, check=closed_for_good)).body == b"success"


async def test_a_redirect_is_an_answer_and_not_followed() -> None:
    data = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    assert (await exchange(answering(data))).status == 302


@pytest.mark.parametrize("surplus", [b"x", b"\r\n", SUCCESS])
async def test_surplus_bytes_after_an_answer_close_the_connection(surplus: bytes) -> None:
    assert (await exchange(answering(SUCCESS + surplus), check=closed_for_good)).body == b"success"


async def test_connection_close_is_obeyed() -> None:
    data = SUCCESS.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert (await exchange(answering(data), check=closed_for_good)).body == b"success"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not valid HTTP"),
        (b"HTTP/1.1 2OO OK\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000, "head is over 65536 bytes"),
    ],
)
async def test_an_unreadable_answer_is_refused_and_its_connection_closed(
    data: bytes, problem: str
) -> None:
    with pytest.raises(UnreadableResponse, match=problem):
        await exchange(answering(data))


@pytest.mark.parametrize("status", [200, 410, 429, 503])
@pytest.mark.parametrize(
    "framing",
    [b"", b"Content-Length: 209715200\r\n", b"Transfer-Encoding: chunked\r\n"],
)
async def test_of_200_mb_hardly_more_than_the_limit_is_taken(framing: bytes, status: int) -> None:
    sent = [0]

    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 %d X\r\nRetry-After: 7\r\n" % status + framing + b"\r\n")
        if b"chunked" in framing:
            await peer.send(b"c800000\r\n")
        for _ in range(200):
            await peer.send(b"x" * MiB)
            sent[0] += MiB

    answer = await exchange(script, check=closed_for_good)
    assert (answer.status, answer.retry_after) == (status, "7")
    assert answer.body[:4096] == b"x" * 4096
    assert answer.problem == "its body is over the limit of 65536 bytes"
    assert sent[0] < 20 * MiB  # what the kernel's buffers took


HEAD = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n"


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (HEAD + b"Content-Length: 7\r\n\r\nbusy", "was closed after 4 of 7 bytes of its body"),
        (HEAD + b"Content-Length: 7\r\n\r\n", "was closed after 0 of 7 bytes of its body"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n7\r\nbusy", "closed after 4 bytes of its"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n", "closed after 4 bytes of"),
    ],
)
async def test_a_connection_that_ends_in_the_middle_of_a_body_leaves_the_status(
    data: bytes, problem: str, reset: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(data)
        await trio.testing.wait_all_tasks_blocked()
        if reset:
            peer.reset()

    answer = await exchange(script, check=closed_for_good)
    assert (answer.status, answer.retry_after) == (503, "7")
    assert answer.body in (b"", b"busy")
    assert answer.problem is not None
    assert problem in answer.problem


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"Content-Length: 99999999\r\n\r\n",
        HEAD + b"Content-Length: 8\r\n\r\n",
        HEAD + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\n",
        HEAD + b"\r\n",
        b"HTTP/1.1 200 OK\r\nRetry-After: 7\r\nContent-Length: 99999999\r\n\r\n",
    ],
)
def test_what_can_be_no_success_any_more_is_waited_for_a_little_and_kept(head: bytes) -> None:
    clock = trio.testing.MockClock(rate=1.0)

    async def script(peer: Peer) -> None:
        await peer.answer(head)
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(b"busy")
        await trio.testing.wait_all_tasks_blocked()
        clock.jump(60)
        await peer.wait_closed()

    async def main() -> None:
        transport = Transport(egress=Egress())
        async with scripted(script) as receiver:
            answer = await post(transport, receiver.url())
            assert (answer.retry_after, answer.body) == ("7", b"busy")
            assert answer.problem is not None
            closed_for_good(transport, receiver.connections)

    trio.run(main, clock=clock)


async def test_an_early_answer_that_never_ends_stops_a_big_request() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(HEAD + b"\r\n" + b"x" * 70_000)
        await trio.sleep_forever()

    answer = await exchange(script, body=b"x" * 20 * MiB, check=closed_for_good)
    assert (answer.status, answer.retry_after) == (503, "7")
    assert answer.problem == "its body is over the limit of 65536 bytes"


async def test_what_was_read_of_an_answer_outlives_a_cancellation_and_is_no_other_ones() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(SUCCESS)
        await peer.answer(b"HTTP/1.1 200 OK\r\nRetry-After: 7\r\nContent-Length: 7\r\n\r\nsucc")
        await trio.sleep_forever()

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        await post(transport, receiver.url())
        early = Progress()
        with trio.CancelScope() as scope:
            scope.cancel()
            await post(transport, receiver.url(), progress=early)
        assert early.answer is None
        await post(transport, receiver.url())
        progress = Progress()
        with trio.move_on_after(20) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(post, transport, receiver.url(), b"{}", progress)
                while progress.phase is not Phase.READING:
                    await trio.testing.wait_all_tasks_blocked(0.005)
                nursery.cancel_scope.cancel()
        assert progress.answer == Response(200, b"succ", "7")
        closed_for_good(transport, receiver.connections - 1)


@pytest.mark.parametrize(
    ("data", "moment"),
    [
        (b"", "closed the connection without an answer"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "closed the connection after an interim answer"),
        (b"HTTP/1", "closed the connection in the middle of the answer"),
        (SUCCESS[:20], "closed the connection in the middle of the answer"),
    ],
)
@pytest.mark.parametrize("reset", [False, True])
async def test_an_early_close_is_unreachable_and_says_when(
    data: bytes, moment: str, reset: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(data)
        # Whatever was sent has been read when the client waits again.
        await trio.testing.wait_all_tasks_blocked()
        if reset:
            peer.reset()

    with pytest.raises(Unreachable, match=moment):
        await exchange(script)


@pytest.mark.parametrize("farewell", [b"", b"HTTP/1.1 408 Timeout\r\n\r\n"])
async def test_a_kept_connection_that_its_receiver_closed_is_not_used(farewell: bytes) -> None:
    closed = trio.Semaphore(0)

    async def script(peer: Peer) -> None:
        await peer.answer(SUCCESS)
        await trio.testing.wait_all_tasks_blocked()
        if farewell:
            await peer.send(farewell)
        await trio.aclose_forcefully(peer.stream)
        closed.release()

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        for idle in (1, 0, 0):  # once found out, none is kept for a while
            answer = await post(transport, receiver.url())
            assert answer.status == 200
            assert transport.statistics().idle == idle
            await closed.acquire()
        assert receiver.connections == 3
    assert transport.statistics().discarded == 1
    await transport.aclose()


async def test_a_late_second_answer_is_not_taken_for_the_next_ones() -> None:
    sent = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(SUCCESS)
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(SUCCESS.replace(b"success", b"another"))
        sent.set()
        await peer.wait_closed()

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        await post(transport, receiver.url())
        await sent.wait()
        assert (await post(transport, receiver.url())).body == b"success"
        assert receiver.connections == 2
    await transport.aclose()


REFUSAL = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"


async def test_a_big_body_is_sent_whole() -> None:
    body = bytes(range(256)) * 4 * 4096
    got: list[bytes] = []

    async def script(peer: Peer) -> None:
        got.append((await peer.read_request()).body)
        await peer.send(SUCCESS)
        await peer.wait_closed()

    assert (await exchange(script, body=body, check=kept_for_the_next)).body == b"success"
    assert got == [body]


@pytest.mark.parametrize("end", ["waits", "closes", "resets"])
async def test_an_answer_that_comes_before_the_body_has_left_counts(end: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(REFUSAL)
        if end == "waits":
            await trio.sleep_forever()
        # Until the client has seen the answer, or is stuck in sending.
        await trio.testing.wait_all_tasks_blocked()
        if end == "resets":
            peer.reset()

    progress = Progress()
    answer = await exchange(script, body=b"x" * 20 * MiB, check=closed_for_good, progress=progress)
    assert answer == Response(413, b"no", None)
    assert progress.phase is Phase.READING
    assert Phase.AWAITING_RESPONSE not in progress.timings_ms


async def test_an_early_answer_in_parts_is_read_while_the_body_leaves() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(REFUSAL[:20])
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(REFUSAL[20:])
        await trio.sleep_forever()

    assert (await exchange(script, body=b"x" * 20 * MiB, check=closed_for_good)).status == 413


async def test_a_receiver_that_closes_on_a_big_body_is_unreachable() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()

    with pytest.raises(Unreachable, match="without an answer"):
        await exchange(script, body=b"x" * 20 * MiB)


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nX: y", "a\rb", "a\0b", "é"])
async def test_a_header_that_would_be_two_is_never_sent(value: str) -> None:
    async def refuse(peer: Peer) -> None:
        pytest.fail("a connection was made")

    transport = Transport(egress=Egress())
    async with scripted(refuse) as receiver:
        for header in ((value, "x"), ("X", value)):
            with pytest.raises(InvalidInput, match="a header or the path holds"):
                await transport.post(parse_target(receiver.url()), [header], b"{}", Progress())
    await transport.aclose()


async def test_the_phase_follows_the_exchange() -> None:
    progress = Progress()
    seen: list[Phase | None] = []

    async def script(peer: Peer) -> None:
        async def look() -> None:
            await trio.testing.wait_all_tasks_blocked(0.01)
            seen.append(progress.phase)

        await look()
        await peer.read_request()
        await look()
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await look()
        await peer.send(b"HTTP/1.1 103 Ear")
        await look()
        await peer.send(b"ly\r\n\r\n")
        await look()
        await peer.send(SUCCESS[:5])
        await look()
        await peer.send(SUCCESS[5:])

    await exchange(script, body=b"x" * 20 * MiB, progress=progress)
    assert seen == [
        Phase.SENDING,
        Phase.AWAITING_RESPONSE,
        Phase.AWAITING_RESPONSE,
        Phase.READING,
        Phase.AWAITING_RESPONSE,
        Phase.READING,
    ]
