"""Three daemons on one set of servers answer as one."""

from __future__ import annotations

import http.client
import itertools
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from taskd.client import Client
from taskd.clock import SystemClock
from taskd.domain.signing import random_token, sign_headers
from tests.support.cluster import LEASE_S, Cluster, node_of
from tests.support.daemon import Daemon, wait_until
from tests.support.load import Application, Fault, Ledger, Load, check, now, wait_for_ends
from tests.support.proxy import Proxy
from tests.support.receiver import Answer, Delivery, Receiver
from tests.support.services import faketime_library
from tools.servers import Database, Nsqd, Redis


@pytest.fixture
def servers(database_url: str, redis_url: str, nsqd: Nsqd) -> dict[str, str]:
    return {"store": database_url, "bus": redis_url, "queue": f"nsq://{nsqd.address}"}


@pytest.fixture
def cluster(tmp_path: Path, servers: dict[str, str]) -> Iterator[Cluster]:
    with Cluster(tmp_path, servers) as cluster:
        yield cluster


@pytest.fixture
def holding() -> Iterator[Receiver]:
    """A receiver that keeps every request until it is told to answer: see `release`."""
    with Receiver() as receiver:
        yield receiver


def hold(receiver: Receiver) -> Callable[[], None]:
    """Let the receiver keep its answers; returns what lets them go."""
    import threading  # noqa: PLC0415 - only here

    held = threading.Event()
    receiver.answer = lambda _: Answer(hold=held)
    return held.set


def submit(client: Client, number: int, *, in_s: float = 0.0, timeout: int = 30_000) -> int:
    data = client.create_task(
        task_no=f"no-{number}",
        name="a task",
        content="{}",
        timeout=timeout,
        runtime=round(now() + in_s, 3) if in_s else None,
    )
    return int(data["coroutine_id"])


def running_on(client: Client, task_ids: list[int]) -> dict[int, str]:
    """Which node each task runs on, once all run."""
    nodes: dict[int, str] = {}

    def all_run() -> bool:
        for task_id in task_ids:
            node = node_of(client.detail(coroutine_id=task_id))
            if node is not None:
                nodes[task_id] = node
        return len(nodes) == len(task_ids)

    wait_until(all_run, what="the start of all tasks")
    return nodes


def names(cluster: Cluster) -> list[str]:
    """The nodes' names, by number."""
    found = []
    for node in cluster.nodes:
        events = [json.loads(line) for line in node.log().splitlines() if line.startswith("{")]
        found.append(next(event["node"] for event in reversed(events) if event.get("node")))
    return found


def test_any_node_answers_for_a_task_that_runs_on_another(
    cluster: Cluster, holding: Receiver
) -> None:
    release = hold(holding)
    keys = cluster[0].create_keys(holding.url)
    with ExitStack() as stack:
        clients = cluster.clients(keys, stack)
        task_ids = [submit(clients[number % 3], number) for number in range(30)]
        nodes = running_on(clients[0], task_ids)
        assert set(nodes.values()) == set(names(cluster)), "not all nodes work"
        holding.wait_for(lambda ledger: len(ledger) == len(task_ids))
        runners: dict[str, list[int]] = {}
        for task_id, node in nodes.items():
            runners.setdefault(node, []).append(task_id)
        for node, theirs in runners.items():
            for client, task_id in zip(clients, theirs, strict=False):
                began = time.monotonic()
                seen = client.detail(coroutine_id=task_id)
                assert time.monotonic() - began < 3
                assert seen["state"] == "waiting"
                assert seen["task"]["node"] == node
                assert seen["task"]["phase"] == "awaiting_response"
                assert json.loads(seen["trace_list"])
                began = time.monotonic()
                assert client.cancel(task_id)["delivery"] == "aborted_before_response"
                assert time.monotonic() - began < 3
                for other in clients:
                    ended = other.detail(coroutine_id=task_id)
                    assert ended["task"]["state"] == "cancelled"
        release()


