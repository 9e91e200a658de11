"""``taskd backup`` beside a daemon at work, and ``taskd restore`` in its place."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskd.client import Client
from tests.support.daemon import Daemon, wait_until
from tests.support.receiver import Receiver

_LATER = "2099-01-01 09:00:00"
_LINK = "http://127.0.0.1:9/"
_DEADLINE_S = 60.0
"""For what takes a second on an idle machine."""


def taskd(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*daemon.command, *words, "--config", str(daemon.config_path)],
        cwd=daemon.folder,
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
    )


def task_nos(path: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {task_no for (task_no,) in connection.execute("SELECT task_no FROM tasks")}


def fields(task_no: str, *, runtime: str | None = _LATER, content: str = "{}") -> dict[str, object]:
    task: dict[str, object] = {"taskNo": task_no, "name": "t", "content": content, "timeout": 5000}
    return task if runtime is None else {**task, "runtime": runtime}


def create(app: Client, *tasks: dict[str, object]) -> list[str]:
    """Create tasks in one request; the taskNos that are acknowledged."""
    results = app.create_tasks(list(tasks))
    assert all("taskId" in result for result in results)
    return [str(task["taskNo"]) for task in tasks]


@contextlib.contextmanager
def load(daemon: Daemon, keys: tuple[str, str]) -> Iterator[list[str]]:
    """500 tasks a second, one by one and in lots; yields those that are acknowledged."""
    acknowledged: list[str] = []
    failures: list[Exception] = []
    stop = threading.Event()

    def submit(lane: int, lot: int) -> None:
        try:
            with Client(daemon.url, *keys) as app:
                for number in itertools.count():
                    if stop.wait(0.01 * lot):
                        return
                    tasks = [fields(f"{lane}-{number}-{one}") for one in range(lot)]
                    acknowledged.extend(create(app, *tasks))
        except Exception as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    threads = [threading.Thread(target=submit, args=(lane, lot)) for lane, lot in enumerate(_LOTS)]
    for thread in threads:
        thread.start()
    try:
        yield acknowledged
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


_LOTS = (1, 1, 1, 1, 10)
"""How many tasks each submitter has in a request, of which it makes up to 100 or 10 a
second."""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_backup_ends_beside_a_load_and_has_all_that_was_acknowledged(
    tmp_path: Path, workers: int
) -> None:
    with Daemon(tmp_path, sections={"server": {"workers": workers}}) as daemon:
        keys = daemon.create_keys(_LINK)
        with Client(daemon.url, *keys) as app:
            # So much that the copy is made in some steps, and the load comes in between.
            content = json.dumps("x" * 1_500)
            for lot in range(40):
                create(app, *(fields(f"first-{lot}-{one}", content=content) for one in range(500)))
        with load(daemon, keys) as acknowledged:
            for number in range(2):
                wanted = len(acknowledged) + 300
                wait_until(lambda n=wanted: len(acknowledged) >= n, within_s=_DEADLINE_S)
                before = set(acknowledged)
                made = taskd(daemon, "backup", f"backup-{number}.db", "--json")
                assert made.returncode == 0, made.stderr
                wait_until(lambda n=wanted: len(acknowledged) > n, within_s=_DEADLINE_S)
                kept = task_nos(tmp_path / f"backup-{number}.db")
                assert before <= kept
                assert json.loads(made.stdout)["tasks"] == len(kept) >= 20_000 + len(before)
        assert daemon.stop() == 0
    assert not list(tmp_path.glob(".*"))
    assert set(acknowledged) <= task_nos(tmp_path / "taskd.db")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_restore_brings_back_what_was_there(tmp_path: Path, workers: int) -> None:
    sections = {"server": {"workers": workers}}
    with Receiver() as receiver, Daemon(tmp_path, sections=sections) as daemon:
        keys = daemon.create_keys(receiver.url)
        with Client(daemon.url, *keys) as app:
            create(app, fields("waits"))
            made = taskd(daemon, "backup", "backup.db")
            assert made.stdout.startswith("backed up 1 applications and 1 tasks to backup.db (")
            create(app, fields("of after", runtime=None))
            receiver.wait_for(lambda ledger: len(ledger) == 1)
        refused = taskd(daemon, "restore", "backup.db")
        assert refused.returncode == 1
        assert f"in use by another taskd, process {daemon.pid}" in refused.stderr
        assert daemon.stop() == 0

        done = taskd(daemon, "restore", "backup.db")
        assert done.returncode == 0, done.stderr
        assert "what was there is kept as" in done.stdout
        assert "delivered again" in done.stderr
        assert "nonces" in done.stderr
        daemon.start()
        with Client(daemon.url, *keys) as app:
            create(app, fields("of after", runtime=None))  # its taskNo is free again
            receiver.wait_for(lambda ledger: len(ledger) == 2)
        first, second = (delivery.task_id for delivery in receiver.ledger())
        assert first != second
        assert daemon.stop() == 0
    assert task_nos(tmp_path / "taskd.db") == {"waits", "of after"}


def test_an_interrupted_backup_leaves_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        keys = daemon.create_keys(_LINK)
        with Client(daemon.url, *keys) as app:
            content = json.dumps("x" * 20_000)
            for lot in range(40):
                create(app, *(fields(f"{lot}-{one}", content=content) for one in range(50)))
        for number in (signal.SIGINT, signal.SIGTERM):
            file = tmp_path / f"{number.name}.db"
            backup = subprocess.Popen(
                [*daemon.command, "backup", file, "--config", str(daemon.config_path)],
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            wait_until(lambda: [*tmp_path.glob("*.db"), *tmp_path.glob(".*")][1:], within_s=30)
            backup.send_signal(number)
            # It may have been done by then.
            assert (backup.wait(_DEADLINE_S) == 0) == file.exists()
            assert not list(tmp_path.glob(".*"))
            file.unlink(missing_ok=True)


def test_a_cluster_is_told_what_to_use_instead(tmp_path: Path) -> None:
    daemon = Daemon(
        tmp_path,
        sections={
            "store": {"url": "mysql://taskd:secret@127.0.0.1:1/taskd"},
            "bus": {"url": "redis://127.0.0.1:1/0"},
        },
    )
    for command in ("backup", "restore"):
        refused = taskd(daemon, command, "backup.db")
        assert refused.returncode == 1
        assert "mysqldump --single-transaction or mariadb-backup" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
