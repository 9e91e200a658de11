"""A daemon that has as many files open as it may: who connects is told 503, nobody is reset,
and no application pays for it."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme

from tests.support.daemon import Daemon, wait_until
from tests.support.files import no_file_left
from tests.support.receiver import Receiver
from tests.support.workers import worker_pids

_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
_READY = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
_POST = b"POST /task/create HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n"


def processes(daemon: Daemon) -> list[int]:
    return [daemon.pid, *worker_pids(daemon)]


def ticks(pids: list[int]) -> int:
    """Hundredths of a second that processes have had of the processor."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields)


def answer_to(client: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and content of the answer, which has to be whole, and the last one."""
    response = http.client.HTTPResponse(client)
    response.begin()
    body = response.read()
    assert response.getheader("Connection") == "close"
    if response.status == 503:
        assert response.getheader("Retry-After") == "1"
    assert client.recv(1) == b"", "and then its end"
    return response.status, json.loads(body)


SAID = [_HEALTH] * 31 + [_READY] * 5 + [_POST + b"x" * 300_000] * 2 + [_POST + b"x", b""]


@pytest.mark.parametrize(
    ("workers", "limited"),
    [
        pytest.param(1, slice(None), id="alone"),
        pytest.param(2, slice(None), id="a supervisor and its workers"),
        pytest.param(2, slice(1), id="a supervisor"),
        pytest.param(2, slice(1, None), id="all workers"),
    ],
)
def test_who_connects_is_told_so_and_costs_nothing(
    tmp_path: Path, workers: int, limited: slice
) -> None:
    with (
        Daemon(tmp_path, sections={"server": {"workers": workers}}) as daemon,
        ExitStack() as stack,
    ):
        where = urlsplit(daemon.url)
        pids = processes(daemon)

        def ask(said: bytes) -> socket.socket:
            client = socket.create_connection((where.hostname, where.port), timeout=20)
            stack.enter_context(client)
            client.sendall(said)
            return client

        with no_file_left(*pids[limited]):
            before = ticks(pids)
            clients = [ask(said) for said in SAID]
            until = time.monotonic() + 3
            for client in clients:
                status, content = answer_to(client)
                assert (status, content["code"]) == (503, 503)
                assert "too many files are open" in content["msg"]
            while time.monotonic() < until:
                time.sleep(0.1)  # noqa: TID251 - it is to do next to nothing for so long
            assert ticks(pids) - before < 100
        wait_until(lambda: answer_to(ask(_HEALTH))[0] == 200, what="an answer again")
        assert daemon.stop() == 0
        assert 0 < daemon.log().count("too many files are open") < 10
        assert daemon.log().count("can't accept") < 10
        assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("workers", [1, 2])
def test_who_expects_tls_waits(tmp_path: Path, workers: int) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    server = {"workers": workers, "tls_cert": "cert.pem", "tls_key": "key.pem"}
    with Daemon(tmp_path, sections={"server": server}) as daemon:
        where = urlsplit(daemon.url)
        with no_file_left(*processes(daemon)):
            plain = socket.create_connection((where.hostname, where.port), timeout=20)
            wait_until(lambda: "can't accept" in daemon.log())
            plain.settimeout(0.5)
            with pytest.raises(TimeoutError):
                plain.recv(1)
        plain.settimeout(20)
        with plain, trust.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(_HEALTH)
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert daemon.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_attempts_wait_and_spend_no_retry(tmp_path: Path, workers: int) -> None:
    with (
        Receiver() as receiver,
        Daemon(tmp_path, sections={"server": {"workers": workers}}) as daemon,
        daemon.create_app(receiver.url, retry_total=0) as app,
        daemon.admin() as admin,
    ):
        assert app.ready()
        where = urlsplit(daemon.url)
        asking = http.client.HTTPConnection(where.hostname or "", where.port, timeout=20)
        asking.connect()
        assert admin.ready()

        def degraded() -> str:
            asking.request("GET", "/readyz")
            answer = json.loads(asking.getresponse().read())
            return " ".join((answer["data"] or {}).get("degraded", ()))

        degraded()
        with no_file_left(*processes(daemon)):
            ids = [
                app.create_task(task_no=f"{n}", name="t", content="1", timeout=5000)["taskId"]
                for n in range(20)
            ]
            wait_until(lambda: "attempts are put off, at no cost" in daemon.log())
            if workers == 1:
                wait_until(lambda: "Too many open files" in degraded(), what="that it is told")
            assert not receiver.ledger()
        asking.close()
        receiver.wait_for(lambda ledger: len(ledger) == 20)
        for task_id in ids:
            wait_until(lambda n=task_id: app.detail(coroutine_id=n)["state"] == "succeeded")
            attempts = app.detail(coroutine_id=task_id)["task"]["attempts"]
            assert [one["attempt"] for one in attempts] == [1]
        assert daemon.stop() == 0