def test_a_request_is_taken_once_whichever_node_it_comes_to(cluster: Cluster) -> None:
    keys = cluster[0].create_keys("http://127.0.0.1:9/callback")
    body = b'{"taskNo":"x","name":"n","content":"1","timeout":1000,"runtime":4102444800}'
    headers = sign_headers(*keys, body, now_ms=SystemClock().now_ms(), nonce=random_token(24))
    headers["Content-Type"] = "application/json"
    codes = []
    for url in cluster.urls:
        where = urlsplit(url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port or 0, timeout=10)
        connection.request("POST", "/task/create", body, headers)
        codes.append(json.loads(connection.getresponse().read())["code"])
        connection.close()
    assert sorted(codes) == [0, 401, 401]


def test_a_killed_nodes_tasks_run_again_elsewhere(cluster: Cluster, holding: Receiver) -> None:
    release = hold(holding)
    keys = cluster[0].create_keys(holding.url)
    with ExitStack() as stack:
        clients = cluster.clients(keys, stack)
        task_ids = [submit(clients[number % 3], number) for number in range(12)]
        nodes = running_on(clients[0], task_ids)
        holding.wait_for(lambda ledger: len(ledger) == len(task_ids))
        victim = names(cluster)[2]
        lost = {task_id for task_id, node in nodes.items() if node == victim}
        assert lost
        killed_at = now()
        cluster[2].kill()
        holding.wait_for(
            lambda ledger: {d.task_id for d in ledger if d.attempt == 2} == lost,
            within_s=LEASE_S + 4,
        )
        again = [d for d in holding.ledger() if d.attempt == 2]
        assert max(d.arrived_at for d in again) - killed_at <= LEASE_S + 2
        release()
        for task_id in task_ids:
            wait_until(lambda: state(clients[0], task_id) == "succeeded", what=f"task {task_id}")  # noqa: B023 - used at once


def state(client: Client, task_id: int) -> str:
    return str(client.detail(coroutine_id=task_id)["task"]["state"])


def test_a_node_that_slept_past_its_lease_goes_on_with_nothing_that_was_taken(
    cluster: Cluster, holding: Receiver
) -> None:
    release = hold(holding)
    keys = cluster[0].create_keys(holding.url)
    with ExitStack() as stack:
        clients = cluster.clients(keys, stack)
        task_ids = [submit(clients[number % 3], number, timeout=60_000) for number in range(12)]
        nodes = running_on(clients[0], task_ids)
        holding.wait_for(lambda ledger: len(ledger) == len(task_ids))
        theirs = {task_id for task_id, node in nodes.items() if node == names(cluster)[2]}
        assert theirs
        cluster[2].signal(signal.SIGSTOP)
        try:
            holding.wait_for(
                lambda ledger: {d.task_id for d in ledger if d.attempt == 2} == theirs,
                within_s=LEASE_S + 6,
            )
        finally:
            cluster[2].signal(signal.SIGCONT)
        wait_until(
            lambda: cluster[2].log().count("an attempt was given up") >= len(theirs),
            what="the woken node's insight",
        )
        release()
        for task_id in task_ids:
            wait_until(lambda: state(clients[0], task_id) == "succeeded", what=f"task {task_id}")  # noqa: B023 - used at once
        for task_id in theirs:
            attempts = clients[0].detail(coroutine_id=task_id)["task"]["attempts"]
            assert [a["outcome"] for a in attempts] == ["abandoned", "succeeded"]
            assert len([d for d in holding.ledger() if d.task_id == task_id]) == 2


def test_a_pause_of_all_nodes_sends_nothing_twice(cluster: Cluster, holding: Receiver) -> None:
    release = hold(holding)
    keys = cluster[0].create_keys(holding.url)
    with ExitStack() as stack:
        clients = cluster.clients(keys, stack)
        task_ids = [submit(clients[number % 3], number, timeout=60_000) for number in range(12)]
        assert len(set(running_on(clients[0], task_ids).values())) == 3
        holding.wait_for(lambda ledger: len(ledger) == len(task_ids))
        for node in cluster.nodes:
            node.signal(signal.SIGSTOP)
        try:
            time.sleep(LEASE_S + 2)  # noqa: TID251 - the pause
        finally:
            for node in cluster.nodes:
                node.signal(signal.SIGCONT)
        wait_until(lambda: all(client.ready() for client in clients), within_s=20)
        time.sleep(2.5)  # noqa: TID251 - what is expired would be seen by now
        release()
        for task_id in task_ids:
            wait_until(lambda: state(clients[0], task_id) == "succeeded", what=f"task {task_id}")  # noqa: B023 - used at once
    assert {delivery.attempt for delivery in holding.ledger()} == {1}


