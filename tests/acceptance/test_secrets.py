"""Secrets and contents are nowhere but where they belong."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path

from taskd.client import Client
from tests.support.daemon import Daemon, wait_until
from tests.support.receiver import Answer, Receiver

_MARK = "mark-of-the-content"


def test_no_secret_and_no_content_is_logged_shown_or_listed(tmp_path: Path) -> None:
    release = threading.Event()
    sections = {"log": {"level": "debug", "format": "json"}}
    with (
        Receiver(lambda _: Answer(hold=release)) as receiver,
        Daemon(tmp_path, sections=sections) as daemon,
    ):
        keys = daemon.create_keys(receiver.url)
        _, secret_key = keys
        with Client(daemon.url, *keys) as app:
            data = app.create_task(
                task_no="order-1", name="t", content=json.dumps(_MARK), timeout=20_000
            )
            (delivery,) = receiver.wait_for(lambda ledger: len(ledger) == 1)
            assert delivery.signature_holds(secret_key)
            detail = app.detail(coroutine_id=data["coroutine_id"])
            release.set()
            wait_until(lambda: "succeeded" in daemon.log())
        command_line = Path(f"/proc/{daemon.pid}/cmdline").read_bytes().decode()
        assert daemon.stop() == 0
        told = {
            "the log": daemon.log(),
            "a detail": json.dumps(detail),
            "the command line": command_line,
        }
    assert detail["state"] == "waiting"
    for where, text in told.items():
        for what in (
            secret_key,
            daemon.admin_secret,
            _MARK,
            delivery.headers["signature"],
            delivery.headers["webhook-signature"],
            delivery.headers["nonce"],
        ):
            assert what not in text, f"{what} is in {where}"


def test_every_attempt_is_one_wide_line(tmp_path: Path) -> None:
    def answer(delivery: object) -> Answer:
        return Answer() if getattr(delivery, "attempt", 0) > 1 else Answer(status=500, body=b"no")

    with Receiver(answer) as receiver, Daemon(tmp_path) as daemon:
        keys = daemon.create_keys(receiver.url)
        with Client(daemon.url, *keys) as app:
            data = app.create_task(task_no="order-1", name="t", content="1", timeout=5_000)
        receiver.wait_for(lambda ledger: len(ledger) == 2)
        wait_until(lambda: '"succeeded"' in daemon.log())
        lines = [json.loads(line) for line in daemon.log().splitlines()]
    attempts = [line for line in lines if line["message"] == "attempt"]
    assert [line["outcome"] for line in attempts] == ["rejected", "succeeded"]
    for number, line in enumerate(attempts, 1):
        assert line["task"] == data["coroutine_id"]
        assert line["app"] == keys[0]
        assert line["attempt"] == number
        assert line["status"] == (500 if number == 1 else 200)
        assert line["lateness_ms"] >= 0
        assert line["address"].startswith("127.0.0.1:")
        assert {"sending_ms", "awaiting_response_ms", "reading_ms"} <= line.keys()
    assert attempts[0]["state"] == "retrying"
    assert "next" in attempts[0]


def test_files_are_for_this_user_only(tmp_path: Path) -> None:
    sections = {"store": {"url": "sqlite:///data/taskd.db"}}
    with Daemon(tmp_path, sections=sections) as daemon, daemon.admin() as admin:
        admin.create_app(name="an app", link_url="http://127.0.0.1:9/cb")
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
        for path in (tmp_path / "data").iterdir():
            assert path.stat().st_mode & 0o777 == 0o600, path
        assert {"taskd.db", "taskd.db-wal", "taskd.db-shm"} <= {
            path.name for path in (tmp_path / "data").iterdir()
        }


def test_a_second_daemon_on_the_same_store_is_told_who_holds_it(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        second = Daemon(tmp_path)
        second.launch()
        assert second.wait() == 1
        assert f"{daemon.pid}" in second.log().splitlines()[-1]


def test_no_index_of_the_store_is_broken_by_a_kill(tmp_path: Path) -> None:
    with Receiver() as receiver, Daemon(tmp_path) as daemon:
        keys = daemon.create_keys(receiver.url)
        with Client(daemon.url, *keys) as app:
            for number in range(50):
                app.create_task(task_no=f"no-{number}", name="t", content="1", timeout=5_000)
        daemon.kill()
        connection = sqlite3.connect(tmp_path / "taskd.db")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (50,)
        connection.close()
