"""What an application reads of its attempts where anybody may make one."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from taskd.clock import SystemClock
from taskd.delivery.attempt import AttemptResult, Delivery
from taskd.delivery.discretion import STEP_S, Discretion
from taskd.delivery.egress import Egress
from taskd.delivery.own_addresses import Own, OwnAddresses
from taskd.delivery.progress import Progress
from taskd.delivery.resolver import Resolver
from taskd.delivery.transport import Transport
from taskd.domain.model import Outcome, Phase
from tests.integration.test_delivery import leased
from tests.support.attempts import attempted
from tests.support.blackhole import blackhole
from tests.support.daemon import Daemon, wait_until
from tests.support.scripted import SUCCESS, Peer, scripted
from tests.support.workers import events

pytestmark = pytest.mark.deadline(20)

MINE = OwnAddresses(lambda: Own(frozenset({ip_address("8.8.4.4").packed})))
NAMES: dict[str, Sequence[str] | OSError] = {
    "missing.test": socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    "failing.test": socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    "empty.test": [],
    "inside.test": ["10.1.2.3"],
    "inside6.test": ["fd12::1", "8.8.8.8"],
    "metadata.test": ["169.254.169.254"],
    "mine.test": ["8.8.4.4"],
    "listed.test": ["9.9.9.9"],
    "allowed.test": ["127.0.0.1"],
}


def lookup(host: str) -> Sequence[str]:
    answer = NAMES[host]
    if isinstance(answer, OSError):
        raise answer
    return answer


def rules(*allowed: str) -> Egress:
    return Egress(strict=True, denied_networks=["9.9.9.0/24"], allowed_networks=allowed, own=MINE)


async def attempt(
    url: str, egress: Egress, *, timeout_ms: int = 5000
) -> tuple[AttemptResult, Progress, float]:
    """One attempt, its progress, and how long it took."""
    transport = Transport(egress=egress, resolver=Resolver(lookup))
    delivery = Delivery(transport, SystemClock(), discretion=Discretion(egress))
    progress = Progress()
    began = trio.current_time()
    result = await attempted(delivery, leased(url, timeout_ms=timeout_ms), progress)
    took_s = trio.current_time() - began
    await transport.aclose()
    return result, progress, took_s


@pytest.fixture
def port() -> Iterator[int]:
    """A port that refuses connections, and is nobody else's meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


async def test_a_name_that_is_missing_denied_or_refused_reads_the_same(port: int) -> None:
    told: set[tuple[object, ...]] = set()
    details: list[str] = []

    async def one(host: str) -> None:
        result, progress, took_s = await attempt(f"http://{host}:{port}/", rules("127.0.0.1/32"))
        assert took_s >= STEP_S
        assert result.error is not None
        assert result.detail is not None
        told.add(
            (result.outcome, result.error.replace(host, "HOST"), result.response, progress.sent)
        )
        details.append(result.detail)

    async with trio.open_nursery() as nursery:
        for host in (*NAMES, "10.1.2.3", "8.8.4.4", "[::1]"):
            nursery.start_soon(one, host)
    error = f"http://HOST:{port} has no address that callbacks go to, or nothing answers there"
    assert told == {(Outcome.UNREACHABLE, error, None, False)}
    log = "\n".join(details)
    for words in ("not known", "private (10.0.0.0/8)", "refused", "9.9.9.0/24", "own addresses"):
        assert words in log


async def test_where_time_runs_out_before_there_is_a_connection_reads_the_same() -> None:
    errors: set[str | None] = set()

    with blackhole() as silent:
        for host in ("inside.test", "missing.test", "allowed.test"):
            url = f"http://{host}:{silent}/"
            result, _, _ = await attempt(url, rules("127.0.0.1/32"), timeout_ms=100)
            assert result.outcome is Outcome.TIMED_OUT
            assert result.error is not None
            errors.add(result.error.replace(host, "HOST"))
    assert len(errors) == 1


async def hang_up(peer: Peer) -> None:
    await peer.read_request()


async def speak_another_language(peer: Peer) -> None:
    await peer.read_request()
    await peer.stream.send_all(b"220 mail.inside.example ESMTP\r\n")