def test_a_node_that_is_cut_off_from_the_store_stops_before_others_begin(
    tmp_path: Path, servers: dict[str, str], holding: Receiver
) -> None:
    release = hold(holding)
    where = urlsplit(servers["store"])
    with Proxy((where.hostname or "", where.port or 0)) as proxy:
        behind = servers["store"].replace(f":{where.port}/", f":{proxy.port}/")
        per_node = {2: {"store": {"url": behind}}}
        with Cluster(tmp_path, servers, per_node=per_node) as cluster, ExitStack() as stack:
            keys = cluster[0].create_keys(holding.url)
            clients = cluster.clients(keys, stack)
            task_ids = [submit(clients[number % 3], number, timeout=60_000) for number in range(12)]
            nodes = running_on(clients[0], task_ids)
            holding.wait_for(lambda ledger: len(ledger) == len(task_ids))
            theirs = {task_id for task_id, node in nodes.items() if node == names(cluster)[2]}
            assert theirs
            proxy.freeze()
            holding.wait_for(
                lambda ledger: {d.task_id for d in ledger if d.attempt == 2} == theirs,
                within_s=LEASE_S + 6,
            )
            began_again = min(d.arrived_at for d in holding.ledger() if d.attempt == 2)
            given_up = [
                event
                for line in cluster[2].log().splitlines()
                if "an attempt was given up" in (event := line)
            ]
            assert len(given_up) == len(theirs), "it had not stopped when others began"
            assert began_again
            proxy.thaw()
            release()
            for task_id in task_ids:
                wait_until(
                    lambda: state(clients[0], task_id) == "succeeded",  # noqa: B023 - used at once
                    what=f"task {task_id}",
                )
            submit(clients[2], 1_000)  # it is back


@pytest.mark.parametrize("off_s", [1.5, -1.5])
def test_clocks_that_are_a_little_off_do_no_harm(
    tmp_path: Path, servers: dict[str, str], off_s: float
) -> None:
    skewed = {"LD_PRELOAD": faketime_library(), "FAKETIME": f"{off_s:+g}s"}
    skewed |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
    application = Application()
    with Receiver(application) as receiver:
        environ = {0: skewed}
        with Cluster(tmp_path, servers, environ=environ) as cluster, ExitStack() as stack:
            keys = cluster[0].create_keys(receiver.url)
            clients = cluster.clients(keys, stack)
            due: dict[int, float] = {}
            for number in range(60):
                at = round(now() + 1 + number * 0.02, 3)
                data = clients[number % 3].create_task(
                    task_no=f"quick-{number}", name="n", content="1", timeout=5_000, runtime=at
                )
                due[int(data["coroutine_id"])] = at
            receiver.wait_for(lambda ledger: len(ledger) == len(due), within_s=20)
            late = [d.arrived_at - due[d.task_id] for d in receiver.ledger()]
            assert min(late) >= 0
            assert max(late) < 1.5


def test_a_clock_that_is_far_off_is_refused_at_the_start(
    tmp_path: Path, servers: dict[str, str]
) -> None:
    with Cluster(tmp_path, servers, nodes=1) as cluster:
        node = cluster[0]
        node.kill()
        skewed = {"LD_PRELOAD": faketime_library(), "FAKETIME": "+3.5s", "DONT_FAKE_MONOTONIC": "1"}
        off = Daemon(node.folder, environ=skewed)
        off.config_path.write_text(
            "[server]\nport = 0\n"
            f'[store]\nurl = "{servers["store"]}"\n[bus]\nurl = "{servers["bus"]}"\n'
        )
        off.launch()
        assert off.wait(20) == 1
        assert "s ahead of the database's" in off.log()


def test_a_rolling_restart_fails_no_call_and_repeats_nothing(
    cluster: Cluster,
) -> None:
    application = Application()
    ledger = Ledger()
    with Receiver(application) as receiver:
        keys = cluster[0].create_keys(receiver.url, step=0)
        load = Load(ledger, keys, seed=1, pause_s=0.01, retrying=True)
        load.start(*cluster.urls)
        receiver.wait_for(lambda got: len(got) > 20)
        for node in cluster.nodes:
            before = len(receiver.ledger())
            assert node.stop(30) == 0
            receiver.wait_for(lambda got, before=before: len(got) > before + 20)  # type: ignore[misc]
            node.start()
            receiver.wait_for(lambda got, before=before: len(got) > before + 60)  # type: ignore[misc]
        load.stop()
        assert load.refusals == []
        with Client(cluster.urls[0], *keys) as client:
            states = wait_for_ends(client, ledger)
        check(ledger, states, receiver.ledger(), application.answered, faults=[])


