"""Applications and unfinished tasks between SQLite and MySQL, both ways."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import trio

from taskd.client import Client
from taskd.daemon.transfer import Counts, export, import_lines
from taskd.errors import TransferClash
from taskd.stores.mysql.statements import STRIDE, MySQLStatements
from tests.integration.test_transfer import fill, lines_of, opened, put
from tests.support.cluster import Cluster
from tests.support.commands import invoke
from tests.support.daemon import Daemon
from tests.support.mysql import opened_mysql, run_bounded
from tests.support.receiver import Receiver
from tests.support.stores import DEADLINE_S, T0, add, lease_one, new_app, new_task, succeeded
from tools.servers import Nsqd

pytestmark = pytest.mark.deadline(DEADLINE_S)


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    """An export of a SQLite store with something of everything."""

    async def exported() -> list[str]:
        path = tmp_path / "from.db"
        with trio.fail_after(60):
            async with opened(path) as store:
                await fill(store)
            return await lines_of(path)

    return trio.run(exported)


async def test_what_goes_to_mysql_and_back_is_what_it_was(
    lines: list[str], tmp_path: Path, database_url: str
) -> None:
    async with opened_mysql(database_url) as store:
        archive = store.archive()
        counts = await import_lines(archive, lines)
        assert counts == Counts(**json.loads(lines[-1]))
        # And once more, as after an interruption.
        await import_lines(archive, lines)
        back = [line async for line in export(archive, now=T0)]
    assert back == lines
    await put(tmp_path / "to.db", back)
    assert await lines_of(tmp_path / "to.db") == lines


async def test_what_waits_is_found_however_much_is_over_between(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    strides = MySQLStatements.STRIDE_END.replace(f"LIMIT {STRIDE}", "LIMIT 2")
    assert strides != MySQLStatements.STRIDE_END
    monkeypatch.setattr(MySQLStatements, "STRIDE_END", strides)

    async with opened_mysql(database_url) as store:
        app = await store.create_app(new_app())
        ids = await add(store, app, 20)
        for task_id in ids[3:17]:
            await store.settle(succeeded(await lease_one(store, task_id)))
        archive = store.archive()
        found: list[int] = []
        while some := await archive.tasks_after(found[-1] if found else 0, limit=3):
            found += [each.id for each in some]
        assert found == ids[:3] + ids[17:]


async def test_ids_that_were_ever_given_are_not_given_again(
    lines: list[str], database_url: str
) -> None:
    async with opened_mysql(database_url) as store:
        await import_lines(store.archive(), lines)
        app = await store.app_by_key("key-1")
        assert app is not None
        given = await store.create_task(new_task(app, "new"))
        assert given > json.loads(lines[0])["highestTaskId"]


async def test_what_clashes_is_refused_and_changes_nothing(
    lines: list[str], database_url: str
) -> None:
    async with opened_mysql(database_url) as store:
        archive = store.archive()
        await import_lines(archive, lines)
        (app,) = await archive.apps_after(0, limit=1)
        first, second = await archive.tasks_after(0, limit=2)
        with pytest.raises(TransferClash):
            await archive.put_apps([dataclasses.replace(app, id=77)])
        for clash in (
            dataclasses.replace(first, task_no="another"),
            dataclasses.replace(first, id=1_000),
            dataclasses.replace(first, id=1_000, app_id=99),
        ):
            new = dataclasses.replace(second, id=2_000, task_no="new")
            with pytest.raises(TransferClash):
                await archive.put_tasks([new, clash])
            assert await archive.tasks_after(1_999, limit=1) == []


def test_nodes_at_work_are_told(lines: list[str], tmp_path: Path, database_url: str) -> None:
    async def lease() -> None:
        async with opened_mysql(database_url) as store:
            await import_lines(store.archive(), lines)
            now = await store.time_ms()
            await store.lease([1], node="n", now=now, expires_at=now + 60_000)
            await lease_one(store, 2, now=T0 + 1_000)  # which expired long ago

    run_bounded(lease)
    config = tmp_path / "taskd.toml"
    config.write_text(f'[store]\nurl = "{database_url}"\n[bus]\nurl = "redis://127.0.0.1:1/0"\n')
    config.chmod(0o600)
    said = invoke("export", str(tmp_path / "out"), "--config", str(config))
    assert said.exit_code == 1
    assert "nodes are at work on 1 tasks: stop them all" in said.stderr
    assert not (tmp_path / "out").exists()


def test_tasks_go_from_a_daemon_alone_into_a_cluster_and_back(
    tmp_path: Path, database_url: str, redis_url: str, nsqd: Nsqd
) -> None:
    urls = {"store": database_url, "bus": redis_url, "queue": f"nsq://{nsqd.address}"}
    home, path, back = tmp_path / "alone", tmp_path / "there.ndjson", tmp_path / "back.ndjson"
    home.mkdir()
    alone = Daemon(home)
    with Receiver() as receiver:
        with alone:
            keys = alone.create_keys(receiver.url)
            with Client(alone.url, *keys) as client:
                far, farther = (
                    client.create_task(
                        task_no=f"no-{number}",
                        name="n",
                        content="{}",
                        timeout=5_000,
                        runtime=4_102_444_800 + number,
                    )["coroutine_id"]
                    for number in range(2)
                )
            assert alone.stop() == 0
        assert invoke("export", str(path), "--config", str(alone.config_path)).exit_code == 0
        cluster = Cluster(tmp_path, urls, nodes=2)
        cluster.migrate()
        config = str(cluster[0].config_path)
        said = invoke("import", str(path), "--config", config)
        assert said.stdout == "imported 1 applications and 2 tasks\n", said.stderr
        with cluster:
            with Client(cluster[1].url, *keys) as client:
                assert client.cancel(far)["delivery"] == "never_sent"
                due = client.create_task(task_no="now", name="n", content="{}", timeout=5_000)[
                    "coroutine_id"
                ]
                receiver.wait_for(lambda ledger: [d.task_id for d in ledger] == [due])
                assert due > farther
            for node in cluster.nodes:
                assert node.stop() == 0
        assert invoke("export", str(back), "--config", config).exit_code == 0
        other = tmp_path / "other"
        other.mkdir()
        again = Daemon(other)
        assert invoke("import", str(back), "--config", str(again.config_path)).exit_code == 0
        with again, Client(again.url, *keys) as client:
            assert client.detail(coroutine_id=farther)["task"]["state"] == "scheduled"
            assert client.detail(coroutine_id=far).get("task") is None  # it had ended
