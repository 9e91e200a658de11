"""What a node of a cluster refuses at its start, and what it repeats afterwards."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.cluster import Cluster, migrate
from tests.support.daemon import Daemon, reason_of
from tools.servers import Database, Nsqd


def urls(store: str, redis_url: str, nsqd: Nsqd) -> dict[str, str]:
    return {"store": store, "bus": redis_url, "queue": f"nsq://{nsqd.address}"}


def refusal(node: Daemon) -> str:
    """The one line with which it ends."""
    node.launch()
    assert node.wait(20) == 1
    assert "Traceback" not in node.log()
    return reason_of(node.log())


def test_tables_that_are_missing_or_newer_are_told(
    tmp_path: Path, database_server: Database, database_url: str, redis_url: str, nsqd: Nsqd
) -> None:
    node = Cluster(tmp_path, urls(database_url, redis_url, nsqd), nodes=1)[0]
    assert refusal(node).endswith("has no tables of taskd's yet: run `taskd migrate`")
    migrate(node)
    migrate(node)  # changes nothing
    database_server.execute(
        "UPDATE meta SET value = 99 WHERE name = 'schema'",
        database=urlsplit(database_url).path[1:],
    )
    node.log_path.unlink()
    assert "newer taskd" in refusal(node)


def test_two_nodes_may_migrate_at_once(
    tmp_path: Path, database_url: str, redis_url: str, nsqd: Nsqd
) -> None:
    cluster = Cluster(tmp_path, urls(database_url, redis_url, nsqd), nodes=2)
    failures: list[Exception] = []

    def run(node: Daemon) -> None:
        try:
            migrate(node)
        except subprocess.CalledProcessError as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(node,)) for node in cluster.nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with cluster:
        pass


def test_a_server_that_is_not_durable_is_refused_unless_it_is_wanted(
    tmp_path: Path, private_database: Callable[..., Database], redis_url: str, nsqd: Nsqd
) -> None:
    server = private_database(options=["--innodb-flush-log-at-trx-commit=2"])
    strict, relaxed = tmp_path / "strict", tmp_path / "relaxed"
    strict.mkdir()
    relaxed.mkdir()
    given = urls(server.create_database(), redis_url, nsqd)
    node = Cluster(strict, given, nodes=1)[0]
    migrate(node)
    assert "innodb_flush_log_at_trx_commit" in refusal(node)
    with Cluster(relaxed, given, nodes=1, per_node={0: {"store": {"durability": "relaxed"}}}) as c:
        where = urlsplit(c[0].url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port or 0, timeout=10)
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        assert response.status == 200
        (note,) = json.loads(response.read())["data"]["degraded"]
        connection.close()
        assert "innodb_flush_log_at_trx_commit" in note
        assert "innodb_flush_log_at_trx_commit" in c[0].log()


@pytest.mark.parametrize(
    ("break_", "told"),
    [
        (lambda url: url.replace("root:", "nobody:"), "nobody"),
        (lambda url: url.rsplit("/", 1)[0] + "/nowhere", "nowhere"),
        (lambda url: url + "?tls=true", "TLS"),
    ],
    ids=["user", "database", "tls"],
)
def test_a_database_that_can_not_be_used_is_told_without_the_password(  # noqa: PLR0917 - fixtures
    tmp_path: Path,
    database_url: str,
    redis_url: str,
    nsqd: Nsqd,
    break_: Callable[[str], str],
    told: str,
) -> None:
    node = Cluster(tmp_path, urls(break_(database_url), redis_url, nsqd), nodes=1)[0]
    line = refusal(node)
    assert told in line
    assert (urlsplit(database_url).password or "?") not in node.log()