def test_redis_gone_costs_new_requests_and_nothing_else(
    tmp_path: Path,
    database_url: str,
    nsqd: Nsqd,
    private_redis: Callable[..., Redis],
) -> None:
    redis = private_redis()
    urls = {"store": database_url, "bus": redis.url, "queue": f"nsq://{nsqd.address}"}
    application = Application()
    with (
        Receiver(application) as receiver,
        Cluster(tmp_path, urls) as cluster,
        ExitStack() as stack,
    ):
        keys = cluster[0].create_keys(receiver.url, step=1)
        clients = cluster.clients(keys, stack)
        due: dict[int, float] = {}
        for number in range(60):
            at = round(now() + 2 + number * 0.1, 3)
            data = clients[number % 3].create_task(
                task_no=f"quick-{number}", name="n", content="1", timeout=5_000, runtime=at
            )
            due[int(data["coroutine_id"])] = at
        redis.kill()
        for node in cluster.nodes:
            wait_until(lambda: not ready(node.url), what="the node's insight")  # noqa: B023 - used at once
        status, text = answer_of(clients[0])
        assert status == 503
        assert "bus" in text
        receiver.wait_for(lambda got: {d.task_id for d in got} == set(due), within_s=30)
        late = [d.arrived_at - due[d.task_id] for d in receiver.ledger()]
        assert min(late) >= 0
        assert max(late) < 3
        redis.start()
        for node in cluster.nodes:
            wait_until(lambda: ready(node.url), within_s=15, what="the node's return")  # noqa: B023 - used at once
        wait_until(lambda: answer_of(clients[1])[0] == 0, within_s=10, what="an accepted request")


def ready(url: str) -> bool:
    with Client(url) as client:
        return client.ready()


def answer_of(client: Client) -> tuple[int, str]:
    """The code and message of a harmless signed request."""
    from taskd.errors import RequestRefused  # noqa: PLC0415 - only here

    try:
        client.detail(coroutine_id=2**40)
    except RequestRefused as error:
        return error.code, error.msg
    return 0, ""


def test_nsq_gone_costs_a_second_or_two(
    tmp_path: Path, database_url: str, redis_url: str, nsqd: Nsqd
) -> None:
    urls = {"store": database_url, "bus": redis_url, "queue": f"nsq://{nsqd.address}"}
    application = Application()
    with (
        Receiver(application) as receiver,
        Cluster(tmp_path, urls) as cluster,
        ExitStack() as stack,
    ):
        keys = cluster[0].create_keys(receiver.url, step=1)
        clients = cluster.clients(keys, stack)
        nsqd.stop()
        lateness = sorted(lateness_of(clients, receiver, "gone"))
        assert lateness[0] >= 0
        assert lateness[int(len(lateness) * 0.99)] < 2
        nsqd.start()
        wait_until(lambda: degraded(cluster.urls) == [], within_s=20, what="the way back")
        assert min(lateness_of(clients, receiver, "back")) >= 0


def test_nsq_that_takes_and_does_not_bring_is_told_by_each_node(
    tmp_path: Path, database_url: str, redis_url: str, nsqd: Nsqd
) -> None:
    urls = {"store": database_url, "bus": redis_url, "queue": f"nsq://{nsqd.address}"}
    with (
        Receiver(Application()) as receiver,
        Cluster(tmp_path, urls) as cluster,
        ExitStack() as stack,
    ):
        clients = cluster.clients(cluster[0].create_keys(receiver.url, step=1), stack)
        numbers = itertools.count()

        def submit_until(condition: Callable[[], bool], what: str) -> None:
            def look() -> bool:
                number = next(numbers)
                submit(clients[number % 3], number)
                return condition()

            wait_until(look, within_s=60, what=what)

        submit_until(lambda: len(receiver.ledger()) > 20, "the first deliveries")
        assert degraded(cluster.urls) == []
        nsqd.operate("pause", "taskd", "taskd")
        submit_until(lambda: all(degraded([url]) for url in cluster.urls), "every node's word")
        for note in degraded(cluster.urls):
            assert f"nsqd {nsqd.address} takes wake-ups of topic taskd" in note
        assert "does not bring them in time" in cluster[1].log()
        nsqd.operate("unpause", "taskd", "taskd")
        submit_until(lambda: degraded(cluster.urls) == [], "the way back")
        submitted = next(numbers)
        receiver.wait_for(lambda got: len({d.task_id for d in got}) == submitted, within_s=20)


