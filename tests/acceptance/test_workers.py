"""Several worker processes on one port and one SQLite file answer as one daemon."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from taskd.client import Client
from taskd.clock import SystemClock
from taskd.domain.signing import random_token, sign_headers
from taskd.errors import DaemonUnreachable, RequestRefused
from tests.support.cluster import node_of
from tests.support.daemon import Daemon, reason_of, wait_until
from tests.support.load import Application, Fault, Ledger, Load, check, now, wait_for_ends
from tests.support.receiver import Answer, Delivery, Receiver
from tests.support.workers import (
    LEASE_S,
    all_ready,
    events,
    kill_worker,
    lives,
    worker_pids,
    workers_at,
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with workers_at(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def holding() -> Iterator[tuple[Receiver, threading.Event]]:
    """A receiver that keeps every answer until the event is set."""
    release = threading.Event()
    with Receiver(lambda _: Answer(hold=release)) as receiver:
        yield receiver, release
        release.set()


def submit(client: Client, number: int, *, timeout: int = 30_000) -> int:
    data = client.create_task(task_no=f"no-{number}", name="t", content="{}", timeout=timeout)
    return int(data["coroutine_id"])


def connected(stack: ExitStack, daemon: Daemon, keys: tuple[str, str], count: int) -> list[Client]:
    """Clients with a connection each: the workers get them in turns."""
    clients = [stack.enter_context(Client(daemon.url, *keys)) for _ in range(count)]
    for client in clients:
        assert client.healthy()
    return clients


def more_than(count: int) -> Callable[[list[Delivery]], bool]:
    return lambda ledger: len(ledger) > count


def wait_for_state(client: Client, task_id: int, state: str) -> None:
    wait_until(lambda: client.detail(coroutine_id=task_id)["task"]["state"] == state)


def runners(client: Client, task_ids: list[int]) -> dict[int, str]:
    """Which node each task runs on, once all run."""
    nodes: dict[int, str] = {}

    def all_run() -> bool:
        for task_id in task_ids:
            if (node := node_of(client.detail(coroutine_id=task_id))) is not None:
                nodes[task_id] = node
        return len(nodes) == len(task_ids)

    wait_until(all_run, what="the start of all tasks")
    return nodes


def test_any_worker_answers_for_a_task_that_runs_in_another(
    daemon: Daemon, holding: tuple[Receiver, threading.Event]
) -> None:
    receiver, _ = holding
    keys = daemon.create_keys(receiver.url)
    with ExitStack() as stack:
        clients = connected(stack, daemon, keys, 4)
        task_ids = [submit(clients[number % 4], number) for number in range(20)]
        nodes = runners(clients[0], task_ids)
        assert len(set(nodes.values())) == 2, "one worker does all the work"
        for node in set(nodes.values()):
            theirs = [task_id for task_id, runner in nodes.items() if runner == node]
            for client, task_id in zip(clients, theirs, strict=False):
                seen = client.detail(coroutine_id=task_id)
                assert seen["state"] == "waiting"
                assert seen["task"]["phase"] == "awaiting_response"
                assert json.loads(seen["trace_list"])
                assert client.cancel(task_id)["delivery"] == "aborted_before_response"
                for other in clients:
                    state = other.detail(coroutine_id=task_id)["task"]["state"]
                    assert state == "cancelled"


def test_a_request_is_taken_once_whichever_worker_it_comes_to(daemon: Daemon) -> None:
    keys = daemon.create_keys("http://127.0.0.1:9/callback")
    body = b'{"taskNo":"x","name":"n","content":"1","timeout":1000,"runtime":4102444800}'
    headers = sign_headers(*keys, body, now_ms=SystemClock().now_ms(), nonce=random_token(24))
    headers["Content-Type"] = "application/json"
    where = urlsplit(daemon.url)
    connections = []
    for _ in range(20):
        connection = http.client.HTTPConnection(where.hostname or "", where.port or 0, timeout=10)
        connection.connect()
        connections.append(connection)
    for connection in connections:  # all are under way before the first answer is read
        connection.request("POST", "/task/create", body, headers)
    codes = [json.loads(one.getresponse().read())["code"] for one in connections]
    for connection in connections:
        connection.close()
    assert sorted(codes) == [0] + [401] * 19


def test_of_equal_task_numbers_sent_to_all_workers_one_is_taken(daemon: Daemon) -> None:
    keys = daemon.create_keys("http://127.0.0.1:9/callback")
    taken: list[int] = []
    refused: list[str] = []

    def create(client: Client) -> None:
        for number in range(25):
            try:
                data = client.create_task(
                    task_no=f"same-{number}", name="t", content="1", timeout=1, runtime=4102444800
                )
                taken.append(int(data["coroutine_id"]))
            except RequestRefused as error:
                refused.append(str(error))

    with ExitStack() as stack:
        clients = connected(stack, daemon, keys, 6)
        threads = [threading.Thread(target=create, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(taken) == len(set(taken)) == 25
    assert set(refused) == {"请勿重复提交!"}
    assert len(refused) == 125


def test_connections_are_shared_out_evenly(daemon: Daemon) -> None:
    where = urlsplit(daemon.url)
    with ExitStack() as stack:
        for _ in range(30):
            sock = socket.create_connection((where.hostname, where.port))
            stack.enter_context(sock)

        def held(pid: int) -> int:
            links = (str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir())
            inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
            rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
            return sum(row.split()[9] in inodes and row.split()[3] == "01" for row in rows)

        pids = worker_pids(daemon)
        wait_until(lambda: sum(map(held, pids)) == 30, what="that all are taken")
        assert [held(pid) for pid in pids] == [15, 15]


def test_a_killed_workers_tasks_run_again_and_nothing_waits_for_its_lease(
    daemon: Daemon, holding: tuple[Receiver, threading.Event]
) -> None:
    receiver, release = holding
    keys = daemon.create_keys(receiver.url)
    with ExitStack() as stack:
        clients = connected(stack, daemon, keys, 4)
        task_ids = [submit(clients[number % 4], number) for number in range(10)]
        receiver.wait_for(lambda ledger: len(ledger) == 10)
        nodes = runners(clients[0], task_ids)
        victim = worker_pids(daemon)[1]
        started = len(events(daemon, "started"))
        node = next(e["node"] for e in events(daemon, "started") if e["worker"] == "2/2")
        theirs = {task_id for task_id, runner in nodes.items() if runner == node}
        assert theirs
        kill_worker(daemon, victim)
        killed_at = time.monotonic()
        receiver.wait_for(lambda ledger: len(ledger) == 10 + len(theirs), within_s=LEASE_S + 2)
        assert time.monotonic() - killed_at < LEASE_S + 2
        again = receiver.ledger()[10:]
        assert {delivery.task_id for delivery in again} == theirs
        assert {delivery.attempt for delivery in again} == {2}
        release.set()
        all_ready(daemon, since=started + 1)
        assert len(worker_pids(daemon)) == 2
        with Client(daemon.url, *keys) as client:
            for task_id in task_ids:
                wait_for_state(client, task_id, "succeeded")
        (said,) = events(daemon, "a worker ended, another takes its place")
        assert (said["pid"], said["ended"], said["node"]) == (victim, "SIGKILL", node)


def test_kill_9_of_workers_in_a_loop_under_load_keeps_the_promise(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rounds = int(pytestconfig.getoption("--kill-rounds"))
    application, ledger, rng = Application(), Ledger(), random.Random(4)
    kills: list[Fault] = []
    with Receiver(application) as receiver, workers_at(tmp_path, count=3) as daemon:
        keys = daemon.create_keys(receiver.url, step=0, retry_total=3)
        load = Load(ledger, keys, seed=7, pause_s=0.005)
        load.start(daemon.url)
        for _ in range(rounds):
            receiver.wait_for(more_than(len(receiver.ledger()) + 10))
            time.sleep(rng.uniform(0.05, 0.3))  # noqa: TID251 - the kill comes at any moment
            wait_until(lambda: len(worker_pids(daemon)) > 1, what="one that is left")
            began = now()
            kill_worker(daemon, rng.choice(worker_pids(daemon)))
            kills.append((began, now()))
        load.stop()
        with Client(daemon.url, *keys) as client:
            states = wait_for_ends(client, ledger)
        deliveries = receiver.ledger()
    assert len(kills) == rounds
    assert ledger.cancelled
    assert set(states.values()) <= {"succeeded", "cancelled", "failed"}
    check(ledger, states, deliveries, application.answered, kills)


def test_kill_9_of_the_supervisor_leaves_no_orphan_and_the_next_start_takes_over(
    tmp_path: Path,
) -> None:
    application, ledger, rng = Application(), Ledger(), random.Random(5)
    kills: list[Fault] = []
    with Receiver(application) as receiver:
        daemon = workers_at(tmp_path).start()
        try:
            keys = daemon.create_keys(receiver.url, step=0, retry_total=3)
            load = Load(ledger, keys, seed=11)
            for round_number in range(5):
                load.seed = 100 + round_number
                wanted = more_than(len(receiver.ledger()) + 20)
                load.start(daemon.url)
                receiver.wait_for(wanted)
                time.sleep(rng.uniform(0.05, 0.4))  # noqa: TID251 - the kill comes at any moment
                orphans = worker_pids(daemon)
                daemon.kill()
                began = now()
                daemon.start()  # at once: it waits for what is left of the last one
                assert not any(map(lives, orphans))
                kills.append((began, now()))
                load.stop()
            with Client(daemon.url, *keys) as client:
                states = wait_for_ends(client, ledger)
        finally:
            daemon.kill()
        deliveries = receiver.ledger()
    check(ledger, states, deliveries, application.answered, kills)


def test_a_worker_that_is_stopped_is_left_out_killed_and_replaced(daemon: Daemon) -> None:
    with Receiver() as receiver:
        keys = daemon.create_keys(receiver.url)
        leader, other = worker_pids(daemon)
        os.kill(leader, signal.SIGSTOP)
        wait_until(lambda: leader not in worker_pids(daemon), within_s=20, what="its end")
        wait_until(lambda: events(daemon, "a worker shows no life, and is killed") != [])
        (said,) = events(daemon, "a worker shows no life, and is killed")
        assert said["pid"] == leader
        wait_until(lambda: len(worker_pids(daemon)) == 2)
        assert other in worker_pids(daemon)
        with Client(daemon.url, *keys) as client:
            submit(client, 1)
        receiver.wait_for(lambda ledger: len(ledger) == 1)


@pytest.mark.parametrize("stopped", ["all", "the workers", "one worker"])
def test_a_pause_longer_than_a_lease_sends_nothing_twice(
    daemon: Daemon, holding: tuple[Receiver, threading.Event], stopped: str
) -> None:
    """As of a container that is paused, or a machine. Who lives loses no task to another."""
    receiver, release = holding
    keys = daemon.create_keys(receiver.url)
    with ExitStack() as stack:
        clients = connected(stack, daemon, keys, 4)
        task_ids = [submit(clients[number % 4], number) for number in range(10)]
        receiver.wait_for(lambda ledger: len(ledger) == 10)
        assert len(set(runners(clients[0], task_ids).values())) == 2
        workers = worker_pids(daemon)
        pids = {"all": [daemon.pid, *workers], "the workers": workers, "one worker": workers[1:]}
        for pid in pids[stopped]:
            os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(LEASE_S + 1.5)  # noqa: TID251 - the pause, shorter than it is killed after
        finally:
            for pid in pids[stopped]:
                os.kill(pid, signal.SIGCONT)
        later = [submit(clients[0], number) for number in range(10, 13)]
        receiver.wait_for(lambda ledger: len(ledger) == 13)
        time.sleep(2.5)  # noqa: TID251 - what is expired would be seen by now
        release.set()
        for task_id in (*task_ids, *later):
            wait_for_state(clients[0], task_id, "succeeded")
    assert {delivery.attempt for delivery in receiver.ledger()} == {1}
    assert not events(daemon, "an attempt was abandoned by its node")


def test_a_worker_that_is_told_to_stop_drains_and_is_replaced(
    daemon: Daemon, holding: tuple[Receiver, threading.Event]
) -> None:
    receiver, release = holding
    keys = daemon.create_keys(receiver.url)
    with ExitStack() as stack:
        clients = connected(stack, daemon, keys, 2)
        for number in range(6):
            submit(clients[number % 2], number)
        receiver.wait_for(lambda ledger: len(ledger) == 6)
        victim = worker_pids(daemon)[0]
        os.kill(victim, signal.SIGTERM)
        wait_until(lambda: events(daemon, "draining") != [])
        with Client(daemon.url, *keys) as new:  # goes to the other one
            submit(new, 7)
        release.set()
        wait_until(lambda: not lives(victim))
        wait_until(lambda: len(worker_pids(daemon)) == 2)
        receiver.wait_for(lambda ledger: len(ledger) == 7)
        assert {delivery.attempt for delivery in receiver.ledger()} == {1}
    assert daemon.stop() == 0


def test_an_app_that_one_worker_made_is_known_to_all(daemon: Daemon) -> None:
    keys = daemon.create_keys("http://127.0.0.1:9/callback")
    with ExitStack() as stack:
        for client in connected(stack, daemon, keys, 4):
            assert client.detail(coroutine_id=1)["state"] is None


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"server": {"workers": 65}}, "[server] workers: must be"),
        ({"server": {"workers": 2, "host": "192.0.2.1"}}, "[server] host and port: can't listen"),
        ({"server": {"workers": 2, "tls_cert": "no.pem", "tls_key": "no.pem"}}, "tls_cert"),
        (
            {"server": {"workers": 2}, "store": {"url": "sqlite:////proc/no/taskd.db"}},
            "[store] url",
        ),
    ],
)
def test_what_keeps_it_from_starting_is_one_sentence(
    tmp_path: Path, sections: dict[str, dict[str, object]], said: str
) -> None:
    daemon = workers_at(tmp_path, sections=sections)
    if "65" in str(sections):
        daemon.write_config(sections)
    done = subprocess.run(
        [sys.executable, "-m", "taskd", "serve", "--config", str(daemon.config_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert said in reason_of(done.stderr)


def test_a_second_daemon_is_refused_while_workers_hold_the_store(
    tmp_path: Path, daemon: Daemon
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "taskd", "serve", "--config", str(daemon.config_path), "--port=0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"in use by another taskd, process {daemon.pid}" in done.stderr
    assert len(worker_pids(daemon)) == 2


def test_connections_wait_while_no_worker_is_there(daemon: Daemon) -> None:
    """Both are killed at once; who asks meanwhile is answered by their successors."""
    keys = daemon.create_keys("http://127.0.0.1:9/callback")
    for pid in worker_pids(daemon):
        os.kill(pid, signal.SIGKILL)
    with Client(daemon.url, *keys, timeout=20) as client:
        deadline = time.monotonic() + 20
        while True:
            try:
                assert client.detail(coroutine_id=1)["state"] is None
            except DaemonUnreachable:  # it had gone to one of those that died
                assert time.monotonic() < deadline
            else:
                break
    assert daemon.stop() == 0


def test_a_task_that_a_stopping_worker_runs_is_seen_and_cancelled_through_the_other(
    daemon: Daemon, holding: tuple[Receiver, threading.Event]
) -> None:
    receiver, _ = holding
    keys = daemon.create_keys(receiver.url)
    with ExitStack() as stack:
        clients = connected(stack, daemon, keys, 4)
        task_ids = [submit(clients[number % 4], number) for number in range(8)]
        receiver.wait_for(lambda ledger: len(ledger) == 8)
        nodes = runners(clients[0], task_ids)
        node = next(e["node"] for e in events(daemon, "started") if e["worker"] == "1/2")
        theirs = [task_id for task_id, runner in nodes.items() if runner == node]
        os.kill(worker_pids(daemon)[0], signal.SIGTERM)
        wait_until(lambda: events(daemon, "draining") != [])
        client = stack.enter_context(Client(daemon.url, *keys))
        assert client.healthy()
        for task_id in theirs:
            began = time.monotonic()
            seen = client.detail(coroutine_id=task_id)
            assert (seen["state"], seen["task"]["node"]) == ("waiting", node)
            assert client.cancel(task_id)["delivery"] == "aborted_before_response"
            assert time.monotonic() - began < 5


def test_a_dead_leaders_tasks_fall_due_at_their_time(daemon: Daemon) -> None:
    """The other worker leads from then on: what is due beyond anybody's heap is read."""
    with Receiver() as receiver:
        keys = daemon.create_keys(receiver.url)
        due = now() + 12  # further than a node that accepts a task keeps it in mind
        with Client(daemon.url, *keys) as client:
            client.create_task(
                task_no="later", name="t", content="1", timeout=5000, runtime=round(due, 3)
            )
        wait_until(lambda: len(events(daemon, "leads the timer")) == 1)
        (lead,) = events(daemon, "leads the timer")
        leader = next(e for e in events(daemon, "started") if e["node"] == lead["node"])
        victim = worker_pids(daemon)[int(leader["worker"][0]) - 1]
        kill_worker(daemon, victim)
        wait_until(lambda: len(events(daemon, "leads the timer")) == 2, within_s=5)
        (delivery,) = receiver.wait_for(lambda ledger: len(ledger) == 1, within_s=20)
        assert 0 <= delivery.arrived_at - round(due, 3) < 0.4