async def stay_silent(peer: Peer) -> None:
    await peer.wait_closed()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("script", [hang_up, speak_another_language, stay_silent])
async def test_what_is_no_answer_of_an_address_that_was_allowed_by_hand_tells_nothing(
    scheme: str, script: object
) -> None:
    assert callable(script)
    async with scripted(script) as receiver:
        url = receiver.url(host="allowed.test").replace("http", scheme, 1)
        result, progress, _ = await attempt(url, rules("127.0.0.1/32"), timeout_ms=300)
        assert progress.address is not None
        assert result.error is not None
        assert "no address that callbacks go to, or nothing answers there" in result.error
        for word in ("127.0.0.1", "ESMTP", "TLS", "closed", "await"):
            assert word not in result.error


async def test_answers_are_told_as_ever() -> None:
    async def answer(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno")
        await peer.answer(SUCCESS)

    async with scripted(answer) as receiver:
        url = receiver.url(host="allowed.test")
        result, _, _ = await attempt(url, rules("127.0.0.1/32"))
        assert (result.outcome, result.http_status) == (Outcome.REJECTED, 404)
        assert result.error == "the application answered with status 404"


async def test_what_fails_on_a_public_address_after_connecting_is_told() -> None:
    progress = Progress()
    progress.address = "8.8.8.8:443"
    progress.enter(Phase.TLS)
    result = AttemptResult(outcome=Outcome.UNREACHABLE, error="TLS with a.test failed: why")
    assert Discretion(rules()).told(result, "https://a.test:443", progress) == result
    progress.address = "[fd12::1]:443"
    told = Discretion(rules("fd12::/64")).told(result, "https://a.test:443", progress)
    assert told.error is not None
    assert "why" not in told.error
    assert told.detail == result.error


def test_a_strangers_application_says_nothing_and_the_log_says_all(
    tmp_path: Path, port: int
) -> None:
    with Daemon(tmp_path, sections={"auth": {"open_registration": True}}) as daemon:
        with daemon.create_app(f"http://localhost:{port}/cb", retry_total=0) as client:
            client.create_task(task_no="1", name="t", content="{}", timeout=5_000)

            def failed() -> bool:
                return bool(client.detail(task_no="1")["task"]["state"] == "failed")

            wait_until(failed, within_s=20)
            (made,) = client.detail(task_no="1")["task"]["attempts"]
        assert made["outcome"] == "unreachable"
        assert made["error"] == (
            f"http://localhost:{port} has no address that callbacks go to, or nothing answers there"
        )
        for message in ("attempt", "task failed"):
            (line,) = events(daemon, message)
            assert "loopback" in str(line["error"])


def test_a_look_into_an_attempt_without_a_connection_shows_the_same(
    tmp_path: Path, port: int
) -> None:
    sections: dict[str, dict[str, object]] = {
        "auth": {"open_registration": True},
        "delivery": {"allowed_networks": ["127.0.0.1/32"]},
    }
    shown: dict[str, set[tuple[object, ...]]] = {}

    def looks(daemon: Daemon, url: str) -> set[tuple[object, ...]]:
        """What is seen of an attempt, but how long it lasts."""
        seen: set[tuple[object, ...]] = set()
        with daemon.create_app(url, retry_total=0) as client:
            client.create_task(task_no="1", name="t", content="{}", timeout=700)

            def failed() -> bool:
                detail = client.detail(task_no="1")
                if detail["task"]["phase"] is not None:
                    keys = ("trace_list", "executed_function_name", "vars", "round")
                    seen.add((detail["task"]["phase"], *(str(detail[key]) for key in keys)))
                return bool(detail["task"]["state"] == "failed")

            wait_until(failed, within_s=20)
        return seen

    with Daemon(tmp_path, sections=sections) as daemon, blackhole() as silent:
        for url in (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{silent}", "http://a.invalid"):
            shown[url] = looks(daemon, url)
    first, *others = shown.values()
    assert len(first) == 1
    assert others == [first, first]
    ((phase, trace, *_),) = first
    assert phase == "connecting"
    for module in ("delivery", "discretion", "resolver", "transport"):
        assert module not in str(trace)
