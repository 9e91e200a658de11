"""The examples together with the real daemon."""

from __future__ import annotations

import datetime
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from taskd.config import load_config
from tests.support.daemon import Daemon, wait_until
from tests.support.examples import EXAMPLES, LANGUAGES, ExampleReceiver, program
from tests.support.receiver import Receiver
from tools.servers.reserved_port import ReservedPort


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_task_is_delivered_to_the_example_receiver(tmp_path: Path, language: str) -> None:
    with ReservedPort() as port, Daemon(tmp_path) as daemon:
        with daemon.admin() as admin:
            keys = admin.create_app(
                name="an app", link_url=f"http://127.0.0.1:{port}/callback?shop=1"
            )
        app_key, secret_key = str(keys["appKey"]), str(keys["secretKey"])
        with ExampleReceiver(
            language, tmp_path, app_key=app_key, secret_key=secret_key, port=port
        ) as receiver:
            client = ShellClient(daemon.url, app_key=app_key, secret_key=secret_key)
            answer = client.run("task-create", "order-1", "close order", '{"order":1001}', "5000")
            task_id = answer["coroutine_id"]
            assert "1001" in receiver.wait_for_line(f"task {task_id} attempt 1: ")
            wait_until(lambda: client.task(task_id)["state"] == "succeeded")


def _seconds_between(first: object, second: object) -> float:
    moments = [datetime.datetime.fromisoformat(str(text)) for text in (first, second)]
    return (moments[1] - moments[0]).total_seconds()


class ShellClient:
    """examples/client.sh, with its secrets in the environment."""

    def __init__(self, url: str, **environ: str) -> None:
        program("curl")
        program("openssl")
        self.environ = {
            **os.environ,
            "TASKD_URL": url,
            **{f"TASKD_{name.upper()}": value for name, value in environ.items()},
        }

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(EXAMPLES / "client.sh"), *arguments],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def run(self, *arguments: str) -> dict[str, object]:
        """The answer's data; the call must be carried out."""
        done = self.call(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        data = json.loads(done.stdout)["data"]
        assert isinstance(data, dict)
        return data

    def task(self, task_id: object) -> dict[str, object]:
        task = self.run("detail", str(task_id))["task"]
        assert isinstance(task, dict)
        return task


@pytest.mark.parametrize("secret_length", [32, 64, 65, 200])
def test_the_shell_client_creates_looks_and_cancels(tmp_path: Path, secret_length: int) -> None:
    admin_secret = ("%'\"\\ s3cret" * 20)[:secret_length]
    sections = {"auth": {"admin_secret": admin_secret}}
    with Receiver() as receiver, Daemon(tmp_path, sections=sections) as daemon:
        admin = ShellClient(daemon.url, admin_key="admin", admin_secret=admin_secret)
        keys = admin.run("app-create", 'the "帅" \\ app', receiver.url)
        client = ShellClient(
            daemon.url, app_key=str(keys["appKey"]), secret_key=str(keys["secretKey"])
        )
        name = "quotes \" ' \\ 帅"
        due = datetime.datetime(2100, 1, 1, 12, 30, tzinfo=datetime.UTC)
        answer = client.run("task-create", name, name, '["帅",1]', "5000", due.isoformat())
        task_id = answer["coroutine_id"]
        task = client.task(task_id)
        assert task["taskNo"] == name
        assert task["name"] == name
        assert task["runtime"] == "2100-01-01T12:30:00.000Z"
        assert client.task(name) == task
        assert client.run("cancel", name)["coroutine_id"] == task_id
        for number, when in enumerate(["30m", "1800"]):
            made = client.run("task-create", f"no-{number}", "n", "1", "5000", when)
            task = client.task(f"no-{number}")
            assert task["runtime"] == task["dueAt"] == made["dueAt"]
            assert 1790 < _seconds_between(task["createdAt"], task["dueAt"]) <= 1800
            assert client.run("cancel", f"no-{number}")["delivery"] == "never_sent"
        assert client.call("task-create", "x", "n", "1", "5000", "soon").returncode == 1
        again = client.call("cancel", str(task_id))
        assert again.returncode == 1
        assert json.loads(again.stdout)["msg"] == "Unknown!"


def test_the_shell_client_tells_wrong_usage_and_no_daemon_apart(tmp_path: Path) -> None:
    client = ShellClient("http://127.0.0.1:1", app_key="k", secret_key="s")
    assert client.call().returncode == 2
    assert client.call("detail", "a\nb").returncode == 2
    assert client.call("cancel", "a\nb").returncode == 2
    assert client.call("task-create", "a\nb", "n", "1", "5000").returncode == 2
    assert client.call("task-create", "a", "n", "1", "5000; true").returncode == 2
    assert client.call("app-create", "n", "http://127.0.0.1/").returncode == 2
    nobody = client.call("detail", "1")
    assert nobody.returncode == 3
    assert nobody.stdout == ""


def test_the_shell_client_shows_no_secret_in_the_process_list(tmp_path: Path) -> None:
    client = ShellClient("http://127.0.0.1:1", app_key="k", secret_key="s3cret" * 6)
    log = tmp_path / "arguments"
    for name in ("curl", "openssl", "od", "sed", "tr", "cut"):
        spy = tmp_path / name
        spy.write_text(f'#!/bin/sh\nprintf "%s\\n" "$0 $*" >>"{log}"\nexec {program(name)} "$@"\n')
        spy.chmod(stat.S_IRWXU)
    client.environ["PATH"] = f"{tmp_path}:{client.environ['PATH']}"
    client.call("detail", "1")
    seen = log.read_text()
    assert "curl" in seen
    assert "openssl" in seen
    assert "s3cret" not in seen
    assert b"s3cret".hex() not in seen


def test_the_systemd_unit_sets_what_the_configuration_knows(tmp_path: Path) -> None:
    credential = tmp_path / "admin_secret"
    credential.write_text("0123456789abcdef0123456789abcdef\n")
    credential.chmod(0o600)
    unit = (EXAMPLES / "taskd.service").read_text()
    prefix = "Environment="
    assignments = [
        line.removeprefix(prefix).replace("%d", str(tmp_path)).split("=", 1)
        for line in unit.splitlines()
        if line.startswith(prefix)
    ]
    environ = dict(assignments)
    (tmp_path / "taskd.toml").write_text("")
    config = load_config(tmp_path / "taskd.toml", environ)
    assert config.store.url == "sqlite:////var/lib/taskd/taskd.db"
    assert config.auth.admin_secret == "0123456789abcdef0123456789abcdef"
    assert config.log.format == "json"