def test_a_standard_error_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    daemon = workers_at(tmp_path)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb") as stderr:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(writing, b"x" * 4096):
                pass
        os.set_blocking(writing, True)
        process = subprocess.Popen(
            [*daemon.command, "serve", "--config", str(daemon.config_path)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout as stdout:
            url = json.loads(stdout.readline())["url"]
            with Client(url) as client:
                assert client.ready()
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            victim = int(children.read_text().split()[0])
            os.kill(victim, signal.SIGKILL)

            def replaced() -> bool:
                pids = children.read_text().split()
                return len(pids) == 2 and str(victim) not in pids

            wait_until(replaced, what="another worker")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


@pytest.mark.parametrize("bound", ["max_running", "max_per_origin"])
def test_a_bound_that_cannot_be_shared_out_is_refused(tmp_path: Path, bound: str) -> None:
    daemon = workers_at(tmp_path, count=3, sections={"worker": {bound: 2}})
    done = subprocess.run(
        [sys.executable, "-m", "taskd", "serve", "--config", str(daemon.config_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "must be at least [server] workers (3)" in done.stderr


@pytest.mark.parametrize("wait_s", [0.03, 0.06, 0.1, 0.2])
def test_a_stop_while_a_worker_dies_and_another_starts_is_a_clean_one(
    daemon: Daemon, wait_s: float
) -> None:
    kill_worker(daemon, worker_pids(daemon)[1])
    time.sleep(wait_s)  # noqa: TID251 - the signal comes at any moment of the start
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 5  # nobody had to be killed