def degraded(urls: list[str]) -> list[str]:
    notes: list[str] = []
    for url in urls:
        where = urlsplit(url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port or 0, timeout=10)
        connection.request("GET", "/readyz")
        data = json.loads(connection.getresponse().read())["data"]
        connection.close()
        notes += data["degraded"] if data else []
    return notes


def lateness_of(clients: list[Client], receiver: Receiver, kind: str) -> list[float]:
    """How late tasks were delivered, some due at once and some in a while."""
    before = len(receiver.ledger())
    due: dict[int, float] = {}
    for number in range(150):
        at = round(now() + (number % 3), 3)
        data = clients[number % 3].create_task(
            task_no=f"{kind}-{number}", name="n", content="1", timeout=5_000, runtime=at
        )
        due[int(data["coroutine_id"])] = at

    def theirs(got: list[Delivery]) -> set[int]:
        return {d.task_id for d in got[before:]}

    receiver.wait_for(lambda got: theirs(got) >= set(due), within_s=20)
    return [d.arrived_at - due[d.task_id] for d in receiver.ledger()[before:]]


def test_faults_of_every_kind_lose_nothing(
    tmp_path: Path,
    private_database: Callable[..., Database],
    private_redis: Callable[..., Redis],
    nsqd: Nsqd,
    pytestconfig: pytest.Config,
) -> None:
    """Ten rounds that kill nodes, MariaDB, Redis and nsqd in turn, under load."""
    rounds = max(10, int(pytestconfig.getoption("--kill-rounds")) // 2)
    database, redis = private_database(), private_redis()
    urls = {
        "store": database.create_database(),
        "bus": redis.url,
        "queue": f"nsq://{nsqd.address}",
    }
    application = Application()
    ledger = Ledger()
    faults: list[Fault] = []
    delivered: list[int] = []
    with Receiver(application) as receiver, Cluster(tmp_path, urls) as cluster:
        keys = cluster[0].create_keys(receiver.url, step=0, retry_total=3)
        victims: list[Daemon | Database | Redis | Nsqd] = [
            *(cluster[0], database, redis, nsqd, cluster[1], database, cluster[2])
        ]
        load = Load(ledger, keys, seed=1, pause_s=0.01)

        def more(count: int) -> None:
            before = len(receiver.ledger())
            receiver.wait_for(lambda got: len(got) > before + count, within_s=30)

        for number in range(rounds):
            load.seed = number + 1
            before = len(receiver.ledger())
            load.start(*cluster.urls)
            more(10)
            victim = victims[number % len(victims)]
            began = now()
            victim.kill()
            # Once in the run the database is gone for longer than a lease lasts.
            time.sleep(LEASE_S + 1 if number == 1 else 0.7)  # noqa: TID251 - an outage
            victim.start()
            more(10)
            # A killed node's leases are over after that; and by then what was under way
            # when it could not be settled has been settled, or taken again.
            lasts = LEASE_S + 2 if isinstance(victim, Daemon | Database) else 1
            faults.append((began, now() + lasts))
            load.stop()
            delivered.append(len(receiver.ledger()) - before)
        # A stretch without any, in which nothing is excused.
        wait_until(lambda: now() > max(over for _, over in faults) + 1, what="calm", within_s=20)
        load.seed = rounds + 1
        load.start(*cluster.urls)
        more(200)
        load.stop()
        with Client(cluster.urls[0], *keys) as client:
            states = wait_for_ends(client, ledger, within_s=90)
        deliveries = receiver.ledger()
    assert min(delivered) > 10
    assert ledger.cancelled
    assert check(ledger, states, deliveries, application.answered, faults) > 150
