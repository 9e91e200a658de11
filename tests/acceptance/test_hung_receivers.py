"""However many receivers hang, whoever's answers is delivered to."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from taskd.client import Client
from tests.support.cluster import Cluster
from tests.support.daemon import Daemon, wait_until
from tests.support.hung import create_hung, degraded, hung_receivers
from tests.support.receiver import Receiver
from tests.support.workers import events
from tools.servers import Nsqd

_SMALL: dict[str, dict[str, object]] = {"worker": {"max_running": 100, "max_per_origin": 50}}


def deliver(receiver: Receiver, client: Client, tasks: int) -> None:
    """Submit tasks that are due at once, one by one and in a batch, and wait until all
    have been delivered."""
    before = len(receiver.ledger())
    for number in range(tasks):
        client.create_task(
            task_no=f"single-{before + number}", name="t", content="{}", timeout=5_000
        )
    client.create_tasks(
        [
            {"taskNo": f"batch-{before + number}", "name": "t", "content": "{}", "timeout": 5_000}
            for number in range(tasks)
        ]
    )
    receiver.wait_for(lambda ledger: len(ledger) == before + 2 * tasks, within_s=30)


@pytest.mark.parametrize(
    ("sections", "hung", "tasks"),
    [
        ({}, 40, 200),  # more than there are places
        ({"server": {"workers": 2}}, 40, 200),
        (_SMALL, 4, 100),
        (_SMALL, 30, 20),
        ({**_SMALL, "server": {"workers": 2}}, 20, 20),
    ],
)
def test_whoever_answers_is_delivered_to_beside_receivers_that_hang(
    tmp_path: Path, sections: dict[str, dict[str, object]], hung: int, tasks: int
) -> None:
    with (
        hung_receivers(hung) as urls,
        Receiver() as receiver,
        Daemon(tmp_path, sections=sections) as daemon,
    ):
        create_hung(daemon, urls, tasks=tasks)
        with daemon.create_app(receiver.url) as client:
            for _ in range(3):
                deliver(receiver, client, 20)
        # What hangs had nothing to do with it: it hangs still.
        assert not [event for event in events(daemon, "attempt") if event["outcome"] != "succeeded"]


def test_a_cluster_delivers_beside_receivers_that_hang(
    tmp_path: Path, database_url: str, redis_url: str, nsqd: Nsqd
) -> None:
    servers = {"store": database_url, "bus": redis_url, "queue": f"nsq://{nsqd.address}"}
    small = dict.fromkeys(range(3), _SMALL)
    with (
        hung_receivers(30) as urls,
        Receiver() as receiver,
        Cluster(tmp_path, servers, per_node=small) as cluster,
        ExitStack() as stack,
    ):
        create_hung(cluster[0], urls, tasks=30)
        keys = cluster[0].create_keys(receiver.url)
        for client in cluster.clients(keys, stack):
            deliver(receiver, client, 20)


def test_a_full_room_names_who_holds_it_and_says_when_it_is_over(tmp_path: Path) -> None:
    with hung_receivers(30) as urls, Daemon(tmp_path, sections=_SMALL) as daemon:
        create_hung(daemon, urls, tasks=20, timeout_ms=6_000)
        wait_until(lambda: degraded(daemon), within_s=20, what="that it is told")
        (told,) = degraded(daemon)
        assert "of 100 are held, most by http://127.0.0.1:" in told
        assert sum(url.removesuffix("/callback") in told for url in urls) == 5
        (event,) = events(daemon, "tasks wait for a place: see who holds most")
        assert event["level"] == "warning"
        assert event["of"] == 100
        assert event["origins"].count("http://") == 5


def test_a_stranger_is_not_told_where_deliveries_go(tmp_path: Path) -> None:
    sections: dict[str, dict[str, object]] = {
        **_SMALL,
        "auth": {"open_registration": True},
        "delivery": {"allowed_networks": ["127.0.0.0/8"]},
    }
    with hung_receivers(30) as urls, Daemon(tmp_path, sections=sections) as daemon:
        create_hung(daemon, urls, tasks=20)
        wait_until(lambda: degraded(daemon), within_s=20, what="that it is told")
        (told,) = degraded(daemon)
        assert "of 100 are held (the log says by whom)" in told
        (event,) = events(daemon, "tasks wait for a place: see who holds most")
        assert "http://127.0.0.1:" in event["origins"]
