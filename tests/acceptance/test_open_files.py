"""A daemon that has as many files open as it may: who comes waits, nobody is reset, and no
application pays for it."""

from __future__ import annotations

import http.client
import json
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.daemon import Daemon, wait_until
from tests.support.files import no_file_left
from tests.support.receiver import Receiver
from tests.support.workers import worker_pids

_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def processes(daemon: Daemon) -> list[int]:
    return [daemon.pid, *worker_pids(daemon)]


def ticks(pids: list[int]) -> int:
    """Hundredths of a second that processes have had of the processor."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields)


@pytest.mark.parametrize("workers", [1, 2])
def test_who_connects_waits_and_costs_nothing(tmp_path: Path, workers: int) -> None:
    with (
        Daemon(tmp_path, sections={"server": {"workers": workers}}) as daemon,
        ExitStack() as stack,
    ):
        where = urlsplit(daemon.url)
        pids = processes(daemon)
        clients = []
        with no_file_left(*pids):
            for _ in range(40):
                client = socket.create_connection((where.hostname, where.port), timeout=20)
                clients.append(stack.enter_context(client))
                client.sendall(_HEALTH)
            before = ticks(pids)
            time.sleep(3)  # noqa: TID251 - it is to do next to nothing for so long
            assert ticks(pids) - before < 100
        for client in clients:
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert daemon.stop() == 0
        assert daemon.log().count("can't accept") + daemon.log().count("can be taken") < 20


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
