"""A daemon whose database is removed, replaced or damaged says so, and harms nothing."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from taskd.client import Client
from taskd.errors import RequestRefused
from tests.support.daemon import Daemon, reason_of, wait_until

_LATER = "2099-01-01 09:00:00"
_LINK = "http://127.0.0.1:9/"


def create(app: Client, task_no: str) -> int:
    data = app.create_task(task_no=task_no, name="t", content="{}", timeout=1000, runtime=_LATER)
    return int(data["coroutine_id"])


def refusal(app: Client, task_no: str) -> str:
    with pytest.raises(RequestRefused) as refused:
        create(app, task_no)
    assert refused.value.code == 503
    return str(refused.value)


def not_ready(url: str) -> str:
    """What ``/readyz`` says, once it says 503."""
    told = ""

    def says_so() -> bool:
        nonlocal told
        try:
            urllib.request.urlopen(f"{url}/readyz").close()
        except urllib.error.HTTPError as error:
            with error:
                told = str(json.loads(error.read())["msg"])
                return error.code == 503
        return False

    wait_until(says_so, what="not being ready")
    return told


def backup_of(path: Path) -> Path:
    backup = path.with_name("backup.db")
    with (
        contextlib.closing(sqlite3.connect(path)) as source,
        contextlib.closing(sqlite3.connect(backup)) as target,
    ):
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")
    return backup


def task_no(app: Client, task_id: int) -> str | None:
    task = app.detail(coroutine_id=task_id).get("task")
    return task and str(task["taskNo"])


@pytest.mark.parametrize(("workers", "end"), [(1, "stop"), (1, "kill"), (2, "stop")])
def test_a_backup_moved_over_the_database_is_what_the_next_start_has(
    tmp_path: Path, workers: int, end: str
) -> None:
    path = tmp_path / "taskd.db"
    with Daemon(tmp_path, sections={"server": {"workers": workers}}) as daemon:
        keys = daemon.create_keys(_LINK)
        with Client(daemon.url, *keys) as app:
            first = create(app, "before the backup")
            backup = backup_of(path)
            later = [create(app, f"later {number}") for number in range(50)]
            content = backup.read_bytes()
            backup.rename(path)
            assert "taskd.db was replaced" in refusal(app, "after")
            assert "taskd.db was replaced" in not_ready(daemon.url)
            assert app.healthy()
        if end == "stop":
            assert daemon.stop() == 0
        else:
            daemon.kill()
        assert path.read_bytes() == content
        daemon.start()
        with Client(daemon.url, *keys) as app:
            assert app.ready()
            assert task_no(app, first) == "before the backup"
            assert {task_no(app, task_id) for task_id in later} == {None}
            assert create(app, "after") > first
    assert "set aside" in daemon.log()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_database_that_is_back_is_gone_on_with(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "taskd.db"
    with Daemon(tmp_path, sections={"server": {"workers": workers}}) as daemon:
        with daemon.create_app(_LINK) as app:
            path.rename(tmp_path / "away.db")
            assert "taskd.db was removed or renamed" in refusal(app, "while away")
            not_ready(daemon.url)
            (tmp_path / "away.db").rename(path)
            wait_until(app.ready, what="being ready")
            create(app, "back")
        assert daemon.stop() == 0


def test_a_removed_database_is_missed_by_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"
    with Daemon(tmp_path) as daemon:
        with daemon.create_app(_LINK) as app:
            path.unlink()
            refusal(app, "after")
        assert daemon.stop() == 0
        assert not path.exists()
        told = start_refused(daemon)
        assert "taskd.db is missing" in told
        assert not path.exists()


def test_a_damaged_database_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        with daemon.create_app(_LINK) as app:
            for number in range(20):
                create(app, f"no-{number}")
        assert daemon.stop() == 0
        with (tmp_path / "taskd.db").open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 8192)
        told = start_refused(daemon)
        assert "is damaged" in told
        assert "taskd restore" in told


def start_refused(daemon: Daemon) -> str:
    """The one sentence that a start ends with."""
    ended = subprocess.run(
        [*daemon.command, "serve", "--config", str(daemon.config_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    assert not ended.stdout
    return reason_of(ended.stderr)


_READ = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM tasks").fetchone()
print("reading", flush=True)
sys.stdin.read()
"""


def degraded(url: str) -> list[str]:
    with urllib.request.urlopen(f"{url}/readyz") as response:
        data = json.loads(response.read())["data"]
    return list(data["degraded"]) if data else []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reader_that_does_not_end_is_told_of(tmp_path: Path, workers: int) -> None:
    with Daemon(tmp_path, sections={"server": {"workers": workers}}) as daemon:
        with daemon.create_app(_LINK) as app:
            reader = subprocess.Popen(
                [sys.executable, "-c", _READ, str(tmp_path / "taskd.db")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                assert reader.stdout is not None
                assert reader.stdout.readline() == "reading\n"
                fields = {"name": "t", "content": '"' + "x" * 50_000 + '"', "timeout": 1000}
                for lot in range(30):
                    tasks = [
                        {**fields, "taskNo": f"{lot}-{one}", "runtime": _LATER} for one in range(15)
                    ]
                    app.create_tasks(tasks)
                notes: list[str] = []

                def is_degraded() -> bool:
                    notes[:] = degraded(daemon.url)  # by one of them, who may be the first
                    return bool(notes)

                wait_until(is_degraded, within_s=60)
                (note,) = notes
                assert f"process {reader.pid} (python" in note
                assert "the write-ahead log has grown to " in note
            finally:
                reader.kill()
                reader.communicate()
            assert "can't be shortened" in daemon.log()
            wait_until(lambda: "can be shortened again" in daemon.log(), within_s=60)
            wait_until(lambda: not degraded(daemon.url), within_s=60, what="its end")
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("workers", "way"), [(1, "no lock file"), (1, "hard link"), (2, "no lock file")]
)
def test_a_second_daemon_is_kept_out(tmp_path: Path, workers: int, way: str) -> None:
    with Daemon(tmp_path, sections={"server": {"workers": workers}}) as daemon:
        folder = tmp_path / "second"
        folder.mkdir()
        if way == "hard link":
            (folder / "taskd.db").hardlink_to(tmp_path / "taskd.db")
            store = folder / "taskd.db"
        else:
            (tmp_path / "taskd.db.lock").unlink()
            store = tmp_path / "taskd.db"
        second = Daemon(folder, sections={"store": {"url": f"sqlite:///{store}"}})
        told = start_refused(second)
        assert "in use by another taskd" in told
        assert str(daemon.pid) in told
